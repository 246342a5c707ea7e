"""Several pictures of one scene as one: each under its name, side by side in one row or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from fourd_core.media.labels import label

Size = tuple[int, int]

IN_A_ROW = 4
"""More panels than these go into two rows."""
GAP = 4
"""White pixels between panels."""


def panel_size(frame: Size, longer_side: int) -> Size:
    """Height and width of a panel that has a frame's proportions."""
    scale = longer_side / max(frame)
    height, width = (max(1, round(side * scale)) for side in frame)
    return height, width


def fitted(pictures: UInt8[Tensor, "t 3 h w"], size: Size) -> UInt8[Tensor, "t 3 y x"]:
    """Pictures resized to a panel."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    values = F.interpolate(pictures.float(), size, mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8)


def arranged(labels: Sequence[str], panels: Sequence[UInt8[Tensor, "t 3 h w"]]) -> UInt8[Tensor, "t 3 y x"]:
    """Panels of one size, each under its label."""
    columns = len(panels) if len(panels) <= IN_A_ROW else math.ceil(len(panels) / 2)
    count, width = panels[0].shape[0], panels[0].shape[-1]
    tiles = [
        torch.cat([label(text, width).expand(count, -1, -1, -1), panel], 2)
        for text, panel in zip(labels, panels, strict=True)
    ]
    tile = tiles[0].shape[2] + GAP, width + GAP
    rows = math.ceil(len(tiles) / columns)
    whole = tiles[0].new_full((count, 3, rows * tile[0] - GAP, columns * tile[1] - GAP), 255)
    for number, picture in enumerate(tiles):
        top, left = number // columns * tile[0], number % columns * tile[1]
        whole[:, :, top : top + picture.shape[2], left : left + width] = picture
    return whole
