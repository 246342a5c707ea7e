"""Masks carried through a video by the nearest neighbours of each pixel's feature: two protocols, one mechanism.

Every pixel of a coarse grid looks for features like its own in the first frame and the last few, within a window around
its own place, and takes the masks of the most similar ones. Work and memory are bounded: a strip of one row is matched
at a time, and of the video only the frames that are looked at are kept.

    lila   the five best of all frames and places, weighted by softmax; at the border the window repeats the outermost
           places; the first mask is brought to the grid bilinearly; the answer is the largest soft mask, at full size
    dino   all that are at least as similar as the fifth best, weighted by exp; at the border the window ends; the first
           mask is sampled; each soft mask is stretched to [0, 1] before the largest is taken

Source: google-research/lila, eval_vosknn.py; Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
ICCV 2021, section 4.2, eval_video_segmentation.py; Jabri et al., Space-Time Correspondence as a Contrastive Random
Walk, NeurIPS 2020.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import ge, gt, optional
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_evals.davis_metrics import without_void

Protocol = Literal["lila", "dino"]
LILA_SIDE = 60
STRIP = 64
"""Pixels of a row that are matched at a time."""


@attrs.frozen(slots=False)  # so that a metric's Config can be this and another one at once
class KNNConfig:
    """How masks are propagated; the defaults are those of both protocols."""

    protocol: Protocol = "lila"
    """Of LILA or of DINO: what happens at borders, with ties, and with the first and the last mask."""
    radius: int = attrs.field(default=12, validator=ge(0))
    """Neighbours are sought so many grid places to each side: 12 is a window of 25 x 25."""
    neighbours: int = attrs.field(default=5, validator=ge(1))
    """How many of the most similar places, of all frames together, are asked."""
    context: int = attrs.field(default=7, validator=ge(0))
    """How many of the latest frames are looked at beside the first."""
    temperature: float = attrs.field(default=0.1, validator=gt(0))
    """Cosines are divided by it before they become weights."""
    side: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Grid places along the smaller side of the picture; None: 60 for `lila`, the features' own for `dino`."""

    @property
    def smaller_side(self) -> int | None:
        """`side`, or what it is by the protocol; None: the features' own."""
        return self.side or (LILA_SIDE if self.protocol == "lila" else None)


def propagate_masks(
    features: Iterable[Float[Tensor, "d h w"]],
    first_mask: UInt8[Tensor, "height width"],
    config: KNNConfig | None = None,
    picture: tuple[int, int] | None = None,
) -> Iterator[UInt8[Tensor, "height width"]]:
    """The mask of every frame of a video, given that of its first, which comes first.

    Args:
        features: one map per frame, of whatever size; taken one at a time.
        first_mask: ids of objects, 0 is the background; void (255) becomes background.
        picture: `dino`: the rows and columns that the network saw, at which the decision is taken before it is brought
            to the size of the mask; by default the size of the mask.
    """
    config = config or KNNConfig()
    first_mask = without_void(first_mask)
    size = (first_mask.shape[-2], first_mask.shape[-1])
    grids = (to_grid(maps, config) for maps in features)
    for start in grids:
        yield first_mask
        first = _first_soft(first_mask.to(start.device), start, config.protocol)
        for soft in propagate_soft(chain([start], grids), first, config):
            yield decide(soft, size, config.protocol, picture).to(first_mask.device)


def propagate_soft(
    grids: Iterable[Float[Tensor, "d h w"]], first: Float[Tensor, "k h w"], config: KNNConfig
) -> Iterator[Float[Tensor, "k h w"]]:
    """The soft mask of every frame after the first, on the grid; each is remembered as it comes out.

    Args:
        grids: features on the grid, of all frames.
        first: the first frame's soft mask.
    """
    remembered: deque[_Frame] = deque(maxlen=config.context)
    start: _Frame | None = None
    for grid in grids:
        features = F.normalize(grid, dim=0)
        if start is None:
            start = _Frame.of(features, first, config)
            continue
        soft = _match(features / config.temperature, [start, *remembered], config)
        yield soft
        remembered.append(_Frame.of(features, soft, config))


def to_grid(maps: Float[Tensor, "d h w"], config: KNNConfig) -> Float[Tensor, "d gh gw"]:
    """Features resized so that the smaller side is the grid's (bilinear, no antialias)."""
    h, w = maps.shape[-2:]
    side = config.smaller_side or min(h, w)
    size = (side, int(w * side / h)) if h <= w else (int(h * side / w), side)
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def decide(
    soft: Float[Tensor, "k h w"], size: tuple[int, int], protocol: Protocol, picture: tuple[int, int] | None = None
) -> UInt8[Tensor, "{size[0]} {size[1]}"]:
    """The id of every pixel, from the soft masks of the grid.

    Args:
        size: rows and columns of the answer.
        picture: as in `propagate_masks`.
    """
    if protocol == "lila":
        return _bilinear(soft, size).argmax(0).to(torch.uint8)
    soft = _bilinear(soft, picture or size)
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    # An object that is nowhere stays at 0.
    stretched = (soft - low) / (high - low).clamp(min=torch.finfo(soft.dtype).tiny)
    ids = stretched.argmax(0).to(torch.uint8)
    return F.interpolate(ids[None, None], size, mode="nearest-exact")[0, 0]


@attrs.frozen(eq=False)
class _Frame:
    """A remembered frame with a margin as wide as the window reaches."""

    features: Float[Tensor, "d hp wp"]
    masks: Float[Tensor, "k hp wp"]
    penalty: Float[Tensor, "hp wp"]
    """Added to similarities: 0, or minus infinity where the margin must not be chosen."""

    @classmethod
    def of(cls, features: Float[Tensor, "d h w"], masks: Float[Tensor, "k h w"], config: KNNConfig) -> _Frame:
        margin = (config.radius,) * 4
        if config.protocol == "lila":
            features, masks = (F.pad(maps[None], margin, mode="replicate")[0] for maps in (features, masks))
            return cls(features, masks, torch.zeros_like(masks[0]))
        penalty = F.pad(torch.zeros_like(masks[0]), margin, value=-torch.inf)
        return cls(F.pad(features, margin), F.pad(masks, margin), penalty)


@torch.no_grad()
def _match(queries: Float[Tensor, "d h w"], memory: list[_Frame], config: KNNConfig) -> Float[Tensor, "k h w"]:
    """The soft mask of the frame whose features, divided by the temperature, are `queries`."""
    _, h, w = queries.shape
    reach = 2 * config.radius
    soft = queries.new_empty(len(memory[0].masks), h, w)
    for y in range(h):
        for x in range(0, w, STRIP):
            strip = queries[:, y, x : x + STRIP]
            around = (slice(None), slice(y, y + reach + 1), slice(x, x + strip.shape[1] + reach))
            keys = torch.stack([frame.features[around] for frame in memory], dim=1)
            masks = torch.stack([frame.masks[around] for frame in memory], dim=1)
            penalty = torch.stack([frame.penalty[around[1:]] for frame in memory])
            soft[:, y, x : x + STRIP] = _match_strip(strip, keys, masks, penalty, config)
    return soft


def _match_strip(
    queries: Float[Tensor, "d n"],
    keys: Float[Tensor, "d f rows columns"],
    masks: Float[Tensor, "k f rows columns"],
    penalty: Float[Tensor, "f rows columns"],
    config: KNNConfig,
) -> Float[Tensor, "k n"]:
    """The soft masks of neighbouring pixels of one row, from the part of the memory that all their windows cover."""
    count, (frames, rows, columns) = queries.shape[1], penalty.shape
    similarity = (queries.T @ keys.flatten(1)).view(count, frames, rows, columns) + penalty
    weights = torch.zeros_like(similarity)
    # Pixel n of the strip sees the columns n .. n + 2 radius: a view that moves on by one column with each pixel.
    windows = (count, frames, rows, rows), (similarity.stride(0) + 1, *similarity.stride()[1:])
    chosen = _weights(similarity.as_strided(*windows).flatten(1), config)
    weights.as_strided(*windows).copy_(chosen.view(windows[0]))
    return masks.flatten(1) @ weights.flatten(1).T


def _weights(similarity: Float[Tensor, "n places"], config: KNNConfig) -> Float[Tensor, "n places"]:
    """How much each place counts: nothing but the most similar ones, together 1."""
    best = similarity.topk(min(config.neighbours, similarity.shape[1]), dim=1)
    if config.protocol == "lila":
        return torch.zeros_like(similarity).scatter_(1, best.indices, best.values.softmax(1))
    likeness = similarity.exp()  # cosines / 0.1 are at most 10
    kept = likeness.where(likeness >= best.values[:, -1:].exp(), 0.0)
    return kept / kept.sum(1, keepdim=True)


def _first_soft(
    mask: UInt8[Tensor, "height width"], grid: Float[Tensor, "d h w"], protocol: Protocol
) -> Float[Tensor, "k h w"]:
    """One map per id, on the grid."""
    size, count = (grid.shape[-2], grid.shape[-1]), int(mask.max()) + 1
    if protocol == "dino":
        mask = F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]
    # As many maps as the whole mask has ids: sampling may lose the smallest object.
    maps = F.one_hot(mask.long(), count).permute(2, 0, 1).to(grid.dtype)
    return maps if protocol == "dino" else _bilinear(maps, size)


def _bilinear(maps: Float[Tensor, "k h w"], size: tuple[int, int]) -> Float[Tensor, "k {size[0]} {size[1]}"]:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
