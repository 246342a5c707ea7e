"""Nested states: tensors in dicts, lists and tuples, as memories hand them on and a killed prediction keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def each(state: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: each(item, change) for key, item in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(each(item, change) for item in state)
    return state
