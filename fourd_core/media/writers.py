"""PNG pictures and H.264 videos, whole or not at all."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from fourd_core.files import atomic


def encode_png(rgb: UInt8[Tensor, "3 h w"]) -> bytes:
    """An 8-bit RGB picture as the bytes of a PNG file (W3C PNG specification: signature, IHDR, IDAT, IEND)."""
    _, height, width = rgb.shape
    rows = rgb.permute(1, 2, 0).cpu().numpy().reshape(height, 3 * width)
    # Each row starts with the number of its filter: 2, the difference to the row above, modulo 256.
    filtered = np.diff(rows, axis=0, prepend=np.zeros((1, 3 * width), np.uint8))
    lines = np.concatenate([np.full((height, 1), 2, np.uint8), filtered], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def write_png(path: Path, rgb: UInt8[Tensor, "3 h w"]) -> None:
    """Write a picture.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(encode_png(rgb))


class VideoWriter:
    """An mp4 file (H.264, 4:2:0, plays everywhere) that appears when the `with` block ends well.

    Odd sizes are filled up by one repeated row or column, since 4:2:0 needs even ones.
    """

    def __init__(self, path: Path, fps: float, quality: int = 18) -> None:
        """`quality`: x264's constant rate factor, 0 lossless to 51 worst."""
        self._path = path
        self._rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))  # below, it would round to 0
        self._options = {"crf": str(quality), "preset": "veryfast"}
        self._stream: VideoStream | None = None
        self._writing = self._open()

    def __enter__(self) -> VideoWriter:
        self._container = self._writing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writing.__exit__(kind, error, trace)

    def write(self, frames: UInt8[Tensor, "t 3 h w"]) -> None:
        """Append frames, all of one size.

        Raises:
            ValueError: a size other than the first frames'.
            RunError: the disk is full.
        """
        height, width = (side + side % 2 for side in frames.shape[-2:])
        if self._stream is None:
            self._stream = self._new_stream(height, width)
        size = self._stream.height, self._stream.width
        if (height, width) != size:
            raise ValueError(f"the video has frames of {size}, not {(height, width)}")
        padding = ((0, height - frames.shape[-2]), (0, width - frames.shape[-1]), (0, 0))
        for rgb in frames.permute(0, 2, 3, 1).cpu().numpy():
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.pad(rgb, padding, mode="edge")), format="rgb24"
            )
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            self._container.mux(self._stream.encode(picture))

    def _new_stream(self, height: int, width: int) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate, options=self._options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # Players guess the matrix from the size where the file does not say it.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        return stream

    @contextmanager
    def _open(self) -> Iterator[OutputContainer]:
        options = {"movflags": "faststart"}
        with atomic(self._path) as temporary, av.open(f"file:{temporary}", "w", options=options) as container:
            yield container
            if self._stream is None:
                raise ValueError(f"no frame was written to {self._path}")
            container.mux(self._stream.encode(None))
