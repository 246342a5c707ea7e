"""What LILA's training step costs beside its straightforward form: python -m benchmarks.lila_step

DINOv2 ViT-S and the pixel decoder at the paper's sizes with random weights, two pairs of 224 x 224, what the teachers
said given: losses and the decoder's gradients, PAMR included. Each form runs in processes of its own on one thread, the
forms in turn. Seconds are of processor time, the best of the repeats; the peak is of resident memory, above what the
process had with its weights and inputs.
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
import torch.nn.functional as F
from fourd_dinov2.backbone import DinoV2
from fourd_dpt3d.pixel_decoder import PixelDecoder
from fourd_lila.crops import random_crop
from fourd_lila.distillation import random_channels
from fourd_lila.objective import LILA
from torch import Tensor

from benchmarks.l4p import resident
from benchmarks.lila_step_baseline import step
from benchmarks.saving import save
from fourd_core.data import Clip, CueKind, CueMaps
from fourd_core.interfaces import CueProvider
from fourd_core.system import System

COMMAND = "python -m benchmarks.lila_step"
PAIRS, SIZE, BASE, SEED = 2, 224, 480, 4
FORMS = ("straightforward", "fourd")


class Asked(CueProvider):
    """A teacher whose answers come with the batch."""

    def __init__(self, kind: CueKind) -> None:
        self.kind = kind

    def __call__(self, clip: Clip) -> CueMaps:
        raise AssertionError("the answers come with the batch")


def smooth(*shape: int, seed: int) -> Tensor:
    """Random maps without detail."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(*shape[:-2], 9, 9, generator=generator).flatten(0, -3)[:, None]
    return F.interpolate(maps, shape[-2:], mode="bicubic").view(shape)


def batch(pairs: int, size: int) -> dict[str, Tensor]:
    """Views with edges and texture, and what teachers say: flow that mostly leads back, and disparity."""
    noise = torch.randn(pairs, 2, 3, size, size, generator=torch.Generator().manual_seed(1))
    views = 60 * smooth(pairs, 2, 3, size, size, seed=2).sign() + 128 + 12 * noise
    there = 4 * smooth(pairs, 2, size, size, seed=3)
    flow = torch.stack([there, -there + 0.8 * smooth(pairs, 2, size, size, seed=5)], 1)
    generator = torch.Generator().manual_seed(6)
    theta = [
        torch.stack([random_crop(BASE, area, generator).theta(BASE) for area in ((0.3, 1.0), (0.8, 0.8))])
        for _ in range(pairs)
    ]
    known = torch.ones(pairs, 2, 1, size, size, dtype=torch.bool)
    return {
        "views": views.clamp(0, 255).to(torch.uint8),
        "theta": torch.stack(theta),
        "cue.flow.values": flow,
        "cue.flow.valid": known,
        "cue.depth.values": (8 * smooth(pairs, 2, 1, size, size, seed=7) + 7).clamp(min=0),
        "cue.depth.valid": known,
    }


def network() -> System:
    """With seeded random weights."""
    torch.manual_seed(0)
    backbone = DinoV2(DinoV2.Config(variant="s"))
    for name, parameter in backbone.named_parameters():
        if "pos_embed" not in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    head = PixelDecoder(PixelDecoder.Config(), backbone.spec)
    return System(backbone, {"features": head}, cues={"flow": Asked("flow"), "depth": Asked("disparity")})


def fourd(system: System, objective: LILA, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """A step of the product's objective."""
    return objective(system, given, torch.Generator().manual_seed(SEED))


def straightforward(system: System, objective: LILA, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """A step of the other form, with the system's parameters."""
    network, head = system.backbone.network, system.heads["features"]
    dim = network.pos_embed.shape[-1]
    chosen = random_channels(
        len(given["views"]), dim, objective.config.distill_channels, torch.Generator().manual_seed(SEED)
    )
    weights = dict(network.named_parameters()), dict(head.named_parameters())
    views = given["views"] / 255
    return step(*weights, views, given["theta"], given["cue.flow.values"], given["cue.depth.values"], chosen)


def measure(form: str, pairs: int, size: int, out: Path, double: bool) -> None:
    """Two steps of one form, the second measured in time: writes seconds, peak, losses and gradients."""
    torch.set_num_threads(1)
    system, given = network(), batch(pairs, size)
    objective = LILA(LILA.Config(base_size=BASE, view_size=size), system)
    if double:
        torch.set_default_dtype(torch.float64)
        system, given = system.double(), {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    run = {"straightforward": straightforward, "fourd": fourd}[form]
    before, seconds = resident("VmRSS"), []
    for _ in range(2):
        system.zero_grad(set_to_none=True)
        start = time.process_time()
        losses = run(system, objective, given)
        losses["loss"].backward()
        seconds.append(time.process_time() - start)
    gradients = {name: p.grad for name, p in system.heads.named_parameters() if p.grad is not None}
    torch.save(({name: losses[name].item() for name in ("loss", "l1", "edge")}, gradients), out.with_suffix(".pt"))
    out.write_text(json.dumps({"seconds": min(seconds), "MB": resident("VmHWM") - before}), encoding="utf-8")


def in_processes(pairs: int, size: int, repeats: int, double: bool = False) -> dict[str, dict[str, Any]]:
    """The best time and peak of each form, its losses and its gradients."""
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for form in FORMS:
                out = Path(folder) / form
                words = [form, "--pairs", pairs, "--size", size, "--out", out, *["--double"] * double]
                subprocess.run([sys.executable, "-m", "benchmarks.lila_step", *map(str, words)], check=True)
                runs[form].append(json.loads(out.read_text(encoding="utf-8")))
        for form in FORMS:
            losses, gradients = torch.load(Path(folder) / f"{form}.pt")
            best = {key: min(run[key] for run in runs[form]) for key in ("seconds", "MB")}
            found[form] = best | {"losses": losses, "gradients": gradients}
    return found


def apart(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """How far losses and gradients are from each other."""
    slow, fast = (found[form] for form in FORMS)
    assert slow["gradients"].keys() == fast["gradients"].keys()
    losses = max(abs(value / fast["losses"][name] - 1) for name, value in slow["losses"].items())
    norms = [
        float((value - fast["gradients"][name]).norm() / value.norm()) for name, value in slow["gradients"].items()
    ]
    return {"losses": f"{losses:.0e}", "gradients": f"{max(norms):.0e}"}


def compare(pairs: int, size: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each form, their ratio, and how far losses and gradients are apart (relative; the worst tensor's norm).

    In float32 the gradient of |x| changes its sign where rounding does: float64, at half the size, shows the algebra.
    """
    found = in_processes(pairs, size, repeats)
    rows: list[dict[str, Any]] = [
        {"form": form, "s": round(item["seconds"], 2), "peak MB": round(item["MB"])} for form, item in found.items()
    ]
    ratio = {key: found["straightforward"][key] / found["fourd"][key] for key in ("seconds", "MB")}
    rows.append({"form": "ratio", "s": f"{ratio['seconds']:.2f} x", "peak MB": f"{ratio['MB']:.2f} x"})
    rows.append({"form": "difference, float32"} | apart(found))
    exact = in_processes(1, size // 2, 1, double=True)
    return [*rows, {"form": f"difference, float64, one pair of {size // 2}"} | apart(exact)]


def main() -> None:
    """Compare the forms, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("form", nargs="?", choices=FORMS, help="measure this one only, in this process")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.form:
        measure(options.form, options.pairs, options.size, options.out, options.double)
    else:
        save("lila_step", compare(options.pairs, options.size, options.repeats), COMMAND)


if __name__ == "__main__":
    main()
