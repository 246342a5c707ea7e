"""The DINOv2 vision transformer, with the module names of the official checkpoints.

Source: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision (arXiv 2304.07193); Darcet et al.,
Vision Transformers Need Registers (arXiv 2309.16588); reference: facebookresearch/dinov2, dinov2/models/
vision_transformer.py and dinov2/layers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.kernels.attention import Backend, attention

PATCH = 14
REGISTERS = 4
NORM_EPS = 1e-6
OFFSET = 0.1
"""Added to the token counts before the position table's scale factor is computed (`interpolate_offset`)."""

FeedForward = Literal["mlp", "swiglu"]


class LayerOutput(NamedTuple):
    """One block's tokens: the patches in row-major order, and the class token. Registers are dropped."""

    patches: Float[Tensor, "b n c"]
    cls: Float[Tensor, "b c"]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each mapped linearly to one token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Tokens in row-major order."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention; the rows of `qkv` are packed [q; k; v], heads outermost inside each."""

    def __init__(self, dim: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Every token's mixture of all tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(attention(q, k, v, backend=self.backend).transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Each token by itself."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwiGLU(nn.Module):
    """The gated feed-forward of ViT-g: two thirds of the MLP's width, rounded up to a multiple of 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Each token by itself."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The scaled tokens."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block with layer scale on both branches."""

    def __init__(self, dim: int, heads: int, ffn: FeedForward, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, backend)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = SwiGLU(dim) if ffn == "swiglu" else Mlp(dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The tokens after attention and feed-forward."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """The network alone: normalised images in, tokens of the asked blocks out; keys as in the official files."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        image_size: int = 518,
        ffn: FeedForward = "mlp",
        registers: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.side = image_size // PATCH
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, REGISTERS, dim)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # for pre-training only, but every official file has it
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList([Block(dim, heads, ffn, backend) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self._initialise()

    def forward(
        self, images: Float[Tensor, "b 3 h w"], taps: Collection[int], norm: bool = True
    ) -> dict[int, LayerOutput]:
        """The tokens after the asked blocks; no block deeper than the deepest of them is run.

        Args:
            images: normalised with the ImageNet mean and standard deviation, sides divisible by 14.
            taps: block numbers from 0.
            norm: apply the network's final LayerNorm to each of them, as `get_intermediate_layers` does.
        """
        x = self.embed(images)
        first_patch = x.shape[1] - (images.shape[-2] // PATCH) * (images.shape[-1] // PATCH)
        outputs = {}
        for number in range(max(taps) + 1):
            x = self.blocks[number](x)
            if number in taps:
                y = self.norm(x) if norm else x
                outputs[number] = LayerOutput(patches=y[:, first_patch:], cls=y[:, 0])
        return outputs

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """The first block's input: class token, registers (which have no position), patches."""
        patches = self.patch_embed(images)
        # Added in their own precision: under autocast the patches are bfloat16, of 8 bits, and the sum is not.
        positions = self.positions(images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        cls = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        parts = [cls, patches + positions[:, 1:]]
        if self.register_tokens is not None:
            parts.insert(1, self.register_tokens.expand(len(images), -1, -1))
        return torch.cat(parts, dim=1).to(self.pos_embed.dtype)

    def positions(self, h: int, w: int) -> Float[Tensor, "1 n c"]:
        """The position table for `h x w` patches, class token first, in at least float32.

        Resampled bicubically unless it has that size. The two families were trained with different resampling, and the
        numbers differ: without registers the sampling step is `side / (h + 0.1)`, with registers `side / h` with
        antialiasing (`interpolate_offset`, `interpolate_antialias` in the reference).
        """
        table = self.pos_embed.to(torch.promote_types(self.pos_embed.dtype, torch.float32))
        if h == w == self.side:
            return table
        grid = table[:, 1:].mT.reshape(1, -1, self.side, self.side)
        if self.register_tokens is not None:
            grid = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True)
        else:
            factors = ((h + OFFSET) / self.side, (w + OFFSET) / self.side)
            grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
            assert grid.shape[-2:] == (h, w)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def _initialise(self) -> None:
        if self.pos_embed.is_meta:  # torch compiles for seconds before it draws nothing
            return
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
