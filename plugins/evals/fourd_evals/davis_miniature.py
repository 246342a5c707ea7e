"""A DAVIS-2017 of a few small generated frames, with the real names and encodings, for tests and examples."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import fsspec
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fourd_core.recipe import Location

PALETTE = (0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0)
"""The colours that DAVIS gives to the background and the first objects."""


def davis_miniature(
    location: str = "memory://fourd-davis",
    names: Sequence[str] = ("dog", "india"),
    frames: int = 5,
    size: tuple[int, int] = (40, 56),
    split: str = "val",
) -> Location:
    """Write a miniature: two bright disks that wander over a dark ground, ids 1 and 2.

    Args:
        location: where, a path or URL.
        names: of the sequences.
        frames: in each sequence.
        size: rows and columns.
        split: the list that names them.
    """
    filesystem, root = fsspec.core.url_to_fs(location)
    for number, name in enumerate(names):
        for frame in range(frames):
            mask = _mask(size, frame, number)
            ground = np.full((*size, 3), 40 + 10 * number, np.uint8)
            ground[..., 2] += (np.arange(size[1]) % 16).astype(np.uint8) * 2
            ground[mask == 1], ground[mask == 2] = (220, 120, 40), (60, 200, 220)
            _write(filesystem, f"{root}/JPEGImages/480p/{name}/{frame:05}.jpg", Image.fromarray(ground), "JPEG")
            annotation = Image.fromarray(mask, mode="P")
            annotation.putpalette(PALETTE)
            _write(filesystem, f"{root}/Annotations/480p/{name}/{frame:05}.png", annotation, "PNG")
    _pipe(filesystem, f"{root}/ImageSets/2017/{split}.txt", "".join(f"{name}\n" for name in names).encode())
    return Location(location)


def _mask(size: tuple[int, int], frame: int, sequence: int) -> UInt8[np.ndarray, "h w"]:
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for ident, phase in ((1, 0.0), (2, math.pi)):
        angle = phase + 0.2 * frame + sequence
        y, x = size[0] * (0.5 + 0.22 * math.sin(angle)), size[1] * (0.5 + 0.28 * math.cos(angle))
        mask[(rows - y) ** 2 + (columns - x) ** 2 < (min(size) / 6) ** 2] = ident
    return mask


def _write(filesystem: fsspec.AbstractFileSystem, path: str, picture: Image.Image, form: str) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    _pipe(filesystem, path, buffer.getvalue())


def _pipe(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, data)
