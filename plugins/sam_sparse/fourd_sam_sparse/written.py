"""Video tokens on which each query has written, kept as what was written.

A query's six tokens change the video's tokens by cross attention and a LayerNorm, once in each layer. Such a change has
few ranks: for each query, with `mixing` the attention of the video's tokens to the query's (p x r, r = tokens x heads,
48 in L4P) and `values` what each of those contributes (r x c),

    written = LN_1(LN_0(base + mixing_0 values_0) + mixing_1 values_1),

and `base`, the large part, is the same for all queries. So the few ranks are handed on in place of the written tokens,
and a linear layer goes over the base once, and over 2 r + 5 rows per query. Exact in real arithmetic.
"""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float
from torch import Tensor


@attrs.frozen(eq=False)
class Written:
    """What `n` queries wrote on `p` tokens of `c` channels in `l` layers.

    Attributes:
        mixing: how much each token takes of each value.
        values: what the query's tokens contribute, for each token and attention head.
        moments: of every token before each layer's LayerNorm: its mean and the inverse of its standard deviation.
        norms: scale and shift of each layer's LayerNorm.
    """

    mixing: Float[Tensor, "n l r p"]
    values: Float[Tensor, "n l r c"]
    moments: Float[Tensor, "n l 2 p"]
    norms: Float[Tensor, "l 2 c"]

    def on(self, base: Float[Tensor, "n p c"]) -> Float[Tensor, "n p c"]:
        """The written tokens themselves."""
        for layer, (gain, shift) in enumerate(self.norms):
            mean, inverse = self.moments[:, layer].mT.split(1, -1)
            base = (base + self.mixing[:, layer].mT @ self.values[:, layer] - mean) * inverse * gain + shift
        return base

    def linear(self, weight: Float[Tensor, "c d"], bias: Float[Tensor, " d"]) -> LowRank:
        """`written @ weight + bias`, on the base behind `self.through(weight, norms)`.

        A LayerNorm scales and shifts each token and each channel, so that the weight passes through it backwards.
        """
        scale = torch.ones_like(self.moments[:, 0, :1])
        columns, rows = [scale], [bias.expand(len(scale), 1, -1)]
        for layer in reversed(range(len(self.norms))):
            mean, inverse = self.moments[:, layer].split(1, 1)
            gain, shift = self.norms[layer]
            columns.append(scale)
            rows.append((shift @ weight).expand(len(scale), 1, -1))
            weight, scale = gain[:, None] * weight, scale * inverse
            columns += [scale * self.mixing[:, layer], -scale * mean]
            rows += [self.values[:, layer] @ weight, weight.sum(0).expand(len(scale), 1, -1)]
        return LowRank(scale, torch.cat(columns, 1), torch.cat(rows, 1))

    @staticmethod
    def through(weight: Float[Tensor, "c d"], norms: Float[Tensor, "l 2 c"]) -> Float[Tensor, "c d"]:
        """A linear layer's weight as the base meets it, in front of all LayerNorms."""
        return norms[:, 0].prod(0)[:, None] * weight


LOW_RANK = ("scale", "columns", "rows")
"""The fields of a `LowRank`."""


@attrs.frozen(eq=False)
class LowRank:
    """Tokens of each query as `scale base + columns' rows`, on a base that is kept elsewhere."""

    scale: Float[Tensor, "n 1 p"]
    columns: Float[Tensor, "n q p"]
    rows: Float[Tensor, "n q d"]

    def part(self, queries: slice, tokens: slice) -> LowRank:
        """Of some queries and some tokens."""
        return LowRank(self.scale[queries, :, tokens], self.columns[queries, :, tokens], self.rows[queries])

    def then(self, weight: Float[Tensor, "d e"]) -> LowRank:
        """Behind a linear layer; the base has to go through it too."""
        return LowRank(self.scale, self.columns, self.rows @ weight)

    def on(self, base: Float[Tensor, "k p d"]) -> Float[Tensor, "n p d"]:
        """The tokens; `k` is 1 where the base is the same for all queries."""
        out = self.scale.mT * base
        return out.baddbmm_(self.columns.mT.to(out.dtype), self.rows.to(out.dtype))


def each(bases: Float[Tensor, "k p c"], count: int) -> Float[Tensor, "_ p c"]:
    """Of `k` clips' bases one for each of `count` queries, of which a clip's stand side by side; a single one stays."""
    if len(bases) in (1, count):
        return bases
    return bases[:, None].expand(-1, count // len(bases), -1, -1).flatten(0, 1)
