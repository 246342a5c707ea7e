"""What a training keeps beside the last weights, and goes on from: averages, the best weights, the state before a
step that failed."""

from __future__ import annotations

import json
import random
import re
import signal
from pathlib import Path
from typing import Any

import cue_parts
import pytest
import torch
from helpers import Fourd
from safetensors import safe_open
from safetensors.torch import load_file
from train_parts import drawn_frame, ended, forked, install, kill_after, logged_lines

from fourd_core.build import build_dataset, load
from fourd_core.cues import sample_generator
from fourd_core.recipe import load_recipe

WEIGHTS, BEST, CHECKPOINT = "train/weights.safetensors", "train/best.safetensors", "train/checkpoint.safetensors"
WEIGHT = "heads.value.linear.weight"

VALIDATION = """
[stages.train.validation.absent]
use = "score"
there = false

[stages.train.validation.held_out]
use = "score"
"""


@pytest.fixture
def recipe(toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy recipe with the objective of `train_parts`, 12 steps of 2 samples."""
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = toy_recipe.read_text().replace("toy_regression", "mean_square").replace("steps = 40", "steps = 12")
    toy_recipe.write_text(text)
    return toy_recipe


def with_validation(recipe: Path) -> Path:
    recipe.write_text(recipe.read_text() + VALIDATION)
    return recipe


def sets(**keys: object) -> list[str]:
    return [word for key, value in keys.items() for word in ("--set", f"stages.train.{key}={json.dumps(value)}")]


def logged(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "time"} for entry in entries]


def test_the_average_is_that_of_the_weights_after_each_step(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    after = []
    for steps in (1, 2, 3):
        fourd("run", recipe, "train", *sets(steps=steps), "--out", f"plain{steps}", check=0)
        after.append(load_file(tmp_path / f"plain{steps}" / WEIGHTS)[WEIGHT])
    fourd("run", recipe, "train", *sets(steps=3, ema=0.75), "--out", "averaged", check=0)
    mean = 0.75 * (0.75 * after[0] + 0.25 * after[1]) + 0.25 * after[2]
    left = load_file(tmp_path / "averaged" / WEIGHTS)
    torch.testing.assert_close(left[WEIGHT], mean, rtol=1e-6, atol=1e-7)
    assert (left[WEIGHT] - after[2]).abs().max() > 1e-4
    assert logged(tmp_path / "averaged") == logged(tmp_path / "plain3"), "averaging does not change the training"


def test_the_stages_after_it_see_the_weights_that_are_left(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "train", "evaluate", *sets(ema=0.9), "--out", "at_once", check=0)
    fourd("run", recipe, "train", *sets(ema=0.9), "--out", "apart", check=0)
    fourd("run", recipe, "evaluate", *sets(ema=0.9), "--out", "apart", check=0)
    result = "evaluate/result.json"
    assert (tmp_path / "at_once" / result).read_text() == (tmp_path / "apart" / result).read_text()


def test_measuring_changes_nothing_and_is_logged(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    keys = sets(ema=0.9, log_every=3)
    fourd("run", recipe, "train", *keys, "--out", "without", check=0)
    with_validation(recipe)
    fourd("run", recipe, "train", *keys, *sets(validate_every=5), "--out", "with", check=0)
    assert (tmp_path / "with" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()
    entries = logged(tmp_path / "with")
    scores = {entry["step"]: entry.pop("validation_score") for entry in entries if "validation_score" in entry}
    assert list(scores) == [5, 10, 12]
    assert scores[5] < scores[10] < scores[12]
    assert [entry for entry in entries if entry["step"] % 3 == 0] == logged(tmp_path / "without")
    log = (tmp_path / "with/log.txt").read_text()
    assert "train: step 10, held_out: score -" in log
    assert '"training": "False"' in log
    page = (tmp_path / "with/report.html").read_text()
    assert "validation_score" in page
    # What was measured last are the weights that were left, averaged ones here.
    system = load(tmp_path / "with")
    data = build_dataset(load_recipe(tmp_path / "with/recipe.toml"))
    from train_parts import Score

    with torch.no_grad():
        assert Score(Score.Config()).measure(system, data).score == scores[12]


@pytest.mark.parametrize(("sign", "best"), [(-1.0, 12), (1.0, 4)])
def test_the_best_weights_are_kept(fourd: Fourd, recipe: Path, tmp_path: Path, sign: float, best: int) -> None:
    with_validation(recipe)
    keys = sets(validate_every=4, **{"validation.held_out.sign": sign})
    fourd("run", recipe, "train", "evaluate", *keys, *sets(keep="best"), "--out", "a", check=0)
    fourd("run", recipe, "train", *keys, "--out", "last", check=0)
    with safe_open(tmp_path / "a" / BEST, "pt") as handle:
        facts = json.loads(handle.metadata()["fourd"])
    scores = {entry["step"]: entry["validation_score"] for entry in logged(tmp_path / "a") if entry["step"] % 4 == 0}
    assert facts == {"recipe": "toy", "step": best, "score": max(scores.values())}
    fourd("run", recipe, "train", "--set", f"stages.train.steps={best}", "--out", "until", check=0)
    until, left = load_file(tmp_path / "until" / WEIGHTS), load_file(tmp_path / "a" / WEIGHTS)
    assert all(torch.equal(left[name], value) for name, value in until.items())
    assert (tmp_path / "a" / BEST).read_bytes() == (tmp_path / "last" / BEST).read_bytes()
    final = load_file(tmp_path / "last" / WEIGHTS)
    assert torch.equal(final[WEIGHT], left[WEIGHT]) == (best == 12)
    # The system that goes on to the next stage has the kept weights too.
    error = json.loads((tmp_path / "a/evaluate/result.json").read_text())[0]["rows"][0]["error"]
    assert error == abs(facts["score"])


def test_no_metric_is_available(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    with_validation(recipe)
    keys = sets(**{"validation.held_out.there": False})
    answer = fourd("run", recipe, "train", *keys, "--out", "a", check=2)
    assert "stages.train.validation: what absent and held_out would measure on is not there" in answer.stderr
    assert not (tmp_path / "a").exists()


def test_a_metric_without_a_score(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + '\n[stages.train.validation.error]\nuse = "toy_error"\n')
    answer = fourd("run", recipe, "train", "--out", "a", check=2)
    assert "[stages.train.validation.error] measures no score" in answer.stderr
    with safe_open(tmp_path / "a" / CHECKPOINT, "pt") as handle:
        assert json.loads(handle.metadata()["fourd"])["step"] == 12


def test_killed_with_everything_switched_on(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    with_validation(recipe)
    keys = sets(
        steps=22, ema=0.8, accumulate=2, validate_every=4, workers=1, checkpoint_every=3, clip_norm=0.2,
        schedule="cosine", **{"validation.held_out.sign": 1.0},
    )  # fmt: skip
    fourd("run", recipe, "train", *keys, "--out", "whole", check=0)
    chance, reached = random.Random(5), 0
    for _ in range(2):
        processes = forked(tmp_path, "run", recipe, "train", *keys, "--out", "killed")
        kill_after(tmp_path / "killed", processes, reached + chance.randint(4, 8))
        assert ended(processes) == [-signal.SIGKILL], (tmp_path / "said.0.txt").read_text()
        reached = logged_lines(tmp_path / "killed") // 3 * 3
    fourd("run", recipe, "train", *keys, "--out", "killed", check=0)
    for name in (WEIGHTS, BEST):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def first_step_with(recipe: Path, places: int, after: int, of: int = 0) -> tuple[int, int]:
    """The first step (from 0) from `after` on in which a place from `of` on, and none before, draws a new frame."""
    count = build_dataset(load_recipe(recipe)).videos("train")[0].frame_count
    seen: set[int] = set()
    for step in range(12):
        frames = [drawn_frame(count, sample_generator(0, "train", step, place)) for place in range(places)]
        fresh = [frame for frame in frames[of:] if frame not in {*seen, *frames[:of]}]
        if step >= after and fresh:
            return step, fresh[0]
        seen |= set(frames)
    raise AssertionError("every frame was drawn before")


@pytest.mark.parametrize(
    ("steep", "what", "precision"), [(False, "the loss", "bf16"), (True, "the gradient norm", "fp32")]
)
def test_what_is_not_finite_stops_before_the_step(
    fourd: Fourd, recipe: Path, tmp_path: Path, steep: bool, what: str, precision: str
) -> None:
    step, frame = first_step_with(recipe, 2, after=4)
    bad = tmp_path / "bad.txt"
    bad.write_text("")
    keys = [
        *sets(**{"objective.bad": str(bad), "objective.steep": steep, "ema": 0.5}),
        "--set",
        f"precision={precision}",
    ]
    fourd("run", recipe, "train", *keys, "--out", "whole", check=0)
    bad.write_text(str(frame))
    answer = fourd("run", recipe, "train", *keys, "--out", "a", check=2)
    assert f"[stages.train] {what} of step {step + 1} is nan, of frames [" in answer.stderr
    assert str(frame) in answer.stderr.partition("of frames [")[2].partition("]")[0].split(", ")
    assert "run the same command again" in answer.stderr
    assert json.loads((tmp_path / "a/run.json").read_text())["stages"]["train"]["state"] == "failed"
    assert [entry["step"] for entry in logged(tmp_path / "a")] == list(range(1, step + 1))
    kept = load_file(tmp_path / "a" / CHECKPOINT)
    floats = [value for value in kept.values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}
    assert all(value.isfinite().all() for value in floats)
    again = fourd("run", recipe, "train", *keys, "--out", "a", check=2)
    assert f"of step {step + 1} is nan" in again.stderr
    bad.write_text("")
    fourd("run", recipe, "train", *keys, "--out", "a", check=0)
    assert f"goes on after step {step}" in (tmp_path / "a/log.txt").read_text()
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert logged(tmp_path / "a") == logged(tmp_path / "whole")


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_gradient_of_zero_is_said_once(fourd: Fourd, recipe: Path, tmp_path: Path, weight: float) -> None:
    keys = sets(**{"objective.weight": weight, "steps": 4})
    answer = fourd("run", recipe, "train", *keys, "--out", "a", check=0)
    said = "[stages.train] the gradient of step 1 is zero: nothing is learned from it"
    for text in (answer.stderr, (tmp_path / "a/log.txt").read_text()):
        assert text.count(said) == text.count("is zero") == (weight == 0)
    assert [entry["gradient_norm"] == 0 for entry in logged(tmp_path / "a")] == 4 * [weight == 0]


def test_a_rate_that_is_too_high(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    answer = fourd("run", toy_recipe, "train", "--set", "stages.train.lr=1e30", "--out", "a", check=2)
    assert "the loss of step 2 is inf" in answer.stderr
    assert "lower lr" in answer.stderr
    assert not (tmp_path / "a" / WEIGHTS).exists()


def test_the_log_says_where_cues_came_from(fourd: Fourd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And cues that were kept first are no results of a training that comes after, wherever the recipe has them."""
    monkeypatch.syspath_prepend(cue_parts.install(tmp_path / "site"))
    cue_parts.write_videos(tmp_path / "videos")
    head, cues, train = re.split(r"(?=\[stages\.(?:cues|train)\]\n)", cue_parts.RECIPE)
    (tmp_path / "cues.toml").write_text(head + train + "\n" + cues)
    fourd("run", "cues.toml", "train", "--out", "asked", check=0)
    assert "train: teachers run as training goes" in (tmp_path / "asked/log.txt").read_text()
    fourd("run", "cues.toml", "cues", "--out", "a", check=0)
    fourd("run", "cues.toml", "train", "--out", "a", check=0)
    assert f"train: cues from {tmp_path / 'kept.zarr'}" in (tmp_path / "a/log.txt").read_text()
