"""What flows through the house, and the conventions that hold everywhere.

Conventions (converted at the border: file formats, official checkpoints; never in the middle)
    frames        RGB, float, values in [0, 1]; a Backbone applies its own mean and std
    coordinates   continuous pixels `(x, y)` of the input video, x to the right, y down; the centre of the
                  top left pixel is (0.5, 0.5)
    flow          channel 0 is x, channel 1 is y; in pixels of the frame it starts from: the content at `p`
                  in its frame stands at `p + flow(p)` in the other frame
    cameras       OpenCV axes (x right, y down, z forward), `world_from_cam` 4x4, intrinsics 3x3 in pixels
    depth         z along the optical axis, in the unit that the head states
    times         seconds from the start of the video
Axes are named `b` batch, `t` frames, `c` channels, `h` rows, `w` columns, `n` tokens, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Grid(NamedTuple):
    """How many tokens lie along time, height and width; tokens are stored in row-major `(t, h, w)` order."""

    t: int
    h: int
    w: int


@attrs.frozen(eq=False)
class Clip:
    """A batch of short frame sequences, all of one size.

    Attributes:
        frames: RGB in [0, 1].
        times: seconds, or None where unknown.
        intrinsics: pinhole matrices in pixels of `frames`, or None where unknown.
    """

    frames: Float[Tensor, "b t c h w"]
    times: Float[Tensor, "b t"] | None = None
    intrinsics: Float[Tensor, "b t 3 3"] | None = None

    def __attrs_post_init__(self) -> None:
        if self.frames.ndim != 5:
            raise ValueError(f"Clip.frames must be 'b t c h w', got shape {tuple(self.frames.shape)}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.shape[-2], self.frames.shape[-1]

    def to(self, device: torch.device | str) -> Clip:
        """The same clip with every tensor on `device`."""
        return attrs.evolve(
            self,
            frames=self.frames.to(device),
            times=None if self.times is None else self.times.to(device),
            intrinsics=None if self.intrinsics is None else self.intrinsics.to(device),
        )


@attrs.frozen(eq=False)
class TokenMap:
    """The tokens of one layer and the grid they stand on (layers of one backbone may differ in both)."""

    values: Float[Tensor, "b n c"]
    grid: Grid

    def __attrs_post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[1] != self.grid.t * self.grid.h * self.grid.w:
            raise ValueError(f"tokens of shape {tuple(self.values.shape)} do not fill the grid {tuple(self.grid)}")

    def as_maps(self) -> Float[Tensor, "b t c h w"]:
        """The same numbers as one feature map per time step."""
        t, h, w = self.grid
        return self.values.reshape(-1, t, h, w, self.values.shape[-1]).permute(0, 1, 4, 2, 3)

    @classmethod
    def from_maps(cls, maps: Float[Tensor, "b t c h w"]) -> TokenMap:
        """Tokens in `(t, h, w)` order from feature maps."""
        _, t, _, h, w = maps.shape
        return cls(maps.permute(0, 1, 3, 4, 2).flatten(1, 3), Grid(t, h, w))


@attrs.frozen(eq=False)
class Tokens:
    """A backbone's answer: only the layers that were asked for, under the tap numbers they were asked by."""

    layers: Mapping[int, TokenMap]

    def __getitem__(self, tap: int) -> TokenMap:
        return self.layers[tap]


CueKind = Literal["flow", "disparity", "map"]


@attrs.frozen(eq=False)
class CueMaps:
    """What a CueProvider says about a clip: one map per frame, without gradient.

    `kind` tells a consumer what the numbers mean:
        flow       `c = 2`, only for clips of two frames: from each frame to the other one, pixels of the clip
        disparity  `c = 1`, proportional to 1 / depth, >= 0
        map        any number of channels that belong to the scene point (a feature, a brightness, a label)
    `valid` is False where the provider knows that its number means nothing; None: valid everywhere.
    """

    values: Float[Tensor, "b t c h w"]
    kind: CueKind
    valid: Bool[Tensor, "b t 1 h w"] | None = None

    def __attrs_post_init__(self) -> None:
        _, t, c, _, _ = self.values.shape
        if self.kind == "flow" and (t != 2 or c != 2):
            raise ValueError(f"a flow cue has 2 frames and 2 channels, got shape {tuple(self.values.shape)}")
        if self.kind == "disparity" and c != 1:
            raise ValueError(f"a disparity cue has 1 channel, got shape {tuple(self.values.shape)}")


@attrs.frozen(eq=False)
class Prediction:
    """One head's answer for the frames of a clip, in physical units.

    Attributes:
        values: a dense map per frame, in the pixels of the clip that the head saw.
        unit: what one step of a number means, for example "px", "1" for features and probabilities.
    """

    values: Float[Tensor, "b t c h w"]
    unit: str = "1"


class Predictions(Mapping[str, Prediction]):
    """Named predictions; `predictions["depth"].values` and `predictions.depth` (the values alone) both work."""

    def __init__(self, items: Mapping[str, Prediction]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> Prediction:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, name: str) -> Any:
        items: dict[str, Prediction] = self.__dict__.get("_items", {})
        if name in items:
            return items[name].values
        raise AttributeError(f"no prediction '{name}'; there are: {', '.join(items) or 'none'}")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {tuple(v.values.shape)} [{v.unit}]" for k, v in self._items.items())
        return f"Predictions({shapes})"
