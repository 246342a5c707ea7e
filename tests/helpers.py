"""What several test modules use: a toy recipe, a generated video, the environment of a user's shell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

TESTS = Path(__file__).parent
ROOT = TESTS.parent

TOY_RECIPE = """
[backbone]
use = "toy_patches"

[heads.value]
use = "toy_linear"

[cues.brightness]
use = "toy_brightness"

[data]
video = "clip.mp4"
pixels = 64

[stages.train]
job = "train"
steps = 40
batch_size = 2
lr = 0.01
checkpoint_every = 3

[stages.train.objective]
use = "toy_regression"

[stages.evaluate]
job = "evaluate"

[stages.evaluate.metrics.error]
use = "toy_error"

[stages.predict]
job = "predict"
window = 4
pixels = "view"
"""

SMALL_LILA = (
    "stages.train.steps=4",
    "stages.train.checkpoint_every=2",
    "stages.train.objective.base_size=96",
    "stages.train.objective.view_size=64",
    "stages.train.objective.pool=16",
    "stages.train.objective.pamr={stages=[{iterations=2, size=[16, 16]}, {iterations=1}]}",
    "stages.evaluate.metrics.cue_error.pairs=4",
    "data.pixels=64",
    "stages.predict.pictures=1",
    "stages.predict.movie=false",
)
"""Overrides that make recipes/lila_tiny.toml a matter of seconds."""


def with_lines(recipe: Path, text: str) -> Path:
    recipe.write_text(recipe.read_text() + text)
    return recipe


def write_video(path: Path, frames: int = 24, size: tuple[int, int] = (72, 96)) -> Path:
    """A bright square that wanders over a gradient."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for t in range(frames):
            image = np.zeros((*size, 3), np.uint8)
            image[..., 0] = np.linspace(0, 200, size[1], dtype=np.uint8)
            image[..., 1] = np.linspace(200, 0, size[0], dtype=np.uint8)[:, None]
            image[20:40, 10 + 2 * t : 30 + 2 * t] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


class Answer(NamedTuple):
    """What a command left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Fourd = Callable[..., Answer]


def shell_environment() -> dict[str, str]:
    """What a shell has in which the toy plugin is installed."""
    path = os.pathsep.join([str(TESTS / "toy_plugin"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


class WebPages(SimpleHTTPRequestHandler):
    """A folder's files, whole or a range of their bytes; `broken...` is an error of the server."""

    def do_GET(self) -> None:
        """Answer with 206 where one range is asked for."""
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.path.startswith("/broken"):
            self.send_error(500)
        elif asked is None or not path.is_file():
            super().do_GET()
        else:
            data = path.read_bytes()
            start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(data[start:stop])

    def log_message(self, *arguments: object) -> None:
        """Nothing: the log would stand between the tests' results."""
