"""The small networks that LILA's evaluations train on frozen features.

Each takes `Features` and the size of the labels and answers with one map per output. A probe reads the pixel features,
the encoder's map, or both, each with a weight of its own; the two answers are added at the size of the labels.
Parameters have the names and shapes of google-research/lila's probes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_evals.features import Features

Source = Literal["pixels", "encoder", "both"]
"""Which features a probe reads."""
ALPHAS: dict[Source, tuple[float, float]] = {"pixels": (1.0, 0.0), "encoder": (0.0, 1.0), "both": (1.0, 1.0)}
"""The weights of (pixel features, encoder's map) that LILA's evaluations call alpha_dec and alpha_enc."""

HEADS, REDUCTION = 8, 4
"""Of the attention probe: heads, and how many times fewer rows and columns the attended map has."""


class _TwoSources(nn.Module):
    """The weighted sum of what is read from the pixel features and from the encoder's map.

    Args:
        alphas: weights of the two; what has weight 0 is not computed.
    """

    def __init__(self, alphas: tuple[float, float]) -> None:
        super().__init__()
        self.alpha_dec, self.alpha_enc = alphas

    def from_pixels(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Outputs at the size of the pixel features."""
        raise NotImplementedError

    def from_encoder(self, maps: Float[Tensor, "b e gh gw"]) -> Float[Tensor, "b k gh gw"]:
        """Outputs on the encoder's grid."""
        raise NotImplementedError

    def forward(self, features: Features, size: tuple[int, int]) -> Float[Tensor, "b k {size[0]} {size[1]}"]:
        """One map per output, of `size` rows and columns (bilinear, align_corners=False)."""
        answers: list[Tensor] = []
        if self.alpha_dec:
            answers.append(self.alpha_dec * _resize(self.from_pixels(features.pixels), size))
        if self.alpha_enc:
            answers.append(self.alpha_enc * _resize(self.from_encoder(features.encoder), size))
        return torch.stack(answers).sum(0) if len(answers) > 1 else answers[0]


class LinearCat(_TwoSources):
    """One convolution on each source.

    Args:
        pixel_dim: channels of the pixel features.
        encoder_dim: channels of the encoder's map.
        outputs: channels of the answer.
        kernel: side of the convolution on the pixel features, odd: 1 for DAVIS, 5 for normals; 1 on the encoder's map.
        alphas: weights of (pixels, encoder).

    Source: google-research/lila, LinearCat.
    """

    def __init__(
        self,
        pixel_dim: int,
        encoder_dim: int,
        outputs: int,
        kernel: int = 1,
        alphas: tuple[float, float] = ALPHAS["both"],
    ) -> None:
        super().__init__(alphas)
        self.probe_dec = nn.Conv2d(pixel_dim, outputs, kernel, padding=kernel // 2)
        self.probe_enc = nn.Conv2d(encoder_dim, outputs, 1)

    def from_pixels(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """The convolution on the pixel features."""
        answer: Tensor = self.probe_dec(maps)
        return answer

    def from_encoder(self, maps: Float[Tensor, "b e gh gw"]) -> Float[Tensor, "b k gh gw"]:
        """The convolution on the encoder's map."""
        answer: Tensor = self.probe_enc(maps)
        return answer


class CrossAttention(nn.Module):
    """Queries become what they find in a map: 8 heads, no residual, no norms, no positions; only the output has a bias.

    Raises:
        ValueError: channels that 8 does not divide.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % HEADS:
            raise ValueError(f"the attention probe has {HEADS} heads: {dim} channels cannot be divided among them")
        self.projq, self.projk, self.projv = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Float[Tensor, "b k d"], tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        """The updated queries."""
        parts = self.projq(queries), self.projk(tokens), self.projv(tokens)
        found = F.scaled_dot_product_attention(*(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts))
        updated: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return updated


class QueryReadout(nn.Module):
    """A learned query per class looks at the whole map; a pixel's logit is its product with the updated query."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, classes, dim) * dim**-0.5)
        self.cross_attn = CrossAttention(dim)

    def forward(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Logits at the size of the map; the queries attend to a quarter of its rows and columns (at least one)."""
        maps = maps.relu()
        coarse = _resize(maps, (max(maps.shape[-2] // REDUCTION, 1), max(maps.shape[-1] // REDUCTION, 1)))
        queries = self.cross_attn(self.queries.expand(len(maps), -1, -1), coarse.flatten(2).transpose(1, 2))
        return torch.einsum("bdhw,bkd->bkhw", maps, queries)


class AttentionProbe(_TwoSources):
    """A query per class on the pixel features, a 1 x 1 convolution on the encoder's map.

    Args:
        pixel_dim: channels of the pixel features, divisible by 8.
        encoder_dim: channels of the encoder's map.
        classes: how many.
        alphas: weights of (pixels, encoder).
    Raises:
        ValueError: pixel features that 8 does not divide.

    Source: google-research/lila, AttentionProbe; how its queries start is not described there, ours are normal with
    variance 1 / channels.
    """

    def __init__(
        self, pixel_dim: int, encoder_dim: int, classes: int, alphas: tuple[float, float] = ALPHAS["both"]
    ) -> None:
        super().__init__(alphas)
        self.probe_dec = QueryReadout(pixel_dim, classes)
        self.probe_enc = nn.Conv2d(encoder_dim, classes, 1)

    def from_pixels(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Logits by the queries."""
        answer: Tensor = self.probe_dec(maps)
        return answer

    def from_encoder(self, maps: Float[Tensor, "b e gh gw"]) -> Float[Tensor, "b k gh gw"]:
        """Logits by the convolution."""
        answer: Tensor = self.probe_enc(maps)
        return answer


class LinearZeroShot(_TwoSources):
    """Features into the space of text embeddings; the logit of a class is a scaled cosine with its embedding.

    The encoder's map passes a BatchNorm first, which google-research/lila never switches to evaluation: in validation
    it normalises by the batch at hand, too. Keep this module in training mode to follow that.

    Args:
        pixel_dim: channels of the pixel features.
        encoder_dim: channels of the encoder's map.
        text: one embedding per class, of length 1; frozen.
        alphas: weights of (pixels, encoder).

    Source: google-research/lila, utils/zeroseg_init.py, LinearZeroShot.
    """

    text: Tensor

    def __init__(
        self,
        pixel_dim: int,
        encoder_dim: int,
        text: Float[Tensor, "k e"],
        alphas: tuple[float, float] = ALPHAS["both"],
    ) -> None:
        super().__init__(alphas)
        self.register_buffer("text", text)
        self.probe_dec = nn.Conv2d(pixel_dim, text.shape[1], 1, bias=False)
        self.probe_enc = nn.Sequential(
            nn.BatchNorm2d(encoder_dim), nn.Conv2d(encoder_dim, text.shape[1], 1, bias=False)
        )
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))

    def from_pixels(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Cosines of the pixel features with the text."""
        return self._cosines(self.probe_dec(maps))

    def from_encoder(self, maps: Float[Tensor, "b e gh gw"]) -> Float[Tensor, "b k gh gw"]:
        """Cosines of the encoder's tokens with the text."""
        return self._cosines(self.probe_enc(maps))

    def _cosines(self, embedded: Float[Tensor, "b e h w"]) -> Float[Tensor, "b k h w"]:
        return torch.einsum("behw,ke->bkhw", F.normalize(embedded, dim=1), self.text)

    def forward(self, features: Features, size: tuple[int, int]) -> Float[Tensor, "b k {size[0]} {size[1]}"]:
        """Logits of `size` rows and columns."""
        return self.logit_scale.exp() * super().forward(features, size)


def _resize(maps: Float[Tensor, "b k h w"], size: tuple[int, int]) -> Float[Tensor, "b k {size[0]} {size[1]}"]:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
