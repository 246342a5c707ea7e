"""Which kind of file this is, by its first bytes."""

from __future__ import annotations

from typing import Literal

Format = Literal["safetensors", "torch", "torch (before 1.6)"]

HEAD = 64
"""How many bytes tell the format."""

_FOREIGN = (
    (b"<", "a web page saved in the place of the file: is a login or a consent needed there?"),
    (b"version https://git-lfs", "a pointer of Git LFS in the place of the file: fetch the file that it stands for"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x89HDF", "an HDF5 file"),
)


def format_of(head: bytes) -> Format | None:
    """The format of a checkpoint that starts with these bytes; None where it is none.

    Args:
        head: the first `HEAD` bytes of the file, or all where it is shorter.
    """
    if head[8:9] == b"{":
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return "torch"
    return "torch (before 1.6)" if head[:1] == b"\x80" else None


def what_instead(head: bytes) -> str:
    """What a file that is no checkpoint seems to be, as the end of a sentence; empty where nothing is known."""
    start = head.lstrip().lower()
    return next((text for sign, text in _FOREIGN if start.startswith(sign.lower())), "")
