"""Depth as a grey PNG of 16 bits: the depth times a scale, rounded, 0 where it is unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.media.formats.png16 import read_png16, write_png16
from fourd_core.media.formats.reading import Readable

KITTI = 256.0
"""Steps per metre of KITTI's depth maps: up to 255.99 m, in steps of 4 mm (KITTI depth development kit, readme.txt)."""
MILLIMETRES = 1000.0
"""Steps per metre of most RGB-D cameras' files: up to 65.535 m, in steps of 1 mm."""


def write_depth_png(path: Path, depth: Float[Tensor, "1 h w"], scale: float) -> None:
    """Write a depth map in steps of `1 / scale`, for example `KITTI` or `MILLIMETRES`.

    What is not a positive number, or too near or too far for 16 bits, becomes unknown: 0.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    codes = torch.round(depth[0].double() * scale)
    write_png16(path, codes.where((codes > 0) & (codes < 2**16), 0.0).cpu().numpy().astype(np.uint16))


def read_depth_png(source: Readable, scale: float) -> Float[Tensor, "1 h w"]:
    """Read a depth map that has steps of `1 / scale`; NaN where it is unknown.

    Raises:
        MediaError: no such file, not a grey PNG of 16 bits.
    """
    codes = torch.from_numpy(read_png16(source, channels=1).astype(np.float64))[None]
    return torch.where(codes > 0, codes / scale, torch.nan).float()
