"""Fixtures: a short generated video, a toy recipe beside it, and the command line as a user's shell starts it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers import TOY_RECIPE, Answer, Fourd, WebPages, shell_environment, write_video

from fourd_core.cli import main


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
def fourd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Fourd:
    """`fourd(*words)` runs the command line in this process (`check`: the exit code that is expected)."""

    def run(*words: object, check: int | None = None) -> Answer:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "160")
        capfd.readouterr()
        code = main([str(word) for word in words])
        answer = Answer(code, *capfd.readouterr())
        if check is not None:
            assert answer.returncode == check, answer.stdout + answer.stderr
        return answer

    return run


@pytest.fixture
def fourd_process(tmp_path: Path) -> Fourd:
    """The same in a process of its own, started as a user's shell would; options go to `subprocess.run`."""

    def run(*words: object, check: int | None = None, **options: object) -> Answer:
        command = [sys.executable, "-m", "fourd_core", *map(str, words)]
        settings = {"cwd": tmp_path, "env": shell_environment(), "capture_output": True, "text": True, "timeout": 300}
        result = subprocess.run(command, **{**settings, **options})  # type: ignore[call-overload]
        answer = Answer(result.returncode, result.stdout, result.stderr)
        if check is not None:
            assert answer.returncode == check, answer.stdout + answer.stderr
        return answer

    return run


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server on this machine that serves `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(WebPages, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
