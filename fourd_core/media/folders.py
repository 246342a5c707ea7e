"""Folders of many videos, on any file system: listed with few requests, and without opening what they hold."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fourd_core.errors import MediaError
from fourd_core.media.locations import (
    VIDEO_SUFFIXES,
    File,
    Source,
    file_at,
    filesystem_at,
    in_this_process,
    is_picture,
    names_inside,
    natural_key,
    of_known_kind,
    read_lines,
    reading,
    sources_among,
)


class Folder(NamedTuple):
    """The root of many videos; names are relative to it. It pickles, and works in every process."""

    location: str
    """As the user wrote it."""
    made: fsspec.AbstractFileSystem
    path: str
    process: int
    """The process that `made` was made in."""

    def has(self, name: str) -> bool:
        """Whether it holds a folder of that name."""
        with reading(self.place(name)):
            return bool(self._filesystem.isdir(self.place(name)))

    def holds(self, name: str) -> bool:
        """Whether there is a file or a folder of that name."""
        with reading(self.place(name)):
            return bool(self._filesystem.exists(self.place(name)))

    def file(self, name: str) -> File:
        """A file of that name, which need not exist."""
        return file_at(self._filesystem, self.place(name))

    def lines(self, name: str) -> list[str] | None:
        """The lines of a text file, blank ones left out; None where there is no such file."""
        with reading(self.place(name)):
            if not self._filesystem.isfile(self.place(name)):
                return None
        return read_lines(self.file(name))

    def inside(self, name: str = "") -> list[tuple[str, bool]]:
        """What a folder holds, in natural order: names, and whether each is a folder; hidden ones are left out."""
        path = self.place(name)
        with reading(path):
            if self._is_local:
                with os.scandir(path) as entries:  # follows links, which fsspec's listing does not
                    found = [(entry.name, entry.is_dir()) for entry in entries]
            else:
                listed = self._filesystem.ls(path, detail=True)
                paths = [(str(item["name"]).rstrip("/"), item["type"] == "directory") for item in listed]
                # An object store may list the folder itself.
                found = [(posixpath.basename(item), is_folder) for item, is_folder in paths if item != path]
        return sorted((item for item in found if not item[0].startswith(".")), key=lambda item: natural_key(item[0]))

    def files(self) -> list[str]:
        """All files below it, in no order; of local folders, those that links lead to as well."""
        with reading(self.location):
            if self._is_local:
                return list(_walk(self.path))
            filesystem = self._filesystem
            found = [str(name)[len(self.path) :].lstrip("/") for name in filesystem.find(self.path)]
            filesystem.invalidate_cache()  # of a large bucket the details take many times what the names do
        return found

    def video(self, name: str) -> Source:
        """The video in a file, or of all pictures in a folder.

        Raises:
            MediaError: it is not there, or the folder holds no pictures, or videos too.
        """
        filesystem, path = self._filesystem, self.place(name)
        with reading(path):
            # By its suffix first: to a web server a folder is a file too.
            if path.lower().endswith(VIDEO_SUFFIXES) and filesystem.isfile(path):
                return Source(path, (file_at(filesystem, path),))
            names = sorted(of_known_kind(names_inside(filesystem, path)), key=natural_key)
            filesystem.invalidate_cache(path)
        sources = sources_among(filesystem, path, names)
        if len(sources) != 1 or not is_picture(names[0]):
            raise MediaError(f"the folder {path} holds no pictures (png, jpg), which would be the frames of one video")
        return sources[0]

    def place(self, name: str) -> str:
        """The path of what it holds under a name."""
        return posixpath.join(self.path, name) if name else self.path

    @property
    def _filesystem(self) -> fsspec.AbstractFileSystem:
        return in_this_process(self.made, self.process)

    @property
    def _is_local(self) -> bool:
        return isinstance(self.made, LocalFileSystem)


def open_folder(location: str) -> Folder:
    """The folder that a path or URL names.

    Raises:
        MediaError: it does not exist, is a file, or may not be looked at.
    """
    filesystem, path = filesystem_at(location)
    with reading(location):
        if filesystem.isdir(path):
            return Folder(location, filesystem, path.rstrip("/") or path, os.getpid())
        try:
            filesystem.info(path)
        except FileNotFoundError:
            raise MediaError(f"the folder {location} does not exist") from None
    raise MediaError(
        f"{location} is a file, and the root of a data set is a folder; name a single video in data.video, and the "
        "inside of an archive as zip://::FILE"
    )


def _walk(top: str) -> Iterator[str]:
    """The files below a local folder, relative to it; a folder that several links lead to is read once."""
    seen: set[tuple[int, int]] = set()

    def is_new(folder: str) -> bool:
        status = Path(folder).stat()
        identity = status.st_dev, status.st_ino
        new = identity not in seen
        seen.add(identity)
        return new

    def stop(error: OSError) -> None:
        raise error

    is_new(top)
    for folder, inside, names in os.walk(top, followlinks=True, onerror=stop):
        relative = folder[len(top) :].lstrip("/")
        yield from (posixpath.join(relative, name) for name in names)
        # In order: which of two links to one folder is followed shall not depend on the disk.
        inside[:] = [name for name in sorted(inside) if is_new(posixpath.join(folder, name))]
