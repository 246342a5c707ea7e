"""The soft argmax of heat maps at full size. Source: Badki et al., L4P (arXiv 2502.13078), section 3.3.1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def expected_position(heat: Float[Tensor, "n t y x"], size: tuple[int, int]) -> Float[Tensor, "n t 2"]:
    """The maps are enlarged as volumes, and their softmax is multiplied by a grid of positions."""
    (height, width), frames = size, heat.shape[1]
    maps = F.interpolate(heat[:, None], (frames, height, width), mode="trilinear", align_corners=False)[:, 0]
    likely = maps.flatten(2).softmax(-1).unflatten(-1, size)[..., None]
    rows, columns = (torch.arange(n, device=heat.device, dtype=heat.dtype) + 0.5 for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (likely * torch.stack([x, y], -1)).sum((2, 3))
