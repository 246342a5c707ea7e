"""Does memory grow with the length of the video? python -m benchmarks.predict_memory

Repeats the bundled clip to 132 and 2640 frames, predicts features of both by `fourd run recipes/lila_tiny.toml predict`
in processes of their own, and writes their peak resident memory to benchmarks/results/predict_memory.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av

from benchmarks.saving import save

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples/bigbuckbunny.mp4"
REPEATS = (1, 20)
HEIGHT = 180
OPTIONS = ("data.pixels=64", "stages.predict.pictures=2", "data.cache_mb=16", "threads=1")


def repeated(path: Path, times: int) -> int:
    """Write the clip `times` times in a row, smaller; returns the number of frames."""
    count = 0
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, HEIGHT * 16 // 9, "yuv420p"
        for _ in range(times):
            with av.open(str(CLIP)) as source:
                for frame in source.decode(video=0):
                    small = frame.reformat(stream.width, stream.height, "yuv420p")
                    small.pts, small.time_base = count, Fraction(1, 25)
                    target.mux(stream.encode(small))
                    count += 1
        target.mux(stream.encode(None))
    return count


def peak_memory(video: Path, out: Path) -> float:
    """The largest resident memory of a prediction, in MB."""
    words = ["run", ROOT / "recipes/lila_tiny.toml", "predict", "--out", out, "--set", f"data.video={video}"]
    words += [word for option in OPTIONS for word in ("--set", option)]
    process = subprocess.Popen([sys.executable, "-m", "fourd_core", *map(str, words)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the prediction of {video} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for times in REPEATS:
            video = Path(folder) / f"{times}.mp4"
            frames = repeated(video, times)
            rows.append({"frames": frames, "peak MB": round(peak_memory(video, Path(folder) / f"run{times}"))})
    rows[-1]["against the short one"] = f"{100 * (rows[-1]['peak MB'] / rows[0]['peak MB'] - 1):+.1f} %"
    save("predict_memory", rows, "python -m benchmarks.predict_memory")


if __name__ == "__main__":
    main()
