"""From a location of weights to a file on this machine."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.resources
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec

from fourd_core.errors import WeightsError
from fourd_core.media.locations import missing_package
from fourd_core.weights import cache

_ON_THIS_MACHINE = {
    "file", "local", "memory", "data", "zip", "tar", "libarchive", "simplecache", "filecache", "blockcache", "dir",
}  # fmt: skip
"""fsspec's protocols that open no connection by themselves."""


def sha256_of(location: str) -> str:
    """The SHA-256 of the file, in hexadecimal.

    Raises:
        WeightsError: the file cannot be read.
    """
    with local_file(location) as path, path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """The file as a local path; one on another machine is fetched once by each process, which keeps it to its end.

    Raises:
        WeightsError: it is missing, not fetched yet, or cannot be reached.
    """
    if location.startswith("package:"):
        with _packaged_file(location) as path:
            yield _existing(path, location)
    elif location.startswith("weights:"):
        yield cache.resolve(location.removeprefix("weights:"))
    elif is_remote(location):
        refuse_offline(location)
        yield _fetched(location)
    elif "://" in location or "::" in location:
        with tempfile.TemporaryDirectory(prefix="fourd-") as folder:
            yield _copied(location, Path(folder))
    else:
        yield _existing(Path(location).expanduser(), location)


@functools.cache
def _fetched(location: str) -> Path:
    """A copy that lasts as long as this process: a run reads the weights of its recipe more than once."""
    sys.stderr.write(f"note: fetching {cache.shown(location)} for this run only; fourd weights pull keeps weights\n")
    with ExitStack() as stack:
        path = _copied(location, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fourd-"))))
        atexit.register(stack.pop_all().close)
    return path


def _copied(location: str, folder: Path) -> Path:
    path = folder / "weights"
    try:
        with fsspec.open(location, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    except Exception as error:  # every file system has exceptions of its own
        raise WeightsError(f"cannot read the weights {cache.shown(location)}: {why(location, error)}") from error
    return path


def is_remote(location: str) -> bool:
    """Whether a connection is opened to read it."""
    return bool(set(re.findall(r"([\w+.-]+)://", location)) - _ON_THIS_MACHINE)


def refuse_offline(location: str) -> None:
    """Let nothing through that opens a connection while `FOURD_OFFLINE` is set.

    Raises:
        WeightsError: it would be fetched from elsewhere.
    """
    if os.environ.get("FOURD_OFFLINE", "").lower() in ("", "0", "false", "no"):
        return
    if is_remote(location):
        raise WeightsError(
            f"{cache.shown(location)} is not fetched: FOURD_OFFLINE forbids connections; unset it, or give a "
            "file on this machine"
        )


def why(location: str, error: Exception) -> str:
    """What went wrong in a file system and what to do, as the end of a sentence."""
    if isinstance(error, ImportError) and re.search(r"\bhf://", location):
        return "hf:// needs the package huggingface_hub, which is not installed; pip install huggingface_hub"
    if isinstance(error, ImportError):
        return missing_package(location, error)
    if not isinstance(error, FileNotFoundError):
        return f"{cache.without_secrets(str(error)) or type(error).__name__}; check the address"
    if error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError):
        return "there is no such file; check the address"
    reason = cache.without_secrets(str(error.__cause__))  # over http, whatever goes wrong is a file that is not found
    return f"there is no such file, or it cannot be reached ({reason}); check the address"


@contextmanager
def _packaged_file(location: str) -> Iterator[Path]:
    name, _, inside = location.removeprefix("package:").partition("/")
    if not name or not inside:
        raise WeightsError(f"'{location}' names no file: write package:IMPORT_NAME/FILE/IN/PACKAGE")
    try:
        root = importlib.resources.files(name)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"cannot read the weights {location}: the package '{name}' is not installed here; install it with pip"
        ) from error
    with importlib.resources.as_file(root.joinpath(inside)) as path:
        yield path


def _existing(path: Path, location: str) -> Path:
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise WeightsError(f"cannot read the weights {location}: {what}; check the location")
    return path
