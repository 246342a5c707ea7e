"""docs/upsampling.md does what it says: its Python runs, its recipe loads, its commands and keys exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from helpers import ROOT

from fourd_core.cli import _parse
from fourd_core.recipe import load_recipe

PAGE = (ROOT / "docs/upsampling.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_python_runs() -> None:
    (source,) = blocks("python")
    scope: dict[str, Any] = {}
    exec(compile(source, "docs/upsampling.md", "exec", dont_inherit=True), scope)
    assert scope["colours"].shape == scope["both"].shape == (1, 1, 240, 320)
    assert scope["mask"].shape == (1, 240, 320)
    assert (int(scope["mask"][0, 40, 56]), int(scope["mask"][0, 160, 256])) == (0, 1)


def test_the_recipe_loads(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    for name in ("l4p_tiny.toml", "lila_tiny.toml"):
        (tmp_path / name).write_text(f'extends = "{ROOT / "recipes" / name}"\n')
    (tmp_path / "sharp.toml").write_text(text)
    recipe = load_recipe(tmp_path / "sharp.toml")
    depth, motion = recipe.heads["depth"].config, recipe.heads["motion"].config
    assert (depth.upsample, depth.upsample_features) == ("in_context", str(tmp_path / "lila_tiny.toml"))
    assert (motion.upsample, motion.upsample_features) == ("in_context", None)
    assert all(f"`{key}`" in PAGE for key in ("upsample", "upsample_features"))


def test_the_commands() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line)
        load_recipe(ROOT / words[2], _parse(words[1:]).overrides)


def test_the_table_is_the_benchmark_s() -> None:
    rows = json.loads((ROOT / "benchmarks/results/upsampling.json").read_text())["rows"]
    for row in rows:
        assert "| " + " | ".join(row.values()) + " |" in PAGE
    by_name = {next(iter(row.values())): list(row.values())[1:] for row in rows}
    ours, rivals = by_name["ours: colours"], [v for name, v in by_name.items() if re.match("bilinear|PAMR", name)]
    for rival in rivals:
        assert all(float(a.split()[0]) < float(b.split()[0]) for a, b in zip(ours, rival, strict=True))
