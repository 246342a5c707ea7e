"""Decoded frames that may be asked for again, within a stated number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from jaxtyping import UInt8
from torch import Tensor

Key = tuple[int, int]


class FrameCache:
    """The most recently used frames of one or several videos; a copy in another process starts empty.

    Threads may share it.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: bytes; 0 keeps nothing."""
        self.limit = limit
        self.used = 0
        self._frames: OrderedDict[Key, UInt8[Tensor, "3 h w"]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> UInt8[Tensor, "3 h w"] | None:
        """The frame, or None where it is not kept (any more)."""
        with self._lock:
            frame = self._frames.get(key)
            if frame is not None:
                self._frames.move_to_end(key)
            return frame

    def put(self, key: Key, frame: UInt8[Tensor, "3 h w"]) -> None:
        """Keep a frame, at the cost of those that were not used for longest."""
        with self._lock:
            if frame.nbytes > self.limit or key in self._frames:
                return
            while not self.has_room(frame.nbytes):
                _, old = self._frames.popitem(last=False)
                self.used -= old.nbytes
            self._frames[key] = frame
            self.used += frame.nbytes

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit without dropping anything."""
        return self.used + size <= self.limit

    def __reduce__(self) -> tuple[type[FrameCache], tuple[int]]:
        return FrameCache, (self.limit,)
