"""From a query's tokens and the video's to three low-resolution maps per frame: heat, visibility, depth.

Source: Badki et al., L4P (arXiv 2502.13078), section 3.3; Kirillov et al., Segment Anything (arXiv 2304.02643), mask
decoder, whose module names these are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.data import Grid
from fourd_sam_sparse.two_way import TwoWayTransformer
from fourd_sam_sparse.upscaling import Upscaling
from fourd_sam_sparse.written import Written

MASKS = 3
"""Heat map, visibility, depth."""
FEATURE = 5
"""Place of the track's feature among the six tokens."""
WORKING = 2**28
"""Bytes that the queries going through together may take: more of them gain nothing."""


class Hypernetwork(nn.Module):
    """Three linear layers with ReLUs between them: a token to the weights of an inner product."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, out)])

    def forward(self, token: Float[Tensor, "n c"]) -> Float[Tensor, "n e"]:
        """The weights."""
        first, second, last = self.layers
        out: Tensor = last(F.relu(second(F.relu(first(token)))))
        return out


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling of the video's tokens, and inner products with what three tokens became.

    `iou_token` is in every official file and in no forward pass.

    Args:
        frames: how many frames a token of the video stands for.
    """

    def __init__(self, dim: int, heads: int, hidden: int, frames: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, heads, hidden)
        self.iou_token = nn.Embedding(1, dim).requires_grad_(False)
        self.mask_tokens = nn.Embedding(MASKS, dim)
        self.output_upscaling = Upscaling(dim, frames)
        self.output_hypernetworks_mlps = nn.ModuleList([Hypernetwork(dim, dim // 8) for _ in range(MASKS)])

    def product(self, base: Float[Tensor, "p c"]) -> Float[Tensor, "1 p d"]:
        """What all queries need of the tokens that they share, see `Written.linear`."""
        weight, _ = self.output_upscaling.first()
        return (base @ Written.through(weight, self.transformer.norms))[None]

    def forward(
        self,
        prompts: Float[Tensor, "n 3 c"],
        base: Float[Tensor, "p c"],
        history: Float[Tensor, "n m c"],
        positions: Float[Tensor, "p c"],
        product: Float[Tensor, "1 p d"],
        grid: Grid,
    ) -> tuple[Float[Tensor, "n 3 t y x"], Float[Tensor, "n c"], Written]:
        """Maps, the track's feature, and what was written on the video's tokens.

        Args:
            base: the video's tokens that all queries share.
            history: what each query adds to the first `m` of them, whole steps of the grid in time.
            positions: where the tokens stand.
            product: `self.product(base)`.
        """
        count, known = history.shape[:2]
        tokens = torch.cat([self.mask_tokens.weight.expand(count, -1, -1), prompts], 1)
        video = base[None]
        if known:
            video = torch.cat([video[:, :known] + history, video[:, known:].expand(count, -1, -1)], 1)
        tokens, video, written = self.transformer(tokens, video, positions)
        hyper = torch.stack([net(tokens[:, i]) for i, net in enumerate(self.output_hypernetworks_mlps)], -1)
        each = self.output_upscaling.working_bytes(grid, base.element_size())
        maps = [self._maps(part, video[part, :known], written, product, hyper[part], grid)
                for part in in_parts(count, max(1, WORKING // each))]  # fmt: skip
        return torch.cat(maps), tokens[:, FEATURE], written

    def _maps(
        self,
        part: slice,
        known: Float[Tensor, "n m c"],
        written: Written,
        product: Float[Tensor, "1 p d"],
        hyper: Float[Tensor, "n e 3"],
        grid: Grid,
    ) -> Float[Tensor, "n 3 t y x"]:
        """Maps of some queries: tokens with a history go through the first convolution as they are, those that began
        the same for all as what was written on them."""
        weight, bias = self.output_upscaling.first()
        steps = known.shape[1] // (grid.h * grid.w)
        maps = []
        if steps:
            maps.append(self.output_upscaling.maps(known @ weight + bias, hyper, grid._replace(t=steps)))
        if steps < grid.t:
            rest = slice(known.shape[1], None)
            first = written.part(part, rest).linear(weight, bias, product[:, rest])
            maps.append(self.output_upscaling.maps(first, hyper, grid._replace(t=grid.t - steps)))
        return torch.cat(maps, 2)


def in_parts(count: int, most: int) -> Iterator[slice]:
    """Consecutive parts of `count` things, none larger than `most`."""
    return (slice(start, min(start + most, count)) for start in range(0, count, most))
