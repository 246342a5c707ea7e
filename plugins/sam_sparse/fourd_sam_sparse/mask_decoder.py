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
from fourd_core.rewrites import Rewrite
from fourd_sam_sparse.two_way import TwoWayTransformer
from fourd_sam_sparse.upscaling import Upscaling
from fourd_sam_sparse.written import LowRank, Written, each

ONE_VIDEO = Rewrite(
    "one video for all points",
    saves="35 MB of copies for each point in the first window, 23 MB in later ones.",
)
SHARED_UPSCALING = Rewrite(
    "shared first upscaling",
    saves="14.2 of 27.8 GFLOP for each of 128 points in the first window, 12.7 of 28.1 in later ones.",
)

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

    def shared(
        self,
        base: Float[Tensor, "k p c"],
        history: Float[Tensor, "j m c"],
        positions: Float[Tensor, "p c"],
        grid: Grid,
        count: int,
    ) -> Shared:
        """What is computed once for all queries of a clip.

        Args:
            base: of `k` clips.
            history: of the clips, or of the `count` queries, a clip's side by side.
        """
        weight, bias = self.output_upscaling.first()
        through = Written.through(weight, self.transformer.norms)
        if not SHARED_UPSCALING.on:
            through = through[:, :0]  # nobody asks for what is behind it
        ahead = each(base @ through, count), each(history @ through, count)
        return Shared(base, each(history, count), positions, grid, weight, bias, through, *ahead)

    def forward(
        self, prompts: Float[Tensor, "n 3 c"], history: LowRank, shared: Shared
    ) -> tuple[Float[Tensor, "n 3 t y x"], Float[Tensor, "n c"], Written]:
        """Maps, the track's feature, and what was written on the video's tokens.

        Args:
            history: what each query adds to the video's first tokens, on the base `shared.history`.
        """
        count, known = len(prompts), history.scale.shape[-1]
        tokens = torch.cat([self.mask_tokens.weight.expand(count, -1, -1), prompts], 1)
        video, positions = shared.base, shared.positions
        if not ONE_VIDEO.on:
            video = each(video, count).expand(count, -1, -1).contiguous()
            positions = positions.expand(count, -1, -1).contiguous()
        if known:
            video = each(video, count)
            begun = video[:, :known] + history.on(shared.history)
            video = torch.cat([begun, video[:, known:].expand(count, -1, -1)], 1)
        tokens, video, written = self.transformer(tokens, video, positions)
        hyper = torch.stack([net(tokens[:, i]) for i, net in enumerate(self.output_hypernetworks_mlps)], -1)
        needed = None if SHARED_UPSCALING.on else video
        del video  # a query's own, the largest of all
        return self._maps(needed, written, history, hyper, shared), tokens[:, FEATURE], written

    def _maps(
        self,
        video: Float[Tensor, "n p c"] | None,
        written: Written,
        history: LowRank,
        hyper: Float[Tensor, "n e 3"],
        shared: Shared,
    ) -> Float[Tensor, "n 3 t y x"]:
        """The upscaled tokens' inner products, in parts: of all that a query has, its pixels' channels are the most.

        The first convolution goes over the bases alone, and over the ranks of the history and of what was written.

        Args:
            video: the tokens themselves, to go over each query's own.
        """
        grid, area = shared.grid, shared.grid.h * shared.grid.w
        step = self.output_upscaling.working_bytes(grid._replace(t=1), shared.base.element_size())
        most, known = at_a_time(step, shared.base), history.scale.shape[-1] // area
        if video is None:
            ahead, behind = history.then(shared.through), written.linear(shared.weight, shared.bias)

        def part(queries: slice, steps: slice) -> Float[Tensor, "k 3 _ y x"]:
            tokens = slice(steps.start * area, steps.stop * area)
            if video is not None:
                first = video[queries, tokens] @ shared.weight + shared.bias
            else:
                base = of(shared.base_ahead, queries)[:, tokens]
                if steps.stop <= known:
                    base = base + ahead.part(queries, tokens).on(of(shared.history_ahead, queries)[:, tokens])
                first = behind.part(queries, tokens).on(base)
            return self.output_upscaling.maps(first, hyper[queries], grid._replace(t=steps.stop - steps.start))

        maps = []
        for queries in in_parts(0, len(hyper), at_a_time(step * grid.t, shared.base)):
            steps = [*in_parts(0, known, most), *in_parts(known, grid.t, most)]
            maps.append(torch.cat([part(queries, some) for some in steps], 2))
        return torch.cat(maps)


@attrs.frozen(eq=False)
class Shared:
    """What is computed once for all queries of a clip.

    Attributes:
        base: the tokens of `k` clips, each of queries side by side, before these have added or written anything.
        history: the base of what the queries add to the first `m` of them; `j` is 1 where it is the same for all.
        positions: where the tokens stand.
        weight, bias: the first convolution of the upscaling as a linear layer.
        through: its weight in front of the transformer's LayerNorms, see `Written`.
        base_ahead, history_ahead: the two bases behind it; `i` is 1 where there is one clip.
    """

    base: Float[Tensor, "k p c"]
    history: Float[Tensor, "j m c"]
    positions: Float[Tensor, "p c"]
    grid: Grid
    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " d"]
    through: Float[Tensor, "c e"]
    base_ahead: Float[Tensor, "i p e"]
    history_ahead: Float[Tensor, "j m e"]

    def part(self, queries: slice) -> Shared:
        """What some of a single clip's queries share, or all queries of several clips."""
        history, ahead = of(self.history, queries), of(self.history_ahead, queries)
        return attrs.evolve(self, history=history, history_ahead=ahead)


def of(base: Float[Tensor, "k p d"], queries: slice) -> Float[Tensor, "_ p d"]:
    """The base of some queries: the only one, or their own."""
    return base if len(base) == 1 else base[queries]


def in_parts(start: int, stop: int, most: int) -> Iterator[slice]:
    """Consecutive parts of a range, none longer than `most`."""
    return (slice(i, min(i + most, stop)) for i in range(start, stop, most))


def at_a_time(each: int, like: Tensor) -> int:
    """How many things of `each` bytes go through together on a tensor's device."""
    return max(1, WORKING.get(like.device.type, 2**30) // each)
