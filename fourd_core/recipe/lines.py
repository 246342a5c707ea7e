"""Where each key of a TOML text stands: tomllib keeps no positions, and an error without a line is a search."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

KeyPath = tuple[str | int, ...]
"""Keys and array positions from the document's root."""

_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_STRING = re.compile(
    "|".join(
        (
            r'"""(?:\\.|[^\\])*?""""{0,2}',  # up to two quotes may stand before the closing three
            r"'''.*?''''{0,2}",
            r'"(?:\\.|[^"\\])*"',
            r"'[^']*'",
        )
    ),
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key, table and array item of a text that tomllib accepts."""
    return _Scanner(text).scan()


def split_key(text: str) -> tuple[tuple[str, ...], str]:
    """The dotted key (TOML's own syntax, quotes included) at the start of a text, and what follows it.

    Raises:
        ValueError: the text does not start with a dotted key.
    """
    scanner = _Scanner(text)
    scanner.skip(_SPACE)
    keys = scanner.key()
    return keys, text[scanner.at :]


class _Scanner:
    """Walks through the text once; `at` is the place of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.newlines = [match.start() for match in re.finditer("\n", text)]
        self.table_counts: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.lines

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"unexpected text at {self.text[self.at : self.at + 20]!r}")
        self.at = match.end()
        return match.group()

    def note(self, path: KeyPath, line: int) -> None:
        """Record a path where it is written out; its parents only where they were not seen before."""
        self.lines[path] = line
        for length in range(1, len(path)):
            self.lines.setdefault(path[:length], line)

    def line(self) -> int:
        return bisect_right(self.newlines, self.at - 1) + 1

    def key(self) -> tuple[str, ...]:
        keys = []
        while True:
            token = self.skip(_KEY)
            quoted = token[0] in "\"'"
            keys.append(str(tomllib.loads(f"key = {token}")["key"]) if quoted else token)
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return tuple(keys)
            self.at += 1
            self.skip(_SPACE)

    def header(self) -> KeyPath:
        line = self.line()
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        self.skip(_SPACE)
        *parents, last = self.key()
        self.at += brackets
        path: KeyPath = ()
        for key in parents:
            path = self.newest((*path, key))
        path = (*path, last)
        if brackets == 2:
            count = self.table_counts[path] = self.table_counts.get(path, 0) + 1
            self.lines.setdefault(path, line)
            path = (*path, count - 1)
        self.note(path, line)
        return path

    def newest(self, path: KeyPath) -> KeyPath:
        """A header speaks of the last table of an array of tables."""
        return (*path, self.table_counts[path] - 1) if path in self.table_counts else path

    def pair(self, table: KeyPath) -> None:
        line = self.line()
        path = (*table, *self.key())
        self.note(path, line)
        self.at += 1  # "="
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: KeyPath) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self.skip(_STRING)
        elif first == "[":
            self.items(path, "]")
        elif first == "{":
            self.items(path, "}")
        else:
            self.skip(_SCALAR)

    def items(self, path: KeyPath, close: str) -> None:
        """An array, or an inline table."""
        self.at += 1
        self.skip(_BLANK)
        count = 0
        while self.text[self.at] != close:
            if close == "}":
                self.pair(path)
            else:
                self.note((*path, count), self.line())
                self.value((*path, count))
            count += 1
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
                self.skip(_BLANK)
        self.at += 1
