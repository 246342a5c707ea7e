"""Whole videos through a system, and what is known of them: what the measurements of L4P's tasks share.

Maps stay on the grid of the network's view as the system streams; they are brought to the pixels in which they are
compared a window or a frame at a time.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import attrs
import torch
from attrs.validators import ge, optional

from fourd_core.build import build_component
from fourd_core.errors import RecipeError
from fourd_core.interfaces import AnnotatedVideo, Dataset, Head, Metric, Result, Split
from fourd_core.media.views import ViewConfig
from fourd_core.placement import Pixels
from fourd_core.progress import track
from fourd_core.recipe import ComponentConfig, component
from fourd_core.streaming import check_windows, stream_config, view_of
from fourd_core.system import NamedModules, System
from fourd_evals.known_texture import KnownTextures, knowing_system
from fourd_evals.looks import FirstFrames, Look
from fourd_evals.paper import NAME as PAPER_NAME
from fourd_evals.paper import paper_rows

NAME = "system"
"""The first column of these tables: whose answers were measured."""
NOT_PROTOCOL = ("data", "paper", "trivial", "head")
"""Keys that change none of the system's numbers."""
Row = dict[str, str | float]
Kind = Literal["depth", "flow", "mask", "cameras", "tracks"]


@attrs.frozen(kw_only=True)
class VideoMetricConfig:
    """What is measured, and on what."""

    data: ComponentConfig | None = component("datasets", None)
    """A data set of videos with truth, `[stages.NAME.metrics.X.data] use = "..."`; none: the stage's data."""
    split: Split = "held_out"
    """Which part of it."""
    videos: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """No more than so many videos, the first of the part; none: all."""
    frames: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """No more than so many frames of each, the first; none: all."""
    head: str | None = None
    """The head that is measured; none: the recipe's only one of the kind."""
    trivial: bool = False
    """Also show what answers without any network score."""
    paper: str = ""
    """The data set in L4P's tables whose rows stand beside ours, "Sintel" or "Spring" for example; empty: none."""


def with_heads(system: System, names: Sequence[str]) -> System:
    """The same modules with these heads and their memories alone; the system itself stays as it is."""
    part = copy.copy(system)
    part._modules = dict(system._modules)
    part.heads = NamedModules("heads", {name: system.heads[name] for name in names})
    part.memories = NamedModules("memories", {name: m for name, m in system.memories.items() if name in names})
    return part


class VideoMetric(Metric):
    """One task measured on videos whose truth is known; a subclass says what is scored how."""

    title: ClassVar[str]
    needs: ClassVar[str]
    """Which truth, see `fourd_core.interfaces.TRUTHS`."""
    kind: ClassVar[Kind]
    """What the measured head predicts."""
    table: ClassVar[str]
    """The number of L4P's table; empty: it has none."""
    printed: ClassVar[Mapping[str, str]]
    """Our columns and what L4P's table calls them."""
    Config: ClassVar[Any]
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config
        self._data: Dataset | None = None

    @classmethod
    def example(cls) -> Any:
        """A generated miniature, the trivial answers too."""
        return cls.Config(trivial=True)

    @classmethod
    def example_data(cls) -> Dataset:
        """A generated miniature."""
        return KnownTextures()

    @classmethod
    def example_system(cls) -> System:
        """One that answers every question, wrongly."""
        return knowing_system(error=0.2)

    @abstractmethod
    def scores(self, system: System) -> dict[str, Any]:
        """What gathers the numbers, for the system (under its name, first) and for each trivial answer."""

    @abstractmethod
    def add(self, look: Look, head: str, scores: Mapping[str, Any]) -> None:
        """Score one video."""

    @abstractmethod
    def columns(self, scores: Any) -> dict[str, float]:
        """The numbers of one row; NaN where there is none."""

    @abstractmethod
    def score(self, columns: Mapping[str, float]) -> float:
        """One number, higher is better."""

    def available(self, system: System, data: Dataset) -> bool:
        """Whether a data set is named, and where it is if it is read; without, whether the stage's has such truth."""
        if self.config.data is not None:
            config = self.config.data.config
            places = [getattr(config, key) for key in ("root", "video", "sets") if hasattr(config, key)]
            return not places or any(places)
        video = next(iter(data.videos(self.config.split)), None)
        return isinstance(video, AnnotatedVideo) and self.needs in video.known

    def prepare(self, system: System, data: Dataset) -> None:
        """Find the head and the first video, and see whether they go together."""
        look = next(self._looks(system, data), None)
        if look is None:
            raise RecipeError(f"{self.title}: no video of the data has a known truth of the kind {self.needs!r}")
        if system.device.type != "meta":
            check_windows(look.system, look.video, look.windows)

    @torch.no_grad()
    def measure(self, system: System, data: Dataset) -> Result:
        """Predict and score every video, one at a time.

        Raises:
            RecipeError: no head of the kind, or several; no truth.
        """
        system.eval()
        scores, measured, head = self.scores(system), 0, self.head(system)
        self.begin(system, data, scores)
        for look in track(self._looks(system, data), self.title, self._count(data)):
            self.add(look, head, scores)
            measured += 1
        if not measured:
            raise RecipeError(f"{self.title}: no video of the data has a known truth of the kind {self.needs!r}")
        tables = {name: self.columns(one) for name, one in scores.items()}
        rows = [{NAME: name, **_finite(columns)} for name, columns in tables.items()]
        ours = next(iter(tables.values()))
        return Result(
            self.title,
            (*rows, *self._paper()),
            self._protocol(system, data, measured),
            (*self.notes(), *self._of_the_data(data)),
            self.score(ours) if all(map(math.isfinite, ours.values())) else None,
        )

    def begin(self, system: System, data: Dataset, scores: dict[str, Any]) -> None:
        """Look at all the data first, where a trivial answer needs it."""

    def notes(self) -> Iterator[str]:
        """What a reader must know beside the table."""
        return iter(())

    def _of_the_data(self, data: Dataset) -> Iterator[str]:
        """What the data set says of itself: that sequences of the published one are missing, say."""
        note = getattr(self.dataset(data), "note", None)
        sentence = note() if note is not None else None
        if sentence:
            yield sentence

    def head(self, system: System) -> str:
        """The head that is measured.

        Raises:
            RecipeError: the named one is not there; there is none of the kind, or several.
        """
        heads = {name: cast(Head, head) for name, head in system.heads.items()}
        if self.config.head is not None:
            system.heads[self.config.head]  # says what is wrong with the name
            return str(self.config.head)
        fitting = [name for name, head in heads.items() if ("tracks" if head.tracks else head.kind) == self.kind]
        if len(fitting) != 1:
            found = ", ".join(fitting) or "none"
            raise RecipeError(f"{self.title}: the recipe has not one head for {self.kind} but {found}; name it by head")
        return fitting[0]

    def heads(self, system: System, head: str) -> list[str]:
        """The heads that run: how windows are joined may depend on all that predict maps or cameras."""
        return [name for name, other in system.heads.items() if not cast(Head, other).tracks]

    def _looks(self, system: System, data: Dataset) -> Iterator[Look]:
        dataset = self.dataset(data)
        part = with_heads(system, self.heads(system, self.head(system)))
        windows = attrs.evolve(stream_config(system.recipe), pixels="view")
        pixels: Pixels = getattr(self.config, "pixels", "video")
        for video in self.annotated(data):
            view = view_of(dataset.view, video.size, system.backbone.spec)
            yield Look(part, video, view, windows, pixels)

    def annotated(self, data: Dataset) -> Iterator[AnnotatedVideo]:
        """The videos with such truth, no more than asked for."""
        videos = self.dataset(data).videos(self.config.split)
        every = (videos[number] for number in range(len(videos)))
        fitting = (video for video in every if isinstance(video, AnnotatedVideo) and self.needs in video.known)
        for video in itertools.islice(fitting, self.config.videos):
            yield FirstFrames(video, self.config.frames) if self.config.frames else video

    def dataset(self, data: Dataset) -> Dataset:
        """The data set that is measured on."""
        section = self.config.data
        if section is None:
            return data
        if self._data is None:
            self._data = build_component(section, 0, f"metrics: {self.title}: data")
        return self._data

    def _count(self, data: Dataset) -> int:
        return min(len(self.dataset(data).videos(self.config.split)), self.config.videos or 2**62)

    def _paper(self) -> Iterator[Row]:
        if not self.config.paper or not self.table:
            return
        for row in paper_rows(self.config.paper, self.printed, self.table, "L4P"):
            yield {NAME: row[PAPER_NAME], **{key: value for key, value in row.items() if key != PAPER_NAME}}

    def _protocol(self, system: System, data: Dataset, measured: int) -> dict[str, Any]:
        window, stride = stream_config(system.recipe).steps(system.backbone.spec)
        dataset, fields = self.dataset(data), attrs.fields(type(self.config))
        settings = {f.name: getattr(self.config, f.name) for f in fields if f.name not in NOT_PROTOCOL}
        facts = {
            "data": self.config.data.use if self.config.data is not None else type(dataset).__name__,
            "view": {f.name: getattr(dataset.view, f.name) for f in attrs.fields(ViewConfig)},
            "window": window,
            "stride": stride,
            **settings,
            "videos": measured,
        }
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain


def _finite(columns: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in columns.items() if math.isfinite(value)}
