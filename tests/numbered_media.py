"""Videos whose frames carry their number, and folders of pictures, for the tests of media."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.interfaces import Video
from fourd_core.media.video import open_video

ROOT = Path(__file__).parent.parent
BUNNY = ROOT / "examples" / "bigbuckbunny.mp4"
BITS = 10


def numbered(number: int, size: tuple[int, int]) -> np.ndarray:
    """A picture of bars, most significant bit first from left to right."""
    height, width = size
    bits = [(number >> (BITS - 1 - bit)) & 1 for bit in range(BITS)]
    columns = np.minimum(np.arange(width) * BITS // width, BITS - 1)
    row = np.array(bits, np.uint8)[columns] * 255
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(frames: Tensor) -> list[int]:
    """What the bars of frames `t 3 h w` say, from the middle row and the middle of every bar."""
    width = frames.shape[-1]
    middles = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    bits = frames[:, 1, frames.shape[-2] // 2, middles] > 127
    return [sum(int(bit) << (BITS - 1 - place) for place, bit in enumerate(row)) for row in bits.tolist()]


def encode(
    target: Any,
    frames: int = 40,
    size: tuple[int, int] = (32, 80),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    **stream_options: Any,
) -> None:
    """A video of numbered frames; `times` in milliseconds."""
    fixed = {"sc_threshold": "0"} if codec == "libx264" else {}  # keyframes only where the test puts them
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options=fixed | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        for name, value in stream_options.items():
            getattr(stream, name)(value) if callable(getattr(stream, name)) else setattr(stream, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def write_pictures(folder: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]] | None = None) -> None:
    from fourd_core.media.writers import write_png

    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        size = sizes[number] if sizes else (20, 50)
        write_png(folder / name, torch.from_numpy(numbered(number, size)).permute(2, 0, 1))


def check_any_order(video: Video, count: int = 40) -> None:
    """Every frame, forwards, backwards and at random, is the right one."""
    assert video.frame_count == count
    forwards = list(range(count))
    assert numbers(video.read(forwards)) == forwards
    for index in reversed(forwards):
        assert numbers(video.read([index])) == [index]
    picks = random.Random(0).choices(forwards, k=30)
    assert numbers(video.read(picks)) == picks
    assert [numbers(video.read([pick]))[0] for pick in picks] == picks


def complaint(location: object, read: Sequence[int] = ()) -> str:
    """The one sentence that opening a video, or reading these frames of it, fails with."""
    with pytest.raises(MediaError) as caught:
        open_video(str(location)).read(read)
    text = str(caught.value)
    assert "\n" not in text
    return text
