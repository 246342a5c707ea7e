"""Which frames a video file holds, and where decoding must start for each: found by demuxing, without decoding."""

from __future__ import annotations

from array import array
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
        starts: keyframes in order, rows as in `Start`; the first one starts at frame 0.
        time_base: seconds per unit.
        by_time: False where the file states no usable presentation times (raw streams, some AVI); then `pts` only
            counts frames, the n-th decoded frame is frame n, and reading backwards decodes from the start.
    """

    pts: NDArray[np.int64]
    starts: NDArray[np.int64]
    time_base: Fraction
    by_time: bool

    def __len__(self) -> int:
        return len(self.pts)

    def start_before(self, frame: int) -> int:
        """The number in `starts` of the last keyframe from which `frame` can be decoded."""
        return int(np.searchsorted(self.starts[0], frame, side="right")) - 1

    def start(self, number: int) -> Start:
        """One of `starts`."""
        return Start(*self.starts[:, number].tolist())

    def seconds(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """Presentation times from the first frame on."""
        seconds: NDArray[np.float64] = np.multiply(self.pts[frames] - self.pts[0], float(self.time_base))
        return seconds


_UNKNOWN = np.iinfo(np.int64).min
"""The time of a packet that states none, as in FFmpeg."""


class _Packets:
    """What the index needs of each packet, in 18 bytes: hours of video have a million of them."""

    def __init__(self) -> None:
        self._pts, self._dts = array("q"), array("q")
        self._key, self._shown = bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._pts)

    def add(self, packet: Packet[VideoStream], shown: bool) -> None:
        self._pts.append(_UNKNOWN if packet.pts is None else packet.pts)
        self._dts.append(_UNKNOWN if packet.dts is None else packet.dts)
        self._key.append(packet.is_keyframe)
        self._shown.append(shown)

    @property
    def pts(self) -> NDArray[np.int64]:
        return np.frombuffer(self._pts, np.int64)

    @property
    def dts(self) -> NDArray[np.int64]:
        return np.frombuffer(self._dts, np.int64)

    @property
    def key(self) -> NDArray[np.bool_]:
        return np.frombuffer(self._key, np.bool_)

    @property
    def shown(self) -> NDArray[np.bool_]:
        return np.frombuffer(self._shown, np.bool_)


def build_index(container: av.container.InputContainer, stream: VideoStream, name: str) -> FrameIndex:
    """Demux a whole stream once.

    Raises:
        MediaError: no frame, or less data than the file's own index promises.
    """
    packets = _Packets()
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_corrupt:
                packets.add(packet, not packet.is_discard and _shows_a_frame(stream.codec_context.name, packet))
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


def _by_time(packets: _Packets, stream: VideoStream) -> FrameIndex | None:
    times = np.sort(packets.pts)
    if _UNKNOWN in times[:1] or not np.diff(times).all() or stream.time_base is None:
        return None
    keys = np.flatnonzero(packets.key) if packets.key.any() else np.arange(min(1, len(packets)))
    keys = keys[np.argsort(packets.pts[keys])]
    pts, dts = packets.pts[keys], packets.dts[keys]
    # Frames before the first keyframe refer to data that the file does not hold (a stream cut in an open GOP).
    frames = np.sort(packets.pts[packets.shown & (packets.pts >= pts[:1])])
    starts = np.stack([np.searchsorted(frames, pts), pts, np.where(dts == _UNKNOWN, pts, dts)])
    return FrameIndex(frames, starts, stream.time_base, by_time=True)


def _by_count(packets: _Packets, stream: VideoStream) -> FrameIndex:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    pts = np.arange(packets.shown.sum(), dtype=np.int64)
    return FrameIndex(pts, np.zeros((3, 1), np.int64), 1 / Fraction(rate), by_time=False)


def _shows_a_frame(codec: str, packet: Packet[VideoStream]) -> bool:
    """False for VP8's hidden reference frames, which are packets of their own (RFC 6386, 9.1: bit 4 is show_frame)."""
    return codec not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)
