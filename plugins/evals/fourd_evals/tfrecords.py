"""TensorFlow's record files and the examples in them, read without TensorFlow.

A record is its length (uint64, little-endian), a checksum of that (4 bytes), the data, a checksum of these. The data of
a data set are a `tf.train.Example` in protobuf's wire format: field 1 holds a map from names to features, and a
feature holds bytes (field 1), float32 numbers (2) or varints (3).

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto, as documented;
protobuf.dev, Encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy import ndarray

HEADER, FOOTER = 12, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def record_places(file: Any) -> Iterator[tuple[int, int]]:
    """Where each record's data begin in a binary file, and how many bytes they are.

    Raises:
        ValueError: the file ends within a record.
    """
    file.seek(0, 2)
    end, start = file.tell(), 0
    while start < end:
        file.seek(start)
        size = int.from_bytes(file.read(HEADER)[:8], "little")
        start += HEADER + size + FOOTER
        if start > end:
            raise ValueError("it is cut off, or no file of records")
        yield start - FOOTER - size, size


class Example:
    """The features of one example; nothing is decoded before it is asked for.

    Raises:
        ValueError: no example.
    """

    def __init__(self, data: bytes) -> None:
        self._features: dict[str, list[memoryview]] = {}
        for features in _fields(memoryview(data), 1):
            for entry in _fields(features, 1):
                (name,) = _fields(entry, 1)
                self._features[bytes(name).decode()] = list(_fields(entry, 2))

    def __contains__(self, name: str) -> bool:
        return name in self._features

    @property
    def names(self) -> list[str]:
        """What it has."""
        return list(self._features)

    def bytes_of(self, name: str) -> list[memoryview]:
        """The items of a feature of bytes; none where it is of numbers."""
        return [item for values in self._lists(name, 1) for item in _fields(values, 1)]

    def floats(self, name: str) -> ndarray:
        """The numbers of a feature of floats."""
        packed = [item for values in self._lists(name, 2) for item in _fields(values, 1)]
        return np.frombuffer(b"".join(packed), "<f4")

    def integers(self, name: str, start: int = 0, stop: int | None = None) -> ndarray:
        """The numbers `start .. stop - 1` of a feature of integers, none of them negative."""
        items = [item for values in self._lists(name, 3) for item in _fields(values, 1)]
        packed = items[0] if len(items) == 1 else b"".join(items)  # megabytes of flow are not copied
        return _varints(np.frombuffer(packed, np.uint8), start, stop)

    def _lists(self, name: str, kind: int) -> Iterator[memoryview]:
        if name not in self._features:
            raise KeyError(name)
        for feature in self._features[name]:
            yield from _fields(feature, kind)


def _varints(data: ndarray, start: int, stop: int | None) -> ndarray:
    """Each number is a run of bytes, seven bits a byte, low ones first; the last byte of a run is below 128."""
    ends = np.flatnonzero(data < 128)[max(start - 1, 0) : stop]
    if len(ends) <= min(start, 1):
        return np.empty(0, np.int64)
    first = 0 if start == 0 else int(ends[0]) + 1
    ends = ends if start == 0 else ends[1:]
    data, ends = data[first : int(ends[-1]) + 1].astype(np.int64), ends - first
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((data & 127) << (7 * places), starts)


def _fields(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of a message's fields of one number, as many as there are, those of bytes only.

    Numbers that are not packed (one field each) are given as their bytes too.
    """
    place = 0
    while place < len(data):
        tag, place = _number(data, place)
        kind = tag & 7
        if kind == BYTES:
            size, place = _number(data, place)
            stop = place + size
        elif kind == VARINT:
            _, stop = _number(data, place)
        elif kind in (FIXED32, FIXED64):
            stop = place + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError("it is not an example of TensorFlow")
        if stop > len(data):
            raise ValueError("an example is cut off")
        if tag >> 3 == wanted:
            yield data[place:stop]
        place = stop


def _number(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data):
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("an example is cut off")
