"""The schema of a recipe as attrs classes; what a component or a job adds to it is its own Config."""

from __future__ import annotations

import re
from typing import Any, Literal, NewType

import attrs

Location = NewType("Location", str)
"""A path, a glob pattern or a URL (`s3://...`, `zip://a.mp4::b.zip`), `package:NAME/FILE`, or `weights:NAME`.

In a recipe a relative path is relative to the file that sets it, in a `--set` to the current folder; a loaded recipe
holds absolute paths. A Config's own default must be absolute, a URL or a `package:` place, since no file sets it.
"""

SLOT = "fourd_slot"
"""Where a field's metadata says what its component sections may name."""


@attrs.frozen
class Slot:
    """What a component section may name: a component of `kind`; `implied` is its `use` where that is left out."""

    kind: str
    implied: str | None = None


@attrs.frozen
class ComponentConfig:
    """A section `use = "name"` with the keys of that component's Config."""

    kind: str
    """`backbones`, `cues`, `heads`, `objectives`, `memories`, `datasets` or `metrics`."""
    use: str
    """The component's registered name, or `dist:name` where two distributions share one."""
    config: Any
    """An instance of the component's nested attrs class Config."""


def component(kind: str, default: Any = attrs.NOTHING, *, use: str | None = None) -> Any:
    """A field for one component section; annotate it `ComponentConfig`, or `ComponentConfig | None`.

    Args:
        kind: what the section may name.
        default: `None` where the section may be missing.
        use: the component that is meant where the section does not say.
    """
    return attrs.field(default=default, metadata={SLOT: Slot(kind, use)})


def components(kind: str) -> Any:
    """A field for any number of named component sections; annotate it `dict[str, ComponentConfig]`."""
    return attrs.field(factory=dict, metadata={SLOT: Slot(kind)}, validator=_check_names)


@attrs.frozen
class StageConfig:
    """A section `job = "train"` (or "predict", "evaluate") with the keys of that job's Config."""

    job: str
    config: Any
    """An instance of the job's attrs class."""


@attrs.frozen
class QueriesConfig:
    """A section `[queries]`: the points that tracking heads follow, in frames and pixels of each video."""

    grid: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """So many points along each side of what the network sees of the frame, evenly, in each of `frames`."""
    grid_places: Literal["cells", "pixels"] = "cells"
    """cells: the centres of equal cells; pixels: the centres of the network's pixels at the cells' top left corners,
    where L4P's own readers put them."""
    frames: tuple[int, ...] = attrs.field(default=(0,), validator=attrs.validators.min_len(1))
    """Frames in which the grid is laid; negative numbers count from the end."""
    mask: Location | None = None
    """A picture: of the grid, only the points where it is not black."""
    points: tuple[tuple[float, float, float], ...] = ()
    """Single points: frame, x, y; the centre of the top left pixel is (0.5, 0.5)."""
    file: Location | None = None
    """A text file with one `frame,x,y` a line."""

    def __attrs_post_init__(self) -> None:
        if self.grid is None and not self.points and self.file is None:
            raise ValueError("no point is named: set grid, points or file")
        if self.mask is not None and self.grid is None:
            raise ValueError("mask chooses among the points of a grid: set grid too")


@attrs.frozen
class ClusterConfig:
    """A section `[cluster]`: where a stage with many independent pieces of work runs; without it, in threads."""

    address: str | None = None
    """A running dask scheduler, `tcp://host:8786`; `--cluster` on the command line sets it."""
    workers: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Start so many worker processes on this machine instead."""
    threads: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Threads of each of these."""

    def __attrs_post_init__(self) -> None:
        if (self.address is None) == (self.workers is None):
            raise ValueError("set either address (a running scheduler) or workers (how many to start here)")


def _check_names(_instance: object, _field: object, value: dict[str, Any]) -> None:
    # The names become file names and parts of parameter names.
    for name in value:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            raise ValueError(f'"{name}" is not a name: a letter, then letters, digits, "_" and "-"')


def _check_recipe_name(_instance: object, _field: object, value: str) -> None:
    if not value.strip() or "/" in value or value in (".", ".."):
        raise ValueError(f'"{value}" is not a name for a recipe: it names a folder, so it has some text and no "/"')


def _check_seed(_instance: object, _field: object, value: int) -> None:
    if not 0 <= value < 2**63:
        raise ValueError(f"found {value}, expected an integer from 0 to 2^63 - 1")


def _check_threads(_instance: object, _field: object, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f'found {value}, expected at least 1 thread, or "none" for as many as there are cores')


def _check_device(_instance: object, _field: object, value: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda|mps|cuda:\d+", value):
        raise ValueError(
            f'found the text "{value}", expected "auto", "cpu", "cuda", "cuda:0" (or another number) or "mps"'
        )


def _check_memories(recipe: Recipe, field: object, value: dict[str, ComponentConfig]) -> None:
    _check_names(recipe, field, value)
    for name in value:
        if name not in recipe.heads:
            raise ValueError(f'"{name}" serves no head; a memory has the name of its head: {", ".join(recipe.heads)}')


@attrs.frozen(kw_only=True)
class Recipe:
    """A whole recipe, resolved: every value that a run depends on."""

    name: str = attrs.field(default="recipe", validator=_check_recipe_name)
    """By default the file's name without its ending."""
    description: str = ""
    seed: int = attrs.field(default=0, validator=_check_seed)
    device: str = attrs.field(default="auto", validator=_check_device)
    """The word "auto" takes CUDA, else the CPU."""
    threads: int | None = attrs.field(default=None, validator=_check_threads)
    """CPU threads of torch; None: torch's choice."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the arithmetic in training and prediction; parameters stay fp32."""
    weights: Location | None = None
    """Weights of heads, memories and perhaps the backbone: a published checkpoint that a plugin can translate, or a
    file with the names of the recipe's parts (safetensors)."""
    trained: Location | None = None
    """What a training stage of another run left (`RUN/STAGE/weights.safetensors`), on top of `weights`."""
    backbone: ComponentConfig = component("backbones")
    """`[backbone]`: what turns frames into tokens."""
    heads: dict[str, ComponentConfig] = components("heads")
    """`[heads.NAME]`: one prediction each."""
    memories: dict[str, ComponentConfig] = attrs.field(
        factory=dict, metadata={SLOT: Slot("memories")}, validator=_check_memories
    )
    """`[memories.NAME]`: what the head of that name carries from window to window."""
    cues: dict[str, ComponentConfig] = components("cues")
    """`[cues.NAME]`: teachers' views of the video."""
    data: ComponentConfig = component("datasets", use="video")
    """`[data]`: the videos; without `use` it is one video, `video = "..."`."""
    queries: QueriesConfig | None = None
    """`[queries]`: the points that tracking heads follow."""
    cue_cache: Location | None = None
    """Where a stage with `job = "cues"` keeps what teachers say and training looks for it (Zarr); None: teachers are
    asked as training goes."""
    cluster: ClusterConfig | None = None
    """`[cluster]`: many processes or machines for a stage with `job = "cues"`."""
    stages: dict[str, StageConfig] = attrs.field(factory=dict, validator=_check_names)
    """`[stages.NAME]`: what is done, in the file's order."""
