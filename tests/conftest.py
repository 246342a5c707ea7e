"""Fixtures: a short generated video, a toy recipe beside it, and the command line as a user's shell starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TOY_RECIPE, Fourd, shell_environment, write_video


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors are slower on many threads, and CI's machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 96x72."""
    return write_video(tmp_path_factory.mktemp("media") / "clip.mp4")


@pytest.fixture
def toy_recipe(tmp_path: Path, clip: Path) -> Path:
    """A recipe of toy components beside its video: train, evaluate, predict."""
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    path = tmp_path / "toy.toml"
    path.write_text(TOY_RECIPE)
    return path


@pytest.fixture
def fourd(tmp_path: Path) -> Fourd:
    """`fourd(*words)` runs the command in an empty folder and returns code, stdout and stderr."""

    def run(*words: object, check: int | None = None, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fourd_core", *map(str, words)]
        settings = {"cwd": tmp_path, "env": shell_environment(), "capture_output": True, "text": True, "timeout": 300}
        result: subprocess.CompletedProcess[str] = subprocess.run(command, **{**settings, **options})  # type: ignore[call-overload]
        if check is not None:
            assert result.returncode == check, result.stdout + result.stderr
        return result

    return run
