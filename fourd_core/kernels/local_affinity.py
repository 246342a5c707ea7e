"""Pixel-adaptive local averaging: weights from a guide picture's local contrast, applied to maps again and again.

Every pixel i has eight neighbours n at each dilation d: `(±d or 0, ±d or 0)` pixels away, beyond the border the nearest
border pixel. With guide I,

    score_n(i)  = mean over I's channels of  -|I(i) - I(n)| / (eps + sigma * std(i))
    weight_n(i) = softmax over n of score_n(i)
    map(i)     <- sum over n of  weight_n(i) * map(n)

where std is the unbiased deviation of the 3 x 3 values of all dilations, so that the centre counts once per dilation.
Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, section 3.2 (PAMR;
visinf/1-stage-wseg, models/mods/pamr.py); with another eps in google-research/lila.

The neighbours of all pixels never stand side by side in memory: weights come from views of one padded copy, and a round
adds rows of a table. Both functions work in float32, or float64 for float64 inputs, and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fourd_core.kernels.choice import by_triton

NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
"""Row and column steps in the order of the weights: row-major, the same for each dilation in turn."""


@torch.no_grad()
def local_affinity(
    guide: Float[Tensor, "b c h w"], dilations: Sequence[int], sigma: float, eps: float
) -> Float[Tensor, "b n h w"]:
    """The weight of each pixel's neighbours, dilation by dilation in the order of `NEIGHBOURS`; they add up to 1.

    Beside the result it needs memory for about six copies of the guide in float32; in Triton, for one at most.

    Args:
        dilations: distances of the neighbours in whole pixels, each at least 1.
        sigma: > 0, how many local standard deviations a contrast may have before a neighbour loses weight.
        eps: > 0, added to the scaled deviation, in the guide's unit; what lies well below it counts as flat.
    Raises:
        ValueError: a guide of other axes or without a pixel or channel; no dilation, or one that is no whole number of
            at least 1; sigma or eps not above 0.
    """
    if guide.ndim != 4 or 0 in guide.shape[1:]:
        raise ValueError(f"guide must be 'b c h w' with a channel and a pixel or more, got {tuple(guide.shape)}")
    _require_dilations(dilations)
    if not (sigma > 0 and eps > 0):
        raise ValueError(f"sigma and eps must be above 0, got {sigma} and {eps}")
    if by_triton(guide):
        from fourd_core.kernels.triton import local_affinity as kernels

        return kernels.local_affinity(guide, dilations, sigma, eps)
    centre = guide.to(torch.promote_types(guide.dtype, torch.float32)).contiguous()
    b, c, h, w = centre.shape
    weights = centre.new_empty(b, len(NEIGHBOURS) * len(dilations), h, w)
    scale = torch.add(eps, _deviation(centre, dilations), alpha=sigma).mul_(-c).reciprocal_()
    for n, neighbour in enumerate(_shifted(centre, dilations)):
        torch.sum((neighbour - centre).abs_().mul_(scale), dim=1, out=weights[:, n])
    # A softmax in place: the weights are the largest tensor here and stand in memory once.
    weights.sub_(weights.amax(1, keepdim=True)).exp_()
    return weights.div_(weights.sum(1, keepdim=True))


@torch.no_grad()
def propagate(
    maps: Float[Tensor, "b c h w"], weights: Float[Tensor, "b n h w"], dilations: Sequence[int], iterations: int
) -> Float[Tensor, "b c h w"]:
    """The maps after so many rounds of averaging with `local_affinity`'s weights, in the maps' dtype, channels last.

    Maps that have their channels last in memory already are not turned around. Beside the result it needs memory for
    two copies of one sample of the maps and of its weights; in Triton, of the whole batch.

    Args:
        iterations: how many rounds.
    Raises:
        ValueError: no dilation, or one that is no whole number of at least 1; maps and weights that do not belong
            together; iterations that are no whole number from 0 on.
    """
    _require_dilations(dilations)
    if maps.ndim != 4 or weights.shape != (maps.shape[0], len(NEIGHBOURS) * len(dilations), *maps.shape[2:]):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not fit maps of shape {tuple(maps.shape)} "
            f"with dilations {tuple(dilations)}"
        )
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be a whole number from 0 on, got {iterations}")
    if by_triton(maps, weights):
        from fourd_core.kernels.triton import local_affinity as kernels

        return kernels.propagate(maps, weights, dilations, iterations)
    result = torch.empty_like(maps, memory_format=torch.channels_last)
    accurate = torch.promote_types(maps.dtype, torch.float32)
    places = _places(maps.shape[2], maps.shape[3], dilations, maps.device)
    # One sample after the other keeps all of its rounds in a processor's cache.
    for one, shares, average in zip(_rows(maps), _rows(weights), _rows(result), strict=True):
        average.copy_(_averaged(one.to(accurate), shares.to(accurate), places, iterations))
    return result


def _averaged(
    rows: Float[Tensor, "p c"], weights: Float[Tensor, "p n"], places: Int[Tensor, "p n"], iterations: int
) -> Float[Tensor, "p c"]:
    """A sample after its rounds."""
    rows, weights = rows.contiguous(), weights.contiguous()
    for _ in range(iterations):
        # A pixel is a row of its channels, its neighbours a bag of rows: torch's fastest weighted sum of picked rows.
        rows = F.embedding_bag(places, rows, per_sample_weights=weights, mode="sum")
    return rows


def _rows(maps: Float[Tensor, "b c h w"]) -> Iterator[Float[Tensor, "p c"]]:
    """Each sample, a row for each pixel."""
    return iter(maps.permute(0, 2, 3, 1).flatten(1, 2))


def _places(h: int, w: int, dilations: Sequence[int], device: torch.device) -> Int[Tensor, "p n"]:
    """The number of each pixel's neighbours, row by row."""
    y, x = (torch.arange(n, dtype=torch.int32, device=device) for n in (h, w))
    return torch.stack(
        [
            (w * (y + dy * dilation).clamp(0, h - 1)[:, None] + (x + dx * dilation).clamp(0, w - 1)).flatten()
            for dilation in dilations
            for dy, dx in NEIGHBOURS
        ],
        1,
    )


def _deviation(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """The unbiased standard deviation of every channel over the nine values of all dilations."""
    total, squares = torch.zeros_like(guide), torch.zeros_like(guide)
    for neighbour in _shifted(guide, dilations):
        # Measured from the centre, whose own share is then 0, the variance is at least a ninth of the mean square:
        # the difference below loses no digits and cannot become negative.
        step = neighbour - guide
        total += step
        squares.addcmul_(step, step)
    count = (len(NEIGHBOURS) + 1) * len(dilations)
    return squares.addcmul_(total, total, value=-1 / count).div_(count - 1).sqrt_()


def _shifted(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The map as each neighbour's values, a view each."""
    h, w = maps.shape[-2:]
    reach = max(dilations)
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    for dilation in dilations:
        for dy, dx in NEIGHBOURS:
            y, x = reach + dy * dilation, reach + dx * dilation
            yield padded[..., y : y + h, x : x + w]


def _require_dilations(dilations: Sequence[int]) -> None:
    if not dilations or not all(isinstance(dilation, int) and dilation >= 1 for dilation in dilations):
        raise ValueError(f"dilations must be one or more whole numbers of pixels, at least 1, got {tuple(dilations)}")
