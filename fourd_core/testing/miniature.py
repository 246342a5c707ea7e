"""A whole system in miniature, for contract tests and for plugins' own tests: real numbers, no weights, no files.

A textured picture that moves, patches projected at random as tokens, one convolution as a head, the picture itself as a
cue. Every part fulfils its contract; none is good at anything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fourd_core.data import Clip, CueMaps, Maps, TokenMap, Tokens
from fourd_core.interfaces import (
    Backbone,
    BackboneSpec,
    CueProvider,
    Dataset,
    Head,
    Split,
    TapSpec,
    Video,
)  # fmt: skip
from fourd_core.system import System

PATCH = 8
TAPS = 12
DIM = 32


class MovingTexture(Video):
    """A random texture of 96 x 128 pixels that moves by (3, -2) pixels per frame, 25 frames a second.

    Args:
        first: the number of its first frame in the whole movement.
        frames: how many frames it has.
    """

    size = (96, 128)

    def __init__(self, first: int = 0, frames: int = 12) -> None:
        self.name, self.first, self.frame_count = f"texture from frame {first}", first, frames
        coarse = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(7))
        texture = F.interpolate(coarse, self.size, mode="bicubic").clamp(0, 1)[0]
        self.texture = (texture * 255).round().to(torch.uint8)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """The frames at these positions."""
        return torch.stack(
            [torch.roll(self.texture, (-2 * (self.first + i), 3 * (self.first + i)), (1, 2)) for i in indices]
        )

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """Presentation times in seconds."""
        return torch.tensor(list(indices), dtype=torch.float64) / 25


class Textures(Dataset):
    """One moving texture: its first eight frames to train on, its last four held out."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config | None = None) -> None:
        pass

    def videos(self, split: Split) -> Sequence[Video]:
        """One video."""
        first, frames = {"all": (0, 12), "train": (0, 8), "held_out": (8, 4)}[split]
        return [MovingTexture(first, frames)]


class Patches(Backbone):
    """Twelve random projections of 8 x 8 patches, 32 channels each."""

    spec = BackboneSpec((TapSpec(DIM, (1, PATCH, PATCH)),) * TAPS, (1, PATCH, PATCH), (0.5,) * 3, (0.25,) * 3)

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, DIM, PATCH, PATCH) for _ in range(TAPS)])

    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int]) -> Tokens:
        """Tokens of the asked taps.

        Raises:
            ValueError: a size that is not divisible by 8.
        """
        if frames.shape[-2] % PATCH or frames.shape[-1] % PATCH:
            raise ValueError(f"frames must be divisible by {PATCH}, got {tuple(frames.shape[-2:])}")
        maps = (frames.flatten(0, 1) - 0.5) / 0.25
        return Tokens({t: TokenMap.from_maps(self.layers[t](maps).unflatten(0, frames.shape[:2])) for t in taps})


class Pixels(Head):
    """One convolution of the first and the last tap, upsampled to pixels."""

    unit = "1"

    @attrs.frozen
    class Config:
        """How many features."""

        channels: int = 16
        """Channels of the prediction."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.channels = config.channels
        self.taps = (0, backbone.tap(-1))
        self.project = nn.Conv2d(sum(backbone.taps[tap].dim for tap in self.taps), config.channels, 1)

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """Features of each pixel."""
        maps = self.project(torch.cat([tokens[tap].as_maps().flatten(0, 1) for tap in self.taps], 1))
        values = F.interpolate(maps, clip.size, mode="bilinear")
        return Maps(values.reshape(*clip.frames.shape[:2], *values.shape[1:]), unit=self.unit)


class Colours(CueProvider):
    """The picture itself, as a cue that belongs to the scene point."""

    kind = "map"
    channels = 3

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config | None = None) -> None:
        pass

    def __call__(self, clip: Clip) -> CueMaps:
        """The frames."""
        return CueMaps(clip.frames.detach(), "map")


class Miniature(System):
    """`Patches`, the head `features` and the cue `colours`; names and parts can be exchanged.

    Args:
        heads: by name, instead of `features`.
        cues: by name, instead of `colours`.
    """

    def __init__(self, heads: dict[str, Head] | None = None, cues: dict[str, CueProvider] | None = None) -> None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(3)
            backbone = Patches()
            default: dict[str, Head] = {"features": Pixels(Pixels.Config(), backbone.spec)}
        super().__init__(backbone, heads or default, cues={"colours": Colours()} if cues is None else cues)
        self._start = {name: value.clone() for name, value in self.trained_state().items()}

    def untrained(self) -> Miniature:
        """The same system as it was made."""
        system = copy.deepcopy(self)
        system.load_state_dict({**system.state_dict(), **self._start})
        return system
