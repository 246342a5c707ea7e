"""From a query's tokens and the video's to three low-resolution maps per frame: heat, visibility, depth.

Source: Badki et al., L4P (arXiv 2502.13078), section 3.3; Kirillov et al., Segment Anything (arXiv 2304.02643), mask
decoder, whose module names these are.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
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
WORKING = {"cpu": 2**26}
"""Bytes that the queries going through together may take: on a CPU more would leave the caches; elsewhere 2^30."""


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

    def shared(self, base: Float[Tensor, "p c"], positions: Float[Tensor, "p c"], grid: Grid) -> Shared:
        """What the queries of a clip have in common."""
        weight, bias = self.output_upscaling.first()
        product = base @ Written.through(weight, self.transformer.norms)
        return Shared(base, positions, grid, weight, bias, product[None])

    def forward(
        self, prompts: Float[Tensor, "n 3 c"], history: Float[Tensor, "n m c"], shared: Shared
    ) -> tuple[Float[Tensor, "n 3 t y x"], Float[Tensor, "n c"], Written]:
        """Maps, the track's feature, and what was written on the video's tokens.

        Args:
            history: what each query adds to the first `m` of the video's tokens, whole steps of the grid in time.
        """
        count, known = history.shape[:2]
        tokens = torch.cat([self.mask_tokens.weight.expand(count, -1, -1), prompts], 1)
        video = shared.base[None]
        if known:
            video = torch.cat([video[:, :known] + history, video[:, known:].expand(count, -1, -1)], 1)
        tokens, video, written = self.transformer(tokens, video, shared.positions)
        hyper = torch.stack([net(tokens[:, i]) for i, net in enumerate(self.output_hypernetworks_mlps)], -1)
        return self._maps(video[:, :known], written, hyper, shared), tokens[:, FEATURE], written

    def _maps(
        self, known: Float[Tensor, "n m c"], written: Written, hyper: Float[Tensor, "n e 3"], shared: Shared
    ) -> Float[Tensor, "n 3 t y x"]:
        """The upscaled tokens' inner products, in parts: of all that a query has, its pixels' channels are the most.

        Tokens with a history go through the first convolution as they are, those that began the same for all queries as
        what was written on them.
        """
        grid, area = shared.grid, shared.grid.h * shared.grid.w
        step = self.output_upscaling.working_bytes(grid._replace(t=1), known.element_size())
        most, history = at_a_time(step, known), known.shape[1] // area
        product = written.linear(shared.weight, shared.bias)

        def part(queries: slice, steps: slice) -> Float[Tensor, "k 3 _ y x"]:
            tokens = slice(steps.start * area, steps.stop * area)
            if steps.stop <= history:
                first = F.linear(known[queries, tokens], shared.weight.mT, shared.bias)
            else:
                first = product.part(queries, tokens).plus(shared.product[:, tokens])
            return self.output_upscaling.maps(first, hyper[queries], grid._replace(t=steps.stop - steps.start))

        maps = []
        for queries in in_parts(0, len(hyper), at_a_time(step * grid.t, known)):
            steps = [*in_parts(0, history, most), *in_parts(history, grid.t, most)]
            maps.append(torch.cat([part(queries, some) for some in steps], 2))
        return torch.cat(maps)


@attrs.frozen(eq=False)
class Shared:
    """What the queries of a clip have in common.

    Attributes:
        base: the video's tokens, before a query has added or written anything.
        positions: where they stand.
        weight, bias: the first convolution of the upscaling as a linear layer.
        product: what it makes of the base, see `Product.plus`.
    """

    base: Float[Tensor, "p c"]
    positions: Float[Tensor, "p c"]
    grid: Grid
    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " d"]
    product: Float[Tensor, "1 p d"]


def in_parts(start: int, stop: int, most: int) -> Iterator[slice]:
    """Consecutive parts of a range, none longer than `most`."""
    return (slice(i, min(i + most, stop)) for i in range(start, stop, most))


def at_a_time(each: int, like: Tensor) -> int:
    """How many things of `each` bytes go through together on a tensor's device."""
    return max(1, WORKING.get(like.device.type, 2**30) // each)
