"""Segmentation scores from one confusion matrix for the whole set.

Source: google-research/lila, lila/metrics.py CocoEval.
"""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

IGNORED = 255
"""The label of pixels that do not count."""


@attrs.frozen(eq=False)
class SegmentationScores:
    """Shares in [0, 1].

    Attributes:
        iou: intersection over union of each class; NaN for a class that the truth never has.
        miou: the mean over classes that the truth has.
        pixel_accuracy: of all pixels that count.
        mean_accuracy: of each class's pixels, mean over classes that the truth has.
        weighted_iou: of each class, weighted by its share of the truth.
    """

    iou: Float64[Tensor, " k"]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    weighted_iou: float


def confusion(predicted: Int64[Tensor, "*shape"], truth: Int64[Tensor, "*shape"], classes: int) -> Int64[Tensor, "k k"]:
    """How many pixels of each true class (row) were given each class (column).

    Pixels whose truth is not one of `0 .. classes - 1` do not count; a prediction must be one.
    """
    counted = (truth >= 0) & (truth < classes)
    pairs = truth[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores(matrix: Int64[Tensor, "k k"], among: Int64[Tensor, " n"] | None = None) -> SegmentationScores:
    """Scores of a confusion matrix.

    Args:
        matrix: rows are the truth.
        among: of these classes alone: means and accuracies are over them, and over pixels whose truth is one of them,
            while a union still counts what other classes' pixels were given. None: all classes.
    """
    counts = matrix.double().cpu()
    hits, truth, given = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = torch.where(truth > 0, hits / (truth + given - hits).clamp(min=1), torch.nan)
    chosen = torch.zeros(len(counts), dtype=torch.bool)
    chosen[torch.arange(len(counts)) if among is None else among.cpu()] = True
    present = chosen & (truth > 0)
    total = float(truth[chosen].sum())
    if not total:
        return SegmentationScores(iou, 0.0, 0.0, 0.0, 0.0)
    return SegmentationScores(
        iou,
        miou=float(iou[present].mean()),
        pixel_accuracy=float(hits[chosen].sum()) / total,
        mean_accuracy=float((hits[present] / truth[present]).mean()),
        weighted_iou=float((iou[present] * truth[present]).sum()) / total,
    )
