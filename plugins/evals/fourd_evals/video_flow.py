"""Errors of optical flow, in every pooling that the field's benchmarks use."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torchmetrics import Metric

Pooling = Literal["pixels", "frames", "kitti"]

PIXELS = (1, 3, 5)
WAUC_STEPS = 100
WAUC_REACH = 5.0


class FlowErrors(Metric):
    """End-point error and what is derived from it, over the pixels whose truth is known.

    `epe` is in pixels; `px1`, `px3`, `px5` are the shares whose error is below (strictly); `fl` is the percent whose
    error is above 3 px and above 5 % of the true length; `wauc` is the percent within 0.05, 0.1 .. 5 px, the tighter
    the more weight. Percent of "EPE<1" as L4P prints it is 100 px1, the benchmarks' "1px" 100 minus it.

    Args:
        pooling: pixels: of all frames at once (RAFT on Sintel, which also ignores the mask; mmflow);
            frames: the mean over a frame, then over frames that have any (ptlflow);
            kitti: as frames, but `fl` over all pixels at once (RAFT on KITTI).

    Sources: Baker et al., 2011; Menze and Geiger, 2015 (Fl); Mehl et al., Spring, 2023 and Richter et al., VIPER, 2017
    (WAUC).
    """

    full_state_update = False
    names = ("epe", *(f"px{k}" for k in PIXELS), "fl", "wauc")
    pixel_sums: Tensor
    pixel_count: Tensor
    frame_sums: Tensor
    frame_count: Tensor

    def __init__(self, pooling: Pooling = "pixels") -> None:
        super().__init__()
        self.pooling = pooling
        for name in ("pixel", "frame"):
            self.add_state(f"{name}_sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{name}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, "b 2 h w"],
        truth: Float[Tensor, "b 2 h w"],
        valid: Bool[Tensor, "b h w"] | None = None,
    ) -> None:
        """Frames; a number of the truth that is not finite is unknown, and of a prediction it is no motion.

        Args:
            valid: where the truth counts besides.
        """
        for number, (flow, goal) in enumerate(zip(predicted.double().cpu(), truth.double().cpu(), strict=True)):
            counted = goal.isfinite().all(dim=0)
            if valid is not None:
                counted = counted & valid[number].cpu()
            sums, count = _sums(flow.nan_to_num(0.0, 0.0, 0.0)[:, counted], goal[:, counted]), int(counted.sum())
            sums = sums.to(self.pixel_sums)
            self.pixel_sums += sums
            self.pixel_count += count
            if count:
                self.frame_sums += sums / count
                self.frame_count += 1

    def compute(self) -> dict[str, float]:
        """The numbers by name; NaN where nothing was known."""
        pixels = dict(zip(self.names, (self.pixel_sums / self.pixel_count).tolist(), strict=True))
        frames = dict(zip(self.names, (self.frame_sums / self.frame_count).tolist(), strict=True))
        if self.pooling == "kitti":
            return frames | {"fl": pixels["fl"]}
        return pixels if self.pooling == "pixels" else frames


def _sums(flow: Float64[Tensor, "2 n"], truth: Float64[Tensor, "2 n"]) -> Float64[Tensor, " k"]:
    """Of each number, over the pixels of one frame."""
    error = torch.linalg.vector_norm(flow - truth, dim=0)
    outlier = (error > 3) & (error > 0.05 * torch.linalg.vector_norm(truth, dim=0))
    # A pixel is within the steps from its own one on: how many of them, each by its weight 1, 0.99 .. 0.01.
    steps = torch.arange(1, WAUC_STEPS + 1, dtype=torch.float64) * WAUC_REACH / WAUC_STEPS
    first = torch.searchsorted(steps, error)
    left = WAUC_STEPS - first
    wauc = (left * (left + 1)).sum().double() / (WAUC_STEPS * (WAUC_STEPS + 1))
    shares = [(error < k).sum() for k in PIXELS]
    return torch.stack([value.double() for value in (error.sum(), *shares, 100 * outlier.sum(), 100 * wauc)])
