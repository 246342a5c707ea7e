"""Files, `extends`, `remove`, `--set` and environment variables to one `Document`.

Nothing here knows the schema: a `--set` value stays an `Argument`, and the schema's types read it later.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourd_core.errors import RecipeError
from fourd_core.recipe.document import (
    Argument,
    Document,
    Mistake,
    Origin,
    Text,
    describe,
    did_you_mean,
    dotted,
    on_one_line,
    with_base,
)
from fourd_core.recipe.lines import KeyPath, key_lines, split_key

TAGS = ("use", "job")
"""The keys that choose what their table configures."""
IMPLIED: Mapping[KeyPath, str] = {("data",): "video"}
"""Tables that may leave their `use` out, and what it then is."""

DEEPEST = 100
"""Levels of nesting; far below what Python's stack can take, far above what a recipe needs."""

_VARIABLE = re.compile(
    r"(?P<escape>\$\$\{env:)|\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<damaged>\$\{env:)"
)


def read_text(text: str, name: str, base: Path) -> Document:
    """The document of one TOML text alone.

    Raises:
        RecipeError: not TOML (names line and column).
    """
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
        lines = {(): 1, **key_lines(text)}
        if max(map(len, lines)) > DEEPEST:
            raise RecursionError
    except RecursionError:
        raise RecipeError(f"{name}: this TOML is nested too deeply") from None
    except ValueError as error:
        place = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        reason = place[1] if place else str(error)
        if place and place[2]:
            where = f"{name}:{place[2]}: column {place[3]}"
        else:
            where = f"{name}:{len(text.splitlines()) or 1}: the end of the file"
        raise RecipeError(f"{where}: this is not valid TOML: {reason[:1].lower()}{reason[1:]}") from None
    return Document(with_base(data, base), {path: Origin(name, line) for path, line in lines.items()})


def read_file(path: Path, above: tuple[Path, ...] = ()) -> Document:
    """The document of a file and of everything that it extends.

    Args:
        above: the files that extend this one, outermost first.
    Raises:
        RecipeError: a file is missing, unreadable, not TOML, or extends itself.
    """
    place = Path(os.path.normpath(path.absolute()))
    if place in above:
        chain = " extends ".join(item.name for item in (*above[above.index(place) :], place))
        raise RecipeError(f"{path}: a recipe cannot extend itself ({chain})")
    try:
        text = place.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a recipe: it is not UTF-8 text") from error
    return with_parents(read_text(text, str(path), place.parent), path, (*above, place))


def with_parents(document: Document, path: Path, above: tuple[Path, ...] = ()) -> Document:
    """The document laid over those that its `extends` names, without what its `remove` names."""
    parents = _texts(document, "extends")
    removed = _texts(document, "remove")
    whole = Document({}, {(): document.origins[()]})
    for i, parent in enumerate(parents):
        target = path.parent / parent
        if not target.is_file():
            origin = document.origin(("extends", i))
            raise RecipeError(f"{origin}: extends: there is no file {target}")
        lay_over(whole, read_file(target, above))
    for i, key in enumerate(removed):
        _remove(whole, key, document.origin(("remove", i)))
    lay_over(whole, document)
    return whole


def _texts(document: Document, key: str) -> list[str]:
    """Take a top-level key that holds a text or a list of texts out of a document, environment variables put in."""
    value = document.data.pop(key, [])
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise document.error([Mistake((key,), f"found {describe(value)}, expected a text or a list of texts")])
    holder = Document({key: items}, document.origins)
    expand(holder)
    if holder.mistakes:
        raise holder.error(holder.mistakes)
    return list(holder.data[key])


def _remove(document: Document, key: str, origin: Origin) -> None:
    try:
        keys, rest = split_key(key)
    except ValueError:
        keys, rest = (), key
    table: Any = document.data
    for part in keys[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if rest or not isinstance(table, dict) or keys[-1] not in table:
        text = f'"{key}" is not among what this recipe extends'
        known = [dotted(p) for p in document.origins if p and p[0] in document.data and isinstance(p[-1], str)]
        document.mistakes.append(Mistake(("remove",), text + did_you_mean(key, known), origin))
        return
    del table[keys[-1]]
    _forget(document, keys)


def _forget(document: Document, path: KeyPath) -> None:
    for known in [known for known in document.origins if known[: len(path)] == path]:
        del document.origins[known]


def lay_over(below: Document, above: Document) -> None:
    """Merge tables key by key, the upper document winning; a table with another `use` or `job` replaces the old one."""
    below.mistakes.extend(above.mistakes)
    _merge(below, below.data, above.data, ())
    below.origins.update(above.origins)


def _merge(document: Document, old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> None:
    for key, value in new.items():
        here = (*path, key)
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and not _is_other(before, value, here):
            _merge(document, before, value, here)
        else:
            _forget(document, here)
            old[key] = value


def _is_other(old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> bool:
    return any(isinstance(new.get(tag), str) and new[tag] != old.get(tag, IMPLIED.get(path)) for tag in TAGS)


def override(document: Document, argument: str) -> None:
    """Set one value by a `--set` argument `dotted.key=value`, making the tables on the way.

    Raises:
        RecipeError: not of this form.
    """
    try:
        keys, rest = split_key(argument)
    except ValueError:
        keys, rest = (), ""
    if not rest.startswith("="):
        raise RecipeError(f"--set {argument}: expected dotted.key=value, for example --set data.video=my.mp4")
    table = document.data
    for part in keys[:-1]:
        child = table.get(part)
        child = child.parsed() if isinstance(child, Argument) else child
        table[part] = table = child if isinstance(child, dict) else {}
    table[keys[-1]] = Argument(rest[1:].strip(), Path.cwd())
    _forget(document, keys)
    origin = Origin(on_one_line(f"--set {argument}"))
    document.origins[keys] = origin
    for length in range(1, len(keys)):
        document.origins.setdefault(keys[:length], origin)


def expand(document: Document) -> None:
    """Put the environment variables in that texts name by `${env:NAME}` or `${env:NAME:-default}`."""

    def walk(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, Text) and "${env:" in value:
            try:
                return type(value)(_VARIABLE.sub(_variable, value), value.base)
            except ValueError as error:
                document.mistakes.append(Mistake(path, str(error)))
        return value

    document.data.update(walk(document.data, ()))


def escape(text: str) -> str:
    """The spelling of a text that `expand` turns into the text again."""
    return text.replace("${env:", "$${env:")


def _variable(match: re.Match[str]) -> str:
    if match["escape"]:
        return "${env:"
    if match["damaged"]:
        raise ValueError('found a damaged "${env:", expected "${env:NAME}" or "${env:NAME:-default}"')
    value = os.environ.get(match["name"])
    if value or (value is not None and match["default"] is None):
        return value
    if match["default"] is None:
        name = match["name"]
        raise ValueError(f'the environment variable {name} is not set; set it, or write "${{env:{name}:-default}}"')
    return match["default"]
