"""Read checkpoints; a pickle is opened with `weights_only=True` or not at all."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fourd_core.errors import WeightsError
from fourd_core.weights.cache import shown
from fourd_core.weights.formats import HEAD, Format, format_of, what_instead
from fourd_core.weights.locations import local_file

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Under which of their keys training programs (Lightning, timm, DeepSpeed) keep the network's tensors."""


def read_state_dict(location: str) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by name, on the CPU, every one of them finite.

    A torch file is read with `weights_only=True`, and mapped into memory where its format allows that. Where it holds
    a dict under `"state_dict"` (or another of `WRAPPERS`), that one is taken.

    Raises:
        WeightsError: missing, empty, damaged, not a checkpoint, a pickle that holds more than tensors, NaN or infinite.
    """
    with local_file(location) as path:
        state = read_tensors(path, shown(location))
    check_finite(state, shown(location))
    return state


def check_finite(state: Mapping[str, Tensor], location: str) -> None:
    """Refuse a checkpoint with numbers that are none.

    Raises:
        WeightsError: names the first tensor with NaN or infinite numbers.
    """
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise WeightsError(
                f"the checkpoint {location} is unusable: {count} of the {value.numel()} numbers of '{name}' are NaN or "
                "infinite; take a checkpoint from before the training broke"
            )


def read_tensors(path: Path, location: str) -> dict[str, Tensor]:
    """`read_state_dict` of a local file without a look at the numbers; `location` stands in messages."""
    kind = read_format(path, location)
    if kind == "safetensors":
        state: dict[str, Any] = _guarded(lambda: safetensors.torch.load_file(path), location)
    else:
        state = _inner(_load(path, kind, location), location)
    if not state:
        raise WeightsError(f"the checkpoint {location} holds no tensors: export it again")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{location} is not a plain state dict: its entry '{name}' is of type {type(value).__name__}, not a "
                "tensor; save the network's state_dict() alone, or under the key 'state_dict'"
            )
    return state


def read_format(path: Path, location: str) -> Format:
    """The format of a checkpoint.

    Raises:
        WeightsError: it cannot be read, is empty, or is no checkpoint.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(HEAD)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {location}: {error.strerror}") from error
    if not head:
        raise WeightsError(f"the checkpoint {location} is an empty file: fetch or export it again")
    kind = format_of(head)
    if kind is None:
        found = what_instead(head)
        raise WeightsError(
            f"{location} is not a checkpoint: it starts neither like a safetensors nor like a torch file; check the "
            f"location{f' ({found})' if found else ''}"
        )
    return kind


def _load(path: Path, kind: Format, location: str) -> Any:
    # A mapped file of 6 GB takes no memory beyond the pages in use, and the system may drop those again.
    mapped = kind == "torch"
    return _guarded(lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), location)


def _inner(content: Any, location: str) -> dict[str, Any]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{location} is not a plain state dict: it holds one {type(content).__name__}; save the network's "
            "state_dict()"
        )
    return {str(key): value for key, value in content.items()}


def _guarded(read: Callable[[], Any], location: str) -> Any:
    """Run a reader; its many ways to fail are two for the user: the file is unsafe, or it is damaged."""
    try:
        return read()
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        raise WeightsError(
            f"{location} is refused: it is a Python pickle with more in it than tensors{what}, and opening it could "
            "run code; where you trust its source, save its state_dict() as safetensors"
        ) from None
    except Exception as error:  # a damaged file breaks the readers in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "TorchScript" in reason:
            raise WeightsError(
                f"{location} is refused: it is a TorchScript program; save the state_dict() of what it was made from"
            ) from None
        raise WeightsError(
            f"the checkpoint {location} is damaged or cut short ({reason[:120]}): fetch or export it again"
        ) from error
