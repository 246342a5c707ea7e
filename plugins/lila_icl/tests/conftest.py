"""A whole LILA system in miniature: a moving picture, an exact flow teacher, a random encoder, a one-layer decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from fourd_lila.objective import LILA
from torch import Tensor, nn

from fourd_core.data import Clip, CueMaps, Maps, TokenMap, Tokens
from fourd_core.interfaces import Backbone, BackboneSpec, CueProvider, Dataset, Head, TapSpec, Video
from fourd_core.system import System

SIZE = 48


class MovingPicture(Video, Dataset):
    """A smooth random texture that moves by `shift` pixels per frame; its top left pixel tells the frame number."""

    name = "moving"

    def __init__(self, frames: int = 8, shift: tuple[int, int] = (3, -2), held_out: int = 4) -> None:
        self.frame_count, self.size, self.shift, self.held_out = frames, (SIZE, SIZE), shift, held_out
        coarse = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(7))
        self.texture = F.interpolate(coarse, (3 * SIZE, 3 * SIZE), mode="bicubic").clamp(0, 1)[0]

    def read(self, indices: Sequence[int]) -> Tensor:
        dx, dy = self.shift
        frames = [
            torch.roll(self.texture, (dy * i, dx * i), (1, 2))[:, SIZE : 2 * SIZE, SIZE : 2 * SIZE] for i in indices
        ]
        pictures = (torch.stack(frames) * 255).round().to(torch.uint8)
        for picture, index in zip(pictures, indices, strict=True):
            picture[:, 0, 0] = index
        return pictures

    def times(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.float64) / 25

    def videos(self, split: str) -> Sequence[Video]:
        return [MovingPicture(self.held_out, self.shift)] if split == "held_out" else [self]


class GlobalShift(CueProvider):
    """Flow of a picture that moves as a whole: the displacement, up to 8 pixels, under which the frames agree best."""

    kind = "flow"

    def __call__(self, clip: Clip) -> CueMaps:
        h, w = clip.size
        first, second = clip.frames[:, 0, :, 8:-8, 8:-8], clip.frames[:, 1]
        places = [(dx, dy) for dy in range(-8, 9) for dx in range(-8, 9)]
        cost = torch.stack(
            [(second[..., 8 + dy : h - 8 + dy, 8 + dx : w - 8 + dx] - first).abs().mean((1, 2, 3)) for dx, dy in places]
        )
        shift = torch.tensor(places, dtype=torch.float32)[cost.argmin(0)]
        return CueMaps(torch.stack([shift, -shift], 1)[..., None, None].expand(-1, -1, -1, h, w), "flow")


class Colours(CueProvider):
    """The picture itself: a cue that belongs to the scene point; `valid` says where it may be trusted."""

    kind = "map"
    channels = 3

    def __init__(self, valid: bool = True) -> None:
        self.valid = valid

    def __call__(self, clip: Clip) -> CueMaps:
        return CueMaps(clip.frames, "map", torch.full_like(clip.frames[:, :, :1], self.valid, dtype=torch.bool))


class Patches(Backbone):
    """Two layers of random convolutions, strides 2 and 4."""

    spec = BackboneSpec((TapSpec(6, (1, 2, 2)), TapSpec(10, (1, 4, 4))), (1, 4, 4), (0.5,) * 3, (0.5,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 10, 2, 2)])

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        maps, found = frames.flatten(0, 1) * 2 - 1, {}
        for tap, layer in enumerate(self.layers):
            maps = layer(maps).tanh()
            found[tap] = TokenMap.from_maps(maps.unflatten(0, frames.shape[:2]))
        return Tokens({tap: found[tap] for tap in taps})


class OneLayer(Head):
    """A 1x1 convolution of the upsampled layers, then LayerNorm."""

    taps, channels = (0, 1), 8

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(16, self.channels, 1)

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        maps = torch.cat(
            [F.interpolate(tokens[t].as_maps().flatten(0, 1), clip.size, mode="bilinear") for t in self.taps], 1
        )
        values = F.layer_norm(self.project(maps).movedim(1, -1), (self.channels,)).movedim(-1, 1)
        return Maps(values.unflatten(0, clip.frames.shape[:2]))


class TinySystem(System):
    """A system that knows how its head was initialised."""

    @classmethod
    def build(cls, cues: dict[str, CueProvider]) -> TinySystem:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return cls(Patches(), {"features": OneLayer()}, cues=cues)

    def untrained(self) -> TinySystem:
        return TinySystem.build(self.cues)


@pytest.fixture
def moving() -> type[MovingPicture]:
    return MovingPicture


@pytest.fixture
def cues() -> dict[str, CueProvider]:
    return {"flow": GlobalShift(), "colours": Colours()}


@pytest.fixture
def untrusted() -> CueProvider:
    return Colours(valid=False)


@pytest.fixture
def build() -> Callable[[dict[str, CueProvider]], TinySystem]:
    return TinySystem.build


@pytest.fixture
def config() -> LILA.Config:
    return LILA.Config(
        base_size=SIZE, view_size=32, max_gap=2, pool=8, distill_channels=4, distill_tap=1, pamr=None, ridge=0.01
    )
