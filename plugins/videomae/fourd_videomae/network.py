"""The video transformer of VideoMAE and VideoMAEv2, with the module names of the official pre-training encoder.

Source: Wang et al., VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking (arXiv 2303.16727); Tong et al.,
VideoMAE (arXiv 2203.12602); reference: OpenGVLab/VideoMAEv2, models/modeling_pretrain.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourd_core.kernels.attention import Backend, attention
from fourd_videomae.sizes import Size

NORM_EPS = 1e-6
WAVELENGTH = 10_000.0
"""Base of the position table's wavelengths."""


def sinusoid_table(count: int, dim: int) -> Float[Tensor, "count dim"]:
    """Fixed positions of the tokens 0 to `count - 1`: sines in the even channels, cosines in the odd ones.

        angle(p, j) = p / 10000^(2 floor(j / 2) / dim)

    One axis for the whole clip: `p` runs over the flattened tokens, not over frames, rows and columns separately.
    Computed in float64 on the CPU (not every device has float64), rounded to float32.
    """
    channel = torch.arange(dim, dtype=torch.float64, device="cpu")
    position = torch.arange(count, dtype=torch.float64, device="cpu")
    angle = position[:, None] / torch.pow(WAVELENGTH, 2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class PatchEmbed(nn.Module):
    """Non-overlapping blocks of frames, rows and columns, each mapped linearly to one token."""

    def __init__(self, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, frames: Float[Tensor, "b t 3 h w"]) -> Float[Tensor, "b n c"]:
        """Tokens in (t, h, w) order."""
        tokens: Tensor = self.proj(frames.transpose(1, 2)).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention; the rows of `qkv` are packed [q; k; v], heads outermost inside each.

    Queries and values have a bias and keys have none: the softmax would not see it.
    """

    def __init__(self, dim: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Every token's mixture of all tokens."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(attention(q, k, v, backend=self.backend).transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Each token by itself."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block without layer scale."""

    def __init__(self, dim: int, heads: int, hidden: int, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, backend)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The tokens after attention and feed-forward."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """The network alone: normalised frames in, tokens of the asked taps out; keys as in the official files.

    Args:
        checkpointing: keep only the blocks' inputs for the backward pass and compute the rest again.
        backend: who computes attention.
    """

    def __init__(self, size: Size, checkpointing: bool = False, backend: Backend = "auto") -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.size = size
        self.patch_embed = PatchEmbed(size.embed_dim, size.patch)
        self.blocks = nn.ModuleList(
            [Block(size.embed_dim, size.heads, size.mlp_dim, backend) for _ in range(size.depth)]
        )
        self.norm = nn.LayerNorm(size.embed_dim, eps=NORM_EPS)
        # Neither parameter nor buffer: it is in no checkpoint, and must stay float32 in a network of another precision.
        self._table = sinusoid_table(0, size.embed_dim)
        self._initialise()

    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Collection[int]) -> dict[int, Float[Tensor, "b n c"]]:
        """The asked entries of the list [patches with their positions, block 0, ..., last block after the final norm].

        The last entry alone is normalised. No block deeper than the deepest tap is run.

        Args:
            frames: normalised with the ImageNet mean and standard deviation; `t h w` divisible by the patch.
            taps: 0 to the number of blocks; tap k is what block k - 1 gives.
        """
        x = self.embed(frames)
        outputs = {}
        for tap in range(max(taps) + 1):
            if tap > 0:
                x = self._run(self.blocks[tap - 1], x)
            if tap in taps:
                outputs[tap] = self.norm(x) if tap == len(self.blocks) else x
        return outputs

    def embed(self, frames: Float[Tensor, "b t 3 h w"]) -> Float[Tensor, "b n c"]:
        """Tap 0: the patches with their positions, in the precision of the weights."""
        patches: Tensor = self.patch_embed(frames)
        grid = [side // step for side, step in zip((frames.shape[1], *frames.shape[3:]), self.size.patch, strict=True)]
        # Added in at least float32: under autocast the patches are bfloat16, of 8 bits, and the sum is not.
        return (patches + self.positions(patches, grid)).to(self.norm.weight.dtype)

    def positions(self, tokens: Float[Tensor, "b n c"], grid: Sequence[int]) -> Float[Tensor, "#b n c"]:
        """The table's entries for tokens on a grid, on their device.

        Where the size states the grid that positions are counted in, a smaller clip stands in its middle, and in
        training anywhere in it, each clip of a batch elsewhere (torch's global generator draws where).
        """
        b, count, dim = tokens.shape
        whole = self.size.grid or tuple(grid)
        if any(own > most for own, most in zip(grid, whole, strict=True)):
            whole = tuple(grid)
        table = self._table
        if len(table) < math.prod(whole) or table.device != tokens.device:
            table = self._table = sinusoid_table(math.prod(whole), dim).to(tokens.device)
        if tuple(grid) == whole:
            return table[None, :count]
        index = torch.zeros(b if self.training else 1, 1, dtype=torch.long)
        for own, most in zip(grid, whole, strict=True):
            spare = most - own
            start = torch.randint(spare + 1, (len(index), 1)) if self.training else torch.full((1, 1), spare // 2)
            index = (index[:, :, None] * most + (start + torch.arange(own))[:, None]).flatten(1)
        return table[index.to(table.device)]

    def _run(self, block: nn.Module, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # nothing is random
        else:
            out = block(x)
        return out

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
