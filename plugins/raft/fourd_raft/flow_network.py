"""What RAFT and SEA-RAFT have in common: frames of any size, two directions at once, and the frame of the iteration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_raft.correlation import VOLUME_LIMIT, Correlation, Storage
from fourd_raft.upsampling import STRIDE


class Estimate(NamedTuple):
    """What is known after an iteration, one place per 8 x 8 pixels.

    Attributes:
        flow: x and y, in places.
        more: other channels that are carried to the pixels in the same way; RAFT has none.
        hidden: the state from which the weights of the upsampling are made.
    """

    flow: Float[Tensor, "b 2 h w"]
    more: Float[Tensor, "b c h w"]
    hidden: Float[Tensor, "b d h w"]


class FlowNetwork(nn.Module, ABC):
    """A network that refines the flow between two frames step by step, with a lookup of correlations in each step.

    Attributes:
        fnet: frames in [-1, 1] to features at an eighth of the size.
        storage, volume_limit: as of `Correlation`.
    """

    fnet: nn.Module

    def __init__(
        self, levels: int, radius: int, storage: Storage = "auto", volume_limit: int = VOLUME_LIMIT
    ) -> None:  # fmt: skip
        super().__init__()
        self.levels, self.radius = levels, radius
        self.storage: Storage = storage
        self.volume_limit = volume_limit

    @abstractmethod
    def estimates(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"], correlation: Correlation,
        iterations: int,
    ) -> Iterator[Estimate]:  # fmt: skip
        """One estimate after the other, from frames in [-1, 1] whose sides are divisible by 8."""

    @abstractmethod
    def upsample(self, maps: Float[Tensor, "b c h w"], hidden: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h8 w8"]:
        """Maps at the pixels."""

    def forward(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"], iterations: int
    ) -> list[Float[Tensor, "b c h w"]]:
        """The flow from the first frames to the second after every iteration, in pixels.

        Args:
            first, second: RGB in [0, 1].
        Raises:
            ValueError: the frames are too small for the pyramid of correlations.
        """
        self.check((first.shape[-2], first.shape[-1]))
        one, two = self._prepared(first), self._prepared(second)
        correlation = self._correlation(self.fnet(one), self.fnet(two))
        estimates = self.estimates(one, two, correlation, iterations)
        return [self._at_pixels(estimate, first) for estimate in estimates]

    def both_ways(self, frames: Float[Tensor, "b 2 3 h w"], iterations: int) -> Float[Tensor, "b 2 2 h w"]:
        """The last flow from each frame of a pair to the other one; the features of each frame are computed once.

        Args:
            frames: RGB in [0, 1].
        Raises:
            ValueError: as `forward`.
        """
        first, swapped = frames.flatten(0, 1), frames.flip(1).flatten(0, 1)
        self.check((first.shape[-2], first.shape[-1]))
        one, two = self._prepared(first), self._prepared(swapped)
        features = self.fnet(one)
        other = features.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        estimates = self.estimates(one, two, self._correlation(features, other), iterations)
        last = deque(estimates, maxlen=1).pop()
        flow: Tensor = self._at_pixels(last, first)[:, :2].unflatten(0, (-1, 2))
        return flow

    def check(self, size: tuple[int, int]) -> None:
        """Refuse frames of a height and width of which the coarsest level of correlations would have nothing.

        Down to 8 places to a side (57 pixels) four levels are defined. Below 16 places (121 pixels) the coarsest is a
        single place wide, where the reference divides by zero; here it is read like any other level.

        Raises:
            ValueError: a side is too short.
        """
        h, w = size
        smallest = STRIDE * (2 ** (self.levels - 1) - 1) + 1
        if min(h, w) < smallest:
            raise ValueError(
                f"{type(self).__name__} with {self.levels} levels of correlation needs frames of at least "
                f"{smallest}x{smallest} pixels, got {w}x{h}"
            )

    def _prepared(self, frames: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 _ _"]:
        """In [-1, 1], the border repeated on all sides until the sizes are divisible by 8."""
        left, right, top, bottom = padding(*frames.shape[-2:])
        return F.pad(2 * frames - 1, (left, right, top, bottom), mode="replicate")

    def _correlation(self, first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"]) -> Correlation:
        return Correlation(first, second, self.levels, self.radius, self.storage, self.volume_limit)

    def _at_pixels(self, estimate: Estimate, frames: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """The estimate at the pixels of the frames as they were given."""
        maps = self.upsample(torch.cat([STRIDE * estimate.flow, estimate.more], dim=1), estimate.hidden)
        h, w = frames.shape[-2:]
        left, _, top, _ = padding(h, w)
        return maps[:, :, top : top + h, left : left + w]


def padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels to add left, right, above and below so that 8 divides the sides; an odd one goes to the right or below.

    Source: InputPadder in its default mode, core/utils/utils.py of both references.
    """
    more_x, more_y = -width % STRIDE, -height % STRIDE
    return more_x // 2, more_x - more_x // 2, more_y // 2, more_y - more_y // 2


def grid(like: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 2 h w"]:
    """The position (x, y) of every place, the first one's being (0, 0)."""
    h, w = like.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=like.device, dtype=like.dtype),
        torch.arange(w, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return torch.stack([x, y])[None]


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a network that is not trained: whatever mode it is in, its statistics do not change.

    Args:
        batch_statistics: normalise by mean and variance of what comes in, as a network in training mode does, instead
            of by those that were collected in training.
    """

    def __init__(self, channels: int, batch_statistics: bool = False) -> None:
        super().__init__(channels)
        self.batch_statistics = batch_statistics

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised maps."""
        collected = (None, None) if self.batch_statistics else (self.running_mean, self.running_var)
        return F.batch_norm(x, *collected, self.weight, self.bias, training=self.batch_statistics, eps=self.eps)
