"""One generated scene as a video of which everything is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fourd_core.data import Predictions
from fourd_core.interfaces import TRUTHS, AnnotatedVideo
from fourd_core.randomness import seed_for
from fourd_synth.draws import Draws
from fourd_synth.following import follow
from fourd_synth.generating import Generator
from fourd_synth.rendering import Flow, Rendered, Window
from fourd_synth.truths import Scene, truth_of
from fourd_synth.views import Views


class SynthVideo(AnnotatedVideo):
    """A scene from its first frame to its last. Every frame is rendered by itself, so it is always the same."""

    def __init__(self, generator: Generator, number: int, key: str) -> None:
        config = generator.config
        self.key, self.name = key, f"synth {key}"
        self.frame_count, self.size = config.frames, (config.pixels, config.pixels)
        self._generator, self._number = generator, number
        self.known = frozenset(TRUTHS) - (set() if config.tracks else {"tracks"})
        self._window = Window(torch.zeros(1, 2, dtype=torch.int64), self.size, config.pixels)

    @property
    def intrinsics(self) -> Float[Tensor, "3 3"]:  # type: ignore[override]
        """The pinhole matrix, the same in every frame."""
        focal, side = float(self._views.focal) * self.size[0], self.size[0] / 2
        return torch.tensor([[focal, 0, side], [0, focal, side], [0, 0, 1]])

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`.

        Raises:
            IndexError: a position before the first or behind the last frame.
        """
        return self.scene(indices, tracks=0).colour[0].mul(255).round().byte()

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds from the start."""
        return torch.tensor([int(index) for index in indices], dtype=torch.float64) / self._generator.config.frame_rate

    def truth(self, indices: Sequence[int]) -> Predictions:
        """As `AnnotatedVideo.truth`; the world is the first camera of the video. Raises as `read`."""
        scene = self.scene(indices, self._generator.config.tracks)
        _, truth = truth_of(scene, world=self._views.world_from_cam[:, 1:2])
        return Predictions({name: truth[name] for name in TRUTHS if name in truth})

    @torch.no_grad()
    def scene(self, indices: Sequence[int], tracks: int) -> Scene:
        """Some frames with all that is known of them, and of so many points."""
        outside = [int(index) for index in indices if not 0 <= index < self.frame_count]
        if outside:
            raise IndexError(f"{self.name} has frames 0 to {self.frame_count - 1}, not {outside[0]}")
        frames = torch.tensor([[int(index) for index in indices]])
        steps = [0, *(frames[0, :-1] - frames[0, 1:]).tolist()]
        rendered = joined([self._frame(index, step) for index, step in zip(frames[0].tolist(), steps, strict=True)])
        points = None
        if tracks:
            every = torch.arange(self.frame_count)[None] + 1
            draws = Draws(seed_for(self._generator.seed, "tracks"), [self._number])
            points = follow(self._views, self._window, frames + 1, every, tracks, draws)
        colour = self._generator.photographed(rendered, frames, self._window, [self._number])
        times = self.times(frames[0].tolist())[None]
        return Scene.of(rendered, colour, self._views, self._window, frames + 1, points, times)

    def _frame(self, index: int, step: int) -> Rendered:
        """One frame, with flow to a neighbour; NaN where `step` does not lead to one."""
        direction = step if step in (-1, 1) else -1
        frame = torch.tensor([[index + 1]])
        rendered = self._generator.rendered(self._views, self._window, frame, (direction,))
        maps = rendered.flow[direction]
        if step != direction:
            maps = Flow(*(torch.full_like(values, torch.nan) for values in maps))
        return rendered._replace(flow={-1: maps})

    @cached_property
    def _views(self) -> Views:
        return self._generator.views([self._number], np.zeros(1, dtype=np.int64), self.frame_count)


def joined(frames: Sequence[Rendered]) -> Rendered:
    """Frames rendered one by one as one clip."""
    flow = [torch.cat(values, 1) for values in zip(*(frame.flow[-1] for frame in frames), strict=True)]
    maps = [torch.cat(values, 1) for values in zip(*(frame[:4] for frame in frames), strict=True)]
    return Rendered(*maps, flow={-1: Flow(*flow)})
