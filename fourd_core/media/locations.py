"""Where frames come from: files, folders and globs on any file system that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from zipfile import BadZipFile

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fourd_core.errors import MediaError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif",
)  # fmt: skip


class File(NamedTuple):
    """One file of one file system; pickles, and opens anew in every process."""

    filesystem: fsspec.AbstractFileSystem
    path: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def open(self) -> Any:
        """A binary file, seekable; those of fsspec's file systems have no type in common.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        with reading(self.path):
            return self.filesystem.open(self.path, "rb")


def find(location: str) -> list[File]:
    """The file that a location names, or the pictures or videos of a folder or glob pattern in natural order.

    Args:
        location: a path or URL; `zip://a.mp4::file.zip` and other chains of fsspec work too.
    Raises:
        MediaError: nothing is there, or the protocol is unknown or needs a package that is not installed.
    """
    filesystem, path = _filesystem(location)
    with reading(location):
        # A file whose name holds a bracket is that file, not a pattern.
        if filesystem.isfile(path):
            return [File(filesystem, path)]
        if filesystem.isdir(path):
            names = [str(name) for name in filesystem.ls(path, detail=False)]
            found = _of_kind(names, PICTURE_SUFFIXES) or _of_kind(names, VIDEO_SUFFIXES)
            if not found:
                raise MediaError(f"the folder {location} holds no pictures (png, jpg) and no videos")
        elif any(sign in path for sign in "*?["):
            found = [name for name in map(str, filesystem.glob(path)) if filesystem.isfile(name)]
            if not found:
                raise MediaError(f"the pattern {location} matches no file")
        else:
            raise MediaError(f"the video {location} does not exist")
    return [File(filesystem, name) for name in sorted(found, key=natural_key)]


def is_picture(path: str) -> bool:
    """Whether a file's name says that it is one still picture."""
    return path.lower().endswith(PICTURE_SUFFIXES)


def natural_key(text: str) -> list[tuple[bool, int, str]]:
    """A sort key by which `frame2` comes before `frame10`."""
    parts = [part for part in re.split(r"(\d+)", text) if part]
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the complaints of a file system into a MediaError of one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise MediaError(f"the file {what} does not exist") from error
    except PermissionError as error:
        raise MediaError(f"no permission to read {what}") from error
    except OSError as error:
        raise MediaError(f"cannot read {what}: {error.strerror or error}") from error


def _filesystem(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        with reading(location):
            filesystem, path = fsspec.core.url_to_fs(location)
    except ImportError as error:
        raise MediaError(f"cannot open {location}, a package for it is missing: {error}") from error
    except (ValueError, BadZipFile) as error:
        raise MediaError(f"cannot open {location}: {error}") from error
    return filesystem, str(path)


def _of_kind(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(suffixes) and not name.rsplit("/", 1)[-1].startswith(".")]
