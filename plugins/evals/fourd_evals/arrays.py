"""NumPy's files in a data set's folder: never pickles, and of large archives only the rows that are asked for."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy import ndarray
from numpy.lib import format as npy

from fourd_core.errors import MediaError
from fourd_evals.roots import Root

LARGEST = 8 * 2**30
"""Bytes that the arrays of a file may take when they are read whole."""
COMPLAINTS = BadZipFile, NotImplementedError, ValueError, KeyError, EOFError, OSError, MemoryError, zlib.error
"""What reading a damaged archive ends in."""


def read_npy(root: Root, name: str) -> ndarray:
    """An array from a `.npy` file.

    Raises:
        MediaError: it is missing, damaged, or holds objects, which could run any program.
    """
    try:
        values: ndarray = np.load(io.BytesIO(root.read(name)), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise MediaError(f"{root.place(name)} is not a file of one array: {error}") from error
    return values


def read_npz(root: Root, name: str) -> dict[str, ndarray]:
    """All arrays of an `.npz` file that is not too large.

    Raises:
        MediaError: it is missing, damaged, more than `LARGEST` when unpacked, or holds objects, which could run any
            program.
    """
    data = root.read(name)
    try:
        with ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST:
            raise ValueError(f"its arrays would take {size} bytes, more than {LARGEST}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except COMPLAINTS as error:
        raise MediaError(f"{root.place(name)} is not a file of plain arrays: {error}") from error


class NpzRows:
    """An `.npz` of arrays whose first axis is time, too large to be read whole; it keeps no file open.

    Attributes:
        shapes: of the arrays, by their names.

    Args:
        root: where it lies.
        name: the file in it.
    Raises:
        MediaError: it is missing or is no archive of arrays.
    """

    def __init__(self, root: Root, name: str) -> None:
        self._name = name
        with _reading(root, name), root.open(name) as handle, ZipFile(handle) as archive:
            keys = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            self.shapes = {key: _header(archive.open(f"{key}.npy"))[0] for key in keys}

    def rows(self, root: Root, key: str, indices: Sequence[int]) -> ndarray:
        """Some rows of an array, in the order asked for.

        An archive that is not compressed is read at these rows alone, a compressed one up to the last of them.
        """
        with _reading(root, self._name), root.open(self._name) as handle, ZipFile(handle) as archive:
            if key not in self.shapes:
                raise MediaError(
                    f"{root.place(self._name)} has no array '{key}'; it has {', '.join(self.shapes) or 'none'}"
                )
            with archive.open(f"{key}.npy") as member:
                shape, dtype = _header(member)
                start, size = member.tell(), math.prod(shape[1:]) * dtype.itemsize
                values = np.empty((len(indices), *shape[1:]), dtype)
                for place, index in sorted(enumerate(indices), key=lambda item: item[1]):
                    member.seek(start + index * size)
                    data = member.read(size)
                    if len(data) != size:
                        raise ValueError(f"'{key}' ends before row {index}")
                    values[place] = np.frombuffer(data, dtype).reshape(shape[1:])
        return values


@contextmanager
def _reading(root: Root, name: str) -> Iterator[None]:
    """Turns complaints about an archive into one sentence."""
    try:
        yield
    except COMPLAINTS as error:
        raise MediaError(f"{root.place(name)} is not an archive of arrays: {error}") from error


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array whose file stands at its beginning; it then stands at the numbers."""
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the array format is not known")
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("it holds objects, which may run any program when they are opened and never are here")
    if fortran and len(shape) > 1:
        raise ValueError("an array is stored column by column")
    return shape, dtype
