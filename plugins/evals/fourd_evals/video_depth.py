"""Errors of depth over whole videos, after the alignments that the field's protocols prescribe.

Truth is unknown where it is NaN, not positive, or beyond the protocol's cap. Maps are tensors `t h w`, or anything that
gives one map `h w` after the other: DepthCrafter's protocol takes each frame twice and holds one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics import Metric

from fourd_evals.depth_alignment import Alignment, aligned

FrameMaps = Sequence[Tensor] | Float[Tensor, "_ _ _"]
"""Maps `h w`, by the number of the frame."""

NEAREST = 1e-3
"""Of DepthCrafter: depths and disparities are kept above it, and truth below it does not count."""
EIGEN_CROP = (slice(45, 471), slice(41, 601))
"""Rows and columns of a picture of 480 x 640 that NYUv2's protocols score."""
DELTA = 1.25


def pixel_errors(predicted: Float[Tensor, " n"], truth: Float[Tensor, " n"]) -> dict[str, Float64[Tensor, ""]]:
    """Means over aligned pixels that all count: `abs_rel`, `sq_rel`, `rmse`, `log_rmse`, `delta1` .. `delta3`.

    The deltas are the shares within a factor of 1.25, 1.25^2, 1.25^3 (strictly); for them and the logarithm predictions
    are kept above 1e-5, as MonST3R and CUT3R do.
    """
    predicted, truth = predicted.double(), truth.double()
    difference, positive = predicted - truth, predicted.clamp(min=1e-5)
    factor = torch.maximum(positive / truth, truth / positive)
    return {
        "abs_rel": (difference.abs() / truth).mean(),
        "sq_rel": (difference.square() / truth).mean(),
        "rmse": difference.square().mean().sqrt(),
        "log_rmse": (positive.log() - truth.log()).square().mean().sqrt(),
        **{f"delta{power}": (factor < DELTA**power).double().mean() for power in (1, 2, 3)},
    }


class _Means(Metric):
    """Weighted means of named numbers."""

    full_state_update = False
    names: tuple[str, ...]
    sums: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, errors: dict[str, Tensor], weight: float = 1.0) -> None:
        self.sums += weight * torch.stack([errors[name] for name in self.names]).to(self.sums)
        self.weight += weight

    def compute(self) -> dict[str, float]:
        """The numbers by name; NaN before anything was added."""
        return dict(zip(self.names, (self.sums / self.weight).tolist(), strict=True))


class DepthCrafterDepth(_Means):
    """AbsRel, RMSE and delta1 of affine-invariant disparity, as DepthCrafter's benchmark has it.

    One scale and shift per video by least squares in disparity; means over a frame's pixels, over a video's frames that
    have any, over videos. A prediction that is not finite stands for the farthest.

    Args:
        cap: truth at this distance (m) or beyond does not count, and predictions are kept below.
        frames: no more of a video are looked at.

    Source: Hu et al., DepthCrafter, 2024, section 4.2; its benchmark/eval/eval.py and metric.py.
    """

    names = ("abs_rel", "rmse", "delta1")

    def __init__(self, cap: float = 70.0, frames: int | None = None) -> None:
        super().__init__()
        self.cap, self.frames = cap, frames

    def update(self, disparity: FrameMaps, depth: FrameMaps) -> None:
        """One video; a video without a pixel that counts is left out.

        Args:
            disparity: predicted, of any scale and shift; resized to the truth's size.
            depth: the truth, in metres.
        """
        count = min(len(disparity), len(depth), self.frames or len(depth))
        triangle = torch.zeros(0, 3, dtype=torch.float64)
        for number in range(count):
            x, y = self._pixels(disparity[number], depth[number])
            rows = torch.stack([x, torch.ones_like(x), 1 / (y + 1e-8)], dim=1)
            # The triangle of all rows so far says as much about the fit as the rows themselves.
            triangle = torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R
        if not len(triangle):
            return
        scale, shift = torch.linalg.pinv(triangle[:, :2]) @ triangle[:, 2]
        errors = []
        for number in range(count):
            x, y = self._pixels(disparity[number], depth[number])
            if len(x):
                predicted = (1 / (scale * x + shift).clamp(min=NEAREST)).clamp(NEAREST, self.cap)
                errors.append(pixel_errors(predicted, y))
        self._add({name: torch.stack([error[name] for error in errors]).mean() for name in self.names})

    def _pixels(self, disparity: Tensor, depth: Tensor) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """What counts of a frame: prediction, truth."""
        depth = depth.cpu()
        valid = (depth > NEAREST) & (depth < self.cap)
        predicted = resized(disparity.nan_to_num(0.0, 0.0, 0.0), depth.shape, cv2.INTER_LINEAR)
        return predicted[valid].double().clamp(min=NEAREST), depth[valid].double()


class PooledDepth(_Means):
    """Errors over all pixels of a video at once, as MonST3R and CUT3R measure depth; videos weigh as their pixels.

    Args:
        align: how the prediction is brought to the truth, see `depth_alignment.aligned`.
        cap: truth at this distance (m) or beyond does not count; none: all does.
        clip: aligned predictions are kept below (Sintel: 70); none: they stay.
        disparity: the prediction is disparity and is aligned to that; what comes out at or below 0 becomes depth 0.

    Source: Zhang et al., MonST3R, 2024, dust3r/depth_eval.py; Wang et al., CUT3R, 2025, eval/video_depth/tools.py.
    """

    names = ("abs_rel", "sq_rel", "rmse", "log_rmse", "delta1", "delta2", "delta3")

    def __init__(
        self, align: Alignment = "scale", cap: float | None = None, clip: float | None = None, disparity: bool = False
    ) -> None:
        super().__init__()
        self.align, self.cap, self.clip, self.disparity = align, cap, clip, disparity

    def update(self, predicted: FrameMaps, depth: FrameMaps) -> None:
        """One video; one without a pixel that counts is left out.

        Args:
            predicted: depth, or disparity; resized to the truth's size (bicubic).
            depth: the truth, in metres.
        """
        pairs = [self._pixels(predicted[number], depth[number]) for number in range(min(len(predicted), len(depth)))]
        source, truth = (torch.cat(values) for values in zip(*pairs, strict=True))
        if not len(truth):
            return
        if self.disparity:
            fitted = aligned(source, 1 / (truth + 1e-8), self.align)
            result = torch.where(fitted > 0, 1 / fitted, 0.0)
        else:
            result = aligned(source, truth, self.align)
        self._add(pixel_errors(result.clamp(max=torch.inf if self.clip is None else self.clip), truth), len(truth))

    def _pixels(self, predicted: Tensor, depth: Tensor) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        depth = depth.cpu()
        valid = depth > 0 if self.cap is None else (depth > 0) & (depth < self.cap)
        values = resized(predicted.nan_to_num(0.0, 0.0, 0.0), depth.shape, cv2.INTER_CUBIC)
        return values[valid].float(), depth[valid].float()


class ImageDepth(_Means):
    """RMSE and delta1 .. delta3 of each picture, and the mean over pictures, as probe3d measures depth.

    Args:
        align: fit a scale and a shift of each picture's depth to its truth by least squares first.
        crop: score the rows 45:471 and columns 41:601 of pictures of 480 x 640 alone (Eigen's crop).

    Source: El Banani et al., Probing the 3D awareness of visual foundation models, 2024, evals/utils/metrics.py.
    """

    names = ("rmse", "delta1", "delta2", "delta3")

    def __init__(self, align: bool = False, crop: bool = False) -> None:
        super().__init__()
        self.align, self.crop = align, crop

    def update(self, predicted: Float[Tensor, "b h w"], depth: Float[Tensor, "b h w"]) -> None:
        """Pictures, each on its own; the truth is known where it is above 0.

        Raises:
            ValueError: they are of different sizes, or of another one than 480 x 640 and to be cropped.
        """
        if predicted.shape != depth.shape or (self.crop and depth.shape[-2:] != (480, 640)):
            raise ValueError(
                f"pictures of {tuple(predicted.shape)} and truth of {tuple(depth.shape)} must be of one size"
                + (", and of 480 x 640 to be cropped" if self.crop else "")
            )
        for values, truth in zip(predicted.double().cpu(), depth.double().cpu(), strict=True):
            if self.crop:
                values, truth = values[EIGEN_CROP], truth[EIGEN_CROP]
            self._add(self._errors(values[truth > 0], truth[truth > 0]))

    def _errors(self, predicted: Float64[Tensor, " n"], truth: Float64[Tensor, " n"]) -> dict[str, Tensor]:
        if not len(truth):  # probe3d counts an empty picture as one without error and without a right pixel
            return {name: torch.zeros((), dtype=torch.float64) for name in self.names}
        if self.align:
            predicted = aligned(predicted, truth, "lstsq")
        return pixel_errors(predicted, truth)


def resized(values: Float[Tensor, "h w"], size: Sequence[int], interpolation: int) -> Float[Tensor, "y x"]:
    """A map at another size: half-pixel centres, no antialiasing, borders repeated, as OpenCV does it."""
    values = values.detach().cpu()
    if tuple(values.shape) == tuple(size):
        return values
    array: np.ndarray = cv2.resize(values.numpy(), (size[1], size[0]), interpolation=interpolation)
    return torch.from_numpy(array)
