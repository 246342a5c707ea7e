"""A training's state in one safetensors file, written whole or not at all.

Tensors: `model/<name>`, `optimizer/<parameter name>/<slot>` and `average/<parameter name>`; the step and the number of
processes stand in the metadata. Parameters are named, not numbered, so that a checkpoint never fits another network by
accident.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fourd_core.errors import WeightsError
from fourd_core.files import atomic

MODEL, OPTIMIZER, AVERAGE = "model/", "optimizer/", "average/"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically.

    Raises:
        RunError: the disk is full or the folder not writable.
    """
    own = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask leaves; safetensors may put a file of mode 600 in its place
        try:
            save_file(own, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:  # its OSErrors come wrapped, with the number in the text
            raise _as_os_error(error) from error
        temporary.chmod(mode)


def _as_os_error(error: Exception) -> Exception:
    import errno
    import re

    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number.group(1)), str(error)) if number else OSError(errno.EIO, str(error))


@attrs.frozen(eq=False)
class Checkpoint:
    """The state of a training between two steps.

    Attributes:
        model: what training changes or owns of the model.
        step: how many optimiser steps are done.
        optimizer: the optimiser's tensors by `<parameter name>/<slot>`.
        average: the averaged parameters by name, where they are averaged.
        processes: how many processes train together; so many samples make a step.
    """

    model: Mapping[str, Tensor]
    step: int = 0
    optimizer: Mapping[str, Tensor] = attrs.field(factory=dict)
    average: Mapping[str, Tensor] = attrs.field(factory=dict)
    processes: int = 1

    def save(self, path: Path) -> None:
        """Write it atomically.

        Raises:
            RunError: the disk is full or the folder not writable.
        """
        parts = {MODEL: self.model, OPTIMIZER: self.optimizer, AVERAGE: self.average}
        tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
        save_tensors(path, tensors, {"fourd": json.dumps({"step": self.step, "processes": self.processes})})

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """The inverse of `save`, on the CPU.

        Raises:
            WeightsError: damaged, or no checkpoint.
        """
        try:
            with safe_open(path, "pt") as handle:
                facts = json.loads(handle.metadata()["fourd"])
                step, processes = int(facts["step"]), int(facts.get("processes", 1))
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{path} is not a whole checkpoint ({error}); delete it to start this stage anew"
            ) from error
        model, optimizer, average = (below(prefix, tensors) for prefix in (MODEL, OPTIMIZER, AVERAGE))
        return cls(model, step, optimizer, average, processes)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under what follows it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's tensors by `<parameter name>/<slot>`; `parameters` are the optimised ones by name."""
    return {
        f"{name}/{slot}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], place: str
) -> None:
    """Give the optimiser its state back.

    Args:
        state: as `optimizer_state` returns it.
        place: where it comes from, for the message.
    Raises:
        WeightsError: it belongs to another network.
    """
    for key, value in state.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            raise WeightsError(f"{place} holds optimiser state of '{name}', which this system does not train")
        parameter = parameters[name]
        # The step counter of AdamW stays on the CPU; moments live beside their parameter.
        optimizer.state[parameter][slot] = value if value.ndim == 0 else value.to(parameter.device)
