"""A training's state in one safetensors file, written whole or not at all.

Tensors: `model/<name>` and `optimizer/<parameter name>/<slot>`; the step stands in the metadata. Parameters are named,
not numbered, so that a checkpoint never fits another network by accident.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fourd_core.errors import WeightsError
from fourd_core.files import atomic

MODEL, OPTIMIZER = "model/", "optimizer/"


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


def save_checkpoint(
    path: Path, state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer, step: int,
) -> None:  # fmt: skip
    """Write model state, optimiser state and step.

    Args:
        state: what to save of the model.
        parameters: the optimised parameters by name.
        step: how many optimiser steps are done.
    """
    tensors = {MODEL + key: value for key, value in state.items()}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{OPTIMIZER}{name}/{slot}"] = torch.as_tensor(value)
    save_tensors(path, tensors, {"fourd": json.dumps({"step": step})})


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], int]:
    """Give the optimiser its state back; returns the model state and the number of steps done.

    Raises:
        WeightsError: damaged, or another network's.
    """
    try:
        with safe_open(path, "pt") as handle:
            step = int(json.loads(handle.metadata()["fourd"])["step"])
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole checkpoint ({error}); delete it to start this stage anew") from error
    for key, value in tensors.items():
        if key.startswith(OPTIMIZER):
            name, _, slot = key.removeprefix(OPTIMIZER).rpartition("/")
            if name not in parameters:
                raise WeightsError(f"{path} holds optimiser state of '{name}', which this system does not train")
            parameter = parameters[name]
            # The step counter of AdamW stays on the CPU; moments live beside their parameter.
            optimizer.state[parameter][slot] = value if value.ndim == 0 else value.to(parameter.device)
    return {key.removeprefix(MODEL): value for key, value in tensors.items() if key.startswith(MODEL)}, step
