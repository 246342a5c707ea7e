"""What DAVIS-2017's evaluations share: where the data is, how masks are scored, and what stands in the table."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from torch import Tensor

from fourd_core.errors import RecipeError
from fourd_core.files import as_json
from fourd_core.interfaces import Dataset, Metric, Result
from fourd_core.progress import track
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals.davis import DAVIS, DAVISSequence
from fourd_evals.davis_metrics import WRAP, Objects, SequenceScorer, SequenceScores, Summary, summarise
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.paper import NAME, PaperTable, changed_note, our_name, paper_rows
from fourd_evals.probes import Source

NOT_PROTOCOL = ("root", "table", "each_sequence")
"""Keys that change no number."""
Row = dict[str, str | float]


@attrs.frozen(kw_only=True)
class DAVISConfig:
    """What is measured on DAVIS-2017."""

    root: Location | None = None
    """The folder with JPEGImages, Annotations and ImageSets."""
    split: str = "val"
    """The list of sequences, `ImageSets/2017/SPLIT.txt`."""
    head: str = "features"
    """The head whose maps are the pixel features."""
    tap: int = -1
    """Which of the taps that this head reads is the encoder's map; negative numbers count from the deepest."""
    features: Source = "pixels"
    """Whose features are measured: the pixels', the encoder's, or both."""
    objects: Objects = "first_frame"
    """Where the prediction's objects are counted: in its first frame as LILA does, or in all evaluated frames as
    davis2017-evaluation does."""
    table: PaperTable = "main"
    """The rows of which of the paper's tables stand beside ours."""
    each_sequence: bool = False
    """Also show a row for every sequence."""


class DAVISMetric(Metric):
    """Masks predicted frame by frame from that of the first frame, and their J and F."""

    title: ClassVar[str]
    compared: ClassVar[str | None]
    """What the paper's tables call it."""
    names: tuple[str, ...] = ()
    """The sequences; none: those of the list."""
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def predict(self, extractor: FeatureExtractor, sequence: DAVISSequence) -> Iterator[UInt8[Tensor, "h w"]]:
        """The ids of every frame in order, of the size of `seen` frames."""

    @abstractmethod
    def picture_size(self, size: tuple[int, int], system: System) -> tuple[int, int]:
        """Rows and columns that the network sees of frames of this size."""

    def seen(self, maps: Shaped[Tensor, "*axes h w"]) -> Shaped[Tensor, "*axes y x"]:
        """The part of a frame or mask that is measured: all."""
        return maps

    def available(self, system: System, data: Dataset) -> bool:
        """Whether the root is set; `prepare` says what is wrong with it."""
        return self.config.root is not None

    def prepare(self, system: System, data: Dataset) -> None:
        """Find the data, and see whether the system can read its frames."""
        self._extractor(system)
        for sequence in self.open().sequences:
            self.picture_size(sequence.size, system)

    def measure(self, system: System, data: Dataset) -> Result:
        """Predict and score every sequence; the system stays as it is.

        Raises:
            RecipeError: `root` is not set, or the system cannot be measured in this way.
            MediaError: the data is not there or not DAVIS-2017.
        """
        davis, extractor = self.open(), self._extractor(system)
        system.eval()
        scores: dict[str, SequenceScores] = {}
        sizes: dict[str, str] = {}
        for _ in track(self._score_all(davis, extractor, scores, sizes), self.title, davis.frame_count):
            pass
        summary, name = summarise(list(scores.values())), our_name(system)
        rows = [table_row(name, summary)]
        if self.config.each_sequence:
            rows += [table_row(f"{name}: {sequence}", summarise([one])) for sequence, one in scores.items()]
        if self.compared:
            rows += paper_rows("DAVIS-2017 val", {"J&F": self.compared}, self.config.table)
        notes = tuple(self.notes(davis, scores))
        return Result(self.title, tuple(rows), self._protocol(davis, sizes), notes, 100 * summary.jf)

    def settings(self) -> dict[str, Any]:
        """The configuration as it was applied, for the protocol."""
        return attrs.asdict(self.config)

    def look(self, extractor: FeatureExtractor, sequence: DAVISSequence, number: int) -> Features:
        """A frame's features."""
        frame = self.seen(sequence.frame(number)).to(extractor.system.device)[None].float() / 255
        size = self.picture_size(sequence.size, extractor.system)
        if frame.shape[-2:] != size:
            frame = F.interpolate(frame, size, mode="bilinear", align_corners=False)
        return extractor(frame)

    def notes(self, davis: DAVIS, scores: dict[str, SequenceScores]) -> Iterator[str]:
        """What a reader must know."""
        if note := davis.note(*((tuple(scores),) if self.names else ())):
            yield note
        if note := changed_note(self.settings(), type(self)(type(self.config)()).settings(), NOT_PROTOCOL):
            yield note
        bare = sum(mask is None for sequence in davis.sequences for mask in sequence.annotations)
        if bare:
            yield f"{bare} of {davis.frame_count} frames have no annotation and are not scored"
        long = [name for name, one in scores.items() if one.j.shape[1] > WRAP]
        if long:
            yield (
                "decay is not meaningful: the public implementations count its quarters in 8 bits, and more than "
                f"{WRAP} frames are evaluated of {', '.join(long)}"
            )

    def open(self) -> DAVIS:
        """The sequences that are measured.

        Raises:
            RecipeError: `root` is not set.
            MediaError: it is not DAVIS-2017, or lacks a sequence.
        """
        if self.config.root is None:
            raise RecipeError(f"{self.title}: `root` is not set; set it to the folder of DAVIS-2017")
        return DAVIS.open(self.config.root, self.config.split, self.names)

    def _extractor(self, system: System) -> FeatureExtractor:
        extractor = FeatureExtractor(system, self.config.head, self.config.tap)
        extractor.check()
        frames = system.backbone.spec.multiple[0]
        if frames != 1:
            raise RecipeError(f"{self.title}: frames are looked at one by one, and the backbone takes {frames} at once")
        return extractor

    def _score_all(
        self,
        davis: DAVIS,
        extractor: FeatureExtractor,
        scores: dict[str, SequenceScores],
        sizes: dict[str, str],
    ) -> Iterator[None]:
        """Fill `scores` by sequence and `sizes` (frames -> what the network sees), a frame with each step."""
        for sequence in davis.sequences:
            scorer = SequenceScorer(self.config.objects, sequence.name)
            for number, mask in enumerate(self.predict(extractor, sequence)):
                truth = sequence.mask(number)
                if truth is not None:
                    scorer.add(self.seen(truth), mask)
                yield
            scores[sequence.name] = scorer.scores()
            sizes[_shown(sequence.size)] = _shown(self.picture_size(sequence.size, extractor.system))

    def _protocol(self, davis: DAVIS, sizes: dict[str, str]) -> dict[str, Any]:
        settings = {key: value for key, value in self.settings().items() if key not in NOT_PROTOCOL}
        protocol = {"data": davis.facts(), "frames seen at (rows x columns)": sizes, **settings}
        plain: dict[str, Any] = as_json(protocol)
        return plain


def patch_resample(size: tuple[int, int], side: int, multiple: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns with the smaller side at `side` and the other one in proportion, in multiples of a patch.

    Both are rounded to the nearest multiple, at least one; the other side is cut off to a whole number before.

    Source: google-research/lila, PatchResample: 480 x 854 becomes 476 x 840 with patches of 14.
    """
    smaller = min(size)
    scaled = (side if length == smaller else int(length * side / smaller) for length in size)
    rows, columns = (max(round(length / step), 1) * step for length, step in zip(scaled, multiple, strict=True))
    return rows, columns


def table_row(name: str, summary: Summary) -> Row:
    """Percent; what cannot be said is left out."""
    columns = {"J&F": summary.jf}
    for letter, measure in (("J", summary.j), ("F", summary.f)):
        columns |= {letter: measure.mean, f"{letter} recall": measure.recall, f"{letter} decay": measure.decay}
    return {NAME: name, **{key: round(100 * value, 5) for key, value in columns.items() if math.isfinite(value)}}


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
