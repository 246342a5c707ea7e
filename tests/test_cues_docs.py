"""docs/cues.md does what it says: its recipe runs, its commands parse, its tables are whole, its numbers measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import ROOT, SMALL_LILA, Fourd

from fourd_core.cli import _parse
from fourd_core.jobs.cues import CuesConfig
from fourd_core.recipe import load_recipe
from fourd_core.recipe.schema import ClusterConfig

PAGE = (ROOT / "docs/cues.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The page's recipe."""
    name, _, text = blocks("toml")[0].partition("\n")
    path = tmp_path / name.removeprefix("# ")
    path.write_text(text.replace("recipes/", f"{ROOT}/recipes/"))
    return path


def test_the_recipe_and_the_python(recipe: Path, fourd: Fourd) -> None:
    small = [word for setting in SMALL_LILA for word in ("--set", setting)]
    fourd("run", recipe.name, "cues", "--out", "a", *small, check=0)
    scope: dict[str, Any] = {}
    exec(blocks("python")[0], scope)
    assert scope["flow"].shape == (2, 3, 64, 64)
    assert set(scope["about"]) == {"network", "weights", "frames"}


def test_the_commands(recipe: Path) -> None:
    lines = [shlex.split(line, comments=True) for line in blocks("sh")[0].splitlines()]
    for words in lines:
        options = _parse(words[1:])
        assert options.recipe == recipe.name
        loaded = load_recipe(recipe, options.overrides)
        assert set(options.stages) <= loaded.stages.keys()
    assert _parse(lines[2][1:]).cluster == "tcp://10.0.0.1:8786"


def test_the_tables_have_every_key(tmp_path: Path) -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == [field.name for field in attrs.fields(CuesConfig)]
    path = tmp_path / "with.toml"
    path.write_text(f'extends = "{ROOT}/recipes/lila_tiny.toml"\n{blocks("toml")[1]}')
    assert load_recipe(path).cluster == ClusterConfig(workers=3, threads=1)
    assert {field.name for field in attrs.fields(ClusterConfig)} == set(re.findall(r"^(?:\w+ .*# or )?(\w+) =",
        blocks("toml")[1], re.MULTILINE)) | {"workers"}  # fmt: skip


def test_the_numbers_were_measured() -> None:
    rows = json.loads((ROOT / "benchmarks/results/cues_storage.json").read_text())["rows"]
    half, single, error = rows
    assert f"| {half['kB per clip'] / 1e3:.2f} MB | {single['kB per clip'] / 1e3:.2f} MB |" in PAGE
    hours = (row["GB per hour at 25 fps"] for row in (half, single))
    assert "| {:.0f} GB | {:.0f} GB |".format(*hours) in PAGE
    assert f"by at most {error['largest (px)']} px (flow of up to {error['largest flow (px)']:.0f} px" in PAGE
