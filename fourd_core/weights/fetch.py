"""Bring one file here: whole and checked, or not at all; what was interrupted goes on where it was.

The bytes are collected in `<file>.part`, and `<file>.part.json` says which file at which address they belong to. Only
when all are there and their SHA-256 is right does the file get its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from fourd_core.errors import WeightsError
from fourd_core.progress import track
from fourd_core.weights.cache import part_path, shown, without_secrets
from fourd_core.weights.formats import HEAD, format_of, what_instead
from fourd_core.weights.sources import Interruption, Stream, open_stream

CHUNK = 2**20
"""Bytes that are read at once; the progress counts them."""
PAUSES = (1.0, 4.0, 15.0)
"""Seconds before the transfer is taken up again; a connection that brings nothing new so often in a row is given up."""


@attrs.frozen
class Receipt:
    """What was fetched."""

    sha256: str
    size: int


def fetch(
    location: str, target: Path, note: Callable[[Receipt], None], *, sha256: str | None = None, size: int | None = None
) -> Receipt:
    """Fetch a checkpoint from a path or URL to `target`, replacing what is there.

    Args:
        note: called with what was fetched, after all checks and before the file gets its name.
        sha256, size: of the file, where they are known.
    Raises:
        WeightsError: it cannot be reached, is no checkpoint, or is another file than `sha256` and `size` say (nothing
            is kept); the connection broke for good or the disk is full (what came is kept, and the next call goes on).
    """
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _Part(part_path(target), location) as part:
        _complete(part, location, size)
        receipt = Receipt(part.digest.hexdigest(), part.size)
        if sha256 not in (None, receipt.sha256):
            part.discard()
            raise WeightsError(
                f"{part.source} is another file than it should be, or was damaged on the way: its SHA-256 is "
                f"{receipt.sha256}, expected {sha256}; nothing was kept, fetch it again or from elsewhere"
            )
        note(receipt)
        part.become(target)
    return receipt


def _complete(part: _Part, location: str, size: int | None) -> None:
    """Go on with a transfer until it is done, whatever breaks in between."""
    before = best = part.size
    failures = 0
    while True:
        try:
            _transfer(part, location, size)
            return
        except Interruption as error:
            # A server that knows no ranges and breaks at the same place each time makes no progress.
            failures = 0 if part.size > best else failures + 1
            best = max(best, part.size)
            if best == before or failures > len(PAUSES):
                kept = f"; {best} bytes are here, and the same command goes on from them" if best else ""
                raise WeightsError(
                    f"cannot fetch {part.source}: {error}{kept or '; check the address and the connection'}"
                ) from error
            time.sleep(PAUSES[max(failures - 1, 0)])


def _transfer(part: _Part, location: str, size: int | None) -> None:
    """One connection: from where the part ends to the end of the file.

    Raises:
        Interruption: it broke; what came is in the part.
    """
    if part.size and part.size == part.expected:
        return
    with open_stream(location, part.size, part.version, part.expected) as stream:
        if size is not None and stream.size not in (None, size):
            part.discard()
            raise WeightsError(
                f"{part.source} is another file than it should be: it has {stream.size} bytes, the published one {size}"
            )
        part.begin(stream)
        total = -(-(stream.size or 0) // CHUNK)
        label = f"{part.path.name.removesuffix('.part')} (MiB)"
        chunks = _chunks(stream)
        for chunk in track(chunks, label, total, part.size // CHUNK) if total else chunks:
            part.append(chunk)
    if stream.size is not None and part.size != stream.size:
        raise Interruption(f"the connection broke after {part.size} of {stream.size} bytes")
    part.check_kind()


def _chunks(stream: Stream) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.handle.read(CHUNK)
        except http.client.IncompleteRead as error:
            yield error.partial
            raise Interruption("the connection broke") from error
        except Exception as error:  # every file system has exceptions of its own
            raise Interruption(
                f"the connection broke ({without_secrets(str(error)) or type(error).__name__})"
            ) from error
        if not chunk:
            return
        yield chunk


class _Part:
    """The file that grows, of one process at a time.

    Attributes:
        source: where it comes from, as it may be shown.
        size: bytes that are here.
        expected: bytes of the whole file, where they are known.
        version: which version of the file at the source it is.
        digest: of the bytes that are here.
    """

    def __init__(self, path: Path, location: str) -> None:
        self.path, self.source = path, shown(location)
        self._address = hashlib.sha256(location.encode()).hexdigest()
        self._note = path.with_name(f"{path.name}.json")
        with _writing(path):
            self._handle = path.open("a+b")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._handle.close()
            raise WeightsError(f"another process is fetching {path.name.removesuffix('.part')} already") from error
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(self._handle.fileno()))):
            self._handle.close()
            raise WeightsError(f"another process has just fetched {path.name.removesuffix('.part')}")
        note = self._read_note()
        self.version = str(note.get("version", ""))
        self.expected = size if isinstance(size := note.get("size"), int) else None
        self._handle.seek(0)
        self.digest = hashlib.file_digest(self._handle, "sha256")
        self.size = self._handle.tell()
        # A file with a version may be continued from an address that was signed anew. One without must have the very
        # same address and a known size, or nobody can say whether the rest would fit.
        same = self.expected is not None and note.get("address") == self._address
        if note.get("source") != self.source or not (self.version or same):
            self._empty()

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a disk that is full has been reported
            self._handle.close()

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def begin(self, stream: Stream) -> None:
        """Make ready for what a connection brings, which may start from the beginning.

        Raises:
            WeightsError: there is no room for it.
        """
        if stream.start != self.size:
            self._empty()
        self.version, self.expected = stream.version, stream.size
        missing = (stream.size or 0) - self.size
        free = shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise WeightsError(
                f"there is no room for {self.path.name.removesuffix('.part')}: {missing} bytes are to come, {free} are "
                f"free in {self.path.parent}; set FOURD_WEIGHTS to a folder on another disk"
            )
        with _writing(self._note):
            note = {"source": self.source, "address": self._address, "version": self.version, "size": self.expected}
            self._note.write_text(json.dumps(note), encoding="utf-8")

    def append(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            WeightsError: the first ones show that this is no checkpoint (nothing is kept), or the disk is full.
        """
        with _writing(self.path):
            self._handle.write(data)
            self._handle.flush()
        self.digest.update(data)
        was, self.size = self.size, self.size + len(data)
        if was < HEAD <= self.size:  # gigabytes of a wrong file need not come first
            self.check_kind()

    def check_kind(self) -> None:
        """See whether what is here is the beginning of a checkpoint.

        Raises:
            WeightsError: it is not; nothing is kept.
        """
        self._handle.seek(0)
        head = self._handle.read(HEAD)
        if format_of(head) is None:
            self.discard()
            found = what_instead(head) or "it starts neither like a safetensors nor like a torch file"
            raise WeightsError(
                f"{self.source} gives no checkpoint: {found if head else 'an empty file'}; nothing was kept"
            )

    def become(self, target: Path) -> None:
        """Take the file's own name."""
        with _writing(target):
            os.fsync(self._handle.fileno())
            self.path.replace(target)
            self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._empty()
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _empty(self) -> None:
        self._handle.truncate(0)
        self.digest, self.size = hashlib.sha256(), 0


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot write {path}: {error.strerror or error}; make room or set FOURD_WEIGHTS to another folder"
        ) from error
