"""Stages with data, a name or a system of their own: what each of them works on, and when it runs at all."""

from __future__ import annotations

import json
from pathlib import Path

import learn_parts
import pytest
import torch
import zarr
from helpers import Fourd, with_lines, write_video
from safetensors.torch import load_file

QUICK = ["--set", "stages.train.steps=3", "--set", "stages.predict.movie=false", "--set", "stages.predict.pictures=0"]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A second video, larger and longer than the recipe's own."""
    return write_video(tmp_path / "other.mp4", frames=30, size=(80, 128))


def trained(folder: Path) -> torch.Tensor:
    return load_file(folder / "train/weights.safetensors")["heads.value.linear.weight"]


def rows(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "evaluate/result.json").read_text())[0]["rows"]


def test_a_stage_learns_from_its_own_data(fourd: Fourd, toy_recipe: Path, tmp_path: Path, other: Path) -> None:
    fourd("run", toy_recipe, "train", *QUICK, "--out", "first", check=0)
    fourd("run", toy_recipe, "train", *QUICK, "--set", f"data.video={other}", "--out", "second", check=0)
    with_lines(toy_recipe, '\n[stages.train.data]\nvideo = "other.mp4"\nuse = "video"\n')
    fourd("run", toy_recipe, "train", *QUICK, "--out", "own", check=0)
    assert torch.equal(trained(tmp_path / "own"), trained(tmp_path / "second"))
    assert not torch.equal(trained(tmp_path / "own"), trained(tmp_path / "first"))


def test_a_stage_measures_on_its_own_data_and_the_others_do_not(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, other: Path
) -> None:
    with_lines(toy_recipe, '\n[stages.evaluate.data]\nuse = "video"\nvideo = "other.mp4"\nheld_out = 0.5\n')
    fourd("run", toy_recipe, *QUICK, "--out", "a", check=0)
    assert [Path(str(row["video"]).split("[")[0]).name for row in rows(tmp_path / "a")] == ["other.mp4"]
    assert (tmp_path / "a/predict/clip.zarr").exists()
    assert not (tmp_path / "a/predict/other.zarr").exists()


@pytest.mark.parametrize(("said", "where"), [("", "shared"), ('root = "own"', "own")])
def test_the_root_is_the_recipes_unless_the_stage_says_one(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, said: str, where: str
) -> None:
    learn_parts.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("shared", "own"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / f"{name}.mp4").write_bytes(clip.read_bytes())
    text = toy_recipe.read_text().replace('video = "clip.mp4"', 'root = "shared"')
    toy_recipe.write_text(f'{text}\n[stages.evaluate.data]\nuse = "tree"\n{said}\n')
    fourd("run", toy_recipe, "evaluate", "--out", "a", check=0)
    assert [Path(str(row["video"])).parent.name for row in rows(tmp_path / "a")] == [where]


def test_a_stage_by_name_runs_when_it_is_named(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    words = [*QUICK, "--set", "stages.train.by_name=true", "--set", "stages.evaluate.by_name=true"]
    fourd("run", toy_recipe, *words, "--out", "a", check=0)
    assert (tmp_path / "a/predict").exists()
    assert not (tmp_path / "a/train").exists() and not (tmp_path / "a/evaluate").exists()
    fourd("run", toy_recipe, "train", *words, "--out", "b", check=0)
    assert (tmp_path / "b/train/weights.safetensors").exists()
    assert not (tmp_path / "b/predict").exists()


def test_the_check_notes_what_a_stage_by_name_lacks(fourd: Fourd, toy_recipe: Path) -> None:
    with_lines(toy_recipe, '\n[stages.train.data]\nuse = "video"\nvideo = "nowhere.mp4"\n')
    assert "nowhere.mp4" in fourd("check", toy_recipe, check=2).stderr
    answer = fourd("check", toy_recipe, "--set", "stages.train.by_name=true", check=0)
    (line,) = (line for line in answer.stdout.splitlines() if line.startswith("stage train"))
    assert line.startswith("stage train: train, run by name only; not ready here: ")
    assert "nowhere.mp4" in line
    assert "stage predict: predict\n" in answer.stdout
    assert "the recipe is whole" in answer.stdout
    assert "nowhere.mp4" in fourd("run", toy_recipe, "train", "--set", "stages.train.by_name=true", check=2).stderr
    fourd("run", toy_recipe, "predict", *QUICK, "--set", "stages.train.by_name=true", "--out", "a", check=0)


OTHER = """
extends = "toy.toml"
remove = ["stages"]

[heads.value]
tap = 1

[data]
pixels = 32
"""


def test_a_stage_predicts_with_another_recipes_system(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, other: Path
) -> None:
    """Its network, weights and view; the video is this recipe's."""
    (tmp_path / "small.toml").write_text(OTHER + '\n[stages.predict]\njob = "predict"\nwindow = 4\npixels = "view"\n')
    fourd("run", tmp_path / "small.toml", *QUICK[2:], "--set", f"data.video={other}", "--out", "alone", check=0)
    own = '\n[stages.small]\njob = "predict"\nrecipe = "small.toml"\nwindow = 4\npixels = "view"\nmovie = false\n'
    with_lines(toy_recipe, own)
    fourd("run", toy_recipe, "predict", "small", *QUICK, "--set", f"data.video={other}", "--out", "a", check=0)
    alone = zarr.open_group(tmp_path / "alone/predict/other.zarr", mode="r")["value"][:]
    small = zarr.open_group(tmp_path / "a/small/other.zarr", mode="r")["value"][:]
    plain = zarr.open_group(tmp_path / "a/predict/other.zarr", mode="r")["value"][:]
    assert small.shape[0] == 30 and min(small.shape[-2:]) == 32 and min(plain.shape[-2:]) == 64
    assert (small == alone).all()
    fourd("run", toy_recipe, "small", *QUICK, "--set", f"data.video={other}", "--out", "a", check=0)  # all is done


def test_another_run_predicts_with_what_was_trained_there(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, other: Path
) -> None:
    fourd("run", toy_recipe, "train", "predict", *QUICK, "--set", "data.pixels=32", "--out", "learned", check=0)
    own = '\n[stages.learned]\njob = "predict"\nrecipe = "learned"\nwindow = 4\npixels = "view"\nmovie = false\n'
    with_lines(toy_recipe, own)
    fourd("run", toy_recipe, "learned", *QUICK, "--out", "a", check=0)
    there = zarr.open_group(tmp_path / "learned/predict/clip.zarr", mode="r")["value"][:]
    assert (zarr.open_group(tmp_path / "a/learned/clip.zarr", mode="r")["value"][:] == there).all()
    wrong = fourd(
        "run", toy_recipe, "learned", *QUICK, "--set", "stages.learned.recipe=none.toml", "--out", "b", check=2
    )
    assert "none.toml" in wrong.stderr
    assert not (tmp_path / "b").exists()
