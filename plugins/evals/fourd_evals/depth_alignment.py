"""How a video's predicted depth is brought to the truth's scale before it is scored, over all its pixels at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.optimize import minimize
from torch import Tensor

Alignment = Literal["metric", "median", "scale", "lstsq", "lad", "lad2"]

ROUNDS = 10
STEPS, RATE, DECAYS = 1000, 1e-4, (0.9, 0.999)
STILL = 1e-6


def aligned(source: Float[Tensor, " n"], target: Float[Tensor, " n"], by: Alignment) -> Float64[Tensor, " n"]:
    """Values of `source` on the scale of `target`; no value is left out.

    Args:
        by: metric: as they are;
            median: times the ratio of the medians, which are the lower ones of an even number;
            scale: times the scale of least absolute error, by ten rounds of reweighted least squares;
            lstsq: scale and shift of least squared error;
            lad: scale and shift of least absolute error, as far as BFGS comes from the medians' ratio;
            lad2: the same by at most 1000 steps of Adam at a rate of 1e-4, which hardly moves from there.

    Source: CUT3R, eval/video_depth/tools.py.
    """
    x, y = source.double(), target.double()
    if by == "metric":
        return x
    if by == "scale":
        # In single precision, as published: a pixel that is hit exactly takes much of the weight.
        return _least_absolute_scale(source.float(), target.float()) * x
    if by == "lstsq":
        rows = torch.stack([x, torch.ones_like(x)], dim=1)
        return rows @ (torch.linalg.pinv(rows) @ y)
    ratio = float(y.median() / x.median())
    if by == "median":
        return ratio * x
    scale, shift = _bfgs(x, y, ratio) if by == "lad" else _adam(source.float(), target.float(), ratio)
    return scale * x + shift


def _least_absolute_scale(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    scale = y.mean() / x.mean()
    for _ in range(ROUNDS):
        weights = 1 / ((scale * x - y).abs() + 1e-8)
        scale = (weights * x * y).sum() / (weights * x * x).sum()
    return scale.clamp(min=1e-3)


def _bfgs(x: Float64[Tensor, " n"], y: Float64[Tensor, " n"], ratio: float) -> tuple[float, float]:
    source, target = x.numpy(), y.numpy()

    def error(fit: np.ndarray) -> float:
        return float(np.abs(fit[0] * source + fit[1] - target).sum())

    scale, shift = minimize(error, np.array([ratio, 0.0])).x
    return float(scale), float(shift)


def _adam(x: Float[Tensor, " n"], y: Float[Tensor, " n"], ratio: float) -> tuple[float, float]:
    """Kingma and Ba, Adam, algorithm 1, with its usual decays; it stops when the error stands still."""
    source, target = x.numpy(), y.numpy()
    fit, first, second, before = np.array([ratio, 0.0], np.float32), np.zeros(2), np.zeros(2), np.inf
    for step in range(1, STEPS + 1):
        error = fit[0] * source + fit[1] - target
        sign, loss = np.sign(error), float(np.abs(error).sum())
        gradient = np.array([sign @ source, sign.sum()])
        first = DECAYS[0] * first + (1 - DECAYS[0]) * gradient
        second = DECAYS[1] * second + (1 - DECAYS[1]) * gradient**2
        mean, spread = first / (1 - DECAYS[0] ** step), np.sqrt(second / (1 - DECAYS[1] ** step))
        fit = (fit - RATE * mean / (spread + 1e-8)).astype(np.float32)
        if abs(before - loss) < STILL:
            break
        before = loss
    return float(fit[0]), float(fit[1])
