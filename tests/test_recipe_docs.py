"""docs/recipes.md does what it says: its files are written, its commands are given, its messages are compared."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import attrs
import pytest
from recipe_parts import Parts

from fourd_core.errors import RecipeError
from fourd_core.recipe import Location, Recipe, dumps, load_recipe

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The page's files in the current folder, and its components."""
    monkeypatch.chdir(tmp_path)
    for text in blocks("toml"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    names: dict[str, Any] = {"attrs": attrs, "Location": Location}
    (source,) = blocks("python")
    exec(compile(source, "docs/recipes.md", "exec", dont_inherit=True), names)

    @attrs.frozen
    class Look:
        pass

    kinds = {
        "backbones": {"grid": names["Grid"]},
        "heads": {"decoder": names["Decoder"]},
        "datasets": {"video": names["Video"]},
    }
    return Parts(kinds, {"predict": Look})


def test_the_files(parts: Parts, tmp_path: Path) -> None:
    def load(name: str) -> Recipe:
        return load_recipe(Path(name), resolver=parts)

    tiny, longer, scratch = load("tiny.toml"), load("longer.toml"), load("scratch.toml")
    assert (tiny.name, tiny.seed, tiny.backbone.config.patch, list(tiny.heads)) == ("tiny", 7, 8, ["depth", "flow"])
    assert tiny.data.config.video == scratch.data.config.video == f"{tmp_path}/clips/street.mp4"
    assert (longer.seed, list(longer.heads)) == (8, ["depth"])
    assert (longer.heads["depth"].config.taps, longer.heads["depth"].config.features) == ((2, 5), 128)
    (tmp_path / "resolved.toml").write_text(dumps(longer))
    assert load("resolved.toml") == longer


def test_the_commands(parts: Parts) -> None:
    said: list[str] = []
    for block in blocks("console"):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            fourd, check, recipe, *options = shlex.split(line)
            assert (fourd, check, set(options[::2])) == ("fourd", "check", {"--set"})
            try:
                load_recipe(recipe, options[1::2], resolver=parts)
                message = ""
            except RecipeError as error:
                message = f"{error}\n"
            assert message == output, line
            said.append(message)
    assert sum(map(bool, said)) == 1 and len(said) >= 4


def test_every_key_of_a_recipe_is_in_the_table() -> None:
    for field in attrs.fields(Recipe):
        assert re.search(rf"^\| `\[?{field.name}(\.NAME)?\]?` \|", PAGE, re.MULTILINE), field.name
