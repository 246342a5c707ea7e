"""How well each place of one frame matches the surroundings of a place in another, at several scales.

For every place a window of `2 radius + 1` x `2 radius + 1` correlations is read around a given position, at each level
of a pyramid of the second frame's features. The window is x-major: channel `i (2 radius + 1) + j` of a level belongs to
the offset `(x, y) = (i - radius, j - radius)`. Outside of the frame the correlation is zero.

RAFT averages the volume of all correlations over 2 x 2 places of the second frame, SEA-RAFT halves the second frame's
features bilinearly. Both are the mean of 2 x 2 places, which the correlation, linear in the second features, lets
through: one pyramid of features serves both networks, and the volume need not exist at all.

Source: Teed and Deng, RAFT (arXiv 2003.12039), section 3.2; princeton-vl/RAFT and princeton-vl/SEA-RAFT, core/corr.py.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Storage = Literal["auto", "volume", "on_the_fly"]
"""How correlations are kept: all of them, or none, each being computed when it is read; auto: by the volume's size."""
VOLUME_LIMIT = 4 * 2**30
"""Bytes up to which "auto" keeps the volume. A fixed number, so that one input gives the same bits on every machine."""
CHUNK_BYTES = 2**26
"""Working memory in which correlations are computed on the fly."""


class Level(NamedTuple):
    """The second frame at one scale: either its features or its correlation with every place of the first frame."""

    height: int
    width: int
    features: Float[Tensor, "bm c"] | None
    volume: Float[Tensor, "bn m"] | None


class Correlation:
    """The correlations of two feature maps, read in windows.

    Args:
        first: features of the frame that asks.
        second: features of the frame in which it looks.
        levels: scales, each half of the one before it.
        radius: of the window, in places of a level.
        storage: "volume" is faster and takes memory that grows with the square of the number of places; both give the
            same numbers but for round-off.
        volume_limit: bytes of the volume up to which "auto" chooses it.
    Raises:
        ValueError: the features are too small for so many levels.
    """

    def __init__(
        self, first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"], levels: int, radius: int,
        storage: Storage = "auto", volume_limit: int = VOLUME_LIMIT,
    ) -> None:  # fmt: skip
        self.radius = radius
        self.places = first.shape[2] * first.shape[3]
        self.first = (first / math.sqrt(first.shape[1])).flatten(2).mT.contiguous()
        maps = pyramid(second, levels)
        if storage == "auto":
            small = volume_bytes(first, maps) <= volume_limit
            storage = "volume" if small else "on_the_fly"
        self.levels = [self._level(features, storage == "volume") for features in maps]

    def __call__(self, positions: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b k h w"]:
        """The windows around a position for each place, finest level first: `k = levels (2 radius + 1)^2`.

        Args:
            positions: (x, y) in places of the second features, the centre of the first place being (0, 0).
        """
        b, _, h, w = positions.shape
        places = positions.flatten(2).mT.reshape(-1, 2)
        windows = [self._windows(level, places / 2**number) for number, level in enumerate(self.levels)]
        maps: Tensor = torch.cat(windows, dim=1).unflatten(0, (b, h, w)).permute(0, 3, 1, 2)
        return maps

    def _level(self, features: Float[Tensor, "b c h w"], keep_volume: bool) -> Level:
        height, width = features.shape[-2:]
        if keep_volume:
            return Level(height, width, None, (self.first @ features.flatten(2)).flatten(0, 1))
        return Level(height, width, features.flatten(2).mT.flatten(0, 1), None)

    def _windows(self, level: Level, positions: Float[Tensor, "bn 2"]) -> Float[Tensor, "bn k"]:
        if level.volume is not None:
            return self._window(level, positions, 0)
        bytes_per_place = (2 * self.radius + 2) ** 2 * self.first.shape[-1] * self.first.element_size()
        step = max(1, CHUNK_BYTES // bytes_per_place)
        parts = [self._window(level, part, i * step) for i, part in enumerate(positions.split(step))]
        return torch.cat(parts)

    def _window(self, level: Level, positions: Float[Tensor, "n 2"], start: int) -> Float[Tensor, "n k"]:
        """The windows of the places `start, start + 1, ...`: correlations at whole positions, mixed bilinearly.

        All positions of a window have the same fraction, so that its `(2 r + 2)^2` whole neighbours are read once.
        """
        reach = torch.arange(-self.radius, self.radius + 2, device=positions.device)
        farthest = positions.new_tensor([level.width, level.height]) + self.radius + 1
        positions = positions.clamp(min=-self.radius - 2).minimum(farthest)  # further away all is zero as well
        corner = positions.floor()
        x, y = (corner.long()[:, :, None] + reach).unbind(1)
        inside = _between(x, level.width)[:, :, None] & _between(y, level.height)[:, None]
        index = y.clamp(0, level.height - 1)[:, None] * level.width + x.clamp(0, level.width - 1)[:, :, None]
        values = self._read(level, index.flatten(1), start).view_as(index) * inside
        along_x, along_y = (positions - corner)[:, :, None, None].unbind(1)
        values = torch.lerp(values[:, :-1], values[:, 1:], along_x)
        return torch.lerp(values[:, :, :-1], values[:, :, 1:], along_y).flatten(1)

    def _read(self, level: Level, index: Int[Tensor, "n k"], start: int) -> Float[Tensor, "n k"]:
        """The correlations of the places `start ...` with some places of the level."""
        if level.volume is not None:
            return level.volume.gather(1, index)
        assert level.features is not None
        rows = torch.arange(start, start + len(index), device=index.device)
        clip = (rows // self.places)[:, None] * (level.height * level.width)
        features = F.embedding(index + clip, level.features)
        return (features @ self.first.flatten(0, 1)[rows, :, None]).squeeze(2)


def pyramid(features: Float[Tensor, "b c h w"], levels: int) -> list[Float[Tensor, "b c _ _"]]:
    """The features and their means over 2 x 2, 4 x 4 ... places; an odd last row or column has no place above it.

    The mean of 2 x 2 is what a bilinear resize by the factor 0.5 gives (align_corners False).

    Raises:
        ValueError: a level would have no place left.
    """
    h, w = features.shape[-2:]
    if min(h, w) < 2 ** (levels - 1):
        raise ValueError(f"features of {h} x {w} are too small for {levels} levels of correlation")
    maps = [features]
    for _ in range(levels - 1):
        maps.append(F.avg_pool2d(maps[-1], 2))
    return maps


def volume_bytes(first: Float[Tensor, "b c h w"], maps: list[Float[Tensor, "b c _ _"]]) -> int:
    """How much memory the correlations of every place with every place of every level take."""
    b, _, h, w = first.shape
    return b * h * w * sum(level.shape[2] * level.shape[3] for level in maps) * first.element_size()


def _between(index: Int[Tensor, "*n"], size: int) -> Tensor:
    return (index >= 0) & (index < size)
