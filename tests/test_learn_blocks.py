"""Training that reaches into the backbone: what learns, what is kept of it, and who finds it again."""

from __future__ import annotations

import signal
from pathlib import Path

import learn_parts
import pytest
import torch
import train_parts
from helpers import Fourd
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_parts import ended, forked, kill_after, logged_lines

import fourd_core as fourd_package
from fourd_core.jobs.train import TrainJob
from fourd_core.run_folder import Run

WEIGHTS = "train/weights.safetensors"
BLOCKS = [f"backbone.blocks.{number}.{name}" for number in range(3) for name in ("weight", "bias")]
NORM = ["backbone.norm.weight", "backbone.norm.bias"]
HEAD = ["heads.value.linear.weight", "heads.value.linear.bias"]
SECOND = """
[stages.second]
job = "train"
steps = 3
batch_size = 2
lr = 0.01

[stages.second.objective]
use = "mean_square"
"""


@pytest.fixture
def recipe(toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy recipe with a backbone in blocks, the deepest of which the head reads; 12 steps of 2 samples."""
    for parts in (train_parts, learn_parts):
        parts.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = toy_recipe.read_text().replace("toy_patches", "blocks").replace("toy_regression", "mean_square")
    toy_recipe.write_text(text.replace("steps = 40", "steps = 12").replace('"toy_linear"', '"toy_linear"\ntap = -1'))
    return toy_recipe


def learn(blocks: int, stage: str = "train") -> list[str]:
    return ["--set", f"stages.{stage}.learn_blocks={blocks}"]


def start_of(recipe: Path) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in fourd_package.load(recipe).state_dict().items()}


@pytest.mark.parametrize(
    ("blocks", "learned"),
    [(0, HEAD), (1, HEAD + BLOCKS[4:] + NORM), (2, HEAD + BLOCKS[2:] + NORM), (-1, HEAD + BLOCKS + NORM)],
)  # fmt: skip
def test_so_many_blocks_learn_and_the_whole_backbone_is_kept(
    fourd: Fourd, recipe: Path, tmp_path: Path, blocks: int, learned: list[str]
) -> None:
    start = start_of(recipe)
    fourd("run", recipe, "train", *learn(blocks), "--out", "a", check=0)
    kept = load_file(tmp_path / "a" / WEIGHTS)
    own = BLOCKS + NORM + ["backbone.trained_on"] if blocks else []
    assert {key for key in kept if not key.startswith("objectives.")} == {*HEAD, *own}
    changed = [key for key in (*HEAD, *BLOCKS, *NORM) if key in kept and not torch.equal(kept[key], start[key])]
    assert changed == [key for key in (*HEAD, *BLOCKS, *NORM) if key in learned]
    if blocks:
        assert kept["backbone.trained_on"] == 24, "a backbone that learns is in training mode: 12 steps of 2 samples"
    found = fourd_package.load(tmp_path / "a").state_dict()
    for key, value in {**{key: start[key] for key in BLOCKS + NORM}, **kept}.items():
        if not key.startswith("objectives."):
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key)


def test_a_killed_training_of_the_backbone_ends_with_the_same_bits(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    words = ["run", recipe, "train", *learn(2), "--set", "stages.train.steps=60", "--set", "stages.train.ema=0.9"]
    fourd(*words, "--out", "whole", check=0)
    processes = forked(tmp_path, *words, "--out", "killed")
    kill_after(tmp_path / "killed", processes, lines=20)
    assert ended(processes) == [-signal.SIGKILL]
    assert 20 <= logged_lines(tmp_path / "killed") < 60
    checkpoint = load_file(tmp_path / "killed/train/checkpoint.safetensors")
    assert any(key.startswith("optimizer/") and "backbone.blocks.2" in key for key in checkpoint)
    fourd(*words, "--out", "killed", check=0)
    whole, killed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert not [key for key in whole if not torch.equal(whole[key], killed[key])]
    assert not torch.equal(whole["backbone.blocks.2.weight"], start_of(recipe)["backbone.blocks.2.weight"])


def test_a_later_stage_that_leaves_it_alone_keeps_what_was_learned(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("[stages.evaluate]\n", f"{SECOND}\n[stages.evaluate]\n"))
    fourd("run", recipe, "train", "second", *learn(-1), "--out", "at_once", check=0)
    fourd("run", recipe, "train", *learn(-1), "--out", "apart", check=0)
    fourd("run", recipe, "second", *learn(-1), "--out", "apart", check=0)
    first = load_file(tmp_path / "at_once" / WEIGHTS)
    for run in ("at_once", "apart"):
        second = load_file(tmp_path / run / "second/weights.safetensors")
        for key in (*BLOCKS, *NORM, "backbone.trained_on"):
            torch.testing.assert_close(second[key], first[key], rtol=0, atol=0, msg=f"{run} {key}")
        assert not torch.equal(second[HEAD[0]], first[HEAD[0]]), "the second stage taught the head"
        found = fourd_package.load(tmp_path / run).state_dict()
        assert torch.equal(found[BLOCKS[0]], first[BLOCKS[0]])
    both = [load_file(tmp_path / run / "second/weights.safetensors")[HEAD[0]] for run in ("at_once", "apart")]
    assert torch.equal(*both)


def test_the_room_of_gradients_and_moments_is_free_for_the_next_stage(
    fourd: Fourd, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, original = [], TrainJob.run

    def remembered(job: TrainJob, run: Run) -> None:
        original(job, run)
        done.append(job)

    monkeypatch.setattr(TrainJob, "run", remembered)
    fourd("run", recipe, "train", *learn(-1), "--set", "stages.train.ema=0.5", "--out", "a", check=0)
    assert all(parameter.grad is None for parameter in done[0].system.parameters())
    assert not hasattr(done[0], "optimisation") and not hasattr(done[0], "average")


def test_what_follows_a_training_sees_the_backbone_it_left(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "train", "evaluate", *learn(-1), "--out", "at_once", check=0)
    weights = tmp_path / "at_once" / WEIGHTS
    fourd("run", recipe, "evaluate", "--set", f"trained={weights}", "--out", "trained", check=0)
    fourd("run", recipe, "evaluate", "--set", f"weights={weights}", "--out", "weights", check=0)
    left_out = load_file(weights)
    save_file(
        {key: value for key, value in left_out.items() if key.startswith("heads.")}, tmp_path / "heads.safetensors"
    )
    fourd("run", recipe, "evaluate", "--set", "weights=heads.safetensors", "--out", "heads", check=0)
    results = {
        run: (tmp_path / run / "evaluate/result.json").read_text() for run in ("at_once", "trained", "weights", "heads")
    }
    assert results["at_once"] == results["trained"] == results["weights"]
    assert results["heads"] != results["at_once"], "the heads alone are not what was trained"


@torch.no_grad()
def test_untrained_is_the_start_and_leaves_the_training_alone(recipe: Path, tmp_path: Path) -> None:
    """Also where the recipe names weights of the backbone, which are not loaded into the one that learns."""
    start = start_of(recipe)
    own = {key: value for key, value in start.items() if key.startswith(("backbone.", "heads."))}
    save_file(own, tmp_path / "start.safetensors")
    for weights in ([], [f"weights={tmp_path / 'start.safetensors'}"]):
        system = fourd_package.load(recipe, weights)
        system.learn_backbone(1)
        for parameter in system.backbone.parameters():
            parameter += 1
        now = {key: value.clone() for key, value in system.state_dict().items()}
        untrained = system.untrained().state_dict()
        assert all(torch.equal(untrained[key], value) for key, value in own.items())
        assert all(torch.equal(value, now[key]) for key, value in system.state_dict().items())
        learning = [f"backbone.{key}" for key, p in system.backbone.named_parameters() if p.requires_grad]
        assert learning == BLOCKS[4:] + NORM


def test_a_frozen_backbone_is_never_in_training_mode(recipe: Path) -> None:
    system = fourd_package.load(recipe)
    system.learn_backbone(1)
    assert system.train().backbone.training and system.own_backbone
    system.learn_backbone(0)
    assert not system.train().backbone.training
    assert any(key.startswith("backbone.") for key in system.trained_state()), "it was changed once"


@pytest.mark.parametrize(("backbone", "blocks", "says"), [
    ("blocks", 4, "the backbone has 3 blocks, not 4"), ("toy_patches", 1, "cannot be trained in part"),
])  # fmt: skip
def test_blocks_that_are_not_there(
    fourd: Fourd, recipe: Path, tmp_path: Path, backbone: str, blocks: int, says: str
) -> None:
    words = ["--set", f"backbone.use={backbone}", *learn(blocks), "--out", "a"]
    answer = fourd("run", recipe, *words, check=2)
    assert "stages.train.learn_blocks: " in answer.stderr
    assert says in answer.stderr
    assert not (tmp_path / "a").exists()
