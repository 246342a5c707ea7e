"""The folder of a public data set, on any file system that fsspec knows."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt16
from numpy import ndarray
from PIL import Image
from torch import Tensor

from fourd_core.errors import MediaError, some
from fourd_core.media.folders import open_folder
from fourd_core.media.formats.png16 import read_png16
from fourd_core.media.formats.reading import read_bytes
from fourd_core.media.locations import File

SHOWN = 8
"""How many of the names that were found a message lists."""


def read_file(location: str) -> bytes:
    """All of a file that is named by itself, by a path or URL.

    Raises:
        MediaError: it does not exist or may not be read; the protocol is unknown.
    """
    return read_bytes(location)


def picture_samples(data: bytes | memoryview, what: str, mode: str | None = None) -> ndarray:
    """The samples of a picture file, as they are stored or in another mode of Pillow, `h w` or `h w c`.

    Raises:
        MediaError: it is damaged, or claims more pixels than Pillow finds safe; `what` says which picture it is.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture if mode is None else picture.convert(mode))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{what} cannot be decoded: {error}") from error


class Root:
    """A folder whose files are read by their path within it: the core's, and what stands in pictures. It pickles.

    Args:
        location: a path or URL; `zip://::data.zip` and other chains of fsspec work too.
    Raises:
        MediaError: the protocol is unknown or needs a package that is not installed; no such folder.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._folder = open_folder(location)

    def place(self, name: str) -> str:
        """Where a file is, for messages."""
        return f"{self.location.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is a file or a folder of this name."""
        return self._folder.holds(name)

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "") -> list[str]:
        """Names in a folder that end so, in natural order, hidden ones left out; none where there is no such folder."""
        if not self._folder.has(folder):
            return []
        return [name for name, _ in self._folder.inside(folder) if name.endswith(suffix)]

    def first(self, candidates: Sequence[str]) -> str | None:
        """The first of these that is there."""
        return next((name for name in candidates if self.has(name)), None)

    def file(self, name: str) -> File:
        """A file, as the readers of `fourd_core.media.formats` take it; it need not exist."""
        return self._folder.file(name)

    def open(self, name: str) -> Any:
        """A binary file, seekable.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        return self.file(name).open()

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        return self.file(name).read()

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """A file as a path of this machine, copied there for the time of the block where it lies elsewhere."""
        file = self.file(name)
        if file.is_local:
            yield Path(file.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            path.write_bytes(file.read())
            try:
                yield path
            except MediaError as error:
                raise MediaError(str(error).replace(str(path), self.place(name))) from error

    def picture(self, name: str) -> UInt8[Tensor, "3 h w"]:
        """A colour picture.

        Raises:
            MediaError: it does not exist or cannot be decoded.
        """
        return torch.from_numpy(self._decoded(name, "RGB")).permute(2, 0, 1)

    def label_map(self, name: str) -> Int64[Tensor, "h w"]:
        """A picture of labels: the grey value or, with a palette, its index.

        Raises:
            MediaError: it does not exist, cannot be decoded, or has colours instead of labels.
        """
        labels = self._decoded(name, None)
        if labels.ndim != 2:
            raise MediaError(
                f"{self.place(name)} is a picture in colours, not a map of labels (grey or with a palette)"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def grey16(self, name: str) -> UInt16[ndarray, "h w"]:
        """A grey PNG of 16 bits a sample.

        Raises:
            MediaError: it does not exist or is something else.
        """
        with self.on_disk(name) as path:
            return read_png16(path, channels=1)

    def missing(self, what: str, looked_for: Sequence[str], advice: str = "") -> MediaError:
        """The sentence about a root that is laid out differently: what was looked for and what is there."""
        found = self.names()
        return MediaError(
            f"{self.location} does not hold {what}: looked for {' or '.join(looked_for)}; "
            f"found {some(found, SHOWN) or 'nothing'}{'; ' + advice if advice else ''}"
        )

    def _decoded(self, name: str, mode: str | None) -> ndarray:
        return picture_samples(self.read(name), f"the picture {self.place(name)}", mode)
