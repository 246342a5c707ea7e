"""L4P's tracking head and memory in the straightforward form: every query has its own copy of the video's tokens.

As the paper and its description have it, line by line, without any of the plugin's algebra; for one clip. It has the
names of the official checkpoint, so that the plugin's weights load as they are. `benchmarks/l4p.py` measures against
it, and the plugin's tests compare with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fourd_core.data import Grid


class Answer(NamedTuple):
    """A window's: tracks of the points, and what the next window needs."""

    xy: Float[Tensor, "n t 2"]
    logit: Float[Tensor, "n t"]
    depth: Float[Tensor, "n t"]
    feature: Float[Tensor, "n c"]
    history: Float[Tensor, "n p c"]


def embeddings(count: int, dim: int) -> nn.ModuleList:
    return nn.ModuleList([nn.Embedding(1, dim) for _ in range(count)])


class Attention(nn.Module):
    def __init__(self, dim: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = [p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                 for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))]  # fmt: skip
        return self.out_proj(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, dim, heads)
        self.cross_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.cross_attn_image_to_token = Attention(dim, dim // 2, heads)
        self.mlp = Mlp(dim, hidden)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))

    def forward(
        self, tokens: Tensor, video: Tensor, given: Tensor, positions: Tensor, first: bool
    ) -> tuple[Tensor, ...]:
        if first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            tokens = self.norm1(tokens + self.self_attn(tokens + given, tokens + given, tokens))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + given, video + positions, video))
        tokens = self.norm3(tokens + self.mlp(tokens))
        video = self.norm4(video + self.cross_attn_image_to_token(video + positions, tokens + given, tokens))
        return tokens, video


class Transformer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(dim, heads, hidden) for _ in range(2)])
        self.final_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, given: Tensor, video: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        tokens = given
        for i, layer in enumerate(self.layers):
            tokens, video = layer(tokens, video, given, positions, first=i == 0)
        read = self.final_attn_token_to_image(tokens + given, video + positions, video)
        return self.norm_final_attn(tokens + read), video


class Hypernetwork(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim // 8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MaskDecoder(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.transformer = Transformer(dim, heads, hidden)
        self.iou_token, self.mask_tokens = nn.Embedding(1, dim), nn.Embedding(3, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, 2, 2), ChannelNorm(dim // 4, eps=1e-6), nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, (1, 2, 2), (1, 2, 2)), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList([Hypernetwork(dim) for _ in range(3)])


class PromptEncoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pe_layer = nn.Module()
        self.pe_layer.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, dim // 2))
        self.point_embeddings, self.prompt_feature_embeddings = embeddings(2, dim), embeddings(2, dim)
        self.not_a_point_embed, self.no_mask_embed = embeddings(2, dim)

    def fourier(self, places: Tensor) -> Tensor:
        angle = 2 * math.pi * ((2 * places - 1) @ self.pe_layer.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos()], -1)


class StraightforwardTracker(nn.Module):
    """Head and memory in one; `size` is frames, height and width of the clip."""

    def __init__(self, dim: int, heads: int, hidden: int, grid: Grid, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.prompt_encoder = PromptEncoder(dim)
        self.mask_decoder = MaskDecoder(dim, heads, hidden)
        self.prompt_feature_linear_layer = nn.Linear(dim, dim)
        self.processed_video_features_proj = nn.Linear(dim, dim)
        self.processed_video_mask_token = nn.Embedding(1, dim)

    def forward(
        self,
        video: Float[Tensor, "p c"],
        history: Float[Tensor, "n p c"] | None,
        points: Float[Tensor, "n 3"],
        labels: Int[Tensor, " n"],
        feature: Float[Tensor, "n c"],
        handed: Bool[Tensor, " n"],
    ) -> Answer:
        """One window.

        Args:
            history: added to the video's tokens; None: nothing is.
            points: (t, x, y) in frames and pixels, centres at +0.5.
        """
        encoder, decoder, count = self.prompt_encoder, self.mask_decoder, len(points)
        frames, height, width = self.size
        kinds = torch.stack(
            [embedding.weight[0] for embedding in encoder.point_embeddings] + [torch.zeros_like(video[0])]
        )
        flags = torch.stack([embedding.weight[0] for embedding in encoder.prompt_feature_embeddings])
        point = encoder.fourier(points / points.new_tensor([frames, width, height])) + kinds[labels]
        padding = encoder.not_a_point_embed.weight.expand(count, -1)
        prompts = torch.stack([point, padding, feature + flags[handed.long()]], 1)
        tokens = torch.cat([decoder.mask_tokens.weight.expand(count, -1, -1), prompts], 1)
        every = video.repeat(count, 1, 1)
        if history is not None:
            every = every + history
        tokens, every = decoder.transformer(tokens, every, self.positions(video).repeat(count, 1, 1))
        up = decoder.output_upscaling(every.mT.unflatten(-1, self.grid))
        hyper = torch.stack([net(tokens[:, i]) for i, net in enumerate(decoder.output_hypernetworks_mlps)], 1)
        low = (hyper @ up.flatten(2)).unflatten(-1, up.shape[2:])
        maps = F.interpolate(low, (frames, height, width), mode="trilinear", align_corners=False)
        likely = maps[:, 0].flatten(2).softmax(-1).unflatten(-1, (height, width))[..., None]
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        xy = (likely * torch.stack([x, y], -1).to(video.dtype)).sum((2, 3))
        logit, depth = maps[:, 1].mean((-2, -1)), maps[:, 2].mean((-2, -1)).exp()
        feature = self.prompt_feature_linear_layer(tokens[:, 5])
        return Answer(xy, logit, depth, feature, self.processed_video_features_proj(every))

    def first_history(self, count: int) -> Float[Tensor, "n p c"]:
        """What the first window's tokens are given: the mask token."""
        return self.processed_video_mask_token.weight.repeat(math.prod(self.grid), 1).repeat(count, 1, 1)

    def next_history(self, history: Float[Tensor, "n p c"]) -> Float[Tensor, "n p c"]:
        """The tokens of the second half stand in the first, and mask tokens in the second."""
        half = history.shape[1] // 2
        mask = self.processed_video_mask_token.weight.expand(len(history), half, -1)
        return torch.cat([history[:, half:], mask], 1)

    def positions(self, video: Float[Tensor, "p c"]) -> Float[Tensor, "p c"]:
        """Where the video's tokens stand."""
        t, y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in self.grid), indexing="ij")
        return self.prompt_encoder.fourier(torch.stack([t, x, y], -1).flatten(0, 2).to(video.dtype))
