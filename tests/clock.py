"""A system whose answers can be told by heart: every frame of its video shows its own number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourd_core.data import Cameras, Clip, Maps, Prediction, TokenMap, Tokens, Tracks
from fourd_core.interfaces import Backbone, BackboneSpec, Head, Memory, TapSpec, Video
from fourd_core.stitching import Stitch, WhereLive
from fourd_core.system import System

SIZE = (8, 12)


class Clock(Video):
    """Frame `i` has the brightness `i` everywhere."""

    def __init__(self, frame_count: int, size: tuple[int, int] = SIZE) -> None:
        self.name, self.frame_count, self.size = "clock", frame_count, size

    def read(self, indices: Sequence[int]) -> Tensor:
        assert all(0 <= index < self.frame_count for index in indices)
        return torch.tensor(indices, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, *self.size)

    def times(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.float64) / 10


class Brightness(Backbone):
    """One token per 4 x 4 pixels: their brightness in the unit of the clock."""

    spec = BackboneSpec((TapSpec(1, (1, 4, 4)),), (1, 4, 4), (0.0,) * 3, (1.0,) * 3, window=(4, 2))

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        means = frames.unfold(-2, 4, 4).unfold(-2, 4, 4).mean((2, -1, -2))[:, :, None] * 255
        return Tokens({0: TokenMap.from_maps(means)})


class Number(Head):
    """The frame's number as a map, plus `offset` for each window that was answered before."""

    taps, channels = (0,), 1

    def __init__(self, stitch: Stitch | None = None, kind: Any = "features", offset: float = 0.0) -> None:
        super().__init__()
        self.stitch, self.kind, self.offset, self.calls = stitch or self.stitch, kind, offset, 0

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        maps = tokens[0].as_maps().repeat_interleave(4, -1).repeat_interleave(4, -2)
        self.calls += 1
        return Maps(maps + self.offset * (self.calls - 1), kind=self.kind)


class Walking(Head):
    """The camera of frame `i` stands at z = i and has a focal length of 10 pixels."""

    taps = (0,)

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        numbers = tokens[0].values.reshape(*clip.frames.shape[:2], -1)[..., 0]
        poses = torch.eye(4).repeat(*numbers.shape, 1, 1)
        poses[..., 2, 3] = numbers
        return Cameras(poses, torch.tensor([[10.0, 0, 6], [0, 10, 4], [0, 0, 1]]).expand(*numbers.shape, 3, 3))


class Follower(Head):
    """A point is at x = its frame's number / 10, with y and half the depth as it was named; what it saw is noted."""

    tracks, taps, stitch = True, (0,), WhereLive()

    def __init__(self, direction: Any = "forward", bytes_each: int = 0) -> None:
        super().__init__()
        self.direction, self.bytes_each = direction, bytes_each
        self.groups: list[int] = []

    def query_bytes(self, clip: Clip) -> int:
        return self.bytes_each

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        assert clip.queries is not None
        self.groups.append(clip.queries.count)
        numbers = tokens[0].values.reshape(*clip.frames.shape[:2], -1)[..., :1].expand(-1, -1, clip.queries.count)
        xy = torch.stack([numbers / 10, clip.queries.xy[:, None, :, 1].expand_as(numbers)], -1)
        live = torch.arange(clip.frames.shape[1])[None, :, None] >= clip.queries.frame[:, None]
        carried = clip.queries.recalled.get("windows", torch.zeros_like(clip.queries.frame, dtype=torch.float32))
        return Tracks(xy, torch.full_like(numbers, 0.9), live, depth=numbers / 2 + carried[:, None] * 0)


class Counting(Memory):
    """How many windows each point has seen before."""

    def __init__(self) -> None:
        super().__init__()
        self.shifts: list[int] = []

    def initial(self, tokens: Tokens, clip: Clip) -> Any:
        assert clip.queries is not None
        return {"windows": torch.zeros(clip.queries.frame.shape), "names": [clip.queries.xy[..., 1]]}

    def read(self, state: Any, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        import attrs

        assert clip.queries is not None
        assert torch.equal(clip.queries.xy[..., 1], state["names"][0])  # each group gets its own state back
        return tokens, attrs.evolve(clip, queries=attrs.evolve(clip.queries, recalled={"windows": state["windows"]}))

    def update(self, state: Any, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> Any:
        self.shifts.append(shift)
        return {"windows": state["windows"] + 1, "names": state["names"]}


def clock_system(heads: dict[str, Head], memories: dict[str, Memory] | None = None) -> System:
    """`Brightness` with these heads."""
    return System(Brightness(), heads, memories)
