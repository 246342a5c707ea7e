"""Does memory grow with the length of the video? python -m benchmarks.predict_memory [lila_tiny] [l4p_tiny]

Repeats the bundled clip to a short and a long video, predicts both by `fourd run recipes/NAME.toml predict` in
processes of their own, and writes their peak resident memory to benchmarks/results/predict_memory_NAME.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av

from benchmarks.saving import save

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples/bigbuckbunny.mp4"
HEIGHT = 180
COMMON = ("threads=1", "stages.predict.pictures=2")


class Case(NamedTuple):
    """A recipe, the lengths of the two videos, and what is set for both."""

    frames: tuple[int, int]
    options: tuple[str, ...]


CASES = {
    "lila_tiny": Case((132, 2640), ("data.pixels=64", "data.cache_mb=16", *COMMON)),
    "l4p_tiny": Case((32, 2000), COMMON),
}


def repeated(path: Path, frames: int) -> None:
    """Write the clip again and again, smaller, until there are `frames`."""
    count = 0
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, HEIGHT * 16 // 9, "yuv420p"
        while count < frames:
            with av.open(str(CLIP)) as source:
                for frame in islice(source.decode(video=0), frames - count):
                    small = frame.reformat(stream.width, stream.height, "yuv420p")
                    small.pts, small.time_base = count, Fraction(1, 25)
                    target.mux(stream.encode(small))
                    count += 1
        target.mux(stream.encode(None))


def peak_memory(recipe: str, video: Path, out: Path) -> float:
    """The largest resident memory of a prediction, in MB."""
    words = ["run", ROOT / f"recipes/{recipe}.toml", "predict", "--out", out, "--set", f"data.video={video}"]
    words += [word for option in CASES[recipe].options for word in ("--set", option)]
    process = subprocess.Popen([sys.executable, "-m", "fourd_core", *map(str, words)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the prediction of {video} failed")
    return usage.ru_maxrss / 1024


def measure(recipe: str) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in CASES[recipe].frames:
            video = Path(folder) / f"{frames}.mp4"
            repeated(video, frames)
            peak = peak_memory(recipe, video, Path(folder) / f"run{frames}")
            rows.append({"frames": frames, "peak MB": round(peak)})
    rows[-1]["against the short one"] = f"{100 * (rows[-1]['peak MB'] / rows[0]['peak MB'] - 1):+.1f} %"
    save(f"predict_memory_{recipe}", rows, f"python -m benchmarks.predict_memory {recipe}")


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        measure(name)
