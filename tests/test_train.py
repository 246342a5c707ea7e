"""The training job: schedules, what makes no difference, what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import Fourd, with_lines
from safetensors.torch import load_file

from fourd_core.build import build_system
from fourd_core.checkpoint import Checkpoint, optimizer_state, restore_optimizer, save_tensors
from fourd_core.errors import WeightsError
from fourd_core.jobs.optimisation import learning_rate
from fourd_core.jobs.train import TrainConfig
from fourd_core.recipe import ComponentConfig, load_recipe

WEIGHTS = "train/weights.safetensors"


def config(**keys: object) -> TrainConfig:
    return TrainConfig(objective=ComponentConfig("objectives", "none", None), **keys)  # type: ignore[arg-type]


def test_learning_rates_by_hand() -> None:
    flat = config(steps=10, lr=2.0, warmup=4)
    assert [learning_rate(flat, step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    cosine = config(steps=8, lr=2.0, warmup=0, schedule="cosine")
    assert learning_rate(cosine, 0) == 2.0
    assert learning_rate(cosine, 4) == pytest.approx(1.0)
    assert learning_rate(cosine, 7) == pytest.approx(1 + torch.cos(torch.tensor(7 / 8 * torch.pi)).item())
    stairs = config(steps=8, lr=2.0, schedule="step", decay=0.5, decay_every=3)
    assert [learning_rate(stairs, step) for step in (0, 2, 3, 5, 6)] == [2.0, 2.0, 1.0, 1.0, 0.5]


def test_workers_change_nothing_but_the_speed(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    steps = ("--set", "stages.train.steps=6")
    fourd("run", toy_recipe, "train", *steps, "--out", "none", check=0)
    fourd("run", toy_recipe, "train", *steps, "--set", "stages.train.workers=2", "--out", "two", check=0)
    assert (tmp_path / "none" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()


def test_accumulation_averages_the_losses(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    """One step over two batches of one equals the mean of two first steps' losses, and moves the weights once."""
    common = ("--set", "stages.train.batch_size=1", "--set", "stages.train.lr=1e-30")
    fourd("run", toy_recipe, "train", *common, "--set", "stages.train.steps=2", "--out", "single", check=0)
    both = ("--set", "stages.train.steps=1", "--set", "stages.train.accumulate=2")
    fourd("run", toy_recipe, "train", *common, *both, "--out", "both", check=0)
    single = [entry["loss"] for entry in logged(tmp_path / "single")]
    (mean,) = (entry["loss"] for entry in logged(tmp_path / "both"))
    assert mean == pytest.approx(sum(single) / 2, rel=1e-6)


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_bf16_trains_close_to_fp32(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        fourd("run", toy_recipe, "train", "--set", f"precision={precision}", "--out", precision, check=0)
    full, half = (load_file(tmp_path / precision / WEIGHTS) for precision in ("fp32", "bf16"))
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert not torch.equal(half[name], value)
        torch.testing.assert_close(half[name], value, rtol=0.05, atol=0.02)


def test_checkpoints_carry_weights_optimiser_and_step(tmp_path: Path) -> None:
    def trained(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    first = torch.nn.Linear(3, 2)
    names = dict(first.named_parameters())
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.1)
    trained(first, optimizer, 3)
    path = tmp_path / "checkpoint.safetensors"
    average = {"weight": torch.ones(2, 3)}
    Checkpoint(first.state_dict(), 3, optimizer_state(optimizer, names), average, processes=2).save(path)
    trained(first, optimizer, 2)

    second = torch.nn.Linear(3, 2)
    names = dict(second.named_parameters())
    again = torch.optim.AdamW(second.parameters(), lr=0.1)
    kept = Checkpoint.read(path)
    assert (kept.step, kept.processes) == (3, 2)
    assert torch.equal(kept.average["weight"], average["weight"])
    second.load_state_dict(dict(kept.model))
    restore_optimizer(again, names, kept.optimizer, "there")
    trained(second, again, 2)
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(WeightsError, match=r"there holds .* '(weight|bias)', which this system does not train"):
        restore_optimizer(again, {"other": second.weight}, kept.optimizer, "there")

    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        Checkpoint.read(path)


def test_files_of_tensors_obey_the_umask(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(1)})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "wrong", ["clip_norm=-1", "clip_norm=0", "weight_decay=-1", "betas=[2, 0.9]", "warmup=-1", "ema=1"]
)
def test_settings_that_make_no_sense(fourd: Fourd, toy_recipe: Path, tmp_path: Path, wrong: str) -> None:
    answer = fourd("run", toy_recipe, "train", "--set", f"stages.train.{wrong}", "--out", "a", check=2)
    assert f"stages.train.{wrong.partition('=')[0]}" in answer.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("wrong", ["validate_every=2", 'keep="best"'])
def test_validation_needs_a_metric(fourd: Fourd, toy_recipe: Path, tmp_path: Path, wrong: str) -> None:
    answer = fourd("run", toy_recipe, "train", "--set", f"stages.train.{wrong}", "--out", "a", check=2)
    assert f"{wrong.partition('=')[0]}" in answer.stderr
    assert "add a section [stages.NAME.validation.X]" in answer.stderr


def test_a_training_within_its_warm_up_is_noted(fourd: Fourd, toy_recipe: Path) -> None:
    answer = fourd(
        "run", toy_recipe, "train", "--set", "stages.train.steps=2", "--set", "stages.train.warmup=3", check=0
    )
    assert answer.stderr.count("ends after 2 steps, within its warm-up of 3") == 1


def test_only_the_named_heads_learn(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    two = with_lines(toy_recipe, '\n[heads.other]\nuse = "toy_linear"\n')
    options = ("--set", 'stages.train.learn=["value"]', "--set", "stages.train.steps=3")
    fourd("run", two, "train", *options, "--out", "a", check=0)
    start, end = build_system(load_recipe(two)).trained_state(), load_file(tmp_path / "a" / WEIGHTS)
    assert not torch.equal(end["heads.value.linear.weight"], start["heads.value.linear.weight"])
    assert torch.equal(end["heads.other.linear.weight"], start["heads.other.linear.weight"])
    answer = fourd("run", two, "train", "--set", 'stages.train.learn=["depth"]', "--out", "b", check=2)
    assert "stages.train.learn: the recipe has no [heads.depth]; it has: value, other" in answer.stderr
