"""Plain values to attrs classes through cattrs, strictly: nothing is coerced, and every mistake is collected.

cattrs finds the hook of each type; the hooks are ours, because its own turn "false" into True and 7.9 into 7, and stop
at the first failing validator.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Protocol, Union, get_args

import attrs
import cattrs

from fourd_core.errors import PluginError
from fourd_core.recipe.document import Argument, Mistake, describe, did_you_mean
from fourd_core.recipe.schema import SLOT, ComponentConfig, Location, Slot, StageConfig
from fourd_core.recipe.values import (
    NONE,
    UNIONS,
    Hook,
    Mistakes,
    Untagged,
    choice_hook,
    expectation,
    mismatch,
    origin_of,
    parsed,
    read_bool,
    read_float,
    read_int,
    read_location,
    read_str,
    wrong,
)


class Resolver(Protocol):
    """Finds the classes that a recipe names."""

    def component(self, kind: str, name: str) -> type[Any]:
        """The class of a component.

        Raises:
            PluginError: unknown, ambiguous or broken.
        """

    def job(self, name: str) -> type[Any]:
        """The Config class of a job.

        Raises:
            PluginError: unknown.
        """


class Installed:
    """What the installed distributions offer."""

    def component(self, kind: str, name: str) -> type[Any]:
        from fourd_core import registry

        return registry.load(kind, name)

    def job(self, name: str) -> type[Any]:
        from fourd_core.jobs import JOBS

        if name not in JOBS:
            raise PluginError(f'unknown job "{name}"{did_you_mean(name, list(JOBS))}')
        module, _, cls = JOBS[name].partition(":")
        return getattr(importlib.import_module(module), cls)  # type: ignore[no-any-return]


class Structurer:
    """The converter of one load: it asks `resolver` for the classes behind `use` and `job`."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.converter = cattrs.Converter()
        # In rising precedence: what none of them takes is a type that a Config may not have.
        factories: list[tuple[Callable[[Any], bool], Callable[[Any], Hook]]] = [
            (lambda _: True, _refuse_type),
            (attrs.has, self._table),
            (lambda t: origin_of(t) in UNIONS, self._optional),
            (lambda t: origin_of(t) is Literal, choice_hook),
            (lambda t: origin_of(t) is tuple, self._tuple),
            (lambda t: origin_of(t) is dict, self._mapping),
            (lambda t: origin_of(t) is Annotated, self._component),
            (lambda t: t is StageConfig, lambda _: self._stage),
            (lambda t: t is Location, lambda _: read_location),
        ]
        for is_mine, factory in factories:
            self.converter.register_structure_hook_factory(is_mine, factory)
        for scalar, hook in ((bool, read_bool), (int, read_int), (float, read_float), (str, read_str)):
            self.converter.register_structure_hook(scalar, hook)

    def structure(self, value: Any, cls: type[Any]) -> Any:
        """An instance of an attrs class.

        Raises:
            Mistakes: everything that does not fit.
            PluginError: the class has a field of a type that recipes do not know.
        """
        return self.hook(cls)(value, cls)

    def hook(self, t: Any) -> Hook:
        """What structures values of a type."""
        if isinstance(t, type) and t not in (bool, int, float, str, StageConfig) and not attrs.has(t):
            _refuse_type(t)  # cattrs has lenient hooks of its own for Path, bytes, enums ...
        return self.converter.get_structure_hook(t)

    def _table(self, cls: type[Any]) -> Hook:
        fields = {field.name: field for field in fields_of(cls) if field.init}
        kinds = {name: field_type(field) for name, field in fields.items()}
        hooks = {name: self.hook(t) for name, t in kinds.items()}
        implied = [name for name, field in fields.items() if SLOT in field.metadata and field.metadata[SLOT].implied]

        def structure(value: Any, _: Any) -> Any:
            value = parsed(value)
            if not isinstance(value, dict):
                raise mismatch(value, "a table")
            # A section whose `use` is implied may be left out as far as its component needs no keys.
            value = {name: {} for name in implied} | value
            unknown = [
                Mistake((key,), f"unknown key{did_you_mean(key, list(fields))}") for key in value if key not in fields
            ]
            missing = [
                Mistake((name,), f"missing, expected {expectation(kinds[name])}")
                for name, field in fields.items()
                if name not in value and field.default is attrs.NOTHING
            ]
            known = ((name, value[name], hooks[name], kinds[name]) for name in fields if name in value)
            values, found = _each(known)
            found += unknown + missing
            return _build(cls, values, found)

        return structure

    def _optional(self, t: Any) -> Hook:
        inner = [arg for arg in get_args(t) if arg is not type(None)]
        if len(inner) != 1 or len(get_args(t)) != 2:
            _refuse_type(t)
        hook = self.hook(inner[0])
        return lambda value, _: None if NONE in (value, parsed(value)) else hook(value, inner[0])

    def _tuple(self, t: Any) -> Hook:
        args = get_args(t)
        repeated = len(args) == 2 and args[1] is ...
        items = args[:1] if repeated else args
        hooks = [self.hook(item) for item in items]

        def structure(value: Any, _: Any) -> tuple[Any, ...]:
            value = parsed(value)
            if not isinstance(value, list) or not (repeated or len(value) == len(items)):
                size = f" of length {len(value)}" if isinstance(value, list) else ""
                raise wrong(f"found {describe(value)}{size}, expected {expectation(t)}")
            pick = (lambda _: 0) if repeated else (lambda i: i)
            values, found = _each((i, item, hooks[pick(i)], items[pick(i)]) for i, item in enumerate(value))
            if found:
                raise Mistakes(found)
            return tuple(values.values())

        return structure

    def _mapping(self, t: Any) -> Hook:
        key_type, item_type = get_args(t)
        if key_type is not str:
            _refuse_type(t)
        hook = self.hook(item_type)

        def structure(value: Any, _: Any) -> dict[str, Any]:
            value = parsed(value)
            if not isinstance(value, dict):
                raise mismatch(value, "a table")
            values, found = _each(
                (key, item, _siblings(hook, key, list(value)), item_type) for key, item in value.items()
            )
            if found:
                raise Mistakes(found)
            return values

        return structure

    def _component(self, t: Any) -> Hook:
        slot: Slot = get_args(t)[1]

        def config_class(use: str) -> type[Any]:
            return self.resolver.component(slot.kind, use).Config  # type: ignore[no-any-return]

        def structure(value: Any, _: Any) -> ComponentConfig:
            use, config = self._tagged(value, "use", config_class, slot)
            return ComponentConfig(slot.kind, use, config)

        return structure

    def _stage(self, value: Any, _: Any) -> StageConfig:
        return StageConfig(*self._tagged(value, "job", self.resolver.job))

    def _tagged(
        self, value: Any, tag: str, find: Callable[[str], type[Any]], slot: Slot | None = None
    ) -> tuple[str, Any]:
        """A table whose key `tag` names the class that its other keys configure."""
        value = parsed(value)
        what = f"the name of one of the {slot.kind}" if slot else "the name of a job"
        if not isinstance(value, dict):
            raise mismatch(value, f"a table with `{tag}`, {what}")
        chosen = value.get(tag, slot.implied if slot else None)
        if chosen is None:
            raise Untagged([Mistake((tag,), f"missing, expected {what}")])
        if not isinstance(chosen, str):
            raise Mistakes([Mistake((tag,), f"found {describe(chosen)}, expected {what}")])
        name = read_str(chosen, str)
        try:
            cls = find(name)
            fields = [field.name for field in fields_of(cls) if field.init]
            if tag in fields:
                raise PluginError(f'the Config of "{name}" has a field `{tag}`, which recipes use themselves')
            hook = self.hook(cls)
        except PluginError as error:
            raise Mistakes([Mistake((tag,), str(error))]) from error
        # After a switch by --set the keys of the component before it are still there.
        advice = (
            f'; a whole table, {{ {tag} = "{name}" }}, replaces the old keys' if isinstance(chosen, Argument) else ""
        )
        found = [
            Mistake((key,), f'"{name}" has no such key{did_you_mean(key, fields)}{advice}')
            for key in value
            if key not in (tag, *fields)
        ]
        config = None
        try:
            config = hook({key: item for key, item in value.items() if key in fields}, cls)
        except Mistakes as mistakes:
            found += mistakes.found
        if found:
            raise Mistakes(found)
        return name, config


def _siblings(hook: Hook, name: str, names: list[str]) -> Hook:
    """A section without `use` may be a slip of the pen for one beside it."""

    def structure(value: Any, t: Any) -> Any:
        try:
            return hook(value, t)
        except Untagged as mistakes:
            near = did_you_mean(name, [other for other in names if other != name])
            hint = near if "did you mean" in near else ""
            raise Mistakes([attrs.evolve(m, text=m.text + hint) for m in mistakes.found]) from None

    return structure


def _each(items: Iterable[tuple[Any, Any, Hook, Any]]) -> tuple[dict[Any, Any], list[Mistake]]:
    """Structure (key, value, hook, type) one by one; what fails is collected under its key."""
    values: dict[Any, Any] = {}
    found: list[Mistake] = []
    for key, value, hook, t in items:
        try:
            values[key] = hook(value, t)
        except Mistakes as mistakes:
            found += [mistake.under(key) for mistake in mistakes.found]
    return values, found


def _build(cls: type[Any], values: dict[str, Any], found: list[Mistake]) -> Any:
    """The instance, unless a mistake was found or a validator finds one; then all that each field's validator says."""
    reason = None
    if not found:
        try:
            return cls(**{field.alias: values[field.name] for field in attrs.fields(cls) if field.name in values})
        except (ValueError, TypeError) as error:
            reason = error
    partial = object.__new__(cls)
    wrong_fields = {mistake.path[0] for mistake in found if mistake.path}
    for field in attrs.fields(cls):
        if field.name in values:
            object.__setattr__(partial, field.name, values[field.name])
        elif field.name not in wrong_fields and not isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
            object.__setattr__(partial, field.name, field.default)
    for field in attrs.fields(cls):
        if field.name in values and field.validator is not None:
            try:
                field.validator(partial, field, values[field.name])
            except AttributeError:  # it also looks at a field that is wrong itself
                continue
            except (ValueError, TypeError) as error:
                found.append(Mistake((field.name,), _sentence(error)))
    if reason is not None and not found:
        found.append(Mistake((), _sentence(reason)))
    raise Mistakes(found)


def _sentence(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def fields_of(cls: type[Any]) -> tuple[attrs.Attribute[Any], ...]:
    """The fields of an attrs class, annotations resolved.

    Raises:
        PluginError: an annotation names something that its module does not have.
    """
    try:
        attrs.resolve_types(cls, include_extras=True)
    except NameError as error:
        raise PluginError(f"{cls.__module__}.{cls.__qualname__}: {error}, needed by a field's annotation") from error
    return tuple(attrs.fields(cls))


def field_type(field: attrs.Attribute[Any]) -> Any:
    """The type of a field; component sections in it carry their Slot."""

    def with_slot(t: Any) -> Any:
        if t is ComponentConfig:
            return Annotated[t, slot]
        if origin_of(t) in UNIONS:
            return Union[tuple(with_slot(arg) for arg in get_args(t))]  # noqa: UP007
        if origin_of(t) is dict:
            key, item = get_args(t)
            return types.GenericAlias(dict, (key, with_slot(item)))
        return t

    slot = field.metadata.get(SLOT)
    return field.type if slot is None else with_slot(field.type)


def _refuse_type(t: Any) -> Hook:
    raise PluginError(
        f"a Config has a field of type {t}, which recipes do not know; they know int, float, bool, str, Location, "
        "Literal, tuple, dict[str, ...], attrs classes, component sections, and `X | None` of these"
    )
