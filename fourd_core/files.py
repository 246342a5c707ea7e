"""Writing that is whole or not at all, and the disk's complaints in one sentence."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourd_core.errors import RunError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file grew over the size limit of this system or user",
    errno.EROFS: "the file system is read-only; choose another folder (of a run: --out)",
    errno.EACCES: "no permission to write there; choose another folder (of a run: --out)",
    errno.EPERM: "no permission to write there; choose another folder (of a run: --out)",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder (of a run: --out)",
    errno.EEXIST: "a file of that name is in the way; choose another folder (of a run: --out)",
}


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError of writing below `path` into a RunError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise RunError(f"cannot write {path}: {reason}") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes `path`'s place when the block ends well and vanishes otherwise.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    # The suffix stays last: writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    with disk_errors(path):
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any) -> Any:
    """A value as it will be when it is read back from JSON: tuples are lists."""
    return json.loads(json.dumps(value))


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
