"""docs/add_a_head.md does what it says: its files are written and its commands are given, from top to bottom."""

from __future__ import annotations

import importlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file

from fourd_core.build import build_system
from fourd_core.cli import main
from fourd_core.recipe import load_recipe

PAGE = (ROOT / "docs" / "add_a_head.md").read_text()
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


class Walk(NamedTuple):
    """What somebody has who followed the page: the folder, and what each command printed."""

    folder: Path
    printed: dict[str, str]

    def losses(self, run: str) -> list[float]:
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def overlaps(self, run: str) -> list[float]:
        """What `look.py` said: of the training frames, of the held-out ones."""
        return [float(number) for number in re.findall(r"union (\S+)", self.printed[f"python look.py runs/{run}"])]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The page, followed in a folder that has the repository's recipes and examples."""
    walk = Walk(tmp_path_factory.mktemp("clone"), {})
    for name in ("recipes", "examples"):
        (walk.folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(walk.folder)
        patch.setenv("COLUMNS", "200")
        for language, text in BLOCK.findall(PAGE):
            block = textwrap.dedent(text)
            if language == "console":
                for line in block.replace("$ ", "").splitlines():
                    walk.printed[line] = follow(shlex.split(line), patch)
            elif language in ("python", "toml"):
                path = Path(block.splitlines()[0].removeprefix("# "))
                path.parent.mkdir(exist_ok=True)
                path.write_text(block)
        yield walk
    sys.modules.pop("acme_moving", None)


def follow(words: list[str], patch: pytest.MonkeyPatch) -> str:
    """A line of the page, in this process where that is possible: each new one would import torch again."""
    printed = io.StringIO()
    match words:
        case ["fourd", *rest]:
            with redirect_stdout(printed), redirect_stderr(printed):
                code = main(rest)
            assert code == 0, f"{rest}: {printed.getvalue()}"
        case ["pip", "install", project]:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
            subprocess.run([*command, "--no-build-isolation", "--target", "site", project], check=True)
            patch.syspath_prepend(Path("site").resolve())
            importlib.invalidate_caches()
        case ["python", "-m", "pytest", folder]:
            (tests,) = Path(folder).glob("test_*.py")
            found = [function for name, function in runpy.run_path(str(tests)).items() if name.startswith("test_")]
            assert found
            for function in found:
                function()
        case ["python", script, *rest]:
            patch.setattr(sys, "argv", [script, *rest])
            with redirect_stdout(printed):
                runpy.run_path(script, run_name="__main__")
        case _:
            raise AssertionError(f"the page gives a command that this test does not know: {words}")
    return printed.getvalue()


def test_the_head_of_the_recipe_learns(walk: Walk) -> None:
    """As the page says: above 0.5 on training frames and held-out ones, after 40 steps."""
    losses = walk.losses("moving")
    assert len(losses) == 40
    assert sum(losses[-5:]) / 5 < 0.3 * losses[0], losses
    overlaps = walk.overlaps("moving")
    assert len(overlaps) == 2 and min(overlaps) > 0.5, overlaps


def test_only_that_head_learns(walk: Walk) -> None:
    start = build_system(load_recipe(walk.folder / "moving.toml")).trained_state()
    learned = load_file(walk.folder / "runs/moving/train/weights.safetensors")
    assert start.keys() == learned.keys()
    changed = {key.split(".")[1] for key, value in start.items() if not torch.equal(value, learned[key])}
    assert changed == {"moving"}


def test_what_the_run_leaves(walk: Walk) -> None:
    import zarr

    assert (walk.folder / "runs/moving/report.html").exists()
    arrays = set(zarr.open_group(walk.folder / "runs/moving/predict/moving.zarr", mode="r").keys())
    assert {"moving", "depth", "flow"} <= arrays and "motion" not in arrays


def test_the_foreign_head_is_found_and_learns(walk: Walk) -> None:
    (row,) = [line for line in walk.printed["fourd list"].splitlines() if line.startswith("  acme_linear")]
    assert "acme-moving 1.0" in row and "one linear layer on the tokens" in row and "BROKEN" not in row
    losses = walk.losses("linear")
    assert len(losses) == 60 and sum(losses[-5:]) / 5 < 0.3 * losses[0], losses
    assert min(walk.overlaps("linear")) > 0.5
    state = load_file(walk.folder / "runs/linear/train/weights.safetensors")
    moving = {key: tuple(value.shape) for key, value in state.items() if key.startswith("heads.moving.layers.1.")}
    assert moving == {"heads.moving.layers.1.weight": (1, 256), "heads.moving.layers.1.bias": (1,)}


def test_the_recipe_that_goes_on_from_the_published_head(walk: Walk) -> None:
    recipe = load_recipe(walk.folder / "finetune.toml", ["stages.train.objective.masks=masks"])
    assert sorted(recipe.heads) == ["cameras", "depth", "flow", "motion", "track"]
    assert list(recipe.stages) == ["train", "predict"]
    train = recipe.stages["train"].config
    assert (train.learn, train.objective.config.head, recipe.weights) == (("motion",), "motion", "weights:l4p")
