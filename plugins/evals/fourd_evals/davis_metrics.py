"""DAVIS-2017's measures of segmented objects: region similarity J, contour accuracy F, their mean, recall and decay.

Two conventions differ in one point: which objects the prediction is said to have. google-research/lila takes the
highest id of its first frame, so that an object that is missing there is empty in all frames; davis2017-evaluation
takes the highest id of any evaluated frame. Everything else is common: void (255) is background, the truth's first
frame says how many objects there are, the first and the last frame are not evaluated.

Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, section
5; Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, section 4; davis2017-evaluation, metrics.py
and results.py; google-research/lila, utils/davis_eval.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

import attrs
import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from fourd_core.errors import MediaError

VOID = 255
"""The id of pixels that belong to nothing that is scored; counted as background."""
TOLERANCE = 0.008
"""How far a contour may be off, as a share of the picture's diagonal."""
WRAP = 256
"""Evaluated frames beyond which both public implementations' decay is about other frames than it says."""
BINS = 4
"""Decay is the mean of the first of so many parts of a sequence minus that of the last."""

Objects = Literal["first_frame", "all_frames"]
"""Where the prediction's objects are counted: its first frame (LILA), all evaluated frames (davis2017-evaluation)."""


@attrs.frozen(eq=False)
class SequenceScores:
    """J and F of every object in every evaluated frame (the first and the last are not), fractions."""

    j: Float64[np.ndarray, "objects frames"]
    f: Float64[np.ndarray, "objects frames"]


@attrs.frozen
class Measure:
    """Of J or of F: the mean over frames, then over objects; fractions."""

    mean: float
    recall: float
    """The share of frames above 0.5."""
    decay: float
    """How much is lost from the first quarter of the frames to the last; NaN where that cannot be said."""


@attrs.frozen
class Summary:
    """The table of DAVIS-2017, over all objects of all sequences alike."""

    j: Measure
    f: Measure

    @property
    def jf(self) -> float:
        """J&F, the benchmark's number."""
        return (self.j.mean + self.f.mean) / 2


class SequenceScorer:
    """Scores one sequence, a frame at a time, and keeps numbers only.

    Args:
        objects: where the prediction's objects are counted.
        name: of the sequence, for messages.
    """

    def __init__(self, objects: Objects = "first_frame", name: str = "") -> None:
        self.objects = objects
        self._who = f"the sequence {name}: " if name else ""
        self.count = 0
        self._predicted = 0
        self._frames: list[tuple[list[float], list[float]]] = []
        self._waiting: tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]] | None = None
        self._started = False

    def add(self, truth: UInt8[Tensor, "h w"], prediction: UInt8[Tensor, "h w"]) -> None:
        """The next frame's ids; it is scored when another follows.

        Raises:
            MediaError: the first frame has no object, or the prediction has more objects than it.
        """
        masks = _without_void(truth), _without_void(prediction)
        if not self._started:
            self._started = True
            self.count, self._predicted = (int(mask.max()) for mask in masks)
            if self.count == 0:
                raise MediaError(f"{self._who}the truth's first frame shows no object (every pixel is 0 or 255)")
            if self.objects == "first_frame":
                self._refuse_more_than_truth(self._predicted)
            return
        if self._waiting is not None:
            self._score(*self._waiting)
        self._waiting = masks

    def scores(self) -> SequenceScores:
        """All frames that were added but the first and the last.

        Raises:
            MediaError: fewer than three frames were added.
        """
        if not self._frames:
            raise MediaError(
                f"{self._who}DAVIS leaves out the first and the last frame, so three annotated ones are needed"
            )
        j, f = (np.array(values, dtype=np.float64).T for values in zip(*self._frames, strict=True))
        return SequenceScores(j, f)

    def _score(self, truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]) -> None:
        highest = self._predicted
        if self.objects == "all_frames":
            highest = int(prediction.max())
            self._refuse_more_than_truth(highest)
        pairs = [(truth == n, (prediction == n) & (n <= highest)) for n in range(1, self.count + 1)]
        self._frames.append(([region_similarity(*pair) for pair in pairs], [contour_accuracy(*pair) for pair in pairs]))

    def _refuse_more_than_truth(self, highest: int) -> None:
        if highest > self.count:
            raise MediaError(
                f"{self._who}the prediction has an object {highest} but the truth's first frame only {self.count}; "
                "DAVIS knows no objects that appear later"
            )


def score_sequence(
    truth: Iterable[UInt8[Tensor, "h w"]],
    prediction: Iterable[UInt8[Tensor, "h w"]],
    objects: Objects = "first_frame",
) -> SequenceScores:
    """J and F of a sequence, given all its frames, the first and the last too.

    Raises:
        MediaError: no object, too many objects, fewer than three frames.
        ValueError: not as many predictions as frames.
    """
    scorer = SequenceScorer(objects)
    for pair in zip(truth, prediction, strict=True):
        scorer.add(*pair)
    return scorer.scores()


def summarise(sequences: Sequence[SequenceScores]) -> Summary:
    """Mean, recall and decay of J and F: every object counts alike, whatever its sequence."""
    return Summary(_measure([row for s in sequences for row in s.j]), _measure([row for s in sequences for row in s.f]))


def _measure(objects: Sequence[Float64[np.ndarray, " _"]]) -> Measure:
    statistics = [(values.mean(), (values > 0.5).mean(), decay(values)) for values in objects]
    return Measure(*(float(np.mean(column)) for column in zip(*statistics, strict=True)))


def decay(values: Float64[np.ndarray, " frames"]) -> float:
    """The mean of the first quarter of the frames minus the mean of the last.

    Quarters share their border frames. The borders are 8-bit numbers in both public implementations, so beyond 256
    evaluated frames they wrap around, and the last "quarter" is another part of the sequence, or empty (NaN); DAVIS has
    no sequence that long.
    """
    borders = np.round(np.linspace(1, len(values), BINS + 1) + 1e-10) - 1
    start, end, last, final = (int(border) % WRAP for border in borders[[0, 1, -2, -1]])
    first_part, last_part = values[start : end + 1], values[last : final + 1]
    if not (len(first_part) and len(last_part)):
        return math.nan
    return float(first_part.mean() - last_part.mean())


def region_similarity(truth: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float:
    """J: intersection over union; 1 where both are empty."""
    union = int((truth | prediction).sum())
    return int((truth & prediction).sum()) / union if union else 1.0


def contour_accuracy(truth: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float:
    """F: harmonic mean of how much of either contour lies within the tolerance of the other."""
    contours = contour(truth), contour(prediction)
    lengths = [int(c.sum()) for c in contours]
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    disk = _disk(math.ceil(TOLERANCE * math.hypot(*truth.shape)))
    near_truth, near_prediction = (cv2.dilate(c.astype(np.uint8), disk) > 0 for c in contours)
    precision = int((contours[1] & near_truth).sum()) / lengths[1]
    recall = int((contours[0] & near_prediction).sum()) / lengths[0]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from the one to the right, below, or below to the right.

    In the last row only the one to the right counts, in the last column only the one below, in the corner none.
    """
    different = np.zeros_like(mask)
    different[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    different[:-1] |= mask[:-1] != mask[1:]
    different[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return different


def without_void(mask: UInt8[Tensor, "h w"]) -> UInt8[Tensor, "h w"]:
    """The same ids with void as background."""
    return mask.where(mask != VOID, 0)


def _without_void(mask: UInt8[Tensor, "h w"]) -> UInt8[np.ndarray, "h w"]:
    array: UInt8[np.ndarray, "h w"] = without_void(mask).cpu().numpy()
    return array


@cache
def _disk(radius: int) -> UInt8[np.ndarray, "d d"]:
    steps = np.arange(-radius, radius + 1)
    return (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)
