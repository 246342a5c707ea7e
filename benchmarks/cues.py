"""Does the cue job keep its size, and what do kept cues cost? python -m benchmarks.cues [many] [storage]

many: 10,000 tiny videos in one job on two local workers, with the resident memory of the process that plans and
schedules (the job's own, with dask's scheduler in it) as the units come in.
storage: DIS flow of the bundled clip at LILA's 224 pixels, in both precisions: bytes, and what rounding changes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.saving import save
from fourd_core.cues import CueStore
from fourd_core.media.writers import encode_png

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/lila_tiny.toml"
VIDEOS = 10_000
FRAMES_PER_HOUR = 25 * 3600
AGREES = 0.05 * float(np.log(2))
"""LILA trusts flow whose disagreement, in half frames, is below this."""
STAGE = '\n[stages.cues]\njob = "cues"\n'


def run(folder: Path, *settings: str) -> subprocess.Popen[str]:
    """The tiny recipe's cue stage in a process of its own."""
    recipe = folder / "cues.toml"
    recipe.write_text(f'extends = "{RECIPE}"\ncue_cache = "kept.zarr"\n{STAGE}')
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "fourd_core", "run", str(recipe), "cues", "--out", str(folder / "run"), *words],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def tiny_videos(folder: Path) -> None:
    """Two pictures of 32 x 32 each: a blot that moves."""
    generator = torch.Generator().manual_seed(0)
    blot = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=generator), (40, 40), mode="bicubic")
    picture = (255 * blot[0]).clamp(0, 255).to(torch.uint8)
    for number in range(VIDEOS):
        video = folder / f"{number // 100:03d}" / f"{number:05d}"
        video.mkdir(parents=True)
        for frame in range(2):
            shift = (number % 4) * frame
            (video / f"{frame}.png").write_bytes(encode_png(picture[:, shift : shift + 32, :32]))


def resident(process: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def many() -> None:
    """Memory of the scheduling process at a few points of a job over 10,000 videos."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_videos(folder / "videos")
        objective = "stages.train.objective"
        process = run(
            folder, f"data.root={folder / 'videos'}", "data.layout=videos", "data.held_out=0", "cluster.workers=2",
            "stages.train.steps=5000", "stages.cues.unit=8", f"{objective}.base_size=32", f"{objective}.view_size=32",
            f"{objective}.pamr=none",
        )  # fmt: skip
        samples: list[tuple[int, float]] = []
        maps = folder / "kept.zarr/flow/maps"
        while process.poll() is None:
            done = len(list(maps.glob("c.*"))) if maps.exists() else 0
            try:
                samples.append((done, resident(process.pid)))
            except OSError:
                break
            time.sleep(0.5)
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said)
        units = max(done for done, _ in samples)
        rows: list[dict[str, Any]] = [{"videos": VIDEOS, "units": units, "clips": units * 8}]
        for share in (0.1, 0.25, 0.5, 0.75, 1.0):
            near = min(samples, key=lambda sample: abs(sample[0] - share * units))
            rows.append({"units": near[0], "MB of the scheduling process": round(near[1])})
        shown = [line for line in said.splitlines() if line.startswith("cues: ")]
        rows.append({"units": f"progress: {len(shown)} lines, such as '{shown[len(shown) // 2] if shown else ''}'"})
        save("cues_many", rows, "python -m benchmarks.cues many")


def storage() -> None:
    """Bytes for an hour of video, and the error of float16."""
    kept: dict[str, tuple[np.ndarray, int, int]] = {}
    for precision in ("float16", "float32"):
        with tempfile.TemporaryDirectory() as name:
            process = run(
                Path(name), f"stages.cues.precision={precision}", "stages.train.steps=30",
                "stages.train.objective.base_size=480", "stages.train.objective.view_size=224",
                "stages.train.objective.pamr=none",
            )  # fmt: skip
            _, said = process.communicate()
            if process.returncode:
                raise SystemExit(said)
            store = CueStore.find(f"{name}/kept.zarr")
            cue = store.cue("flow") if store is not None else None
            assert cue is not None
            _, places = cue.counting_rows()
            kept[precision] = (np.stack([cue.read(place) for place in places]), sum(cue.done().values()), len(places))
    exact, (rounded, _, _) = kept["float32"][0], kept["float16"]
    rows: list[dict[str, Any]] = []
    for precision, (values, size, clips) in kept.items():
        hour = size / clips * FRAMES_PER_HOUR
        rows.append(
            {"precision": precision, "clips": clips, "kB per clip": round(size / clips / 1e3, 1),
             "of raw": f"{size / values.nbytes:.2f}", "GB per hour at 25 fps": round(hour / 1e9, 1)}
        )  # fmt: skip
    error = np.abs(exact[:, :, :2] - rounded[:, :, :2].astype(np.float32))
    agrees, still = exact[:, :, 2] < AGREES, rounded[:, :, 2].astype(np.float32) < AGREES
    rows.append(
        {"precision": "error of float16", "largest flow (px)": round(float(np.abs(exact[:, :, :2]).max()), 1),
         "largest (px)": float(f"{error.max():.2g}"), "mean (px)": float(f"{error.mean():.2g}"),
         "trust changes in": f"{(agrees != still).mean():.1e} of the pixels"}
    )  # fmt: skip
    save("cues_storage", rows, "python -m benchmarks.cues storage")


if __name__ == "__main__":
    for part in sys.argv[1:] or ("many", "storage"):
        {"many": many, "storage": storage}[part]()
