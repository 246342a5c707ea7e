"""Where weights are fetched from: http(s) through the standard library, everything else through fsspec.

Over http a transfer goes on where it broke (`Range`), provided that the file at the address is still the same
(`If-Range`, RFC 9110 section 13.1.5); servers that know no ranges send it from the start.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

import attrs
import fsspec

from fourd_core import __version__
from fourd_core.errors import WeightsError
from fourd_core.weights.cache import shown, without_secrets
from fourd_core.weights.locations import refuse_offline, why

Response = http.client.HTTPResponse | urllib.error.HTTPError
PARTIAL, RANGE_REFUSED = 206, 416
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""


class Interruption(Exception):  # noqa: N818 - the transfer may go on
    """The connection broke, or the server is not able to answer at the moment."""


@attrs.frozen
class Stream:
    """An open file elsewhere, from some byte on."""

    handle: Any
    """Has `read(size)`; what file systems return has no type in common."""
    start: int
    """Which byte of the file comes first."""
    size: int | None
    """Bytes of the whole file, where that is known."""
    version: str
    """A text that changes with the file; empty where none is known."""


@contextmanager
def open_stream(location: str, start: int = 0, version: str = "", expected: int | None = None) -> Iterator[Stream]:
    """Open a file for one pass.

    Args:
        start: from which byte on; a wish, granted only while the file is the same as before.
        version, expected: the version and size that it had then.
    Raises:
        WeightsError: it is not there, or cannot be reached while FOURD_OFFLINE is set.
        Interruption: it may work another time.
    """
    refuse_offline(location)
    opener = _over_http if re.match(r"https?://", location) and "::" not in location else _by_fsspec
    with opener(location, start, version, expected) as stream:
        yield stream


@contextmanager
def _over_http(location: str, start: int, version: str, expected: int | None) -> Iterator[Stream]:
    for wish in (start, 0):
        headers = {"User-Agent": f"fourd/{__version__}"}
        if wish:
            headers["Range"] = f"bytes={wish}-"
        if wish and version:
            headers["If-Range"] = version
        with _answer(urllib.request.Request(location, headers=headers)) as response:
            stream = _stream_of(response, wish, version, expected)
            if stream is not None:
                yield stream
                return
    raise Interruption("the server sends another part of the file than it was asked for")


def _stream_of(response: Response, start: int, version: str, expected: int | None) -> Stream | None:
    """What an answer holds; None where it is of no use for going on at `start`."""
    now = _version(response.headers)
    if response.status == RANGE_REFUSED:
        return None
    if response.status != PARTIAL:
        return Stream(response, 0, _number(response.headers.get("Content-Length")), now)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != start:
        return None
    size = _number(span[2])
    # Some servers ignore If-Range, others tell no version.
    changed = (now and version and now != version) or (None not in (size, expected) and size != expected)
    return None if changed else Stream(response, start, size, now or version)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _version(headers: Message) -> str:
    """What If-Range accepts: a strong ETag or a date."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _answer(request: urllib.request.Request) -> Response:
    address = shown(request.full_url)
    try:
        response: Response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == RANGE_REFUSED and request.has_header("Range"):
            return error
        error.close()
        if error.code == 429 or error.code >= 500:
            raise Interruption(f"the server answers {error.code} ({error.reason})") from error
        login = ", where a login or a consent may be needed" if error.code in (401, 403) else ""
        raise WeightsError(
            f"cannot fetch {address}: the server answers {error.code} ({error.reason}); check the address{login}"
        ) from error
    except (OSError, http.client.RemoteDisconnected) as error:
        raise Interruption(str(getattr(error, "reason", error)) or type(error).__name__) from error
    except http.client.InvalidURL as error:  # which may name a part that must not be shown
        raise WeightsError(f"cannot fetch {address}: that is no web address; check the address") from error
    except (ValueError, http.client.HTTPException) as error:
        raise WeightsError(f"cannot fetch {address}: {without_secrets(str(error))}; check the address") from error
    return response


@contextmanager
def _by_fsspec(location: str, start: int, version: str, _expected: int | None) -> Iterator[Stream]:
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
        size, now = filesystem.size(path), filesystem.ukey(path)
        handle = filesystem.open(path, "rb")
        granted = start if now == version and handle.seekable() else 0
        handle.seek(granted)
    except Exception as error:  # every file system has exceptions of its own
        raise WeightsError(f"cannot fetch {shown(location)}: {why(location, error)}") from error
    with handle:
        yield Stream(handle, granted, size, now)
