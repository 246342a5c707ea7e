"""A queried point as tokens, and where the video's tokens stand; module names of the official checkpoint.

Source: Badki et al., L4P (arXiv 2502.13078), section 3.3; Kirillov et al., Segment Anything (arXiv 2304.02643).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fourd_core.data import Grid
from fourd_core.precision import own_precision

PROMPTS = 3
"""Tokens of a queried point: the point, a padding, the track's feature."""


NAMED, FOUND = 1, 2
"""Labels of a point: named by the user, found again by a memory; 0 is an invalid one."""


class FourierEncoding(nn.Module):
    """Places in the unit cube as sines and cosines of random frequencies.

    [sin a, cos a],  a = 2 pi (2 u - 1) G
    """

    positional_encoding_gaussian_matrix: Float[Tensor, "3 half"]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, dim // 2))

    def forward(self, places: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n dim"]:
        """Encodings of (t, x, y), in at least float32: angles are tens of radians, which bfloat16 rounds to eighths."""
        exact = torch.promote_types(self.positional_encoding_gaussian_matrix.dtype, torch.float32)
        with own_precision(places.device):
            angles = 2 * math.pi * ((2 * places.to(exact) - 1) @ self.positional_encoding_gaussian_matrix.to(exact))
            return torch.cat([angles.sin(), angles.cos()], -1)


class PromptEncoder(nn.Module):
    """Embeds queried points; `no_mask_embed` is in every official file and in no forward pass."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pe_layer = FourierEncoding(dim)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, dim) for _ in range(2)])
        self.prompt_feature_embeddings = nn.ModuleList([nn.Embedding(1, dim) for _ in range(2)])
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.no_mask_embed = nn.Embedding(1, dim).requires_grad_(False)

    def forward(
        self,
        places: Float[Tensor, "n 3"],
        labels: Int[Tensor, " n"],
        feature: Float[Tensor, "n c"],
        handed: Bool[Tensor, " n"],
    ) -> Float[Tensor, "n 3 c"]:
        """The tokens of each point.

        Args:
            places: (t, x, y), each between 0 and 1 inside the clip.
            labels: 0 invalid, NAMED, or FOUND, which has no embedding and adds nothing.
            feature: what the window before said of the track; zeros where nothing was said.
            handed: whether something was said.
        """
        invalid, named = (embedding.weight for embedding in self.point_embeddings)
        nothing, something = (embedding.weight for embedding in self.prompt_feature_embeddings)
        kind = (labels == 0)[:, None] * invalid + (labels == NAMED)[:, None] * named
        point = self.pe_layer(places).to(kind.dtype) + kind
        track = feature + torch.where(handed[:, None], something, nothing)
        return torch.stack([point, self.not_a_point_embed.weight.expand_as(point), track.to(point.dtype)], 1)

    def positions(self, grid: Grid, device: torch.device) -> Float[Tensor, "p c"]:
        """Where the tokens of a clip stand, in their (t, h, w) order."""
        t, y, x = ((torch.arange(count, device=device) + 0.5) / count for count in grid)
        places = torch.stack(torch.meshgrid(t, y, x, indexing="ij"), -1)[..., [0, 2, 1]]
        encoded: Tensor = self.pe_layer(places.flatten(0, 2))
        return encoded.to(self.not_a_point_embed.weight.dtype)
