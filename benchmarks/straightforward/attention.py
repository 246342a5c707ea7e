"""Attention with its scores in memory. Source: Vaswani et al., Attention Is All You Need, section 3.2.1, equation 1."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    scale: float | None = None,
    *_: Any,
    **__: Any,
) -> Float[Tensor, "b h n e"]:
    """Every query's average of the values; other arguments of `fourd_core.kernels.attention` make no difference."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    return scores.softmax(-1) @ v
