"""Copy a checkpoint into a network: all of it, or nothing and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fourd_core.errors import WeightsError, some
from fourd_core.weights.cache import shown
from fourd_core.weights.describe import families

_SHOWN = 3
"""How many key names an error message lists before it only counts."""


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, location: str, ignore_prefixes: Sequence[str] = (),
    optional: Sequence[str] = (), advice: str = "",
) -> None:  # fmt: skip
    """Copy a checkpoint into a module, cast to the module's dtypes; all of it, or nothing where it does not fit.

    For a module on the meta device names and shapes are compared and nothing is copied.

    Args:
        location: where `state` came from, for the message.
        ignore_prefixes: the checkpoint's keys that start with one of them are no business of this module.
        optional: the module's keys that start with one of them may be missing, and then keep their values.
        advice: what to do when it does not fit, if the caller knows better.
    Raises:
        WeightsError: keys are missing, unexpected, or of another shape or kind of number.
    """
    own = module.state_dict()
    given = {key: value for key, value in state.items() if not key.startswith(tuple(ignore_prefixes))}
    shared = [key for key in own if key in given]
    problems = [
        _listed("missing", [key for key in own if key not in given and not key.startswith(tuple(optional))]),
        _listed("unexpected", [key for key in given if key not in own]),
        _listed("different", [text for key in shared if (text := _difference(key, given[key], own[key]))]),
    ]
    if any(problems):
        raise WeightsError(
            f"the checkpoint {shown(location)} does not fit this network ({type(module).__name__}, {len(own)} "
            "tensors): " + "; ".join(filter(None, problems)) + ". " + (advice or _advice(given))
        )
    if not any(tensor.is_meta for tensor in own.values()):
        module.load_state_dict(given, strict=False)  # copies into the tensors that are there, which keep their dtype


def _advice(given: Mapping[str, Tensor]) -> str:
    found = families(given)
    looks = f"It looks like {' or '.join(found)}" if found else "It was made for another network or another size"
    return f"{looks}: correct the weights' location or the config"


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
    return f"{len(items)} {kind} ({some(items, _SHOWN)})" if items else ""
