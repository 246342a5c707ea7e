"""Bytes of a file, or one sentence."""

from __future__ import annotations

from pathlib import Path

from fourd_core.errors import MediaError


def read_bytes(path: Path) -> bytes:
    """All of a file.

    Raises:
        MediaError: it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
