"""Random numbers as a function of (seed, clip, position): for a whole batch at once, whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

STEP = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """A stream of random numbers for each clip of a batch; every method draws the same amount from each.

    The numbers are those of SplitMix64 (Steele, Lea, Flood 2014), entered at a key per clip.
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        own = np.asarray(numbers, dtype=np.int64).astype(np.uint64)
        start = _mixed(np.asarray([seed % 2**64], dtype=np.uint64))
        self._keys = _mixed(start + _mixed((own + np.uint64(1)) * STEP))[:, None]
        self._position = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float64[np.ndarray, "b ..."]:
        """Numbers in [low, high), an array of `shape` for each clip."""
        count = math.prod(shape)
        counter = np.arange(self._position + 1, self._position + count + 1, dtype=np.uint64)
        self._position += count
        bits = _mixed(self._keys + counter * STEP) >> np.uint64(11)
        return (low + (high - low) * (bits * 2.0**-53)).reshape(len(self._keys), *shape)

    def normal(self, *shape: int) -> Float64[np.ndarray, "b ..."]:
        """Numbers of a standard normal distribution (Box and Muller 1958)."""
        length = np.sqrt(-2 * np.log1p(-self.uniform(*shape)))
        return length * np.cos(2 * np.pi * self.uniform(*shape))

    def chance(self, share: float, *shape: int) -> Bool[np.ndarray, "b ..."]:
        """True in a share of the cases."""
        return self.uniform(*shape) < share

    def direction(self, *shape: int) -> Float64[np.ndarray, "b ... 3"]:
        """Unit vectors, evenly over the sphere."""
        z, angle = self.uniform(*shape, low=-1.0), self.uniform(*shape, high=2 * np.pi)
        across = np.sqrt(1 - z * z)
        return np.stack([across * np.cos(angle), across * np.sin(angle), z], -1)

    def integer(self, *shape: int, stop: int) -> Int64[np.ndarray, "b ..."]:
        """Whole numbers from 0 to `stop - 1`."""
        return (self.uniform(*shape) * stop).astype(np.int64)


def _mixed(bits: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
