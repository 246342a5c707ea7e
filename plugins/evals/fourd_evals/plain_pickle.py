"""Pickles of plain containers and numpy arrays, opened without running anything that they name.

A pickle is a program: it may name any function and call it. Here it gets stand-ins for the five names that arrays are
made of, which note what they are given, and nothing else; not even numpy's own unpickling, which trusts the memory
layout that a pickle states, is asked.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from numpy import ndarray

from fourd_core.errors import MediaError

KINDS = "biufSUO"
"""Truth values, numbers, texts, objects: of other kinds no array is read."""


class _DType:
    """What a pickle says of an array's numbers."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"an array of the kind {code}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of records")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """What a pickle says of an array; `value` is a copy of its own."""

    def __init__(self, *_: object) -> None:
        self.value: ndarray = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, data = state
        if isinstance(data, list):
            self.value = np.empty(len(data), object)
            self.value[:] = [_plain(item) for item in data]
            self.value = self.value.reshape(shape)
        else:
            self.value = _numbers(data, dtype, shape, "F" if column_major else "C").value


def _numbers(
    data: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> _Array:
    """`order`: "C" or "F"; "K": rows first, then the axes are permuted."""
    if dtype.dtype.hasobject:
        raise pickle.UnpicklingError("an array of addresses")
    array = _Array()
    array.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    if order == "K" and axes is not None:
        array.value = array.value.transpose(axes)
    return array


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}")
    return text.encode("latin1")


class _ArrayType:
    """Stands for numpy.ndarray, which is named and never made."""


_ADMITTED = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DType,
    ("multiarray", "_reconstruct"): _Array,
    ("numeric", "_frombuffer"): _numbers,
    ("_codecs", "encode"): _bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        for package in ("numpy.core.", "numpy._core."):
            module = module.removeprefix(package)
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ADMITTED[module, name]


def read_plain_pickle(file: Any, place: str) -> Any:
    """What a pickle holds: dicts, lists, tuples, texts, bytes, numbers and numpy arrays of these.

    Args:
        file: a binary file.
        place: where the file is, for messages.
    Raises:
        MediaError: it is no pickle, is damaged, or names anything beside plain data (nothing of it was run).
    """
    try:
        return _plain(_Unpickler(file).load())
    except pickle.UnpicklingError as error:
        raise MediaError(
            f"{place} is a pickle of more than numbers, texts and arrays ({error}), or damaged: such a file may run "
            "any program and is not opened"
        ) from error
    except Exception as error:  # whatever bytes that are no pickle make of the reader's stack
        raise MediaError(f"{place} is not a pickle, or is damaged: {type(error).__name__} {error}") from error


def _plain(value: Any) -> Any:
    """Arrays in the place of the stand-ins."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
