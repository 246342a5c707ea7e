"""The two-way transformer: a query's few tokens read the video's many, and write on them.

Projections to keys, values and queries are never applied to the video's tokens, of which each query has its own: by
associativity they move to the other factor, to the query's six tokens times eight heads. Exact in real arithmetic; for
L4P's sizes 14 times fewer operations.
Source: Badki et al., L4P (arXiv 2502.13078), section 3.3; Kirillov et al., Segment Anything (arXiv 2304.02643), mask
decoder, whose module names these are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.kernels.attention import attention
from fourd_core.rewrites import Rewrite
from fourd_sam_sparse.written import Written, each

FOLDED = Rewrite("folded cross attention", saves="38.5 of 52.1 GFLOP for each point and window.")

NORM_EPS = 1e-5
DEPTH = 2


class Attention(nn.Module):
    """Multi-head attention of width `inner`.

    `r` counts pairs of a head and one of the query's tokens, heads outermost.
    """

    def __init__(self, dim: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (inner // heads) ** -0.5
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(
        self, q: Float[Tensor, "n s c"], k: Float[Tensor, "n t c"], v: Float[Tensor, "n t c"]
    ) -> Float[Tensor, "n s c"]:
        """As it is written in the books; used among the query's tokens."""
        mixed = attention(self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v)))
        return self._joined(mixed)

    def reads(
        self, q: Float[Tensor, "n s c"], k: Float[Tensor, "k p c"], v: Float[Tensor, "k p c"]
    ) -> Float[Tensor, "n s c"]:
        """The same for a query's few tokens `q` and many of a video, `k` and `v`, in other order."""
        if not FOLDED.on:
            return self(q, _own(k, len(q)), _own(v, len(q)))
        return self.answered(_average(v, _scores(k, self.asks(q))))

    def writes(
        self,
        q: Float[Tensor, "k p c"],
        k: Float[Tensor, "n s c"],
        v: Float[Tensor, "n s c"],
        onto: Float[Tensor, "k p c"],
    ) -> tuple[Float[Tensor, "n p c"], Float[Tensor, "n r p"], Float[Tensor, "n r c"]]:
        """The same for many tokens `q` of a video and a query's few, added to `onto`; and it as `mixing.T values`."""
        directions, constant, values = self.offers(k, v)
        scores = _scores(q, directions) + constant
        mixing = scores.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2).to(onto.dtype)
        own = _own(onto, len(k))
        if not FOLDED.on:
            return own + self(_own(q, len(k)), k, v), mixing, values
        return own.clone().baddbmm_(mixing.mT, values.to(onto.dtype)), mixing, values

    def asks(self, q: Float[Tensor, "n s c"]) -> Float[Tensor, "n r c"]:
        """What the tokens look for, as directions among the video's tokens: `q W_q W_k'`.

        A bias of the keys adds the same to all scores of a query: the softmax does not see it.
        """
        asked = self._split(self.q_proj(q)) @ self.k_proj.weight.unflatten(0, (self.heads, -1))
        return (self.scale * asked).flatten(1, 2)

    def answered(self, read: Float[Tensor, "n r c"]) -> Float[Tensor, "n s c"]:
        """From the averages of video tokens that were read to the tokens' answers."""
        weight, bias = (p.unflatten(0, (self.heads, -1)) for p in (self.v_proj.weight, self.v_proj.bias))
        return self._joined(read.unflatten(1, (self.heads, -1)) @ weight.mT + bias[:, None])

    def offers(
        self, k: Float[Tensor, "n s c"], v: Float[Tensor, "n s c"]
    ) -> tuple[Float[Tensor, "n r c"], Float[Tensor, "n r 1"], Float[Tensor, "n r c"]]:
        """What the tokens offer to the video's: directions and bias of the scores, and what is written.

        The output's bias is spread over the heads: a token's weights add up to 1 in each.
        """
        keys, values = self._split(self.k_proj(k)), self._split(self.v_proj(v))
        weight, bias = (p.unflatten(0, (self.heads, -1)) for p in (self.q_proj.weight, self.q_proj.bias))
        directions = self.scale * (keys @ weight)
        constant = self.scale * (keys @ bias[..., None])
        written = values @ self.out_proj.weight.mT.unflatten(0, (self.heads, -1)) + self.out_proj.bias / self.heads
        return directions.flatten(1, 2), constant.flatten(1, 2), written.flatten(1, 2)

    def _split(self, x: Float[Tensor, "n s inner"]) -> Float[Tensor, "n h s d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _joined(self, mixed: Float[Tensor, "n h s d"]) -> Float[Tensor, "n s c"]:
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "n s c"]) -> Float[Tensor, "n s c"]:
        """Each token by itself."""
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class Layer(nn.Module):
    """The tokens talk among themselves, read the video, think, and write on the video."""

    def __init__(self, dim: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm4 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn_image_to_token = Attention(dim, dim // 2, heads)

    def forward(
        self,
        tokens: Float[Tensor, "n s c"],
        given: Float[Tensor, "n s c"],
        video: Float[Tensor, "k p c"],
        positions: Float[Tensor, "*k p c"],
    ) -> tuple[Float[Tensor, "n s c"], Float[Tensor, "n p c"], tuple[Tensor, Tensor, Tensor]]:
        """The tokens, the video's tokens, and what was written on them (mixing, values, moments).

        Args:
            given: the tokens as they entered the transformer.
            video: where no query has written yet, `k` is the number of clips, whose queries stand side by side.
        """
        if self.first:  # nothing to add to: the tokens are what was given, and carry no position
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            asking = tokens + given
            tokens = self.norm1(tokens + self.self_attn(asking, asking, tokens))
        placed = video + positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.reads(tokens + given, placed, video))
        tokens = self.norm3(tokens + self.mlp(tokens))
        written, mixing, values = self.cross_attn_image_to_token.writes(placed, tokens + given, tokens, video)
        video, moments = normalised(written, self.norm4)
        return tokens, video, (mixing, values, moments)


class TwoWayTransformer(nn.Module):
    """Tokens of queries and of a video, each reading the other, twice; at the end the queries' read once more."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(dim, heads, hidden, first=i == 0) for i in range(DEPTH)])
        self.final_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.norm_final_attn = nn.LayerNorm(dim, eps=NORM_EPS)

    @property
    def norms(self) -> Float[Tensor, "l 2 c"]:
        """Scale and shift of the LayerNorms of the video's tokens."""
        norms = [layer.norm4 for layer in self.layers]
        return torch.stack([torch.stack([norm.weight, norm.bias]) for norm in norms])

    def forward(
        self, given: Float[Tensor, "n s c"], video: Float[Tensor, "k p c"], positions: Float[Tensor, "*k p c"]
    ) -> tuple[Float[Tensor, "n s c"], Float[Tensor, "n p c"], Written]:
        """The queries' tokens, the video's tokens of each query, and these as what was written on `video`.

        Args:
            video: `k` clips' or, where queries have added something, `n` queries'; each clip has `n / k` queries.
            positions: where the video's tokens stand.
        """
        tokens, written = given, []
        for layer in self.layers:
            tokens, video, change = layer(tokens, given, video, positions)
            written.append(change)
        read = self.final_attn_token_to_image.reads(tokens + given, video + positions, video)
        mixing, values, moments = (torch.stack(parts, 1) for parts in zip(*written, strict=True))
        return self.norm_final_attn(tokens + read), video, Written(mixing, values, moments, self.norms)


def normalised(x: Float[Tensor, "n p c"], norm: nn.LayerNorm) -> tuple[Float[Tensor, "n p c"], Float[Tensor, "n 2 p"]]:
    """Behind a LayerNorm, and of each token before it the mean and the inverse of the standard deviation."""
    out, mean, inverse = torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    if torch.is_grad_enabled():  # the moments that come along have no gradient
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        inverse = (variance + norm.eps).rsqrt()
    return out, torch.cat([mean, inverse], -1).mT.to(x.dtype)


def _own(video: Float[Tensor, "k p c"], count: int) -> Float[Tensor, "n p c"]:
    """A clip's tokens for each of its queries."""
    return each(video, count).expand(count, -1, -1)


def _scores(video: Float[Tensor, "k p c"], directions: Float[Tensor, "n r c"]) -> Float[Tensor, "n r p"]:
    return _by_clip(directions, video.mT)


def _average(video: Float[Tensor, "k p c"], scores: Float[Tensor, "n r p"]) -> Float[Tensor, "n r c"]:
    return _by_clip(scores.softmax(-1), video)


def _by_clip(left: Float[Tensor, "n r i"], right: Float[Tensor, "k i o"]) -> Float[Tensor, "n r o"]:
    """One product for all queries of a clip, where they see the same tokens."""
    n, k = len(left), len(right)
    if k == 1:
        return left @ right[0]
    if k == n:
        return left @ right
    return (left.unflatten(0, (k, -1)).flatten(1, 2) @ right).unflatten(1, (n // k, -1)).flatten(0, 1)
