"""Training in several processes at once: the same steps as one process with the whole batch, together until the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Fourd
from safetensors.torch import load_file
from test_train_state import CHECKPOINT, WEIGHTS, first_step_with, logged, recipe, sets, with_validation  # noqa: F401
from train_parts import ended, environment_with, forked, kill_after

from fourd_core.checkpoint import Checkpoint
from fourd_core.distributed import Group


def said(folder: Path, rank: int) -> str:
    return (folder / f"said.{rank}.txt").read_text()


def test_two_processes_learn_as_one_with_the_whole_batch(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    """Started by torchrun itself; interrupted by kills, it ends with the same bits."""
    keys = sets(accumulate=2, ema=0.5, clip_norm=0.2, checkpoint_every=3)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fourd_core"]
    answer = subprocess.run(
        [sys.executable, *words, "run", str(recipe), "train", *keys, "--out", "two"],
        cwd=tmp_path, env=environment_with(tmp_path), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("report: ") == 1
    fourd("run", recipe, "train", *keys, *sets(batch_size=4), "--out", "one", check=0)
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    for name in ("heads.value.linear.weight", "heads.value.linear.bias"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)
    for together, alone in zip(logged(tmp_path / "two"), logged(tmp_path / "one"), strict=True):
        for name in ("loss", "gradient_norm", "lr"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4), name
        assert together["draw"] != alone["draw"], "each process has random numbers of its own"

    processes = forked(tmp_path, "run", recipe, "train", *keys, "--out", "killed", processes=2)
    kill_after(tmp_path / "killed", processes, 5)
    assert ended(processes) == [-signal.SIGKILL] * 2, said(tmp_path, 0) + said(tmp_path, 1)
    alone = fourd("run", recipe, "train", *keys, "--out", "killed", check=2)
    assert "is of a training by 2 processes, and now there are 1" in alone.stderr
    processes = forked(tmp_path, "run", recipe, "train", *keys, "--out", "killed", processes=2)
    assert ended(processes) == [0, 0], said(tmp_path, 0)
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()
    assert logged(tmp_path / "killed") == logged(tmp_path / "two")


def test_a_signal_to_one_stops_both_at_the_same_step(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = sets(steps=5000, checkpoint_every=5000, workers=1)
    processes = forked(tmp_path, "run", recipe, "train", *keys, "--out", "a", processes=2)
    kill_after(tmp_path / "a", processes[:1], 5, number=0)
    assert processes[1].pid is not None
    processes[1].terminate()
    assert ended(processes) == [130, 130], said(tmp_path, 0) + said(tmp_path, 1)
    assert "everything so far is in a" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    assert (tmp_path / "a" / CHECKPOINT).exists()
    assert json.loads((tmp_path / "a/run.json").read_text())["stages"]["train"]["state"] == "interrupted"
    kept = Checkpoint.read(tmp_path / "a" / CHECKPOINT)
    assert kept.processes == 2
    assert [entry["step"] for entry in logged(tmp_path / "a")] == list(range(1, kept.step + 1))


def test_a_number_that_is_not_finite_in_the_second_process(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    """The first one says it and keeps the state; validation and later stages are its own business."""
    with_validation(recipe)
    bad = tmp_path / "bad.txt"
    step, frame = first_step_with(recipe, 4, after=4, of=2)
    words = ["run", recipe, "train", "evaluate", *sets(validate_every=3, **{"objective.bad": str(bad)})]
    bad.write_text("")
    assert ended(forked(tmp_path, *words, "--out", "whole", processes=2)) == [0, 0], said(tmp_path, 0)
    bad.write_text(str(frame))
    assert ended(forked(tmp_path, *words, "--out", "a", processes=2)) == [2, 2]
    assert f"process 1: [stages.train] the loss of step {step + 1} is nan, of frames [" in said(tmp_path, 0)
    assert "nan" not in said(tmp_path, 1)
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["stages"]["train"]["state"] == "failed"
    assert "process 1" in record["stages"]["train"]["message"]
    assert len(logged(tmp_path / "a")) == step
    bad.write_text("")
    assert ended(forked(tmp_path, *words, "--out", "a", processes=2)) == [0, 0], said(tmp_path, 0)
    for name in (WEIGHTS, "train/best.safetensors", "evaluate/result.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_mistake_of_the_first_process_ends_all(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.txt").write_text("not a run")
    assert ended(forked(tmp_path, "run", recipe, "train", "--out", "a", processes=2)) == [2, 2]
    assert "a exists and is not a run folder" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    words = ["--set", "device=cuda:0"]
    assert ended(forked(tmp_path, "run", recipe, "train", *words, "--out", "b", processes=2)) == [2, 2]
    assert not (tmp_path / "b").exists()


def test_a_group_of_one_does_nothing() -> None:
    group = Group()
    value = torch.ones(3)
    group.average_([value])
    with group.together():
        assert group.exchange("word") == ["word"]
    assert group.from_first(lambda: 5) == 5
    assert group.first
    assert not group.any(False)
