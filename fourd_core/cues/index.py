"""Clips as rows of integers, which can be looked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from fourd_core.cues.plan import hash_of

Codes = Shaped[np.ndarray, " n"]


def codes_of(items: Int64[np.ndarray, "n columns"]) -> Codes:
    """Each row of integers as one value that can be sorted and compared."""
    items = np.ascontiguousarray(items, np.int64)
    return items.view(np.dtype((np.void, items.dtype.itemsize * items.shape[1]))).reshape(len(items))


def items_of(rows: Int64[np.ndarray, "n columns"], keys: Sequence[str]) -> Int64[np.ndarray, "n columns"]:
    """Rows of a plan as a store names them: the hash of the video's key instead of its number."""
    hashes = np.array([hash_of(key) for key in keys], np.int64)
    return np.column_stack([hashes[rows[:, 0]], rows[:, 1:]])
