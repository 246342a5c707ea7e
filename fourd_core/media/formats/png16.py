"""PNG pictures of 16 bits a sample, exact to the last bit: FFmpeg's own coder, which PyAV brings along."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt16
from numpy import ndarray

from fourd_core.errors import MediaError
from fourd_core.files import atomic
from fourd_core.media.formats.reading import Readable, read_bytes, shown

_LAYOUTS = {2: "gray16be", 3: "rgb48be"}
"""PyAV's name of the samples by the number of axes; its arrays are in the machine's byte order all the same."""


def write_png16(path: Path, samples: UInt16[ndarray, "h w *rgb"]) -> None:
    """Write a grey picture `h w` or an RGB picture `h w 3`.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    layout = _LAYOUTS[samples.ndim]
    coder = av.CodecContext.create("png", "w")
    assert isinstance(coder, av.VideoCodecContext)
    coder.height, coder.width = samples.shape[:2]
    coder.pix_fmt, coder.time_base = layout, Fraction(1)
    coder.options = {"pred": "mixed"}  # a filter for each row: smooth maps take half the room
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(samples), format=layout)
    packets = [*coder.encode(picture), *coder.encode(None)]
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(bytes(packet) for packet in packets))


def read_png16(source: Readable, channels: int) -> UInt16[ndarray, "h w *rgb"]:
    """Read a grey picture `h w` (1 channel) or an RGB picture `h w 3` (3 channels).

    Raises:
        MediaError: no such file, damaged, or not a PNG of that many channels with 16 bits each.
    """
    coder = av.CodecContext.create("png", "r")
    assert isinstance(coder, av.VideoCodecContext)
    layout = _LAYOUTS[2 if channels == 1 else 3]
    try:
        frames = [*coder.decode(av.Packet(read_bytes(source))), *coder.decode(None)]
    except av.FFmpegError as error:
        raise MediaError(f"{shown(source)} is not a PNG picture or is damaged") from error
    if not frames:
        raise MediaError(f"{shown(source)} is not a PNG picture or is damaged")
    if frames[0].format.name != layout:
        raise MediaError(f"{shown(source)} holds {frames[0].format.name} pixels, not {channels} x 16 bit ({layout})")
    samples: UInt16[ndarray, "h w *rgb"] = frames[0].to_ndarray()
    return samples
