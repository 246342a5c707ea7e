"""A recipe before the schema sees it: a tree of plain values that knows where each of them was written."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from fourd_core.errors import RecipeError
from fourd_core.recipe.lines import KeyPath


class Text(str):
    """A text of a recipe, and the folder that paths in it are relative to."""

    base: Path

    def __new__(cls, value: str, base: Path) -> Text:
        text = super().__new__(cls, value)
        text.base = base
        return text


class Argument(Text):
    """What stands behind the `=` of a `--set`: TOML or bare text, as the schema's type will have it."""

    def parsed(self) -> Any:
        """The value read as TOML, or the text itself where it is none."""
        try:
            data = with_base(tomllib.loads(f"value = {self}"), self.base)
        except (ValueError, RecursionError):
            return self
        return data["value"] if len(data) == 1 else self


@attrs.frozen(order=True)
class Origin:
    """Where a value was set: a file and a line, or the `--set` argument itself (line 0)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@attrs.frozen
class Mistake:
    """One thing that is wrong with the value at a path."""

    path: KeyPath
    text: str
    origin: Origin | None = None
    """Where it stands, for values that the finished document does not hold."""

    def under(self, key: str | int) -> Mistake:
        """The same, seen from the table or array that holds it."""
        return attrs.evolve(self, path=(key, *self.path))


@attrs.frozen
class Document:
    """A tree of values, their origins, and what was found wrong while it was put together."""

    data: dict[str, Any]
    origins: dict[KeyPath, Origin]
    mistakes: list[Mistake] = attrs.field(factory=list)

    def origin(self, path: KeyPath) -> Origin:
        """Where a value, or else the nearest table around it, was set."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def error(self, mistakes: Sequence[Mistake]) -> RecipeError:
        """All mistakes as one error, a line each, in the order in which a reader meets them."""
        placed = [(mistake.origin or self.origin(mistake.path), mistake) for mistake in mistakes]
        placed.sort(key=lambda pair: (pair[0].line == 0, pair[0]))
        lines = (f"{origin}: {dotted(m.path) + ': ' if m.path else ''}{m.text}" for origin, m in placed)
        return RecipeError("\n".join(lines))


def dotted(path: KeyPath) -> str:
    """A path as one writes it in TOML, array positions in brackets."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            bare = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else '"' + key.replace('"', '\\"') + '"'
            text += f".{bare}" if text else bare
    return text


def with_base(value: Any, base: Path) -> Any:
    """The same tree, its texts marked with the folder that they are relative to."""
    if isinstance(value, str):
        return Text(value, base)
    if isinstance(value, list):
        return [with_base(item, base) for item in value]
    if isinstance(value, dict):
        return {key: with_base(item, base) for key, item in value.items()}
    return value


def describe(value: Any) -> str:
    """A value as it is named in a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return f'the text "{on_one_line(value if len(value) <= 60 else value[:57] + "...")}"'
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else f"a date or time ({value})"


def on_one_line(text: str) -> str:
    """A text with its line breaks spelled out, since each mistake is one line."""
    return text.replace("\n", "\\n")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The nearest known name as the end of a sentence, or all of them where none is near and they are few."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known here: {', '.join(known)}" if known and len(known) <= 12 else ""
