"""Find, read and verify checkpoints; nothing in one is ever run.

A location is a local path, an fsspec URL (`s3://...`, `https://...`, `memory://...`), or `package:NAME/FILE`: a file
that the installed package with the import name NAME carries. Files are told apart by their first bytes, not by name.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import Tensor, nn

from fourd_core.errors import WeightsError
from fourd_core.media.locations import missing_package

_SHOWN = 3
"""How many key names an error message lists before it only counts."""


def read_state_dict(location: str) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by name, on the CPU, every one of them finite.

    A torch file is read with `weights_only=True`. Where it holds a dict under `"state_dict"`, that one is taken.

    Raises:
        WeightsError: missing, empty, damaged, not a checkpoint, a pickle that holds more than tensors, NaN or infinite.
    """
    with _local_file(location) as path:
        state = _read(path, location)
    if not state:
        raise WeightsError(f"the checkpoint {location} holds no tensors: export it again")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{location} is not a plain state dict: its entry '{name}' is of type {type(value).__name__}, not a "
                "tensor; save the network's state_dict() alone, or under the key 'state_dict'"
            )
        if not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise WeightsError(
                f"the checkpoint {location} is unusable: {count} of the {value.numel()} numbers of '{name}' are NaN or "
                "infinite; take a checkpoint from before the training broke"
            )
    return state


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, location: str, ignore_prefixes: Sequence[str] = (),
    optional: Sequence[str] = (), advice: str = "",
) -> None:  # fmt: skip
    """Copy a checkpoint into a module, cast to the module's dtypes; all of it, or nothing where it does not fit.

    Args:
        location: where `state` came from, for the message.
        ignore_prefixes: the checkpoint's keys that start with one of them are no business of this module.
        optional: the module's keys that start with one of them may be missing, and then keep their values.
        advice: what to do when it does not fit, if the caller knows better.
    Raises:
        WeightsError: keys are missing, unexpected, or of another shape or kind of number.
    """
    own = module.state_dict()
    assert not any(t.is_meta for t in own.values()), "weights cannot be loaded into a module on the meta device"
    given = {key: value for key, value in state.items() if not key.startswith(tuple(ignore_prefixes))}
    shared = [key for key in own if key in given]
    problems = [
        _listed("missing", [key for key in own if key not in given and not key.startswith(tuple(optional))]),
        _listed("unexpected", [key for key in given if key not in own]),
        _listed("different", [text for key in shared if (text := _difference(key, given[key], own[key]))]),
    ]
    if any(problems):
        raise WeightsError(
            f"the checkpoint {location} does not fit this network ({type(module).__name__}, {len(own)} tensors): "
            + "; ".join(filter(None, problems))
            + ". "
            + (advice or "It was made for another network or another size: correct the weights' location or the config")
        )
    module.load_state_dict(given, strict=False)  # copies into the tensors that are there, which keep their dtype


def sha256_of(location: str) -> str:
    """The SHA-256 of the file, in hexadecimal.

    Raises:
        WeightsError: the file cannot be read.
    """
    with _local_file(location) as path, path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def _local_file(location: str) -> Iterator[Path]:
    """The file as a local path; one that lies elsewhere is copied for as long as it is needed."""
    if location.startswith("package:"):
        with _packaged_file(location) as path:
            yield _existing(path, location)
    elif "://" in location or "::" in location:
        with tempfile.TemporaryDirectory(prefix="fourd-") as folder:
            path = Path(folder) / "weights"
            try:
                with fsspec.open(location, "rb") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
            except ImportError as error:
                raise WeightsError(f"cannot read the weights {location}: {missing_package(location, error)}") from error
            except Exception as error:  # every file system has exceptions of its own
                raise WeightsError(f"cannot read the weights {location}: {_why(error)}; check the address") from error
            yield path
    else:
        yield _existing(Path(location).expanduser(), location)


def _why(error: Exception) -> str:
    if not isinstance(error, FileNotFoundError):
        return str(error)
    if error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError):
        return "there is no such file"
    # Over http, whatever goes wrong is a file that is not found.
    return f"there is no such file, or it cannot be reached ({error.__cause__})"


@contextmanager
def _packaged_file(location: str) -> Iterator[Path]:
    name, _, inside = location.removeprefix("package:").partition("/")
    if not name or not inside:
        raise WeightsError(f"'{location}' names no file: write package:IMPORT_NAME/FILE/IN/PACKAGE")
    try:
        root = importlib.resources.files(name)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"cannot read the weights {location}: the package '{name}' is not installed here; install it with pip"
        ) from error
    with importlib.resources.as_file(root.joinpath(inside)) as path:
        yield path


def _existing(path: Path, location: str) -> Path:
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise WeightsError(f"cannot read the weights {location}: {what}; check the location")
    return path


def _read(path: Path, location: str) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            head = handle.read(9)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {location}: {error.strerror}") from error
    if not head:
        raise WeightsError(f"the checkpoint {location} is an empty file: fetch or export it again")
    if head[8:9] == b"{":
        tensors: dict[str, Any] = _guarded(lambda: safetensors.torch.load_file(path), location)
        return tensors
    if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
        raise WeightsError(
            f"{location} is not a checkpoint: it starts neither like a safetensors nor like a torch file; check the "
            "location (a web page saved in the place of the file?)"
        )
    content = _guarded(lambda: torch.load(path, map_location="cpu", weights_only=True), location)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
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
        raise WeightsError(
            f"the checkpoint {location} is damaged or cut short ({reason[:120]}): fetch or export it again"
        ) from error


def _difference(key: str, given: Tensor, own: Tensor) -> str:
    """Why the one cannot be copied into the other; empty where it can."""
    if given.shape != own.shape:
        return f"{key} is {_shape(given)} in the file and {_shape(own)} here"
    if given.is_floating_point() != own.is_floating_point():
        return f"{key} is {given.dtype} in the file and {own.dtype} here"
    return ""


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"


def _listed(kind: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {kind} ({', '.join(items[:_SHOWN])}{more})"
