"""The contracts between the core and the plugins, version 1 (`fourd_core.registry.API_VERSION`).

Five kinds make a system: Backbone, CueProvider, Head, Objective, Memory; two more feed and judge it: Dataset, Metric.
A component is a class that derives from one of them and is registered by an entry point (group `fourd.backbones`,
`fourd.cues`, `fourd.heads`, `fourd.objectives`, `fourd.memories`, `fourd.datasets`, `fourd.metrics`). It carries

    Config            a nested attrs class: the keys that a recipe may set, with types and defaults
    __init__(config, ...)   the arguments after `config` are given by the core and stated at each contract below
    example()         optional classmethod: a small Config for the contract tests, where Config() is not small
    example_spec(), example_system(), example_data()    optional classmethods, what the contract tests build it on,
                      see `fourd_core.testing`

A component builds its network in `__init__` without reading weights (so that it can be built on the meta device);
weights are read in `load_pretrained`, which the core calls once afterwards. Randomness comes from the generators that
are handed in, never from a global one; `__init__` may draw from torch's global generator, which the core seeds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from fourd_core.data import Clip, CueKind, CueMaps, MapKind, Prediction, Predictions, Tokens
from fourd_core.errors import MediaError
from fourd_core.media.views import ViewConfig
from fourd_core.stitching import Overwrite, Stitch

if TYPE_CHECKING:
    from fourd_core.system import System

Split = Literal["all", "train", "held_out"]
State = Any
"""What a Memory hands from one window to the next; its own business, but see there what it may be made of."""


@attrs.frozen
class PretrainedWeights:
    """Where a component's weights come from, for `fourd check` and a run's provenance."""

    location: str
    """A path or URL, `weights:NAME` for what `fourd weights pull NAME` fetched, or `package:NAME/FILE` for a file that
    an installed package carries."""
    licence: str
    source: str = ""
    """Who published them (a paper or a project)."""
    sha256: str | None = None


class Component(ABC):
    """What every kind shares: the nested Config, and weights that are read after building."""

    Config: ClassVar[type[Any]]

    @classmethod
    def example(cls) -> Any:
        """A Config small enough for a contract test; by default `Config()`."""
        return cls.Config()

    def pretrained(self) -> PretrainedWeights | None:
        """The weights that `load_pretrained` will read, or None where there are none to read."""
        return None

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained()`.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's.
        """


@attrs.frozen
class TapSpec:
    """One layer that a backbone offers: `dim` channels, one token per `stride` (frames, rows, columns)."""

    dim: int
    stride: tuple[int, int, int]


@attrs.frozen
class BackboneSpec:
    """What a backbone announces before it runs."""

    taps: tuple[TapSpec, ...]
    """Layers by tap number, shallow to deep; negative numbers count from the end, as in a list."""
    multiple: tuple[int, int, int]
    """Clips must be divisible by this (frames, rows, columns)."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Input normalisation, applied by the backbone itself to frames in [0, 1]."""
    window: tuple[int, int] = (4, 4)
    """Frames per forward pass and frames between two passes that suit it: overlapping for one that looks across time,
    side by side for one that sees each frame by itself."""

    def tap(self, number: int) -> int:
        """The non-negative form of a tap number.

        Raises:
            ValueError: deeper than the backbone.
        """
        count = len(self.taps)
        if not -count <= number < count:
            raise ValueError(
                f"tap {number} does not exist: this backbone has taps 0 to {count - 1} (or -{count} to -1)"
            )
        return number % count

    def check(self, frames: Float[Tensor, "b t c h w"]) -> None:
        """Refuse frames that the backbone cannot divide into tokens; a backbone calls it first in its `forward`.

        Raises:
            ValueError: a size that is not divisible by `multiple`.
        """
        _, t, _, h, w = frames.shape
        if any(size % step for size, step in zip((t, h, w), self.multiple, strict=True)):
            steps = " x ".join(map(str, self.multiple))
            raise ValueError(
                f"{t} frames of {h} x {w} are not divisible by the backbone's {steps} (frames x rows x columns)"
            )


class Backbone(nn.Module, Component):
    """Frames to tokens. Built as `cls(config)`; frozen unless a training stage's `learn_blocks` says otherwise."""

    spec: BackboneSpec

    @abstractmethod
    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int]) -> Tokens:
        """Tokens of the asked taps only (non-negative numbers), computed no deeper than the deepest of them.

        Args:
            frames: RGB in [0, 1]; `t h w` divisible by `spec.multiple`.
        Raises:
            ValueError: a size that is not divisible.
        """

    def last_blocks(self, count: int) -> Sequence[nn.Module]:
        """The `count` deepest blocks and what comes after them, for a training that changes these alone.

        Raises:
            ValueError: it does not come in blocks, or has fewer.
        """
        raise ValueError("the backbone cannot be trained in part: learn_blocks is 0 (none of it) or -1 (all of it)")


Direction = Literal["forward", "backward", "both"]


class Head(nn.Module, Component):
    """Tokens to one named prediction. Built as `cls(config, backbone_spec)`.

    Attributes:
        taps: the layers it reads, non-negative.
        unit: the unit of its prediction.
        channels: of a head that predicts maps, how many channels they have.
        kind: what it predicts; with it a recipe's exports are checked before a run, without it (None) after.
        stitch: how its answers about the frames that two windows share become one.
        tracks: whether it follows points: it then needs `clip.queries`, answers with Tracks, and is given the points in
            groups that fit into memory.
        direction: of a head that tracks, which way through the video.
    """

    taps: tuple[int, ...]
    unit: str = "1"
    channels: int
    kind: MapKind | Literal["cameras"] | None = None
    stitch: Stitch = Overwrite()
    tracks: bool = False
    direction: Direction = "forward"

    @abstractmethod
    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """A prediction for every frame, in the pixels of `clip`; maps are `(b, t, channels, h, w)`.

        Of frames behind the first `clip.wanted`, where it is set, it may be NaN: nobody reads them.
        """

    def check_use(self, use: Use) -> None:
        """Find what would fail once a video is predicted, before anything is written.

        Raises:
            ValueError: what is wrong and which key mends it.
        """

    def query_bytes(self, clip: Clip) -> int:
        """Working memory that one more point takes in `forward`, for choosing how many go through together."""
        return 0


@attrs.frozen
class Use:
    """How a system is about to predict a video."""

    heads: Mapping[str, Head]
    """All of its heads by name."""
    window: int
    """Frames per window."""
    stride: int
    """Frames between the starts of two windows."""
    long: bool
    """Whether the video has more than one window."""
    intrinsics: bool
    """Whether the video's intrinsics are known."""


class Memory(nn.Module, Component):
    """What a head carries from one window of a long video to the next. Built as `cls(config, backbone_spec)`.

    A recipe gives the head `NAME` a memory by a section `[memories.NAME]`. `read` sees a window before the head does
    and may change what the head shall see: the tokens, the intrinsics, the queries and what is recalled of each. A
    memory of a head that tracks is asked for each group of points by itself. States are tensors, numbers and None in
    dicts, lists and tuples, so that a killed run can go on with them.

    Attributes:
        leaves_aside: how names of tensors begin that the weights of a memory of its family have and this one lacks, so
            that one can stand in for the other.
    """

    leaves_aside: tuple[str, ...] = ()

    def check_use(self, use: Use) -> None:
        """As `Head.check_use`."""

    @abstractmethod
    def initial(self, tokens: Tokens, clip: Clip) -> State:
        """The state before the first window, from that window (shapes, device, dtype)."""

    @abstractmethod
    def read(self, state: State, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        """The tokens and the clip that the head shall see: the window's own, enriched by what was remembered."""

    @abstractmethod
    def update(self, state: State, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> State:
        """The state for the next window, which starts `shift` frames later.

        Args:
            tokens: the window's own.
            clip: the window's own; its queries are those of the user.
            prediction: the head's answer, before it is stitched.
        """


class CueProvider(Component):
    """A teacher's view of a clip: flow, disparity, any map. Built as `cls(config)`. Frozen, deterministic, no gradient.

    A learned one derives from nn.Module too, and the core moves it to the device; a classical one may work on the CPU
    but returns its maps on the device of the clip.
    """

    kind: CueKind
    channels: int | None = None
    """How many channels its maps have; needed only of a `map` cue by a read-out that is trained, not solved."""
    each_frame_alone: bool = False
    """Whether a frame's maps depend on that frame alone, so that they can be kept once for all clips it is part of."""
    each_clip_alone: bool = True
    """Whether a clip's maps depend on that clip alone; where the others of its batch matter they cannot be kept."""

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse clips of a height and width that the provider cannot work on; asked before anything runs.

        Raises:
            ValueError: which sizes it takes, and what to set.
        """

    @abstractmethod
    def __call__(self, clip: Clip) -> CueMaps:
        """Cue maps of every frame at the clip's own resolution; flow needs clips of exactly two frames."""


Sample = dict[str, Tensor]
"""One training sample, named tensors without batch axis; samples of one objective stack to a batch."""


@attrs.frozen
class Draw:
    """Which frames a training sample is made of."""

    video: int
    """Number in `Dataset.videos(split)`."""
    frames: tuple[int, ...]
    """In the order of time."""


class KeptCues(ABC):
    """What teachers said about the frames of training samples, kept by a stage with `job = "cues"`."""

    @abstractmethod
    def read(self, cue: str, video: Video, frames: Sequence[int]) -> CueMaps:
        """The maps of these frames as one clip, float32 on the CPU: `1 t c h w`.

        Raises:
            RunError: they are not kept, or no longer readable.
        """


class Objective(nn.Module, Component):
    """How a system learns. Built as `cls(config, system)`.

    Parameters of its own (an ERM read-out, say) are trained and saved beside the system's. The system is handed to each
    call and must not be kept as a submodule.

    Attributes:
        kept_cues: what teachers said about the samples' frames, where that was computed before; None: ask them.
        skip_videos: keys of videos that cannot be read; `draw` and `sample` take others instead.
    """

    kept_cues: KeptCues | None = None
    skip_videos: frozenset[str] = frozenset()

    @abstractmethod
    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        """Draw one training sample; every random choice comes from `generator` (CPU)."""

    @abstractmethod
    def forward(self, system: System, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalar losses; `"loss"` is the one to minimise, the others are logged beside it."""

    def complete(self, data: Dataset, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch on the training's device with what its samples only name: clips that are made there, not read."""
        return batch

    def describe(self, data: Dataset, batch: Mapping[str, Tensor]) -> str:
        """Which videos and frames a batch is made of, for the message about one that cannot be learned from."""
        return ""

    # What follows is for objectives whose teachers may be asked before training, by a stage with `job = "cues"`.

    def draw(self, data: Dataset, split: Split, generator: torch.Generator) -> Draw | None:
        """Which frames `sample` will take, given an equal generator; decodes nothing. None: cues cannot be kept."""
        return None

    def cue_frames(self, video: Video, frames: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """These frames as the teachers shall see them."""
        raise NotImplementedError(f"{type(self).__name__} draws samples but does not say what teachers see of them")

    def cue_view(self) -> dict[str, Any]:
        """What `cue_frames` depends on beside its arguments (sizes, crops), as plain JSON values."""
        return {}


class Video(ABC):
    """Random access to the frames of one video, decoded when asked for."""

    name: str
    """Where it is, for people: a path or URL."""
    key: str = ""
    """What it is called within its data set, the same on every machine; empty: as `name`."""
    frame_count: int
    size: tuple[int, int]
    """Height and width of the frames that `read` returns, rotation metadata applied."""
    intrinsics: Float[Tensor, "3 3"] | None = None
    """The pinhole matrix of every frame in its pixels, where it is known."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """The frames at these positions (any order, repeats allowed).

        Raises:
            MediaError: a frame cannot be decoded.
        """

    @abstractmethod
    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """Presentation times in seconds (float64)."""


TRUTHS = ("depth", "flow", "motion", "cameras", "tracks")
"""What may be known of a video, by the names under which its `truth` tells it."""


class AnnotatedVideo(Video):
    """A video of which more is known than its colours.

    Ground truth is what a perfect system would predict, in the same types: `depth` in metres, `flow` to the frame
    before in the sequence asked for, `motion` (1 where something moves in the world), `cameras`, `tracks` (`live` where
    the position is known, visibility 0 or 1). NaN is unknown in every map.
    """

    known: frozenset[str]
    """Which of `TRUTHS`."""

    @abstractmethod
    def truth(self, indices: Sequence[int]) -> Predictions:
        """What is known about the frames at these positions, `1 t ...`, in pixels of the frames that `read` returns.

        Flow is known between neighbours in the video, in either direction: of descending positions the frame before is
        the later one. Elsewhere it is NaN.

        Raises:
            MediaError: it cannot be read.
        """


@runtime_checkable
class GeneratesClips(Protocol):
    """A Dataset that makes its clips instead of reading them, many at once and on the training's device."""

    def generate(
        self, split: Split, numbers: Int[Tensor, " b"], frames: int, crop: int | None, tracks: int, device: torch.device
    ) -> tuple[Clip, Predictions]:
        """Clips by number and all that is known of them, as `AnnotatedVideo.truth`; equal numbers, equal clips.

        Args:
            crop: only a random square of so many pixels of each picture; None: all of it.
            tracks: how many points are followed.
        """


class Dataset(Component):
    """A collection of videos. Built as `cls(config)`; opening is lazy."""

    view: ViewConfig = ViewConfig()
    """How a frame of its videos becomes a network's input in prediction."""

    @abstractmethod
    def videos(self, split: Split) -> Sequence[Video]:
        """The videos of a split, perhaps opened one by one as they are taken; `held_out` never shares a frame with
        `train`."""

    def draw(self, split: Split, generator: torch.Generator) -> int:
        """The number in `videos(split)` of one to learn from: each is as likely, unless a data set has reasons.

        Raises:
            FourdError: the split holds none.
        """
        count = len(self.videos(split))
        if not count:
            raise MediaError(f'the data has no video in its part "{split}"; set data.held_out above 0')
        return int(torch.randint(count, (), generator=generator))


@attrs.frozen
class Result:
    """What a Metric measured: a table, and the whole protocol that makes its numbers comparable."""

    title: str
    rows: tuple[dict[str, str | float], ...]
    """One dict per row, first key the row's name; a missing column is left blank."""
    protocol: dict[str, Any]
    """Everything that a number depends on (data, resolution, split, seed, alignment ...), as plain JSON values."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the table: that the data set is not the published one, say. A sentence each."""
    score: float | None = None
    """The system's quality in one number, higher is better, by which training keeps its best weights."""


class Metric(Component):
    """A measurement of a system on data. Built as `cls(config)`."""

    def available(self, system: System, data: Dataset) -> bool:
        """Whether what it measures on is there; training validates by the first of its metrics that is available."""
        return True

    def prepare(self, system: System, data: Dataset) -> None:
        """Find what is wrong with the data or the recipe before the run writes or trains anything.

        Raises:
            FourdError: what `measure` would stumble over later.
        """

    @abstractmethod
    def measure(self, system: System, data: Dataset) -> Result:
        """Run the system in evaluation mode and report."""
