"""Runs: what they leave behind, that they repeat, survive kills, and go on after Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import random
import shlex
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from helpers import Fourd, shell_environment, write_video

from fourd_core.hooks import Hooks
from fourd_core.recipe import load_recipe
from fourd_core.run_folder import Run

WEIGHTS = "train/weights.safetensors"


def test_run_leaves_a_whole_folder(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    result = fourd("run", toy_recipe, "--out", "runs/a", check=0)
    folder = tmp_path / "runs/a"
    assert "brightness error" in result.stdout
    assert str(Path("runs/a/report.html")) in result.stdout
    record = json.loads((folder / "run.json").read_text())
    assert {name: stage["state"] for name, stage in record["stages"].items()} == {
        "train": "done", "evaluate": "done", "predict": "done",
    }  # fmt: skip
    assert record["versions"]["toy-fourd"] == "0.1.0"
    assert record["versions"]["torch"]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps] == list(range(1, 41))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert (folder / "report.html").stat().st_size > 1000
    assert not list(folder.rglob("*.part*"))
    assert not (folder / "train/checkpoint.safetensors").exists()


def test_rerun_is_bit_equal(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "evaluate", "--out", "a", check=0)
    fourd("rerun", "a", "--out", "b", check=0)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    result = "evaluate/result.json"
    assert (tmp_path / "a" / result).read_text() == (tmp_path / "b" / result).read_text()


def test_killed_training_ends_with_the_same_bits(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "--out", "whole", check=0)
    words = [sys.executable, "-m", "fourd_core", "run", str(toy_recipe), "train", "--out", "killed"]
    chance = random.Random(0)
    log = tmp_path / "killed/metrics.jsonl"
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(words, cwd=tmp_path, env=shell_environment(), stderr=subprocess.PIPE)
        target = reached + chance.randint(4, 12)
        while process.poll() is None and _lines(log) < target:
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        reached = _lines(log) // 3 * 3  # the last checkpoint
    assert not (tmp_path / "killed" / WEIGHTS).exists(), "the kills came too late to test anything"
    fourd("run", toy_recipe, "train", "--out", "killed", check=0)
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 41))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_resumable_run_and_says_so(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = [sys.executable, "-m", "fourd_core", "run", str(toy_recipe), "train", "--set", "stages.train.steps=4000"]
    process = subprocess.Popen(words, cwd=tmp_path, env=shell_environment(), stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs/toy/metrics.jsonl"
    while process.poll() is None and _lines(log) < 5:
        time.sleep(0.01)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    _, _, command = message.strip().partition("To go on: ")
    assert command.endswith("--out runs/toy")
    words = shlex.split(command)
    process = subprocess.Popen(words, cwd=tmp_path, env=shell_environment(), stderr=subprocess.PIPE, text=True)
    steps = _lines(log)
    while process.poll() is None and _lines(log) < steps + 5:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130, "the command that was printed goes on"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, _lines(log) + 1))
    record = json.loads((tmp_path / "runs/toy/run.json").read_text())
    assert record["stages"]["train"]["state"] == "interrupted"
    assert (tmp_path / "runs/toy/train/checkpoint.safetensors").exists()
    assert (tmp_path / "runs/toy/report.html").exists()


def test_done_stages_are_not_repeated(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    before = (tmp_path / "a" / WEIGHTS).stat().st_mtime_ns
    result = fourd("run", toy_recipe, "train", "evaluate", "--out", "a", check=0)
    assert "brightness error" in result.stdout
    assert (tmp_path / "a" / WEIGHTS).stat().st_mtime_ns == before


def test_another_recipe_does_not_touch_a_run(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    result = fourd("run", toy_recipe, "train", "--out", "a", "--set", "seed=5", check=2)
    assert "seed = 0" in result.stderr
    assert "5 now" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before


def test_results_of_the_same_protocol_stand_beside(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "evaluate", "--out", "a", check=0)
    other = tmp_path / "a/evaluate/result.json"
    rows = json.loads(other.read_text())
    rows[0]["rows"] = [{"video": "elsewhere", "error": 0.125}]
    other.write_text(json.dumps(rows))
    beside = 'stages.evaluate.beside=["a"]'
    result = fourd("run", toy_recipe, "evaluate", "--out", "b", "--set", beside, check=0)
    assert "elsewhere" in result.stdout
    frames = "stages.evaluate.metrics.error.frames=3"
    result = fourd("run", toy_recipe, "evaluate", "--out", "c", "--set", beside, "--set", frames, check=0)
    assert "elsewhere" not in result.stdout
    assert "measured with another frames" in result.stdout


def test_results_from_before_training_are_not_mixed_with_it(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    answer = fourd("run", toy_recipe, "predict", "evaluate", "--out", "a", check=0)
    assert "nothing has trained value" in answer.stderr
    assert "Note: nothing has trained value" in (tmp_path / "a/report.html").read_text()
    answer = fourd("run", toy_recipe, "--out", "a", check=2)
    assert "evaluate, predict from before train" in answer.stderr


def test_stages_run_in_the_recipes_order(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "evaluate", "train", "--out", "a", check=0)
    fourd("run", toy_recipe, "train", "evaluate", "--out", "b", check=0)
    result = "evaluate/result.json"
    assert (tmp_path / "a" / result).read_text() == (tmp_path / "b" / result).read_text()


def test_rerun_of_a_later_stage_takes_the_trained_weights(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "evaluate", "--out", "a", check=0)
    fourd("rerun", "a", "evaluate", "--out", "b", check=0)
    result = "evaluate/result.json"
    assert (tmp_path / "a" / result).read_text() == (tmp_path / "b" / result).read_text()


def test_a_kill_after_the_weights_does_not_train_again(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    before = (tmp_path / "a" / WEIGHTS).read_bytes()
    record = json.loads((tmp_path / "a/run.json").read_text())
    record["stages"]["train"]["state"] = "running"
    (tmp_path / "a/run.json").write_text(json.dumps(record))
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == before


def test_a_kill_between_recipe_and_record(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    (tmp_path / "b/train").mkdir(parents=True)
    (tmp_path / "b/recipe.toml").write_bytes((tmp_path / "a/recipe.toml").read_bytes())
    (tmp_path / "b/train/.checkpoint.77.part.safetensors").write_text("cut off")
    fourd("run", toy_recipe, "train", "--out", "b", check=0)
    assert not list((tmp_path / "b").rglob(".*"))
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_two_processes_do_not_share_a_folder(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fourd_core", "run", str(toy_recipe), "train", "--out", "a"]
    words += ["--set", "stages.train.steps=5000"]
    process = subprocess.Popen(words, cwd=tmp_path, env=shell_environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and _lines(tmp_path / "a/metrics.jsonl") < 2:
        time.sleep(0.01)
    try:
        answer = fourd(*words[3:], check=2)
    finally:
        process.kill()
        process.wait()
    assert "another process is at work in a" in answer.stderr


def test_a_forked_reader_does_not_hold_the_lock(toy_recipe: Path, tmp_path: Path) -> None:
    """It may outlive a killed run by seconds, and the run shall go on at once."""
    recipe = load_recipe(toy_recipe)
    run = Run(tmp_path / "a", recipe, {"stages": {}}, Hooks(), is_new=True)
    run.create()
    context = multiprocessing.get_context("fork")
    alive = context.Event()
    reader = context.Process(target=_wait, args=(alive,))
    reader.start()
    assert alive.wait(60)
    run.close()
    try:
        again = Run(tmp_path / "a", recipe, {"stages": {}}, Hooks(), is_new=False)
        again.create()
        again.close()
    finally:
        reader.kill()
        reader.join()


def _wait(alive: Event) -> None:
    alive.set()
    time.sleep(60)


def test_a_run_goes_on_with_its_own_threads(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    import torch

    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    torch.set_num_threads(2)
    try:
        fourd("run", toy_recipe, "--out", "a", check=0)
    finally:
        torch.set_num_threads(1)
    fourd("run", "a/recipe.toml", "--out", "a", check=0)


def test_interrupted_with_workers_leaves_a_checkpoint(toy_recipe: Path, tmp_path: Path) -> None:
    import os

    words = [sys.executable, "-m", "fourd_core", "run", str(toy_recipe), "train", "--out", "a"]
    words += ["--set", "stages.train.steps=5000", "--set", "stages.train.workers=2"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=shell_environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and _lines(tmp_path / "a/metrics.jsonl") < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert (tmp_path / "a/train/checkpoint.safetensors").exists()


def test_a_prediction_is_not_continued_with_another_video(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "predict", "--out", "a", check=0)
    record = json.loads((tmp_path / "a/run.json").read_text())
    record["stages"]["predict"]["state"] = "interrupted"
    (tmp_path / "a/run.json").write_text(json.dumps(record))
    write_video(tmp_path / "clip.mp4", frames=20)
    answer = fourd("run", toy_recipe, "predict", "--out", "a", check=2)
    assert "another video" in answer.stderr


def test_two_training_stages_resume(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    second = '\n[stages.again]\njob = "train"\nsteps = 3\n\n[stages.again.objective]\nuse = "toy_regression"\n'
    toy_recipe.write_text(toy_recipe.read_text() + second)
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    fourd("run", toy_recipe, "again", "--out", "a", check=0)
    fourd("run", toy_recipe, "train", "again", "--out", "b", check=0)
    name = "again/weights.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_arrays_as_npz(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    import numpy as np

    fourd("run", toy_recipe, "predict", "--set", "stages.predict.npz=true", "--out", "a", check=0)
    with np.load(tmp_path / "a/predict/clip.npz") as arrays:
        assert arrays["value"].shape == (24, 1, 64, 88)


def test_the_same_command_goes_on_for_every_recipe_of_ours(fourd: Fourd, clip: Path, tmp_path: Path) -> None:
    """Whatever a default is written as, a recipe that was written out and read back is the same recipe."""
    from helpers import ROOT

    words = ["run", ROOT / "recipes/l4p_tiny.toml", "--out", "a", "--set", f"data.video={clip}",
             "--set", "data.pixels=32", "--set", "stages.predict.movie=false"]  # fmt: skip
    fourd(*words, check=0)
    again = fourd(*words, check=0)
    assert "done already" in again.stderr
    other = fourd(*words, "--set", "queries.grid=3", check=2)
    assert "queries.grid = 8 there, 3 now" in other.stderr


def test_ctrl_c_in_a_prediction_keeps_what_was_done(toy_recipe: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", frames=400)
    words = [sys.executable, "-m", "fourd_core", "run", str(toy_recipe), "predict", "--out", "a",
             "--set", f"data.video={tmp_path / 'long.mp4'}", "--set", "stages.predict.movie=false"]  # fmt: skip
    process = subprocess.Popen(words, cwd=tmp_path, env=shell_environment(), stderr=subprocess.PIPE, text=True)
    position = tmp_path / "a/predict/long.position.pt"
    while process.poll() is None and not position.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "To go on" in said
    assert position.exists()
