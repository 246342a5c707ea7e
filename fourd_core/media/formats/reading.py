"""Bytes of a file, or one sentence."""

from __future__ import annotations

from pathlib import Path

from fourd_core.errors import MediaError
from fourd_core.media.locations import File, file_at, filesystem_at

Readable = str | Path | File | bytes
"""What a format's reader takes: a path or URL, a file of some file system, or what stands in one."""


def read_bytes(source: Readable) -> bytes:
    """All of a file.

    Raises:
        MediaError: it is not there or cannot be read.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        try:
            return source.read_bytes()
        except OSError as error:
            raise MediaError(f"cannot read {source}: {error.strerror or error}") from error
    return (source if isinstance(source, File) else file_at(*filesystem_at(source))).read()


def shown(source: Readable) -> str:
    """What a message calls it."""
    if isinstance(source, bytes):
        return f"what was given ({len(source)} bytes)"
    return source.path if isinstance(source, File) else str(source)
