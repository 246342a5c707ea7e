"""Self-distillation: the encoder's own features, refined to the pixels, are one more cue.

Source: LILA paper, PAMR self-distillation; google-research/lila, dpt_lila.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def random_channels(batch: int, channels: int, keep: int, generator: torch.Generator) -> Int[Tensor, "b keep"]:
    """For every sample its own random choice of `keep` different channels (all of them where there are fewer)."""
    return torch.rand(batch, channels, generator=generator).argsort(dim=-1)[:, :keep]


def pick_channels(maps: Float[Tensor, "b 2 c h w"], chosen: Int[Tensor, "b keep"]) -> Float[Tensor, "b 2 keep h w"]:
    """The chosen channels of both frames of every pair."""
    sample = torch.arange(len(maps), device=maps.device)[:, None]
    return maps.transpose(1, 2)[sample, chosen].transpose(1, 2)
