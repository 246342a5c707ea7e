"""Intersection over union of what moves."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

THRESHOLD = 0.5


class ForegroundIoU(Metric):
    """Intersection over union of the foreground: `pooled` over all pixels, and `frames`, the mean over frames.

    Args:
        threshold: a probability above it is foreground.
        empty: the IoU of a frame without foreground in truth and prediction: 1 as DAVIS has it, 0 as torchmetrics.

    Sources: Perazzi et al., 2016, section 5 (J); torchmetrics, BinaryJaccardIndex. L4P does not say which it uses.
    """

    full_state_update = False
    hits: Tensor
    union: Tensor
    frame_sum: Tensor
    frame_count: Tensor

    def __init__(self, threshold: float = THRESHOLD, empty: float = 1.0) -> None:
        super().__init__()
        self.threshold, self.empty = threshold, empty
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("union", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("frame_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("frame_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, "b h w"] | Bool[Tensor, "b h w"],
        truth: Float[Tensor, "b h w"] | Bool[Tensor, "b h w"],
        valid: Bool[Tensor, "b h w"] | None = None,
    ) -> None:
        """Frames; a truth of NaN is unknown, and a frame of which nothing is known is left out.

        Args:
            predicted: probabilities, or masks; a probability that is not finite is background.
            valid: where the truth counts besides.
        """
        counted = ~truth.isnan() if valid is None else valid & ~truth.isnan()
        foreground, goal = (predicted > self.threshold) & counted, (truth > THRESHOLD) & counted
        hits, union = (foreground & goal).sum((1, 2)), (foreground | goal).sum((1, 2))
        iou = torch.where(union > 0, hits / union.clamp(min=1).double(), self.empty)[counted.any(2).any(1)]
        self.hits += hits.sum().to(self.hits)
        self.union += union.sum().to(self.union)
        self.frame_sum += iou.sum().to(self.frame_sum)
        self.frame_count += len(iou)

    def compute(self) -> dict[str, float]:
        """Fractions; `frames` is NaN where no frame was known."""
        pooled = int(self.hits) / int(self.union) if self.union else self.empty
        return {"pooled": pooled, "frames": float(self.frame_sum / self.frame_count)}
