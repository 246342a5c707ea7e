"""Where frames come from: files, folders and globs on any file system that fsspec knows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import metadata
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
    process: int
    """The id of the process that `filesystem` was made in; those that go over a network work in no other."""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def open(self) -> Any:
        """A binary file, seekable; those of fsspec's file systems have no type in common.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        with reading(self.path):
            return in_this_process(self.filesystem, self.process).open(self.path, "rb")

    def read(self) -> bytes:
        """All of it.

        Raises:
            MediaError: it does not exist or may not be read.
        """
        with reading(self.path):
            return bytes(in_this_process(self.filesystem, self.process).cat_file(self.path))


class Source(NamedTuple):
    """What one video is made of: its file, or its pictures in order."""

    name: str
    files: tuple[File, ...]


def find(location: str) -> list[Source]:
    """The videos that a location names, in natural order.

    A folder's pictures are one video, its videos one each. A pattern finds files, which are taken in the same way,
    folder by folder, and folders, which are taken as if they were named.

    Args:
        location: a path or URL; `zip://a.mp4::file.zip` and other chains of fsspec work too.
    Raises:
        MediaError: nothing is there, a folder has both pictures and videos, or the protocol is unknown or needs a
            package that is not installed.
    """
    filesystem, path = filesystem_at(location)
    with reading(location):
        # A file whose name holds a bracket is that file, not a pattern.
        if filesystem.isfile(path):
            return [Source(location, (file_at(filesystem, path),))]
        if filesystem.isdir(path):
            names = of_known_kind(names_inside(filesystem, path))
            if not names:
                raise MediaError(f"the folder {location} holds no pictures (png, jpg) and no videos")
        elif any(sign in path for sign in "*?["):
            names = list(_matches(filesystem, path))
            if not names:
                raise MediaError(f"the pattern {location} matches no file, and no folder of pictures or videos")
        else:
            raise MediaError(f"the video {location} does not exist")
    folders: dict[str, list[str]] = {}
    for name in sorted(names, key=natural_key):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    sources: list[Source] = []
    for folder, inside in folders.items():
        sources += sources_among(filesystem, folder or location, inside)
    return sorted(sources, key=lambda source: natural_key(source.name))


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
    except MediaError:
        raise
    except Exception as error:  # every file system has exceptions of its own
        raise MediaError(f"cannot read {what}: {error}") from error


def missing_package(location: str, error: ImportError) -> str:
    """What to install for the protocols of a location: fsspec has an extra for most that need another package."""
    extras = metadata("fsspec").get_all("Provides-Extra") or ()
    needed = [protocol for protocol in re.findall(r"(\w+)://", location) if protocol in extras]
    advice = f"; pip install 'fsspec[{','.join(needed)}]'" if needed else ""
    return f"its protocol needs a package that is not installed ({error}){advice}"


def filesystem_at(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and what it calls the place.

    Raises:
        MediaError: its protocol is unknown or needs a package that is not installed, or an archive is damaged.
    """
    with reading(location):
        try:
            filesystem, path = fsspec.core.url_to_fs(location)
        except ImportError as error:
            raise MediaError(f"cannot open {location}: {missing_package(location, error)}") from error
        except (ValueError, BadZipFile) as error:
            raise MediaError(f"cannot open {location}: {error}") from error
    return filesystem, str(path)


def file_at(filesystem: fsspec.AbstractFileSystem, path: str) -> File:
    """A file of a file system that was made in this process."""
    return File(filesystem, path, os.getpid())


def in_this_process(filesystem: fsspec.AbstractFileSystem, process: int) -> fsspec.AbstractFileSystem:
    """What works in this process of a file system that was made in `process`."""
    here = os.getpid()
    return filesystem if process == here else _made_again(filesystem, here)


def read_lines(file: File) -> list[str]:
    """The lines of a text file that say something, without the blanks around them.

    Raises:
        MediaError: it does not exist, may not be read, or is no text.
    """
    with file.open() as handle, reading(file.path):
        try:
            text = handle.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise MediaError(f"{file.path} is no text file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def names_inside(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The paths of what a folder holds, in no order."""
    return [str(name) for name in filesystem.ls(folder, detail=False)]


def of_known_kind(names: list[str]) -> list[str]:
    """Those that are pictures or videos by their suffix, and not hidden."""
    kinds = PICTURE_SUFFIXES + VIDEO_SUFFIXES
    return [name for name in names if name.lower().endswith(kinds) and not name.rpartition("/")[2].startswith(".")]


def sources_among(filesystem: fsspec.AbstractFileSystem, folder: str, names: list[str]) -> list[Source]:
    """The videos among files of one folder.

    Raises:
        MediaError: there are both pictures and videos.
    """
    pictures = [name for name in names if is_picture(name)]
    videos = [name for name in names if not is_picture(name)]
    if pictures and videos:
        first, second = (found[0].rpartition("/")[2] for found in (pictures, videos))
        raise MediaError(
            f"the folder {folder} has both pictures ({len(pictures)}, such as {first}) and videos ({len(videos)}, such "
            f"as {second}): name those that are meant by a pattern, such as *.{second.rpartition('.')[2]}"
        )
    if pictures:
        return [Source(folder, tuple(file_at(filesystem, name) for name in pictures))]
    return [Source(name, (file_at(filesystem, name),)) for name in videos]


@lru_cache(maxsize=8)
def _made_again(filesystem: fsspec.AbstractFileSystem, process: int) -> fsspec.AbstractFileSystem:
    """The same file system, made in this process."""
    return type(filesystem)(*filesystem.storage_args, **filesystem.storage_options)


def _matches(filesystem: fsspec.AbstractFileSystem, pattern: str) -> set[str]:
    """The files that a pattern names, and those in the folders that it names.

    Files of a kind that no suffix tells are meant only where the pattern matches nothing else.
    """
    files, inside = [], []
    for name in map(str, filesystem.glob(pattern)):
        if filesystem.isdir(name):
            inside += names_inside(filesystem, name)
        elif filesystem.isfile(name):
            files.append(name)
    return set(of_known_kind(files + inside) or files)
