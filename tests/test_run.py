"""Runs: what they leave behind, that they repeat, survive kills, and go on after Ctrl-C."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import Fourd, shell_environment

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
    assert "To go on: fourd run" in message
    assert "--out runs/toy" in message
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
    assert "seed = 5" in result.stderr
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
