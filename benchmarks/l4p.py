"""What the tracking head's algebra buys against its straightforward form. python -m benchmarks.l4p

Two windows of 16 frames, 128 points, L4P's sizes but for the width of ViT-B (768 channels; at 1408 the straightforward
form takes 16 GB): the first window, and one with a history. Each form runs in processes of its own, on one thread.
Seconds are of processor time, the best of the repeats; the peak is of resident memory, above what the process had with
its weights and the video's tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import TrackMemory
from torch import Tensor, nn

from benchmarks.l4p_baseline import StraightforwardTracker
from benchmarks.saving import save
from fourd_core.data import Clip, Grid, Queries, TokenMap, Tokens
from fourd_core.interfaces import BackboneSpec, TapSpec

COMMAND = "python -m benchmarks.l4p"
FRAMES, SHIFT, SIDE, PATCH = 16, 8, 224, (2, 14, 14)
GRID = Grid(FRAMES // PATCH[0], SIDE // PATCH[1], SIDE // PATCH[2])
WIDTH, HEADS, MLP = 768, 8, 2048
FEW = 8
"""Points of the comparison in float64."""
WINDOWS = ("first", "with history")
FORMS = ("straightforward", "fourd")


def straightforward(dim: int) -> StraightforwardTracker:
    """With seeded weights, and heat maps with a peak rather than flat ones."""
    torch.manual_seed(0)
    tracker = StraightforwardTracker(dim, HEADS, MLP, GRID, (FRAMES, SIDE, SIDE)).eval()
    tracker.mask_decoder.output_hypernetworks_mlps[0].layers[2].weight.data *= 30
    return tracker


def inputs(dim: int, count: int) -> tuple[list[Tensor], Queries]:
    """The tokens of two windows, and points in the first of them."""
    generator = torch.Generator().manual_seed(1)
    videos = [torch.randn(GRID.t * GRID.h * GRID.w, dim, generator=generator) for _ in WINDOWS]
    xy = torch.rand(1, count, 2, generator=generator) * SIDE
    return videos, Queries(torch.randint(0, FRAMES, (1, count), generator=generator), xy)


def fourd(dim: int) -> nn.ModuleList:
    """The plugin's head and memory with the same weights."""
    spec = BackboneSpec((TapSpec(dim, PATCH),), PATCH, (0.5,) * 3, (0.25,) * 3)
    head = SamTrack(SamTrack.Config(heads=HEADS, mlp=MLP), spec)
    parts = nn.ModuleList([head, TrackMemory(TrackMemory.Config(), spec)]).eval()
    state = straightforward(dim).state_dict()
    for part in parts:
        part.load_state_dict({key: state[key] for key in part.state_dict()})
    return parts


class Straightforward:
    """Window after window, all tokens of all points at once."""

    def __init__(self, tracker: StraightforwardTracker, queries: Queries) -> None:
        self.tracker, count, dim = tracker, queries.count, tracker.prompt_feature_linear_layer.in_features
        self.points = torch.cat([queries.frame[0, :, None] + 0.5, queries.xy[0]], 1)
        self.labels = torch.ones(count, dtype=torch.long)
        self.feature, self.handed = torch.zeros(count, dim), torch.zeros(count, dtype=torch.bool)
        self.history = self.tracker.first_history(count)

    def window(self, video: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, visibility, depth, `n t ...`."""
        answer = self.tracker(video, self.history, self.points, self.labels, self.feature, self.handed)
        self.history = self.tracker.next_history(answer.history)
        self.feature, self.handed = answer.feature, torch.ones_like(self.handed)
        for i, point in enumerate(self.points):
            silent = torch.arange(FRAMES) + 0.5 < point[0]
            frame = SHIFT + int(answer.logit[i].masked_fill(silent, -10)[SHIFT:].argmax())
            if frame + 0.5 > point[0]:
                self.points[i] = torch.cat([torch.tensor([frame + 0.5]), answer.xy[i, frame]])
                self.labels[i] = 2
            self.points[i, 0] -= SHIFT
        return answer.xy, answer.logit.sigmoid(), answer.depth


class Fourd:
    """The plugin's head and memory."""

    def __init__(self, parts: nn.ModuleList, queries: Queries) -> None:
        self.head, self.memory = parts
        self.state: Any = None
        self.queries = queries

    def window(self, video: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, visibility, depth, `n t ...`."""
        tokens = Tokens({0: TokenMap(video[None], GRID)})
        clip = Clip(torch.zeros(1, FRAMES, 3, SIDE, SIDE), queries=self.queries)
        self.state = self.state or self.memory.initial(tokens, clip)
        tracks = self.head(*self.memory.read(self.state, tokens, clip))
        if not last:
            self.state = self.memory.update(self.state, tokens, clip, tracks, SHIFT)
            self.queries = Queries(self.queries.frame - SHIFT, self.queries.xy)
        assert tracks.depth is not None
        return tracks.xy[0].transpose(0, 1), tracks.visibility[0].T, tracks.depth[0].T


def resident(field: str) -> float:
    """Of this process in MB: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


@torch.inference_mode()
def measure(form: str, dim: int, count: int, double: bool, out: Path) -> None:
    """One run of one form: writes seconds, peak and answers."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    network: nn.Module
    network, runner = (straightforward(dim), Straightforward) if form == "straightforward" else (fourd(dim), Fourd)
    videos, queries = inputs(dim, count)
    runner(network, queries.part(0, 1)).window(videos[0], last=True)  # what is loaded and set up once
    tracker = runner(network, queries)
    before, seconds, answers = resident("VmRSS"), [], []
    for number, video in enumerate(videos):
        start = time.process_time()
        answers.append(tracker.window(video, last=number == len(videos) - 1))
        seconds.append(time.process_time() - start)
    torch.save(answers, out.with_suffix(".pt"))
    out.write_text(json.dumps({"seconds": seconds, "MB": resident("VmHWM") - before}), encoding="utf-8")


def in_a_process(form: str, width: int, count: int, repeats: int = 1, double: bool = False) -> dict[str, Any]:
    """The best times of the repeats, the peak, and the answers of a form."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / form
        words = [form, "--width", width, "--points", count, "--out", out, *["--double"] * double]
        for _ in range(repeats):
            subprocess.run([sys.executable, "-m", "benchmarks.l4p", *map(str, words)], check=True)
            runs.append(json.loads(out.read_text(encoding="utf-8")))
        answers = torch.load(out.with_suffix(".pt"))
    seconds = [min(run["seconds"][i] for run in runs) for i in range(len(WINDOWS))]
    return {"seconds": seconds, "MB": min(run["MB"] for run in runs), "answers": answers}


def compare(width: int, count: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each form, and their ratio."""
    found = [in_a_process(form, width, count, repeats) for form in FORMS]
    exact = [in_a_process(form, width, min(count, FEW), double=True) for form in FORMS]
    rows = [
        {"form": form}
        | {f"{window}, s": round(s, 2) for window, s in zip(WINDOWS, item["seconds"], strict=True)}
        | {"peak MB": round(item["MB"])}
        for form, item in zip(FORMS, found, strict=True)
    ]
    slow, fast = found
    ratio = {f"{window}, s": f"{s / f:.2f} x"
             for window, s, f in zip(WINDOWS, slow["seconds"], fast["seconds"], strict=True)}  # fmt: skip
    rows.append({"form": "ratio", **ratio, "peak MB": f"{slow['MB'] / fast['MB']:.1f} x"})
    spread = float(slow["answers"][0][0].std(1).mean())
    for name, pair in (("difference, float32", found), (f"difference, float64, {FEW} points", exact)):
        xy, visible, depth = differences(*(item["answers"] for item in pair))
        equal = (
            f"xy {xy:.0e} px of {SIDE} (tracks spread over {spread:.0f}), visibility {visible:.0e}, depth {depth:.0e}"
        )
        rows.append({"form": name, "largest": equal})
    return rows


def differences(slow: list[Any], fast: list[Any]) -> list[float]:
    """The largest, of positions, visibility and depth."""
    return [max(float((a[i] - b[i]).abs().max()) for a, b in zip(slow, fast, strict=True)) for i in range(3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("form", nargs="?", choices=FORMS, help="measure this one only, in this process")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--points", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--double", action="store_true", help="in float64")
    options = parser.parse_args()
    if options.form:
        measure(options.form, options.width, options.points, options.double, options.out)
    else:
        command = " ".join([COMMAND, *sys.argv[1:]])
        name = "l4p" if options.width == WIDTH else f"l4p_{options.width}"
        save(name, compare(options.width, options.points, options.repeats), command)


if __name__ == "__main__":
    main()
