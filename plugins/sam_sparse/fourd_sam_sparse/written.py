"""Video tokens on which each query has written, kept as what was written.

A query's six tokens change the video's tokens by cross attention and a LayerNorm, once in each layer. Such a change has
few ranks: for each query, with `mixing` the attention of the video's tokens to the query's (p x r, r = tokens x heads,
48 in L4P) and `values` what each of those contributes (r x c),

    written = LN_1(LN_0(base + mixing_0 values_0) + mixing_1 values_1),

and `base`, the large part, is the same for all queries. So the few ranks are kept between windows in place of the
written tokens (a twelfth of the size), and a linear layer goes over the base once and over 2 r + 7 columns per query.
Exact in real arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def linear(self, weight: Float[Tensor, "c d"], bias: Float[Tensor, " d"]) -> Product:
        """`written @ weight + bias`, but for the base's part.

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
        return Product(scale, torch.cat(columns, 1), torch.cat(rows, 1))

    @staticmethod
    def through(weight: Float[Tensor, "c d"], norms: Float[Tensor, "l 2 c"]) -> Float[Tensor, "c d"]:
        """A linear layer's weight as the base meets it, in front of all LayerNorms."""
        return norms[:, 0].prod(0)[:, None] * weight


@attrs.frozen(eq=False)
class Product:
    """`scale base + columns' rows`: written tokens behind a linear layer, `base` being the base behind it."""

    scale: Float[Tensor, "n 1 p"]
    columns: Float[Tensor, "n q p"]
    rows: Float[Tensor, "n q d"]

    def part(self, queries: slice, tokens: slice) -> Product:
        """Of some queries and some tokens."""
        return Product(self.scale[queries, :, tokens], self.columns[queries, :, tokens], self.rows[queries])

    def plus(self, base: Float[Tensor, "k p d"]) -> Float[Tensor, "n p d"]:
        """All of it.

        Args:
            base: `base @ Written.through(weight, norms)`; `k` is 1 where it is the same for all queries.
        """
        out = self.scale.mT * base
        return out.baddbmm_(self.columns.mT.to(out.dtype), self.rows.to(out.dtype))


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Samples as a batch; a single one is not copied, for it may be large."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
