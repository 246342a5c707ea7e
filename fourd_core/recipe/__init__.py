"""Recipes: TOML that names components and sets their keys, structured strictly into attrs.

Importing this loads neither torch nor a plugin. `schema` says what a recipe is made of; `source` makes a
`document` of files, `extends` and `--set`, with the line of each key from `lines`; `structure` and
`values` fit it to the schema. docs/recipes.md is the user's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fourd_core.recipe.document import Document, Origin, with_base
from fourd_core.recipe.schema import ComponentConfig, Location, Recipe, StageConfig, component, components
from fourd_core.recipe.source import expand, override, read_file, read_text, with_parents
from fourd_core.recipe.structure import Installed, Resolver, Structurer
from fourd_core.recipe.values import Mistakes, plain

__all__ = [
    "ComponentConfig",
    "Location",
    "Recipe",
    "Resolver",
    "StageConfig",
    "component",
    "components",
    "dumps",
    "load_recipe",
    "parse",
]


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, resolver: Resolver | None = None) -> Recipe:
    """The recipe in a file, with what it extends, overrides laid on top.

    Args:
        overrides: as `--set` on the command line, for example `["heads.depth.taps=[2, 5]"]`.
        resolver: finds the classes that the recipe names; the installed plugins by default.
    Raises:
        RecipeError: everything that is wrong with it, a line for each mistake.
    """
    path = Path(path)
    document = read_file(path)
    document.data.setdefault("name", path.stem)
    return _resolve(document, overrides, resolver)


def parse(
    source: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str = "recipe",
    base: str | Path | None = None,
    resolver: Resolver | None = None,
) -> Recipe:
    """A recipe from a TOML text or from the tables of one.

    Args:
        overrides: as in `load_recipe`.
        name: what the text is called in messages, and the recipe where it does not say.
        base: the folder that its relative paths are relative to; by default the current one.
        resolver: as in `load_recipe`.
    Raises:
        RecipeError: as in `load_recipe`.
    """
    folder = Path.cwd() if base is None else Path(base).absolute()
    if isinstance(source, str):
        document = read_text(source, name, folder)
    else:
        document = Document(with_base(dict(source), folder), {(): Origin(name)})
    document = with_parents(document, folder / name)
    document.data.setdefault("name", name)
    return _resolve(document, overrides, resolver)


def _resolve(document: Document, overrides: Sequence[str], resolver: Resolver | None) -> Recipe:
    for argument in overrides:
        override(document, argument)
    expand(document)
    found = list(document.mistakes)
    try:
        recipe: Recipe = Structurer(resolver or Installed()).structure(document.data, Recipe)
    except Mistakes as mistakes:
        reported = {mistake.path for mistake in found}
        found += [mistake for mistake in mistakes.found if mistake.path not in reported]
    if found:
        raise document.error(found) from None
    return recipe


def dumps(recipe: Recipe) -> str:
    """The whole recipe as TOML, every default written out; it loads back to an equal recipe, wherever it lies."""
    return tomli_w.dumps(plain(recipe))
