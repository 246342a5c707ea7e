"""Optical flow: Middlebury's `.flo` and KITTI's 16-bit PNG.

Both store, like fourd, the way from a pixel of this frame to its place in the other one, x to the right, y down.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.files import atomic
from fourd_core.media.formats.png16 import read_png16, write_png16
from fourd_core.media.formats.reading import Readable, read_bytes, shown

FLO_TAG = b"PIEH"
FLO_UNKNOWN = 1e10
"""What Middlebury writes where the flow is unknown; its readers take everything over 1e9 so."""
FLO_LARGEST = 1e9

KITTI_SCALE = 64.0
KITTI_ZERO = 2**15


def write_flo(path: Path, flow: Float[Tensor, "2 h w"]) -> None:
    """Write a `.flo` file, float32; a pixel with a number that is not finite becomes unknown.

    Source: Baker et al., A database and evaluation methodology for optical flow, and its README: "PIEH", int32 width,
    int32 height, rows of (u, v), little-endian.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    _, height, width = flow.shape
    known = (flow.abs() <= FLO_LARGEST).all(dim=0)
    values = torch.where(known, flow.float(), FLO_UNKNOWN).permute(1, 2, 0)
    header = FLO_TAG + np.array([width, height], "<i4").tobytes()
    with atomic(path) as temporary:
        temporary.write_bytes(header + values.cpu().numpy().astype("<f4").tobytes())


def read_flo(source: Readable) -> Float[Tensor, "2 h w"]:
    """Read a `.flo` file; NaN where the flow is unknown.

    Raises:
        MediaError: no such file, another format, cut off.
    """
    data, name = read_bytes(source), shown(source)
    if data[:4] != FLO_TAG or len(data) < 12:
        raise MediaError(f"{name} is not a .flo file: it does not begin with {FLO_TAG.decode()} and a size")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if min(width, height) < 1 or len(data) != 12 + 8 * width * height:
        raise MediaError(f"{name} is damaged: it states {width}x{height} pixels and has {len(data)} bytes")
    values = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    flow = torch.from_numpy(values).permute(2, 0, 1)
    known = (flow.abs() <= FLO_LARGEST).all(dim=0)
    return torch.where(known, flow, torch.nan)


def write_kitti_flow(path: Path, flow: Float[Tensor, "2 h w"]) -> None:
    """Write a KITTI flow picture: 16-bit RGB of `64 u + 2^15`, `64 v + 2^15` (rounded) and 1 where it is known.

    What is not finite or does not lie in [-512, 512) px does not fit and becomes unknown: 0, 0, 0.

    Source: KITTI 2015 flow development kit, readme.txt.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    codes = torch.round(flow.double() * KITTI_SCALE + KITTI_ZERO)
    known = ((codes >= 0) & (codes < 2**16)).all(dim=0)
    samples = torch.cat([codes, torch.ones_like(codes[:1])]).where(known, 0.0)
    write_png16(path, samples.permute(1, 2, 0).cpu().numpy().astype(np.uint16))


def read_kitti_flow(source: Readable) -> Float[Tensor, "2 h w"]:
    """Read a KITTI flow picture; NaN where the flow is unknown.

    Raises:
        MediaError: no such file, not an RGB PNG of 16 bits.
    """
    samples = torch.from_numpy(read_png16(source, channels=3).astype(np.float32)).permute(2, 0, 1)
    return torch.where(samples[2] > 0, (samples[:2] - KITTI_ZERO) / KITTI_SCALE, torch.nan)
