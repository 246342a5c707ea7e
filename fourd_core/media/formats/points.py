"""Coloured point clouds as PLY files, binary little-endian."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.files import atomic
from fourd_core.media.formats.reading import read_bytes


class PointCloud(NamedTuple):
    """Points, their colours, and how far each can be trusted, where that is known."""

    xyz: Float[Tensor, "n 3"]
    rgb: UInt8[Tensor, "n 3"]
    confidence: Float[Tensor, " n"] | None = None


_PLACE = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
_COLOUR = [("red", "u1"), ("green", "u1"), ("blue", "u1")]
_CONFIDENCE = [("confidence", "<f4")]
_WRITTEN_AS = {"<f4": "float", "u1": "uchar"}
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
_DIGITS = 20
"""Room for the number of points, which is known last."""


class PlyWriter:
    """A PLY file that grows cloud by cloud in constant memory and appears when the `with` block ends well.

    The header's number of points is filled in at the end; a comment takes up the room that its digits leave.
    """

    def __init__(self, path: Path, confidence: bool = False) -> None:
        """`confidence`: whether the points have one."""
        self.count = 0
        self._path = path
        self._columns = [*_PLACE, *_COLOUR, *(_CONFIDENCE if confidence else [])]
        self._writing = self._open()

    def __enter__(self) -> PlyWriter:
        self._file = self._writing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writing.__exit__(kind, error, trace)

    def append(self, cloud: PointCloud) -> None:
        """Add points; those whose position is not finite are left out.

        Raises:
            ValueError: a confidence is missing, or not expected.
            OSError: the disk is full; the end of the `with` block turns it into a RunError.
        """
        if (cloud.confidence is not None) != (len(self._columns) == 7):
            raise ValueError(f"{self._path}: all points have a confidence, or none has")
        kept = cloud.xyz.isfinite().all(dim=-1)
        rows = np.empty(int(kept.sum()), np.dtype(self._columns))
        numbers = [*cloud.xyz[kept].unbind(-1), *cloud.rgb[kept].unbind(-1)]
        if cloud.confidence is not None:
            numbers.append(cloud.confidence[kept])
        for (name, _), column in zip(self._columns, numbers, strict=True):
            rows[name] = column.cpu().numpy()
        self._file.write(rows.tobytes())
        self.count += len(rows)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with atomic(self._path) as temporary, temporary.open("wb") as file:
            file.write(self._header())
            yield file
            file.seek(0)
            file.write(self._header())

    def _header(self) -> bytes:
        lines = [
            "ply", "format binary_little_endian 1.0", "comment " + "-" * (_DIGITS - len(str(self.count))),
            f"element vertex {self.count}", *(f"property {_WRITTEN_AS[kind]} {name}" for name, kind in self._columns),
            "end_header", "",
        ]  # fmt: skip
        return "\n".join(lines).encode("ascii")


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Write one cloud; points whose position is not finite are left out.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    with PlyWriter(path, cloud.confidence is not None) as writer:
        writer.append(cloud)


def read_ply(path: Path) -> PointCloud:
    """Read the points of a binary little-endian PLY file; black where it has no colours.

    Raises:
        MediaError: no such file, another format, cut off, no positions.
    """
    data = read_bytes(path)
    head, _, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if lines[:1] != [["ply"]] or ["format", "binary_little_endian", "1.0"] not in lines:
        raise MediaError(f"{path} is not a binary little-endian PLY file; convert it to that first")
    try:
        count, columns = _points(lines)
    except (ValueError, IndexError, KeyError) as error:
        raise MediaError(f"{path} does not begin with points that have plain numbers x, y and z") from error
    if len(body) < count * columns.itemsize:
        raise MediaError(f"{path} is cut off: it has {len(body) // columns.itemsize} of {count} points")
    return _cloud(np.frombuffer(body, columns, count))


def _points(header: list[list[str]]) -> tuple[int, np.dtype[Any]]:
    """How many points there are and what their rows hold; KeyError: a list, or no position."""
    elements = [number for number, words in enumerate(header) if words[:1] == ["element"]]
    first, stop = elements[0], elements[1] if len(elements) > 1 else None
    if header[first][1] != "vertex":
        raise KeyError("vertex")
    properties = [words for words in header[first:stop] if words[:1] == ["property"]]
    columns = {words[-1]: _TYPES[words[1]] for words in properties}
    if not {"x", "y", "z"} <= set(columns):
        raise KeyError("x, y, z")
    count = int(header[first][2])
    if count < 0:
        raise ValueError(count)
    return count, np.dtype(list(columns.items()))


def _cloud(rows: np.ndarray[Any, np.dtype[Any]]) -> PointCloud:
    names = rows.dtype.names or ()
    xyz = np.stack([rows[name].astype(np.float32) for name, _ in _PLACE], axis=-1)
    rgb = np.zeros((len(rows), 3), np.uint8)
    if {"red", "green", "blue"} <= set(names):
        rgb = np.stack([rows[name].astype(np.uint8) for name, _ in _COLOUR], axis=-1)
    confidence = torch.from_numpy(rows["confidence"].astype(np.float32)) if "confidence" in names else None
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb), confidence)
