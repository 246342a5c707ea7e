"""Where cue maps are kept: a Zarr group at any URL, one group for each cue.

    <cue>/maps    [row, frame, channel, h, w]    a row is what a teacher said about one clip, or one frame
    <cue>/items   [row, column]  int64           of which video (a hash of its key) and frames; -1: the row is unused

Rows come in units of a fixed number, each of them one file of `maps` (a Zarr shard with a chunk for each row). A unit
is computed as a whole and its file is whole or not there, so that a row counts if and only if the file of its unit
exists: a killed writer leaves nothing half-done, and nobody keeps books. Rows are only ever added, in whole units.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import fsspec
import numpy as np
import zarr
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Int64, Shaped
from zarr.codecs import BloscCodec
from zarr.errors import ContainsArrayError
from zarr.storage import FsspecStore, LocalStore

from fourd_core.errors import RunError
from fourd_core.files import disk_errors
from fourd_core.media.locations import missing_package
from fourd_core.weights.cache import without_secrets

FORMAT = 1
UNUSED = -1
SEPARATOR = "."
FLAT: Any = {"name": "default", "separator": SEPARATOR}
"""One folder holds all files of an array: `c.12.0.0.0.0` is unit 12."""
PARTIAL = "*.partial"
"""What a file is called on a disk while Zarr writes it."""
ITEMS_CHUNK = 2**16


class CueStore:
    """The store at a location. Opening it reads nothing but its attributes."""

    def __init__(self, location: str, group: zarr.Group, filesystem: Any, path: str) -> None:
        self.location, self.shown = location, without_secrets(location)
        self._group, self._filesystem, self._path = group, filesystem, path

    @classmethod
    def find(cls, location: str) -> CueStore | None:
        """The store at a location, or None where nothing is there.

        Raises:
            RunError: something else is there, or the location cannot be read.
        """
        filesystem, path = _filesystem(location)
        with disk_errors(without_secrets(location)):
            filesystem.invalidate_cache(path)
            if not filesystem.exists(f"{path}/zarr.json"):
                if filesystem.isfile(path) or (filesystem.isdir(path) and filesystem.ls(path, detail=False)):
                    raise RunError(f"{without_secrets(location)} {NOT_OURS}")
                return None
            try:
                group = zarr.open_group(_zarr_store(location, filesystem, path), mode="r+", zarr_format=3)
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{without_secrets(location)} {NOT_OURS}") from error
        if group.attrs.get("cues") != FORMAT:
            raise RunError(f"{without_secrets(location)} {NOT_OURS}")
        return cls(location, group, filesystem, path)

    @classmethod
    def create(cls, location: str, attributes: Mapping[str, Any]) -> CueStore:
        """The store at a location, made where there is none.

        Args:
            attributes: plain JSON values that a new store gets.
        Raises:
            RunError: as `find`; the location cannot be written.
        """
        store = cls.find(location)
        if store is None:
            filesystem, path = _filesystem(location)
            with disk_errors(without_secrets(location)):
                group = zarr.open_group(_zarr_store(location, filesystem, path), mode="a", zarr_format=3)
                group.update_attributes({"cues": FORMAT, **attributes, "failed": {}, "plans": []})
            store = cls(location, group, filesystem, path)
        return store

    @property
    def attributes(self) -> dict[str, Any]:
        """What is kept with the store."""
        return dict(self._group.attrs)

    @property
    def failed(self) -> dict[str, str]:
        """Why videos could not be read, by key."""
        return dict(self._attribute("failed"))

    @property
    def plans(self) -> list[dict[str, Any]]:
        """The trainings whose draws are kept completely."""
        return list(self._attribute("plans"))

    def _attribute(self, name: str) -> Any:
        return self._group.attrs[name]

    def update(self, **attributes: Any) -> None:
        """Change attributes.

        Raises:
            RunError: the location cannot be written.
        """
        with disk_errors(self.shown):
            self._group.update_attributes(attributes)

    def cue(self, name: str) -> StoredCue | None:
        """What is kept of one cue; None where it was never asked for."""
        try:
            group = self._group[name]
        except KeyError:
            return None
        assert isinstance(group, zarr.Group)
        return StoredCue(self, name, group)

    def add_cue(self, name: str, unit: int, columns: int, attributes: Mapping[str, Any]) -> StoredCue:
        """Make room for a cue.

        Args:
            unit: rows per file.
            columns: of its items.
        """
        with disk_errors(self.shown):
            group = self._group.create_group(name, overwrite=True)
            group.create_array(
                "items", shape=(0, columns), chunks=(ITEMS_CHUNK, columns), dtype="int64", fill_value=UNUSED,
                chunk_key_encoding=FLAT,
            )  # fmt: skip
            group.update_attributes({**attributes, "unit": unit})
        return StoredCue(self, name, group)

    def files(self, *below: str) -> dict[str, int]:
        """The names of the files in a folder of the store, and their sizes in bytes."""
        folder = "/".join((self._path.rstrip("/"), *below))
        self._filesystem.invalidate_cache(folder)
        with suppress(FileNotFoundError):
            found = self._filesystem.ls(folder, detail=True)
            return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in found}
        return {}

    def has_file(self, *below: str) -> bool:
        """Whether there is such a file, asked anew."""
        path = "/".join((self._path.rstrip("/"), *below))
        self._filesystem.invalidate_cache(path.rpartition("/")[0])
        return bool(self._filesystem.exists(path))

    @property
    def _folder(self) -> Path | None:
        return Path(self._path) if isinstance(self._filesystem, LocalFileSystem) else None

    def sweep(self) -> None:
        """Remove what writers that were killed left on the disk."""
        if self._folder is not None:
            for left in self._folder.rglob(PARTIAL):
                left.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other jobs out, where the store is on a disk.

        Raises:
            RunError: another one is at work.
        """
        if self._folder is None:
            yield
            return
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process is computing cues into {self.shown}; wait until it is done") from error
            except OSError:  # some network file systems lock no folders
                pass
            yield
        finally:
            os.close(handle)


@attrs.frozen(eq=False)
class StoredCue:
    """The arrays of one cue."""

    store: CueStore
    name: str
    group: zarr.Group

    @property
    def attributes(self) -> dict[str, Any]:
        """How its maps were made."""
        return dict(self.group.attrs)

    @property
    def unit(self) -> int:
        """Rows per file."""
        return int(self.attributes["unit"])

    def items(self) -> Int64[np.ndarray, "rows columns"]:
        """What each row is about, computed or not."""
        return np.asarray(self._array("items")[:], np.int64)

    def append(self, items: Int64[np.ndarray, "n columns"]) -> int:
        """Make room for more rows, in units of their own; the number of the first one."""
        with disk_errors(self.store.shown):
            array = self._array("items")
            start, columns = array.shape
            rows = -(-len(items) // self.unit) * self.unit
            # First where the maps go: a job that is killed in between must leave no planned unit without a place.
            with suppress(KeyError):
                maps = self._array("maps")
                maps.resize((start + rows, *maps.shape[1:]))
            array.resize((start + rows, columns))
            array[start : start + len(items)] = items
        return int(start) // self.unit

    def done(self) -> dict[int, int]:
        """The units that are computed, and the bytes of their files."""
        names = self.store.files(self.name, "maps")
        return {int(name.split(SEPARATOR)[1]): size for name, size in names.items() if _is_unit(name)}

    def is_done(self, unit: int) -> bool:
        """Whether a unit is computed."""
        return self.store.has_file(self.name, "maps", SEPARATOR.join(["c", str(unit), *"0000"]))

    def counting_rows(self) -> tuple[Int64[np.ndarray, "n columns"], Int64[np.ndarray, " n"]]:
        """The items that are computed, and the rows where they are."""
        items = self.items()
        done = np.zeros(len(items) // self.unit, bool)
        done[[unit for unit in self.done() if unit < len(done)]] = True
        rows = np.flatnonzero(np.repeat(done, self.unit) & (items[:, 0] != UNUSED))
        return items[rows], rows

    def write(self, unit: int, maps: Shaped[np.ndarray, "n t c h w"]) -> None:
        """Write one unit as one file; the array is made by whoever writes first.

        Raises:
            RunError: these maps have another size than those before; the location cannot be written.
        """
        with disk_errors(self.store.shown):
            array = self._maps(maps)
            if array.shape[1:] != maps.shape[1:]:
                raise RunError(
                    f"[cues.{self.name}] the maps of a clip are {_size(maps.shape)} and those of others "
                    f"{_size(array.shape)} (frames x channels x rows x columns); all clips must be shown in one size"
                )
            block = np.full((self.unit, *maps.shape[1:]), np.nan, maps.dtype)
            block[: len(maps)] = maps
            array[unit * self.unit : (unit + 1) * self.unit] = block

    def read(self, row: int) -> Shaped[np.ndarray, "t c h w"]:
        """One row."""
        return np.asarray(self._array("maps")[row])

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _maps(self, example: Shaped[np.ndarray, "n t c h w"]) -> zarr.Array[Any]:
        row = example.shape[1:]
        with suppress(KeyError):
            return self._array("maps")
        with suppress(ContainsArrayError):  # another worker was faster
            return self.group.create_array(
                "maps", shape=(self._array("items").shape[0], *row), chunks=(1, *row), shards=(self.unit, *row),
                dtype=example.dtype, fill_value=float("nan"),
                compressors=BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
                chunk_key_encoding=FLAT,
                # A unit of nothing but unknown numbers has a file too, or it would never be done.
                config={"write_empty_chunks": True},
            )  # fmt: skip
        return self._array("maps")


NOT_OURS = (
    "holds something else than cue maps, or maps of another version of fourd; "
    "choose another cue_cache, or delete what is there"
)


def _is_unit(name: str) -> bool:
    return name.startswith(f"c{SEPARATOR}") and not name.endswith(".partial")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))


def _filesystem(location: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except ImportError as error:
        raise RunError(f"cue_cache = {without_secrets(location)}: {missing_package(location, error)}") from error
    except (ValueError, OSError) as error:
        raise RunError(f"cue_cache = {without_secrets(location)} is no place to write to: {error}") from error
    return filesystem, str(path)


def _zarr_store(location: str, filesystem: Any, path: str) -> LocalStore | FsspecStore:
    # Zarr's own store for disks writes files whole or not at all; the others' file systems do so themselves.
    return LocalStore(path) if isinstance(filesystem, LocalFileSystem) else FsspecStore.from_url(location)
