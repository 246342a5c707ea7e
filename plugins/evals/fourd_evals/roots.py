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
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Int64, UInt8
from numpy import ndarray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.media.locations import filesystem_at, natural_key, reading

SHOWN = 8
"""How many of the names that were found a message lists."""


def read_file(location: str) -> bytes:
    """All of a file that is named by itself, by a path or URL.

    Raises:
        MediaError: it does not exist or may not be read; the protocol is unknown.
    """
    filesystem, path = filesystem_at(location)
    with reading(location):
        return bytes(filesystem.cat_file(path))


class Root:
    """A folder whose files are read by their path within it.

    Args:
        location: a path or URL; `zip://::data.zip` and other chains of fsspec work too.
    Raises:
        MediaError: the protocol is unknown or needs a package that is not installed; no such folder.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._filesystem, path = filesystem_at(location)
        self._path = path.rstrip("/") or ("/" if path.startswith("/") else "")
        with reading(location):
            if not self._filesystem.isdir(self._path):
                raise MediaError(f"the folder {location} does not exist")

    def place(self, name: str) -> str:
        """Where a file is, for messages."""
        return f"{self.location.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is a file or a folder of this name."""
        with reading(self.place(name)):
            return bool(self._filesystem.exists(self._full(name)))

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "") -> list[str]:
        """Names in a folder that end so, in natural order; none where there is no such folder."""
        with reading(self.place(folder)):
            path = self._full(folder)
            if not self._filesystem.isdir(path):
                return []
            found = [str(name).rstrip("/").rpartition("/")[2] for name in self._filesystem.ls(path, detail=False)]
        return sorted((name for name in found if name.endswith(suffix) and not name.startswith(".")), key=natural_key)

    def first(self, candidates: Sequence[str]) -> str | None:
        """The first of these that is there."""
        return next((name for name in candidates if self.has(name)), None)

    def open(self, name: str) -> Any:
        """A binary file, seekable.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        with reading(self.place(name)):
            return self._filesystem.open(self._full(name), "rb")

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        with reading(self.place(name)):
            return bytes(self._filesystem.cat_file(self._full(name)))

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """A file as a path of this machine, copied there for the time of the block where it lies elsewhere."""
        if isinstance(self._filesystem, LocalFileSystem):
            yield Path(self._full(name))
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            path.write_bytes(self.read(name))
            yield path

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

    def missing(self, what: str, looked_for: Sequence[str], advice: str = "") -> MediaError:
        """The sentence about a root that is laid out differently: what was looked for and what is there."""
        found = self.names()
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return MediaError(
            f"{self.location} does not hold {what}: looked for {' or '.join(looked_for)}; "
            f"found {', '.join(found[:SHOWN]) or 'nothing'}{more}{'; ' + advice if advice else ''}"
        )

    def _full(self, name: str) -> str:
        if not name or not self._path:
            return name or self._path
        return f"{self._path.rstrip('/')}/{name}"

    def _decoded(self, name: str, mode: str | None) -> ndarray:
        data = self.read(name)
        try:
            with Image.open(io.BytesIO(data)) as picture:
                return np.array(picture if mode is None else picture.convert(mode))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise MediaError(f"the picture {self.place(name)} cannot be decoded: {error}") from error
