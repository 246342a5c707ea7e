"""The page on training L4P: commands parse, keys, stages and weights exist, its Python can be learned from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fourd_l4p.example import small_system
from fourd_l4p.objective import L4P, Weights
from helpers import ROOT

from fourd_core.cli import _parse
from fourd_core.interfaces import TRUTHS
from fourd_core.recipe import load_recipe

PAGE = (ROOT / "docs/l4p_training.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).splitlines()
    inline = re.findall(r"`(fourd run [^`]*|--set [^`]*)`", PAGE)
    whole = [line if line.startswith("fourd") else f"fourd run recipes/l4p_full.toml {line}" for line in inline]
    return [shlex.split(line, comments=True) for line in (*lines, *whole) if line and "RECIPE" not in line]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[-60:])
def test_the_commands_parse_and_their_stages_and_keys_exist(words: list[str]) -> None:
    if "benchmarks" in words[2]:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").exists()
        assert words[4] in load_recipe(ROOT / words[3]).stages
        return
    options = _parse(words[words.index("run") :])
    recipe = load_recipe(ROOT / options.recipe, options.overrides)
    assert set(options.stages) <= set(recipe.stages)
    assert all(recipe.stages[stage].config.by_name for stage in options.stages)


def test_the_stages_and_what_is_said_of_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`|both) \|", PAGE.partition("## Stages")[2], re.MULTILINE)
    tiny, full = (load_recipe(ROOT / f"recipes/{name}.toml").stages for name in ("l4p_tiny", "l4p_full"))
    for name, of in rows:
        assert (name in tiny) == (of != "l4p_full")
        assert (name in full) == (of != "l4p_tiny")
    assert {name for name, _ in rows} == (set(tiny) | set(full)) - {"predict"}
    second = full["train_2"].config
    objective = second.objective.config
    assert (objective.frames, objective.points, objective.query_frames) == (40, 48, 20)
    assert (second.learn, second.learn_blocks) == (("track",), 3)
    first = full["train_1"].config
    assert (first.objective.config.points, first.learn_blocks, first.lr, first.steps) == (80, -1, 5e-5, 100_000)
    sizes = {name: tiny[name].config.objective.config for name in ("grow_0", "grow_1", "grow_2")}
    assert [(one.frames, one.crop) for one in sizes.values()] == [(4, 32), (4, 32), (8, 64)]


def test_the_losses_and_their_weights() -> None:
    table = PAGE.partition("## Losses")[2].partition("## Data")[0]
    said = {name: float(weight) for name, weight in re.findall(r"^\| `(\w+)` \|.*?\| (\d+) \|", table, re.MULTILINE)}
    assert said == attrs.asdict(Weights())
    config = L4P.Config()
    assert config.variance_focus == 0.85 and config.scale == "clip" and config.strides == (1,)


def test_the_section_loads(tmp_path: Path) -> None:
    (section,) = blocks("toml")
    path = tmp_path / "mine.toml"
    path.write_text(section.replace("l4p_full.toml", str(ROOT / "recipes/l4p_full.toml")))
    data = load_recipe(path).stages["train_1"].config.data.config
    assert data.weights == {"kubric": 2.0} and data.sets["tartanair"].config.levels == ("Hard",)


def test_data_of_ones_own_can_be_learned_from() -> None:
    (block,) = blocks("python")
    scope: dict[str, Any] = {}
    exec(block, scope)
    data = scope["SlidingWalls"](scope["SlidingWalls"].Config(view="resize", pixels=32))
    (video,) = data.videos("train")
    truth = video.truth([3, 4, 3, 7])
    assert set(truth) == video.known and video.known < set(TRUTHS)
    assert truth["flow"].values[0, :, 0, 0, 0].nan_to_num(9).tolist() == [9, -1, 1, 9]
    frames = video.read([3, 4])
    assert torch.equal(frames[1, :, :, 1:], frames[0, :, :, :-1]), "the flow is that of the frames"
    system = small_system()
    objective = L4P(L4P.Config(points=2, strides=(1, -1)), system)
    samples = [objective.sample(data, "train", torch.Generator().manual_seed(seed)) for seed in range(2)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    losses = objective(system, batch, torch.Generator().manual_seed(0))
    assert all(value.isfinite() for value in losses.values())
    assert float(losses["depth"].detach()) > 0 and float(losses["flow"].detach()) > 0
