"""Scaled dot-product attention: the one attention function of the project.

    out = softmax(scale * q k') v        (softmax over the keys)

Source: Vaswani et al., Attention Is All You Need, section 3.2.1, equation 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attention(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m e"], scale: float | None = None
) -> Float[Tensor, "b h n e"]:
    """Every query's average of the values, weighted by how well its key fits.

    Args:
        scale: factor of the scores; None: `d ** -0.5`.
    Raises:
        ValueError: the shapes do not belong together.
    """
    if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]):
        raise ValueError(
            f"attention needs q 'b h n d', k 'b h m d' and v 'b h m e', got {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
