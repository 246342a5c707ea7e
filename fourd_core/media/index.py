"""Which frames a video file holds, and where decoding must start for each: found by demuxing, without decoding."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from typing import NamedTuple

import attrs
import av
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fourd_core.errors import MediaError


class Start(NamedTuple):
    """A keyframe: decoding from here gives every frame from presented frame `frame` on."""

    frame: int
    pts: int
    dts: int


@attrs.frozen(eq=False)
class FrameIndex:
    """The presented frames of a video stream in presentation order.

    Attributes:
        pts: presentation times in units of `time_base`; strictly increasing.
        starts: keyframes in order; the first one starts at frame 0.
        time_base: seconds per unit.
        by_time: False where the file states no usable presentation times (raw streams, some AVI); then `pts` only
            counts frames, the n-th decoded frame is frame n, and reading backwards decodes from the start.
    """

    pts: NDArray[np.int64]
    starts: tuple[Start, ...]
    time_base: Fraction
    by_time: bool

    def __len__(self) -> int:
        return len(self.pts)

    def start_before(self, frame: int) -> int:
        """The number in `starts` of the last keyframe from which `frame` can be decoded."""
        return bisect_right(self.starts, frame, key=lambda start: start.frame) - 1

    def seconds(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """Presentation times from the first frame on."""
        seconds: NDArray[np.float64] = np.multiply(self.pts[frames] - self.pts[0], float(self.time_base))
        return seconds


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    key: bool
    shown: bool


def build_index(container: av.container.InputContainer, stream: VideoStream, name: str) -> FrameIndex:
    """Demux a whole stream once.

    Raises:
        MediaError: no frame, or less data than the file's own index promises.
    """
    packets: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_corrupt:
                shown = not packet.is_discard and _shows_a_frame(stream.codec_context.name, packet)
                packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, shown))
    except av.error.FFmpegError as error:
        raise MediaError(f"{name} is damaged: its data cannot be read after frame {len(packets)} ({error})") from error
    # Older PyAV does not tell what the file promises; the missing frames are then noticed when they are read.
    promised = len(getattr(stream, "index_entries", ()))
    if len(packets) < promised:
        raise MediaError(
            f"{name} is truncated: it promises {promised} frames, but its data end after frame {len(packets)}; "
            "copy the file again, or save the intact part with another program"
        )
    index = _by_time(packets, stream) or _by_count(packets, stream)
    if not len(index):
        raise MediaError(f"{name} has no frames")
    return index


def _by_time(packets: list[_Packet], stream: VideoStream) -> FrameIndex | None:
    times = [packet.pts for packet in packets if packet.pts is not None]
    if len(times) < len(packets) or len(set(times)) < len(times) or stream.time_base is None:
        return None
    keys = [
        (packet.pts, packet.pts if packet.dts is None else packet.dts)
        for packet in [packet for packet in packets if packet.key] or packets[:1]
        if packet.pts is not None
    ]
    # Frames before the first keyframe refer to data that the file does not hold (a stream cut in an open GOP).
    first = min(keys, default=(0, 0))[0]
    pts = np.array(sorted(p.pts for p in packets if p.shown and p.pts is not None and p.pts >= first), np.int64)
    starts = [Start(int(np.searchsorted(pts, time)), time, decoding_time) for time, decoding_time in keys]
    return FrameIndex(pts, tuple(sorted(starts)), stream.time_base, by_time=True)


def _by_count(packets: list[_Packet], stream: VideoStream) -> FrameIndex:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    pts = np.arange(sum(packet.shown for packet in packets), dtype=np.int64)
    return FrameIndex(pts, (Start(0, 0, 0),), 1 / Fraction(rate), by_time=False)


def _shows_a_frame(codec: str, packet: Packet[VideoStream]) -> bool:
    """False for VP8's hidden reference frames, which are packets of their own (RFC 6386, 9.1: bit 4 is show_frame)."""
    return codec not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)
