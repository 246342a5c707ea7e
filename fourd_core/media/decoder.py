"""One open video file: packets in, RGB frames in presentation order out, from any keyframe on."""

from __future__ import annotations

import gc
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import av
import numpy as np
import torch
from av.packet import Packet
from av.stream import Discard
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.media.index import FrameIndex, Start
from fourd_core.media.locations import File


class Decoder:
    """Decodes forward; `position` is the frame that `next` will give, None at the end or where decoding failed."""

    def __init__(self, file: File, index: FrameIndex | None = None) -> None:
        """Open a file; `index` is needed by `seek` and `next` only.

        Raises:
            MediaError: not a video.
        """
        self._file = file
        self._source: Any = None
        self.container, self.stream = self._open()
        self._index = index
        self._reformatter = VideoReformatter()
        self._orientation: Orientation | None = None
        self._decoded: deque[av.VideoFrame] = deque()
        self._packets: Iterator[Packet[VideoStream]] | None = None
        self._counted = 0
        self.position: int | None = None
        with _registering:
            _open_ones.add(self)

    def close(self) -> None:
        """Free the file and the decoder's threads."""
        self.container.close()
        if self._source is not None:
            self._source.close()

    def seek(self, start: Start) -> bool:
        """Make the frame `start.frame` the next one; False where the file cannot go there."""
        assert self._index is not None
        self._decoded.clear()
        self._packets = self._packets_from(start)
        self.position = start.frame if self._packets is not None else None
        return self._packets is not None

    def next(self) -> UInt8[Tensor, "3 h w"] | None:
        """The next presented frame, or None where it does not come; only frames that are looked at are converted."""
        frame = self._next_frame()
        return None if frame is None else self.to_rgb(frame)

    def skip(self) -> bool:
        """Pass over the next presented frame; False where it does not come."""
        return self._next_frame() is not None

    def to_rgb(self, frame: av.VideoFrame) -> UInt8[Tensor, "3 h w"]:
        """RGB, 8 bit, upright: swscale's conversion by the frame's own matrix and range, then its display matrix."""
        if self._orientation is None:
            # Once per stream, and not only for speed: a frame whose side data were looked at waits for Python's
            # garbage collector, and hundreds of megabytes of them pile up until it comes.
            self._orientation = orientation_of(frame, self.stream.codec_context.name)
        rgb = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(self._orientation.upright(rgb).transpose(2, 0, 1)))

    def only(self) -> UInt8[Tensor, "3 h w"] | None:
        """The first frame that a freshly opened file gives, whatever its time: a still picture."""
        try:
            frame = next(self.container.decode(self.stream), None)
        except av.error.FFmpegError:
            return None
        return None if frame is None else self.to_rgb(frame)

    def _open(self) -> tuple[av.container.InputContainer, VideoStream]:
        name = self._file.path
        # The prefix keeps FFmpeg from reading a colon in a file's name as a protocol.
        source: Any = f"file:{name}" if self._file.is_local else self._file.open()
        self._source = None if self._file.is_local else source
        try:
            container: av.container.InputContainer = av.open(source, "r")
        except av.error.FFmpegError as error:
            raise MediaError(f"{name} {self._why_unreadable(error)}") from error
        except Exception as error:  # from the remote file that FFmpeg reads
            raise MediaError(f"cannot read {name}: {error}") from error
        stream = next((stream for stream in container.streams.video), None)
        if stream is None:
            raise MediaError(f"{name} has no video stream")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        stream.thread_type = "AUTO"
        return container, stream

    def _why_unreadable(self, error: av.error.FFmpegError) -> str:
        with self._file.open() as handle:
            head = handle.read(12)
        if head[4:8] == b"ftyp":
            return "is an MP4 file without its index: it is cut off or still being written; copy it again"
        reason = (error.strerror or str(error)).strip().rstrip(".")
        return f"is not a video that FFmpeg can read ({reason})"

    def _packets_from(self, start: Start) -> Iterator[Packet[VideoStream]] | None:
        """The stream's packets from a keyframe on; None where demuxing does not meet it."""
        assert self._index is not None
        if self._index.by_time:
            try:
                # Some formats search by decoding time and some by presentation time; the earlier one is right for both.
                self.container.seek(min(start.dts, start.pts), stream=self.stream, backward=True)
                packets = _from_keyframe(self.container.demux(self.stream), start)
            except av.error.FFmpegError:
                packets = None
            if packets is not None or start != self._index.start(0):
                return packets
        self.close()
        self.container, self.stream = self._open()
        self._counted = 0
        packets = self.container.demux(self.stream)
        return _from_keyframe(packets, start) if self._index.by_time else packets

    def _next_frame(self) -> av.VideoFrame | None:
        if self.position is None or self._index is None or self.position >= len(self._index):
            return None
        wanted = int(self._index.pts[self.position])
        while (frame := self._pull()) is not None:
            time = self._counted if not self._index.by_time else frame.pts
            self._counted += 1
            if time is not None and time >= wanted:
                if time > wanted or frame.is_corrupt:
                    break
                self.position += 1
                return frame
        self.position = None
        return None

    def _pull(self) -> av.VideoFrame | None:
        """The decoder's next frame, whichever it is."""
        try:
            while not self._decoded:
                packet = next(self._packets or iter(()), None)
                if packet is None:
                    return None
                # The last packet is empty and flushes the decoder.
                self._decoded.extend(self.stream.codec_context.decode(packet))
        except av.error.FFmpegError:
            return None
        return self._decoded.popleft()


class Orientation(NamedTuple):
    """How a stored picture becomes an upright one: rows and columns change places first, then it is mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def upright(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
        """The picture as it shall be seen."""
        rgb = rgb.transpose(1, 0, 2) if self.transpose else rgb
        return rgb[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def orientation_of(frame: av.VideoFrame, codec: str = "") -> Orientation:
    """What the display matrix of a video or the EXIF orientation of a picture asks for.

    A PNG's side data are not looked at: PyAV frees the name of its colour profile twice, which ends the process. The
    matrix maps stored to shown coordinates, `x' = a x + c y`, `y' = b x + d y` (FFmpeg, libavutil/display.h).
    """
    if codec in ("png", "apng"):
        return _turned(frame.rotation)
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 does not know the EXIF data that its FFmpeg hands out; its rotation alone leaves mirrored photos so.
        return _turned(frame.rotation)
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(cast(Any, matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def _turned(degrees: int) -> Orientation:
    turns = round(degrees / 90) % 4
    return Orientation(turns in (1, 3), turns in (2, 3), turns in (1, 2))


def _from_keyframe(packets: Iterator[Packet[VideoStream]], start: Start) -> Iterator[Packet[VideoStream]] | None:
    for packet in packets:
        if packet.pts == start.pts:
            return chain([packet], packets)
        if packet.is_keyframe and packet.pts is not None and packet.pts > start.pts:
            return None
    return None


class OpenDecoders(threading.local):
    """The decoders that stay open between reads: a few per thread, each thread's and each process's own."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._owner = os.getpid()
        self._decoders: OrderedDict[int, Decoder] = OrderedDict()

    def get(self, key: int, file: File, index: FrameIndex) -> Decoder:
        """The open decoder of this key, or a fresh one at the cost of the one that was not used for longest."""
        if self._owner != os.getpid():
            self._decoders, self._owner = OrderedDict(), os.getpid()
        if key not in self._decoders:
            while len(self._decoders) >= self._limit:
                self._decoders.popitem(last=False)[1].close()
            self._decoders[key] = Decoder(file, index)
        self._decoders.move_to_end(key)
        return self._decoders[key]


# FFmpeg's own threads stay behind in a fork: to free a decoder there would be to wait for them for ever. So what is
# garbage goes before the fork (of threads that have ended: circles), and a child holds on to all that is not.
_open_ones: WeakSet[Decoder] = WeakSet()
_registering = threading.Lock()
_held: list[list[Decoder]] = []


def _before_fork() -> None:
    gc.collect()
    _registering.acquire()
    _held.append(list(_open_ones))


def _after_fork_in_parent() -> None:
    _held.pop()
    _registering.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_registering.release
)  # fmt: skip
