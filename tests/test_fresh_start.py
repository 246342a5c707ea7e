"""A recipe that names weights for predicting and trains afresh: they are read where they are needed, only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import TOY_RECIPE, write_video
from safetensors.torch import load_file, save_file

from fourd_core.check import check_recipe
from fourd_core.errors import WeightsError
from fourd_core.recipe import load_recipe
from fourd_core.run import run_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4")
    text = TOY_RECIPE.replace("steps = 40", "steps = 3").replace('job = "train"', 'job = "train"\nstart = "fresh"')
    path = tmp_path / "toy.toml"
    path.write_text('device = "cpu"\nweights = "published.safetensors"\n' + text)
    return path


def recorded(folder: Path) -> list[str]:
    return [row["component"] for row in json.loads((folder / "run.json").read_text())["weights"]]


def test_training_afresh_never_reads_the_named_weights(recipe: Path, tmp_path: Path) -> None:
    resolved, out = load_recipe(recipe), tmp_path / "run"
    run_recipe(resolved, out, ["train"])
    assert recorded(out) == []
    run_recipe(resolved, out, ["predict"])  # by what was trained
    assert recorded(out) == []


def test_what_is_not_trained_takes_the_named_weights(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"published\.safetensors"):
        run_recipe(load_recipe(recipe), tmp_path / "none", ["predict"])
    assert not (tmp_path / "none").exists()
    run_recipe(load_recipe(recipe), tmp_path / "trained", ["train"])
    save_file(load_file(tmp_path / "trained/train/weights.safetensors"), tmp_path / "published.safetensors")
    run_recipe(load_recipe(recipe), tmp_path / "run", ["predict"])
    assert recorded(tmp_path / "run") == ["weights"]


def test_afresh_is_the_start_without_weights(recipe: Path, tmp_path: Path) -> None:
    plain = load_recipe(recipe, ["weights=none"])
    run_recipe(plain, tmp_path / "plain", ["train"])
    expected = load_file(tmp_path / "plain/train/weights.safetensors")
    spoiled = {name: torch.full_like(value, 9.0) for name, value in expected.items()}
    save_file(spoiled, tmp_path / "published.safetensors")
    run_recipe(load_recipe(recipe), tmp_path / "fresh", ["train"])
    run_recipe(load_recipe(recipe, ["stages.train.start=weights"]), tmp_path / "on", ["train"])
    fresh, on = (load_file(tmp_path / name / "train/weights.safetensors") for name in ("fresh", "on"))
    assert all(torch.equal(fresh[name], expected[name]) for name in expected)
    assert any(not torch.equal(on[name], expected[name]) for name in expected)


def test_check_compares_the_named_weights(recipe: Path, tmp_path: Path) -> None:
    """Names and shapes, on a system that has no memory."""
    run_recipe(load_recipe(recipe), tmp_path / "trained", ["train"])
    state = load_file(tmp_path / "trained/train/weights.safetensors")
    save_file(state, tmp_path / "published.safetensors")
    check_recipe(load_recipe(recipe))
    name = next(key for key, value in state.items() if key.startswith("heads.") and value.ndim)
    save_file({**state, name: torch.cat([state[name], state[name]])}, tmp_path / "published.safetensors")
    with pytest.raises(WeightsError, match="does not fit this network"):
        check_recipe(load_recipe(recipe))
