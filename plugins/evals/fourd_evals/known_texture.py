"""A miniature of which everything is known, and a system that knows it: for the tests of measurements.

A texture moves over the picture by (2, -1) pixels a frame, its right part at a pace that counts as motion in the world.
What is said of depth, cameras and tracks is made up: it need not go together to be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from fourd_core.data import Cameras, Clip, Maps, Prediction, Predictions, Tokens, Tracks
from fourd_core.interfaces import TRUTHS, AnnotatedVideo, BackboneSpec, Dataset, Head, Split, Video
from fourd_core.media.views import ViewConfig
from fourd_core.system import System
from fourd_core.testing.miniature import Patches

SIZE = 48, 64
STEP = (2.0, -1.0)
RATE = 25
POINTS = ((5.5, 40.5), (20.25, 30.0), (40.0, 46.0), (60.0, 20.0))
"""Where the points are in frame 0; the last one leaves the picture."""
K = ((60.0, 0.0, 32.0), (0.0, 60.0, 24.0), (0.0, 0.0, 1.0))


def depth_at(frame: Float[Tensor, "*n"], x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """z in metres; it grows to the right and with time."""
    return 2 + x / SIZE[1] + 0.05 * frame


def answer_of(kind: str, frame: Int64[Tensor, " t"], queries: Float[Tensor, "n 3"] | None = None) -> Prediction:
    """What is true of frames by their number; of `queries` (frame, x, y) instead of the miniature's own points."""
    time, (height, width) = frame.float(), SIZE
    grid = time[:, None, None].expand(-1, height, width)
    x = (torch.arange(width) + 0.5).expand_as(grid)
    if kind == "depth":
        return Maps(depth_at(grid, x)[None, :, None], kind="depth", unit="m")
    if kind == "flow":
        flow = torch.tensor(STEP).neg().view(2, 1, 1).expand(1, len(frame), 2, height, width).clone()
        flow[:, frame == 0] = torch.nan
        return Maps(flow, kind="flow", unit="px")
    if kind == "motion":
        return Maps((x > width / 2).float()[None, :, None], kind="mask")
    if kind == "cameras":
        poses = torch.eye(4).repeat(len(frame), 1, 1)
        poses[:, 0, 3], poses[:, 1, 3] = 0.1 * time, 0.01 * time**2
        return Cameras(poses[None], torch.tensor(K).expand(1, len(frame), 3, 3), unit="m")
    start = torch.tensor(POINTS) if queries is None else queries[:, 1:] - queries[:, :1] * torch.tensor(STEP)
    xy = start + time[:, None, None] * torch.tensor(STEP)
    inside = ((xy >= 0) & (xy < torch.tensor([width, height]))).all(-1)
    depth = depth_at(time[:, None].expand(xy.shape[:2]), xy[..., 0])
    live = torch.ones_like(inside)
    return Tracks(xy[None], inside[None].float(), live[None], depth[None], unit="m")


class KnownTexture(AnnotatedVideo):
    """The miniature."""

    size = SIZE
    known = frozenset(TRUTHS)
    intrinsics = torch.tensor(K)

    def __init__(self, frames: int = 10) -> None:
        self.name = self.key = "known texture"
        self.frame_count = frames
        generator = torch.Generator().manual_seed(11)
        coarse = torch.rand(1, 3, 12, 16, generator=generator)
        texture = nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)[0]
        self._texture = (texture * 255).round().to(torch.uint8)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """The texture, rolled."""
        return torch.stack([torch.roll(self._texture, (-i, 2 * i), (1, 2)) for i in indices])

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """25 frames a second."""
        return torch.tensor(list(indices), dtype=torch.float64) / RATE

    def truth(self, indices: Sequence[int]) -> Predictions:
        """All of `TRUTHS`; frames must be asked for in their order."""
        frame = torch.tensor(list(indices))
        truth = Predictions({name: answer_of(name, frame) for name in TRUTHS})
        flow = truth["flow"].map(lambda values: values.clone())
        next(iter(flow.tensors().values()))[:, :1] = torch.nan
        return Predictions({**truth, "flow": flow})


class KnownTextures(Dataset):
    """The miniature in every part."""

    view = ViewConfig(view="original")

    def __init__(self, frames: int = 10) -> None:
        self._video = KnownTexture(frames)

    def videos(self, split: Split) -> Sequence[Video]:
        """One video."""
        return [self._video]


class Knowing(Head):
    """Tells the truth about the miniature by the times of the frames, in pixels of the network's view.

    Args:
        answers: which of `TRUTHS`.
        error: by which factor depth and flow are too large, and how many pixels tracks are off; what moves and what
            does not are exchanged where it is above 0.
    """

    def __init__(self, answers: str, backbone: BackboneSpec, error: float = 0.0) -> None:
        super().__init__()
        self.taps = (backbone.tap(-1),)
        self._answers, self._error = answers, error
        self.tracks = answers == "tracks"
        self.kind = {"depth": "depth", "flow": "flow", "motion": "mask", "cameras": "cameras"}.get(answers)  # type: ignore[assignment]

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """What is true at the clip's times."""
        assert clip.times is not None
        frame = (clip.times[0] * RATE).round().long()
        if self._answers == "tracks":
            return self._points(clip, frame)
        truth: Any = answer_of(self._answers, frame)
        if isinstance(truth, Cameras):
            moved = truth.world_from_cam.clone()
            moved[..., 2, 3] += self._error * torch.sin(frame.float())
            return Cameras(moved, truth.intrinsics, unit="m")
        values = truth.values.nan_to_num(0.0)
        values = (1 - values if self._error else values) if self._answers == "motion" else values * (1 + self._error)
        maps = nn.functional.interpolate(values[0], clip.size, mode="nearest-exact")[None]
        return Maps(
            maps * _scale(clip).view(2, 1, 1) if truth.kind == "flow" else maps, kind=truth.kind, unit=truth.unit
        )

    def _points(self, clip: Clip, frame: Int64[Tensor, " t"]) -> Tracks:
        assert clip.queries is not None
        scale = _scale(clip)
        named = clip.queries.frame[0] + frame[0]
        rows = torch.cat([named[:, None].float(), clip.queries.xy[0] / scale], dim=1)
        truth: Any = answer_of("tracks", frame, rows)
        live = (frame[:, None] >= named)[None]
        return Tracks((truth.xy + 10 * self._error) * scale, truth.visibility, live, truth.depth * 3, unit="1")


def _scale(clip: Clip) -> Float[Tensor, " 2"]:
    """Pixels of the view for each of the video."""
    return torch.tensor([clip.size[1] / SIZE[1], clip.size[0] / SIZE[0]])


def knowing_system(error: float = 0.0, answers: Sequence[str] = TRUTHS) -> System:
    """A system whose heads tell the truth, up to an error."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        backbone = Patches()
    return System(backbone, {name: Knowing(name, backbone.spec, error) for name in answers})
