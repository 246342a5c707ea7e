"""One video as a system sees it, and how its maps come to the pixels in which they are compared, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import attrs
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import Maps, Predictions, Queries
from fourd_core.interfaces import AnnotatedVideo
from fourd_core.media.views import View
from fourd_core.placement import Pixels
from fourd_core.streaming import Finished, StreamConfig, stream
from fourd_core.system import System
from fourd_core.truth import seen

CHUNK = 8
"""Frames whose truth is read at a time."""


class FirstFrames(AnnotatedVideo):
    """The beginning of a video."""

    def __init__(self, video: AnnotatedVideo, frames: int) -> None:
        self._video = video
        self.name, self.key, self.size, self.known = video.name, video.key, video.size, video.known
        self.frame_count, self.intrinsics = min(video.frame_count, frames), video.intrinsics

    def __getattr__(self, name: str) -> Any:
        """What a data set says of its videos beside the contract: a cap of the depth, queries."""
        if "_video" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._video, name)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As the video's."""
        return self._video.read(indices)

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """As the video's."""
        return self._video.times(indices)

    def truth(self, indices: Sequence[int]) -> Predictions:
        """As the video's."""
        return self._video.truth(indices)


@attrs.frozen(eq=False)
class Look:
    """One video as a system sees it.

    Attributes:
        system: with the heads that matter alone.
        view: how a frame becomes the network's input.
        windows: what it sees at a time.
        pixels: where maps are compared: at the video's pixels, or on the view's.
    """

    system: System
    video: AnnotatedVideo
    view: View
    windows: StreamConfig
    pixels: Pixels

    def parts(self, queries: Queries | None = None) -> Iterator[Finished]:
        """The system's answers as they become final; maps on the view's grid, numbers in pixels of the video."""
        return stream(self.system, self.video, self.view, self.windows, queries)

    def truth(self, name: str, first: int, frames: int) -> Float[Tensor, "t c h w"]:
        """True maps of frames `first ..` in the pixels of comparison; NaN where the view shows nothing."""
        before = 1 if name == "flow" and first else 0  # flow is known to the frame before in what is asked for
        known = self.video.truth(range(first - before, first + frames))
        values = cast(Maps, known[name]).frames(before, before + frames)
        if self.pixels == "view":
            return cast(Maps, seen(Predictions({name: values}), self.view)[name]).values[0]
        maps = values.values[0]
        return maps if self.is_whole else maps.masked_fill(self._outside(), torch.nan)

    def compared(self, maps: Float[Tensor, "t c y x"], flow: bool = False) -> Float[Tensor, "t c h w"]:
        """Maps on the view's grid at the pixels of comparison; `flow`: they are measured in pixels of the video."""
        if self.pixels == "video":
            return self.view.restore(maps)
        return maps * maps.new_tensor(self.view.scale).view(2, 1, 1) if flow else maps

    def frames(self, first: int, count: int) -> Float[Tensor, "t 3 y x"]:
        """Frames on the view's grid."""
        return self.view.apply(self.video.read(range(first, first + count)))

    @property
    def is_whole(self) -> bool:
        """Whether the view shows all of the frame and nothing else."""
        return self.view.corner == (0, 0) and self.view.resized == self.view.size

    def _outside(self) -> Tensor:
        return self.view.restore(torch.zeros(1, 1, *self.view.size)).isnan()[0]


@attrs.frozen(eq=False)
class ComparedDepth(Sequence[Tensor]):
    """Predicted maps `h w`, brought to the pixels of comparison one at a time.

    A view that shows the whole frame is left to the scorer, which resizes as its protocol says.
    """

    look: Look
    maps: Float[Tensor, "t y x"]

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, number: Any) -> Tensor:
        values = self.maps[number]
        return values if self.look.is_whole else self.look.compared(values[None, None])[0, 0]


class TrueDepth(Sequence[Tensor]):
    """True depth maps `h w`, read a few frames at a time."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._first, self._held = 0, torch.empty(0)

    def __len__(self) -> int:
        return self._look.video.frame_count

    def __getitem__(self, number: Any) -> Tensor:
        if not self._first <= number < self._first + len(self._held):
            self._first = number - number % CHUNK
            count = min(CHUNK, len(self) - self._first)
            self._held = self._look.truth("depth", self._first, count)[:, 0]
        return self._held[number - self._first]
