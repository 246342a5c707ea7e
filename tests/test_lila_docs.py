"""The page on LILA: its Python runs, its commands, keys, recipes and weights exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from fourd_lila.objective import LILA
from helpers import ROOT, write_video

from fourd_core.cli import _parser
from fourd_core.recipe import load_recipe
from fourd_core.weights.assets import all_assets

PAGE = (ROOT / "docs/lila.md").read_text()


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    clip = "examples/bigbuckbunny.mp4"
    assert clip in block
    frames = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    scope: dict[str, Any] = {"frames": frames}
    exec(block.replace(clip, str(write_video(tmp_path / "clip.mp4", 3, (96, 128)))), scope)
    assert scope["feats"].shape == (2, 32, 96, 128)


def test_the_commands_parse_and_their_keys_exist() -> None:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = [part.strip() for line in filter(None, shell.splitlines()) for part in line.split("&&")]
    assert len(lines) == 8
    names = {known.asset.name for known in all_assets()[0]}
    for line in lines:
        words = shlex.split(line, comments=True)
        start = words.index("fourd_core") if "fourd_core" in words else words.index("fourd")
        options = _parser(words[start + 1 :]).parse_known_args(words[start + 1 :])[0]
        if words[start + 1] == "run":
            recipe = load_recipe(ROOT / words[start + 2], options.overrides)
            assert set(options.stages) <= set(recipe.stages)
        else:
            assert options.name in names


def test_keys_recipes_and_weights_that_are_named_exist() -> None:
    table = PAGE.partition("| key of `stages.train.objective`")[2].partition("\n\n")[0]
    keys = [key for row in table.splitlines()[2:] for key in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    fields = LILA.Config.__attrs_attrs__
    recipe = load_recipe(ROOT / "recipes/lila_vits14.toml")
    for key in keys:
        if key.startswith("stages.train."):
            assert hasattr(recipe.stages["train"].config, key.rpartition(".")[2]), key
        elif key.startswith("cues.flow."):
            assert hasattr(recipe.cues["flow"].config, key.rpartition(".")[2]), key
        else:
            assert key in {field.name for field in fields}, key
    assert len(keys) >= 9
    for name in re.findall(r"`(lila_(?:sd|depth|erm|no|paper)\w*)`", PAGE):
        load_recipe(ROOT / f"recipes/ablations/{name}.toml")
    for name in re.findall(r"`(lila_vit\w+)\.toml`", PAGE):
        load_recipe(ROOT / f"recipes/{name}.toml")
    metrics = recipe.stages["eval"].config.metrics
    named = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", PAGE.partition("## Evaluation")[2], re.MULTILINE)
    assert {name for pair in named for name in pair if name} - {"depth_probe", "flow_probe"} == set(metrics)


def test_the_recorded_ablation_is_shown_beside_a_run_of_today() -> None:
    # A key that was added since would hide it: its value then was today's default.
    (table,) = json.loads((ROOT / "recipes/ablations/lila_tiny_erm.json").read_text())
    settings = {field.name for field in LILA.Config.__attrs_attrs__}
    assert settings - {"mode", "edge_weight", "edge_sigma", "edge_form"} <= set(table["protocol"])
