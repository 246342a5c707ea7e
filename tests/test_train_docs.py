"""docs/training.md does what it says: its keys are those of the stage, its sections load, its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import attrs
from helpers import ROOT

from fourd_core.cli import _parse
from fourd_core.jobs.cues import CuesConfig
from fourd_core.jobs.train import CHECKPOINT_FILE, TrainConfig
from fourd_core.jobs.validation import BEST_FILE
from fourd_core.recipe import load_recipe
from fourd_core.run_folder import WEIGHTS_FILE

PAGE = (ROOT / "docs" / "training.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_every_key_of_the_stage_is_in_the_table() -> None:
    table = PAGE.partition("## Keys")[2].partition("\n\n`precision")[0]
    named = {key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in attrs.fields(TrainConfig)}


def test_the_sections_load(tmp_path: Path) -> None:
    first, validation = blocks("toml")
    path = tmp_path / "mine.toml"
    base = f'extends = "{ROOT}/recipes/lila_tiny.toml"\n'
    path.write_text(base + first)
    train = load_recipe(path).stages["train"].config
    assert (train.steps, train.warmup, train.objective.use) == (100_000, 500, "lila")
    path.write_text(base + validation)
    train = load_recipe(path).stages["train"].config
    assert (train.validate_every, train.keep, list(train.validation)) == (2000, "best", ["davis", "cue_error"])


def test_the_command_and_the_names() -> None:
    (command,) = (line for block in blocks("sh") for line in block.splitlines())
    words = shlex.split(command)
    assert words[0] == "torchrun"
    options = _parse(words[words.index("fourd_core") + 1 :])
    assert (ROOT / options.recipe).exists()
    assert options.stages == ["train"]
    for name in (WEIGHTS_FILE, BEST_FILE, CHECKPOINT_FILE):
        assert f"`train/{name}`" in PAGE
    assert "processes" in {field.name for field in attrs.fields(CuesConfig)}
