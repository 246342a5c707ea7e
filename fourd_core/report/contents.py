"""What a run folder holds that its page shows; everything is optional, because a run may have ended anywhere.

- `run.json`: what ran (`RunRecord`)
- `recipe.toml`: the resolved recipe
- `metrics.jsonl`: one JSON object a line: `stage`, `step`, the time, and numbers by name
- `<stage>/result.json`: a list of tables (`Result`)
- `<stage>/pictures/*.png`, `<stage>/*.mp4`: shown with their file names as captions
- `<stage>/*_4d.html`: pages of the 4D viewer, linked
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import attrs
import cattrs

from fourd_core.report.series import Metrics, read_metrics

T = TypeVar("T")

EMBED_FILE = 8 * 2**20
EMBED_ALL = 64 * 2**20
"""Bytes of one picture or video, and of all together, that go into the page itself; the rest is linked."""

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@attrs.frozen
class StageRecord:
    """One stage in `run.json`; `state` is done, running, interrupted or failed."""

    job: str = ""
    state: str = ""
    seconds: float | None = None
    message: str | None = None


@attrs.frozen
class GitRecord:
    """The commit a run was started from, and whether files differed from it."""

    commit: str = ""
    dirty: bool = False


@attrs.frozen
class WeightsRecord:
    """Where a checkpoint came from and under which licence."""

    component: str | None = None
    location: str = ""
    licence: str | None = None
    source: str | None = None
    sha256: str | None = None


@attrs.frozen
class RunRecord:
    """`run.json`."""

    fourd: str | None = None
    name: str | None = None
    created: str | None = None
    command: list[str] = attrs.field(factory=list)
    seed: int | None = None
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    python: str | None = None
    versions: dict[str, str] = attrs.field(factory=dict)
    git: GitRecord | None = None
    weights: list[WeightsRecord] = attrs.field(factory=list)
    stages: dict[str, StageRecord] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    """What whoever looks at the results must know."""

    @property
    def state(self) -> str:
        """The worst state of any stage; empty where none has started."""
        states = [stage.state for stage in self.stages.values()]
        return next((state for state in ("failed", "interrupted", "running") if state in states), *states[:1] or [""])


@attrs.frozen
class Result:
    """A table of an evaluation with the protocol it was measured under; the first key of a row holds the row's name."""

    title: str = ""
    rows: list[dict[str, Any]] = attrs.field(factory=list)
    protocol: dict[str, Any] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they first appear; the rows' names come first."""
        return list(dict.fromkeys(column for row in self.rows for column in row))


@attrs.frozen
class Medium:
    """A picture, a video, or a page; `size` (width, height in pixels) is known for pictures."""

    path: Path
    link: str
    embedded: bool
    size: tuple[int, int] | None = None

    @property
    def wide(self) -> bool:
        """Whether it is a row of pictures, which needs the whole width of a page."""
        return self.size is not None and self.size[0] > 2 * self.size[1]

    @property
    def caption(self) -> str:
        """The file's name as words."""
        return self.path.stem.replace("_", " ").replace("-", " ").strip() or self.path.name

    def data_uri(self) -> str:
        """The whole file as a `data:` address; read only when the page is written, one at a time."""
        kind = "video/mp4" if self.path.suffix == ".mp4" else "image/png"
        return f"data:{kind};base64,{base64.b64encode(self.path.read_bytes()).decode('ascii')}"


@attrs.frozen
class StageFolder:
    """What one stage left behind."""

    name: str
    results: list[Result]
    pictures: list[Medium]
    videos: list[Medium]
    viewers: list[Medium]


@attrs.frozen
class Contents:
    """Everything that the page shows; `problems` are sentences on files that could not be read."""

    run: RunRecord
    recipe: str
    metrics: Metrics
    stages: list[StageFolder]
    problems: list[str]


def read_contents(folder: Path) -> Contents:
    """Gather what lies in a run folder; a damaged file becomes a problem to show, not an error."""
    problems: list[str] = []
    run = _read_json(folder / "run.json", RunRecord, problems) or RunRecord()
    recipe = folder / "recipe.toml"
    metrics = folder / "metrics.jsonl"
    # Stages in the order in which they ran, then folders that the record does not know.
    order = {name: place for place, name in enumerate(run.stages)}
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders.sort(key=lambda path: (order.get(path.name, len(order)), path.name))
    budget = _Budget()
    return Contents(
        run=run,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        metrics=read_metrics(metrics) if metrics.is_file() else Metrics(),
        stages=[_read_stage(folder, path, budget, problems) for path in folders],
        problems=problems,
    )


@attrs.define
class _Budget:
    left: int = EMBED_ALL

    def take(self, size: int) -> bool:
        fits = size <= min(EMBED_FILE, self.left)
        self.left -= size if fits else 0
        return fits


def _read_stage(run: Path, folder: Path, budget: _Budget, problems: list[str]) -> StageFolder:
    pictures = []
    for path in sorted((folder / "pictures").glob("[!.]*.png")):
        size = _png_size(path)
        if size is None:
            problems.append(f"{path.relative_to(run)} is not a complete PNG picture and is left out.")
        else:
            pictures.append(_medium(run, path, budget, size))
    videos = [_medium(run, path, budget) for path in sorted(folder.glob("[!.]*.mp4")) if path.stat().st_size]
    viewers = [Medium(path, _link(run, path), embedded=False) for path in sorted(folder.glob("[!.]*_4d.html"))]
    results = _read_json(folder / "result.json", list[Result], problems) or []
    return StageFolder(folder.name, results, pictures, videos, viewers)


def _medium(run: Path, path: Path, budget: _Budget, size: tuple[int, int] | None = None) -> Medium:
    return Medium(path, _link(run, path), budget.take(path.stat().st_size), size)


def _link(run: Path, path: Path) -> str:
    return quote(path.relative_to(run).as_posix())


def _png_size(path: Path) -> tuple[int, int] | None:
    """Width and height, or None where the file is not a PNG or is cut off."""
    with path.open("rb") as file:
        head = file.read(24)
        file.seek(max(0, path.stat().st_size - len(PNG_END)))
        if len(head) < 24 or not head.startswith(PNG_START) or file.read() != PNG_END:
            return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _read_json(path: Path, kind: type[T], problems: list[str]) -> T | None:
    if not path.is_file():
        return None
    try:
        return cattrs.Converter().structure(json.loads(path.read_bytes()), kind)
    except (ValueError, TypeError, cattrs.BaseValidationError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__}: {error}).")
        return None
