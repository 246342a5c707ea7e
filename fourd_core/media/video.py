"""Random access to the frames of a video file or of a folder of pictures."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.interfaces import Video
from fourd_core.media.cache import FrameCache
from fourd_core.media.decoder import Decoder, OpenDecoders
from fourd_core.media.index import build_index
from fourd_core.media.locations import File, Source, find, is_picture

READ_ON = 8
"""Decoding on over this many frames is cheaper than a seek to a keyframe behind them."""

_decoders = OpenDecoders()
_numbers = count()


def open_video(location: str, *, cache_bytes: int = 0, frame_rate: float = 25.0) -> Video:
    """Open a video file, a folder of pictures, or a glob pattern that finds one video: see `locations.find`.

    Args:
        location: a path or any URL that fsspec knows: `s3://`, `memory://`, `zip://a.mp4::file.zip`.
        cache_bytes: how many bytes of decoded frames may be kept.
        frame_rate: frames per second of pictures, which state none.
    Raises:
        MediaError: nothing there, not a video, truncated, no frames, several videos.
    """
    sources = find(location)
    if len(sources) > 1:
        raise MediaError(f"{location} holds {len(sources)} videos; name one of them")
    return open_source(sources[0], FrameCache(cache_bytes), frame_rate)


def open_source(source: Source, cache: FrameCache, frame_rate: float = 25.0) -> Video:
    """A video from one file, or from pictures in the order given; see `open_video`."""
    if is_picture(source.files[0].path):
        return PictureSequence(source.files, source.name, cache, frame_rate)
    return VideoFile(source.files[0], source.name, cache)


def open_given(video: object, frame_rate: float = 25.0) -> Video:
    """A video from whatever a user hands to Python: a path or URL as in `open_video`, or frames as in `given_frames`.

    Raises:
        MediaError: see there; or something else.
    """
    if isinstance(video, str | os.PathLike):
        return open_video(os.fspath(video), frame_rate=frame_rate)
    if isinstance(video, Tensor | np.ndarray):
        return given_frames(video, frame_rate)
    raise MediaError(f"an object of type {type(video).__name__} {_NOT_ACCEPTED}, or name a file, folder or URL")


def given_frames(frames: Tensor | NDArray[Any], frame_rate: float = 25.0) -> Video:
    """A video of frames that are in memory already, kept with 8 bits a channel as a file's would be.

    Args:
        frames: a torch tensor `t 3 h w`, or `3 h w` for one picture, uint8 or floating with values in [0, 1]; or a
            NumPy array `t h w 3` or `h w 3`, uint8.
        frame_rate: frames per second.
    Raises:
        MediaError: another shape, type or range.
    """
    shape, kind = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    channels = -3 if isinstance(frames, Tensor) else -1
    if len(shape) not in (3, 4) or shape[channels] != 3 or 0 in shape:
        raise MediaError(f"frames of shape {shape} {_NOT_ACCEPTED}")
    if isinstance(frames, Tensor) and frames.is_floating_point():
        low, high = frames.min().item(), frames.max().item()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise MediaError(f"{kind} frames with values from {low:g} to {high:g} {_NOT_ACCEPTED}")
        frames = (frames.detach().float() * 255).round().to(torch.uint8)
    elif kind != "uint8":
        raise MediaError(f"{kind} frames {_NOT_ACCEPTED}")
    if not isinstance(frames, Tensor):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"])).movedim(-1, -3)
    return GivenFrames(frames.cpu().reshape(-1, *frames.shape[-3:]).contiguous(), frame_rate)


_NOT_ACCEPTED = (
    "cannot be taken as a video: give a torch tensor t 3 h w or 3 h w, uint8 or floating from 0 to 1, or a NumPy array "
    "t h w 3 or h w 3, uint8"
)


def mean_frame_rate(video: Video) -> float:
    """Frames per second over the whole video; 25 for a single frame."""
    if video.frame_count < 2:
        return 25.0
    first, last = video.times([0, video.frame_count - 1]).tolist()
    return float((video.frame_count - 1) / (last - first))


class _CachedVideo(Video):
    """What both kinds of video share: order, repeats and the cache."""

    def __init__(self, name: str, cache: FrameCache) -> None:
        self.name = name
        self._cache = cache
        self._number = next(_numbers)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """The frames at these positions (any order, repeats allowed).

        Raises:
            MediaError: a frame cannot be decoded.
            IndexError: the video has no such frame.
        """
        indices = _within(self, indices)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        frames = torch.empty(len(indices), 3, *self.size, dtype=torch.uint8)
        for index in sorted(places):
            frames[places[index]] = self._frame(index)
        return frames

    def _frame(self, index: int) -> UInt8[Tensor, "3 h w"]:
        frame = self._cache.get((self._number, index))
        if frame is None:
            frame = self._decode(index)
            self._cache.put((self._number, index), frame)
        return frame

    def _decode(self, index: int) -> UInt8[Tensor, "3 h w"]:
        raise NotImplementedError

    def _check_size(self, frame: UInt8[Tensor, "3 h w"], what: str) -> UInt8[Tensor, "3 h w"]:
        if self.size != (0, 0) and tuple(frame.shape[1:]) != self.size:
            sizes = f"{frame.shape[2]}x{frame.shape[1]}, the first one {self.size[1]}x{self.size[0]}"
            raise MediaError(f"{what} is {sizes}: all frames of a video must have one size")
        return frame

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _number=next(_numbers))


class VideoFile(_CachedVideo):
    """A video file; frame n is the n-th presented frame.

    It may be pickled, and used after a fork and by several threads: each opens the file for itself.
    """

    def __init__(self, file: File, name: str, cache: FrameCache) -> None:
        """Index the file and decode its first frame.

        Raises:
            MediaError: see `open_video`.
        """
        super().__init__(name, cache)
        self._file = file
        decoder = Decoder(file)
        try:
            self._index = build_index(decoder.container, decoder.stream, name)
        finally:
            decoder.close()
        self.frame_count = len(self._index)
        # Only a decoded frame tells the size: it carries the rotation, and stream headers may lie.
        self.size = (0, 0)
        _, height, width = self._decode(0).shape
        self.size = (height, width)

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds from the first frame on."""
        return torch.from_numpy(self._index.seconds(np.asarray(indices, np.int64)))

    def _decode(self, index: int) -> UInt8[Tensor, "3 h w"]:
        decoder = _decoders.get(self._number, self._file, self._index)
        number = self._index.start_before(index)
        position = decoder.position
        if position is not None and position <= index and self._index.start(number).frame <= position + READ_ON:
            frame = self._read_on(decoder, index)
            if frame is not None:
                return frame
        # A file may mark frames as keyframes that are none, or miss a seek: then an earlier start gives the frame.
        for earlier in dict.fromkeys((number, number - 1, number - 4, 0)):
            if earlier >= 0 and decoder.seek(self._index.start(earlier)):
                frame = self._read_on(decoder, index)
                if frame is not None:
                    return frame
        raise MediaError(f"frame {index} of {self.name} cannot be decoded: the file is damaged or cut off there")

    def _read_on(self, decoder: Decoder, index: int) -> UInt8[Tensor, "3 h w"] | None:
        """Decode forward to a frame; frames on the way are kept while the cache has room, since they cost as much."""
        size = 3 * self.size[0] * self.size[1]
        while decoder.position is not None and decoder.position < index:
            passed = decoder.position
            if self._cache.has_room(size):
                frame = decoder.next()
                if frame is not None:
                    self._cache.put((self._number, passed), self._check_size(frame, f"frame {passed} of {self.name}"))
            else:
                decoder.skip()
        frame = decoder.next()
        return None if frame is None else self._check_size(frame, f"frame {index} of {self.name}")


class PictureSequence(_CachedVideo):
    """Still pictures as a video."""

    def __init__(self, files: Sequence[File], name: str, cache: FrameCache, frame_rate: float) -> None:
        """Read the first picture.

        Raises:
            MediaError: it cannot be decoded.
        """
        super().__init__(name, cache)
        self._files = tuple(files)
        self._frame_rate = frame_rate
        self.frame_count = len(self._files)
        self.size = (0, 0)
        _, height, width = self._decode(0).shape
        self.size = (height, width)

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds from the first frame on, at the stated frame rate."""
        return _evenly(indices, self._frame_rate)

    def _decode(self, index: int) -> UInt8[Tensor, "3 h w"]:
        file = self._files[index]
        decoder = Decoder(file)
        try:
            frame = decoder.only()
        finally:
            decoder.close()
            # PyAV's frames whose side data were looked at are garbage in a circle; large ones must not pile up.
            gc.collect(1)
        if frame is None:
            raise MediaError(f"frame {index} of {self.name}, the picture {file.path}, cannot be decoded")
        return self._check_size(frame, f"{file.path}, frame {index} of {self.name},")


class GivenFrames(Video):
    """Frames in memory as a video; see `given_frames`."""

    def __init__(self, frames: UInt8[Tensor, "t 3 h w"], frame_rate: float) -> None:
        self.name = "the given frames"
        self.frame_count = len(frames)
        self.size = frames.shape[-2], frames.shape[-1]
        self._frames, self._frame_rate = frames, frame_rate

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`."""
        return self._frames[_within(self, indices)]

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds from the first frame on, at the stated frame rate."""
        return _evenly(indices, self._frame_rate)


def _within(video: Video, indices: Sequence[int]) -> list[int]:
    indices = [int(index) for index in indices]
    for index in indices:
        if not 0 <= index < video.frame_count:
            raise IndexError(f"{video.name} has frames 0 to {video.frame_count - 1}, not {index}")
    return indices


def _evenly(indices: Sequence[int], frame_rate: float) -> Float64[Tensor, " t"]:
    return torch.as_tensor(np.asarray(indices, np.float64) / frame_rate)
