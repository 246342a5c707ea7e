"""What the hook wrote, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fourd_tensorboard.writer import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fourd_core.hooks import Hooks


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def log(hooks: Hooks, folder: Path, stage: str, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        metrics = {"loss": scale / (step + 1), "lr": 0.5}
        hooks.step_finished(run=SimpleNamespace(folder=folder), stage=stage, step=step, metrics=metrics)


@pytest.fixture
def hooks() -> Hooks:
    hooks = Hooks()
    hooks.register(TensorBoard(), "tensorboard")
    return hooks


def test_numbers_come_back(hooks: Hooks, tmp_path: Path) -> None:
    log(hooks, tmp_path, "train", range(3))
    log(hooks, tmp_path, "finetune", range(2), scale=2.0)
    hooks.run_finished(run=SimpleNamespace(folder=tmp_path), status="done")
    assert scalars(tmp_path / "tensorboard" / "train", "loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert scalars(tmp_path / "tensorboard" / "train", "lr") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert scalars(tmp_path / "tensorboard" / "finetune", "loss") == [(0, 2.0), (1, 1.0)]


def test_repeated_steps_of_a_resumed_run_replace_the_older_ones(hooks: Hooks, tmp_path: Path) -> None:
    log(hooks, tmp_path, "train", range(5))
    hooks.checkpoint_saved(run=None, stage="train", step=4, path=tmp_path)  # flushed, then killed

    resumed = Hooks()
    resumed.register(TensorBoard(), "tensorboard")
    log(resumed, tmp_path, "train", range(3, 6), scale=8.0)
    resumed.run_finished(run=None, status="done")
    steps = scalars(tmp_path / "tensorboard" / "train", "loss")
    assert steps == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
        (3, 2.0),
        (4, pytest.approx(1.6)),
        (5, pytest.approx(8 / 6)),
    ]


def test_a_run_without_numbers_leaves_no_folder(hooks: Hooks, tmp_path: Path) -> None:
    hooks.run_finished(run=SimpleNamespace(folder=tmp_path), status="done")
    assert not (tmp_path / "tensorboard").exists()
