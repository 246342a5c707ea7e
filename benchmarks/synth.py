"""How many generated clips come per second: python -m benchmarks.synth

One thread, everything that training uses: pictures, depth, flow, occlusion, motion, cameras and 32 tracks. Rows for a
GPU are added where there is one. Writes benchmarks/results/synth.json.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from fourd_synth.dataset import Synth

from benchmarks.saving import save

SIZES = ((64, 4, 32), (16, 8, 64), (4, 16, 112))
"""Clips in a batch, frames, pixels of the crop."""
SETTINGS: dict[str, dict[str, Any]] = {
    "scenes": {},
    "scenes, glossy": {"shading": "glossy"},
    "scenes, each used 4 times": {"reuse": 4},
    "layers": {"layers": 1.0},
}
ROUNDS = 4
TRACKS = 32


def clips_per_second(settings: dict[str, Any], batch: int, frames: int, pixels: int, device: torch.device) -> float:
    """The best of some batches, after one that is not counted; on the CPU in seconds of this process alone."""
    data = Synth(Synth.Config(**settings))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for number in range(ROUNDS + 1):
        numbers = torch.arange(batch) + number * batch
        start = clock()
        data.generate("train", numbers, frames, pixels, TRACKS, device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            best = min(best, clock() - start)
    return batch / best


def main() -> None:
    torch.set_num_threads(1)
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    rows = []
    for device in devices:
        scale = 1 if device.type == "cpu" else 8
        for name, settings in SETTINGS.items():
            for batch, frames, pixels in SIZES:
                speed = clips_per_second(settings, batch * scale, frames, pixels, device)
                rows.append(
                    {
                        "device": device.type,
                        "clips": name,
                        "size": f"{frames} x {pixels} px",
                        "clips per second": round(speed, 1),
                        "frames per second": round(speed * frames),
                    }
                )
    save("synth", rows, "python -m benchmarks.synth")


if __name__ == "__main__":
    main()
