"""The leaves of a recipe: what each type accepts, how it is named in a message, and how it is written back."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import attrs

from fourd_core.recipe.document import Argument, Mistake, Text, describe, did_you_mean
from fourd_core.recipe.schema import ComponentConfig, Location, StageConfig
from fourd_core.recipe.source import escape

Hook = Callable[[Any, Any], Any]
"""(value, type) to the structured value, or `Mistakes` with paths relative to the value."""
NONE = "none"
"""TOML has no null: this text stands for "no value" where a field may be None."""
UNIONS = (Union, types.UnionType)


def origin_of(t: Any) -> Any:
    """`typing.get_origin`, of which type checkers believe that it finds only parameter specifications."""
    return get_origin(t)


class Mistakes(Exception):  # noqa: N818 - a collection, never shown as it is
    """What is wrong with one value and everything in it."""

    def __init__(self, found: list[Mistake]) -> None:
        super().__init__(found)
        self.found = found


class Untagged(Mistakes):
    """A section does not say which component or job it configures."""


def wrong(text: str) -> Mistakes:
    """One mistake about the value itself."""
    return Mistakes([Mistake((), text)])


def mismatch(value: Any, expected: str) -> Mistakes:
    """A value of another type than expected."""
    return wrong(f"found {describe(value)}, expected {expected}")


def expectation(t: Any) -> str:
    """What a value of this type looks like, for a message."""
    args = get_args(t)
    names = {
        bool: "true or false", int: "an integer", float: "a number", str: "a text",
        Location: "a path, a glob pattern or a URL", ComponentConfig: "a table with `use`",
    }  # fmt: skip
    if isinstance(t, type | NewType) and t in names:
        return names[t]
    match origin_of(t):
        case origin if origin is Literal:
            return "one of " + ", ".join(f'"{arg}"' if isinstance(arg, str) else str(arg) for arg in args)
        case origin if origin is Annotated:
            return f"a table with `use`, the name of one of the {args[1].kind}"
        case origin if origin in UNIONS:
            return " or ".join(f'"{NONE}"' if arg is type(None) else expectation(arg) for arg in args)
        case origin if origin is tuple and args[1:] == (...,):
            return f"a list, each item {expectation(args[0])}"
        case origin if origin is tuple:
            return f"a list of {len(args)}: {', '.join(expectation(arg) for arg in args)}"
    return "a table"


def parsed(value: Any) -> Any:
    """A `--set` value as TOML reads it; any other value as it is."""
    return value.parsed() if isinstance(value, Argument) else value


def read_bool(value: Any, _: Any) -> bool:
    """true or false, nothing like it."""
    value = parsed(value)
    if not isinstance(value, bool):
        raise mismatch(value, expectation(bool))
    return value


def read_int(value: Any, _: Any) -> int:
    """An integer; a truth value is none."""
    value = parsed(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise mismatch(value, expectation(int))
    return value


def read_float(value: Any, _: Any) -> float:
    """A number, an integer included."""
    value = parsed(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise mismatch(value, expectation(float))
    with suppress(OverflowError):  # an integer beyond the floats
        number = float(value)
        if not math.isnan(number):  # it would make a recipe unequal to itself
            return number
    raise mismatch(value, "a finite number")


def read_str(value: Any, _: Any) -> str:
    """A text; of a `--set` value as it stands, or as TOML where it is quoted."""
    if isinstance(value, Argument) and value[:1] in ("'", '"'):
        value = value.parsed()
    if not isinstance(value, str):
        raise mismatch(value, expectation(str))
    return str(value)


def choice_hook(t: Any) -> Hook:
    """One of the values of a Literal."""
    choices = get_args(t)

    def structure(value: Any, _: Any) -> Any:
        given = (value, value.parsed()) if isinstance(value, Argument) else (value,)
        for choice in choices:
            if any(item == choice and isinstance(item, bool) == isinstance(choice, bool) for item in given):
                return choice
        near = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise wrong(f"found {describe(given[-1])}, expected {expectation(t)}{near if 'did you mean' in near else ''}")

    return structure


def read_location(value: Any, _: Any) -> Location:
    """A location, a relative path made absolute from the folder that its text came from."""
    text = read_str(value, str)
    if not text:
        raise mismatch(text, expectation(Location))
    if text.startswith("~"):
        raise wrong(f'found the text "{text}", but "~" is not expanded; write "${{env:HOME}}{text[1:]}"')
    base = value.base if isinstance(value, Text) else Path.cwd()
    # Only the last part of a chained URL (zip://clip.mp4::videos.zip) can be a path.
    *chain, last = text.split("::")
    if not ("://" in last or last.startswith(("package:", "weights:"))):
        last = Path(os.path.normpath(base / last)).as_posix()
    return Location("::".join([*chain, last]))


def plain(value: Any) -> Any:
    """A structured value as TOML knows it: tables, lists and scalars; None is written out as "none"."""
    match value:
        case None:
            return NONE
        case ComponentConfig(use=use, config=config):
            return {"use": use, **plain(config)}
        case StageConfig(job=job, config=config):
            return {"job": job, **plain(config)}
        case str():
            return escape(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(item) for key, item in value.items()}
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value)) if field.init}
    return value
