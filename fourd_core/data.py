"""What flows through the house, and the conventions that hold everywhere.

Conventions (converted at the border: file formats, official checkpoints; never in the middle)
    frames        RGB, float, values in [0, 1]; a Backbone applies its own mean and std
    coordinates   continuous pixels `(x, y)` of the input video, x to the right, y down; the centre of the
                  top left pixel is (0.5, 0.5)
    flow          channel 0 is x, channel 1 is y; in pixels of the frame it starts from: the content at `p`
                  in its frame stands at `p + flow(p)` in the other frame; a predicted flow map of frame t leads
                  to frame t - 1, and the first frame of a video has none (NaN)
    cameras       OpenCV axes (x right, y down, z forward), `world_from_cam` 4x4, intrinsics 3x3 in pixels
    depth         z along the optical axis, in the unit that the head states
    times         seconds from the start of the video
Axes are named `b` batch, `t` frames, `c` channels, `h` rows, `w` columns, `n` tokens, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Grid(NamedTuple):
    """How many tokens lie along time, height and width; tokens are stored in row-major `(t, h, w)` order."""

    t: int
    h: int
    w: int


@attrs.frozen(eq=False)
class Queries:
    """Points to be followed through a clip.

    Attributes:
        frame: index of the frame in which a point is named, counted from the clip's first; before or behind the clip
            (negative, or beyond its end) in a window of a longer video.
        xy: where it is in that frame, in pixels of the clip.
        given: whether the user named the point there; False where a memory found it again. None: all are given.
        recalled: what a memory remembers of each point (`b n ...`), under names on which it and its head agree.
    """

    frame: Int[Tensor, "b n"]
    xy: Float[Tensor, "b n 2"]
    given: Bool[Tensor, "b n"] | None = None
    recalled: Mapping[str, Tensor] = attrs.field(factory=dict)

    @property
    def count(self) -> int:
        """How many points each clip of the batch has."""
        return self.frame.shape[1]

    def part(self, start: int, stop: int) -> Queries:
        """The points `start .. stop - 1`."""
        return self.map(lambda tensor: tensor[:, start:stop])

    def map(self, change: Callable[[Tensor], Tensor]) -> Queries:
        """The same points with every tensor changed in the same way."""
        return Queries(
            change(self.frame),
            change(self.xy),
            None if self.given is None else change(self.given),
            {name: change(tensor) for name, tensor in self.recalled.items()},
        )


@attrs.frozen(eq=False)
class Clip:
    """A batch of short frame sequences, all of one size.

    Attributes:
        frames: RGB in [0, 1].
        times: seconds, or None where unknown.
        intrinsics: pinhole matrices in pixels of `frames`, or None where unknown.
        queries: points to be followed, for heads that track.
        wanted: how many of the first frames the head is asked about, or None for all; what it says of the others, NaN
            for instance, is not read.
    """

    frames: Float[Tensor, "b t c h w"]
    times: Float[Tensor, "b t"] | None = None
    intrinsics: Float[Tensor, "b t 3 3"] | None = None
    queries: Queries | None = None
    wanted: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.frames.ndim != 5:
            raise ValueError(f"Clip.frames must be 'b t c h w', got shape {tuple(self.frames.shape)}")
        if self.wanted is not None and self.wanted < 1:
            raise ValueError(f"Clip.wanted must be at least 1, or None for all frames, got {self.wanted}")

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
            queries=None if self.queries is None else self.queries.map(lambda tensor: tensor.to(device)),
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
    `disagreement`, of flow: how far from its start the way there and back ends, in half frames; None: not computed.
    """

    values: Float[Tensor, "b t c h w"]
    kind: CueKind
    valid: Bool[Tensor, "b t 1 h w"] | None = None
    disagreement: Float[Tensor, "b t 1 h w"] | None = None

    def __attrs_post_init__(self) -> None:
        _, t, c, _, _ = self.values.shape
        if self.kind == "flow" and (t != 2 or c != 2):
            raise ValueError(f"a flow cue has 2 frames and 2 channels, got shape {tuple(self.values.shape)}")
        if self.kind == "disparity" and c != 1:
            raise ValueError(f"a disparity cue has 1 channel, got shape {tuple(self.values.shape)}")


MapKind = Literal["features", "depth", "flow", "mask"]
P = TypeVar("P", bound="Prediction")


@attrs.frozen(eq=False)
class Prediction:
    """One head's answer for the frames of a clip; every tensor of a subclass begins with the axes `b t`.

    Attributes:
        unit: what one step of a number means, for example "px", "1" for features and probabilities.
    """

    unit: str = attrs.field(default="1", kw_only=True)

    def tensors(self) -> dict[str, Tensor]:
        """What is predicted for each frame, by the name of the field; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self: P, change: Callable[[Tensor], Tensor]) -> P:
        """The same prediction with every tensor changed in the same way."""
        return self.with_tensors({name: change(value) for name, value in self.tensors().items()})

    def with_tensors(self: P, tensors: Mapping[str, Tensor]) -> P:
        """The same prediction with other tensors under the names of its fields."""
        changed: dict[str, Any] = dict(tensors)
        return attrs.evolve(self, **changed)

    def in_fp32(self: P) -> P:
        """The same prediction in single precision."""
        return self.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def frames(self: P, start: int, stop: int) -> P:
        """The frames `start .. stop - 1` alone."""
        return self.map(lambda tensor: tensor[:, start:stop])

    def unit_of(self, field: str) -> str:
        """The unit of one of the tensors."""
        return self.unit

    @property
    def frame_count(self) -> int:
        """How many frames it is about."""
        return int(next(iter(self.tensors().values())).shape[1])


@attrs.frozen(eq=False)
class Maps(Prediction):
    """A dense map per frame.

    Attributes:
        values: in the pixels of the clip that the head saw.
        kind: what the numbers are, so that they can be carried to other pixels, drawn and exported:
            features  any channels
            depth     one channel, z along the optical axis; NaN is unknown; in a head's own answer so is what
                      is not positive and finite
            flow      two channels, in pixels: from each frame to the one before it
            mask      one channel, a probability
    """

    values: Float[Tensor, "b t c h w"]
    kind: MapKind = "features"


@attrs.frozen(eq=False)
class Cameras(Prediction):
    """Where each frame was taken from, and through which pinhole.

    Attributes:
        world_from_cam: poses; the world is the frame of the video's first camera unless a head says otherwise.
        intrinsics: in pixels.
    The unit is that of the translations.
    """

    world_from_cam: Float[Tensor, "b t 4 4"]
    intrinsics: Float[Tensor, "b t 3 3"]

    def unit_of(self, field: str) -> str:
        """Pixels for the intrinsics."""
        return "px" if field == "intrinsics" else self.unit


VISIBLE = 0.5
"""The probability of being seen from which a tracked point counts as visible."""


@attrs.frozen(eq=False)
class Tracks(Prediction):
    """Where each queried point is in each frame.

    Attributes:
        xy: pixels.
        visibility: the probability of being seen.
        live: whether the tracker speaks about this frame at all; a forward tracker says nothing before the query.
        depth: z of the point, seen or not, or None where a head does not say.
        xyz: the point in the world, known where depth and cameras are.
        xyz_camera: the point in the frame's camera.
        remembered: what a memory may keep of the window (`b n ...`); not a part of the answer.
    The unit is that of the depth and the 3D positions.
    """

    xy: Float[Tensor, "b t n 2"]
    visibility: Float[Tensor, "b t n"]
    live: Bool[Tensor, "b t n"]
    depth: Float[Tensor, "b t n"] | None = None
    xyz: Float[Tensor, "b t n 3"] | None = None
    xyz_camera: Float[Tensor, "b t n 3"] | None = None
    remembered: Mapping[str, Tensor] = attrs.field(factory=dict)

    def unit_of(self, field: str) -> str:
        """Pixels in the frame, the unit of the depth in space."""
        return {"xy": "px", "visibility": "1", "live": "1"}.get(field, self.unit)

    @classmethod
    def join(cls, parts: Sequence[Tracks]) -> Tracks:
        """The tracks of several groups of points as one; what a memory may keep is left behind."""
        names = parts[0].tensors()
        joined: dict[str, Any] = {name: torch.cat([part.tensors()[name] for part in parts], dim=2) for name in names}
        return cls(**joined, unit=parts[0].unit)


class Predictions(Mapping[str, Prediction]):
    """Named predictions: `predictions["depth"]`; of maps, `predictions.depth` is the values.

    `predictions.cameras` and `predictions.tracks` also find the one prediction of that kind under whatever name.
    """

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
            item = items[name]
            return item.values if isinstance(item, Maps) else item
        kind = {"cameras": Cameras, "tracks": Tracks}.get(name)
        alike = [item for item in items.values() if kind is not None and isinstance(item, kind)]
        if len(alike) == 1:
            return alike[0]
        raise AttributeError(f"no prediction '{name}'; there are: {', '.join(items) or 'none'}")

    def __repr__(self) -> str:
        shapes = [
            f"{name}{'' if isinstance(item, Maps) else '.' + field}: {tuple(tensor.shape)} [{item.unit_of(field)}]"
            for name, item in self._items.items()
            for field, tensor in item.tensors().items()
        ]
        return f"Predictions({', '.join(shapes)})"
