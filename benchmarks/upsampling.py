"""Does in-context upsampling keep depth edges? python -m benchmarks.upsampling [RUN]

True depth is reduced to 1/8, upsampled again in several ways, and compared with itself: AbsRel within 4 pixels of true
edges and overall, on scikit-image's stereo pair and on generated scenes (`upsampling_scenes.py`). RUN is a finished run
of recipes/lila_tiny.toml; without one it is trained first, some minutes. Writes benchmarks/results/upsampling.json and
the table in docs/upsampling.md, and with the option `--pictures FOLDER` what the methods made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fourd_effnet.backbone import EffNet
from fourd_pamr.refinement import ORIGINAL, PAMR, Stage
from jaxtyping import Float
from torch import Tensor

from benchmarks.saving import save
from benchmarks.upsampling_scenes import SIZE, Picture, coarse, errors, filled, generated, stereo
from fourd_core import load
from fourd_core.cli import main as fourd
from fourd_core.data import Clip
from fourd_core.kernels.ridge import weighted_ridge
from fourd_core.media.views import exact
from fourd_core.media.writers import write_png
from fourd_core.system import System
from fourd_core.upsampling import guide, upsample_in_context
from fourd_core.upsampling.guides import standardised

RECIPE = Path(__file__).parent.parent / "recipes/lila_tiny.toml"
PAGE = Path(__file__).parent.parent / "docs/upsampling.md"
VARIANTS = ("average", "nearest", "noisy")
TAPS = (1, 2, 3)
"""Of EfficientNet-Lite0: strides 4, 8 and 16."""

Method = Callable[[Float[Tensor, "1 1 y x"], Picture], Float[Tensor, "1 1 h w"]]
"""From the logarithm of coarse depth, NaN where unknown, to that of every pixel."""


def resized(maps: Tensor, mode: str = "bilinear") -> Tensor:
    """At the pictures' size."""
    return F.interpolate(maps, SIZE, mode=mode, align_corners=False)


def interpolated(mode: str, log: bool) -> Method:
    """Depth, or its logarithm, interpolated."""

    def method(values: Tensor, picture: Picture) -> Tensor:
        whole = filled(values)
        return resized(whole, mode) if log else resized(whole.exp(), mode).clamp(min=0.1).log()

    return method


def pamr(config: PAMR.Config) -> Method:
    """The bilinear map, refined by the picture."""
    return lambda values, picture: PAMR(config)(resized(filled(values)), picture.frame)


def guided_filter(reach: int, eps: float) -> Method:
    """He and Sun, Fast Guided Filter (arXiv 1505.00996), with the colours as the guide and windows of cells."""

    def method(values: Tensor, picture: Picture) -> Tensor:
        values = filled(values)
        box = partial(F.avg_pool2d, kernel_size=2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
        colours = F.adaptive_avg_pool2d(picture.frame, values.shape[-2:])
        mean, level = box(colours), box(values)
        products = (colours[:, :, None] * colours[:, None]).flatten(1, 2)
        variance = box(products).unflatten(1, (3, 3)) - mean[:, :, None] * mean[:, None]
        common = box(colours * values) - mean * level
        gram = variance.permute(0, 3, 4, 1, 2) + eps * torch.eye(3)
        slope = torch.linalg.solve(gram, common.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
        level = level - (slope * mean).sum(1, keepdim=True)
        return (resized(box(slope)) * picture.frame).sum(1, keepdim=True) + resized(box(level))

    return method


def in_context(features: Callable[[Picture], Tensor]) -> Method:
    """Ours, with its defaults."""
    return lambda values, picture: upsample_in_context(values, features(picture))


def one_readout(features: Callable[[Picture], Tensor]) -> Method:
    """LILA's: one ridge regression for the whole frame."""

    def method(values: Tensor, picture: Picture) -> Tensor:
        pixels = features(picture)
        rows, targets = (F.adaptive_avg_pool2d(x, values.shape[-2:]).flatten(2).mT for x in (pixels, filled(values)))
        readout = weighted_ridge(rows, targets, torch.ones(rows.shape[:2]), 1e-3, bias=True)
        return torch.einsum("bdhw,bdk->bkhw", pixels, readout[:, :-1]) + readout[:, -1, :, None, None]

    return method


def colours_and_place(picture: Picture) -> Tensor:
    """Beside the colours the pixel's row and column, 0.02 for each cell."""
    y, x = torch.meshgrid(*(0.02 * torch.arange(side) / 8 for side in SIZE), indexing="ij")
    return torch.cat([guide(picture.frame), torch.stack([y, x])[None]], 1)


class Remembered:
    """Features of pictures, computed once each."""

    def __init__(self, compute: Callable[[Float[Tensor, "1 3 h w"]], Tensor]) -> None:
        self._compute = torch.no_grad()(compute)
        self._known: dict[int, Tensor] = {}

    def __call__(self, picture: Picture) -> Tensor:
        key = id(picture.frame)
        if key not in self._known:
            self._known[key] = self._compute(picture.frame)
        return self._known[key]


def encoder() -> Callable[[Tensor], Tensor]:
    """EfficientNet-Lite0's maps, bilinear at the pictures' size."""
    network = EffNet(EffNet.Config())
    network.load_pretrained()

    def features(frame: Tensor) -> Tensor:
        tokens = network(frame[:, None], TAPS)
        return torch.cat([standardised(resized(tokens[tap].as_maps()[:, 0])) for tap in TAPS], 1)

    return features


def pixel_features(system: System) -> Callable[[Tensor], Tensor]:
    """LILA-tiny's, of the frame at the size that its recipe's prediction sees."""
    view = exact(SIZE, (192, 288))
    return lambda frame: view.restore(system(Clip(view.apply(frame)[None])).features[:, 0])


def methods(run: Path) -> Iterator[tuple[str, list[Method]]]:
    """By name; of several settings the best counts."""
    deep, lila = Remembered(encoder()), Remembered(pixel_features(load(run)))
    with_colours = [lambda p, f=f: guide(p.frame, f(p)) for f in (deep, lila)]
    yield "bilinear", [interpolated("bilinear", log=False)]
    yield "bilinear, log depth", [interpolated("bilinear", log=True)]
    yield "bicubic", [interpolated("bicubic", log=False)]
    yield "PAMR, LILA's settings", [pamr(PAMR.Config())]
    yield "PAMR, its authors' settings", [pamr(ORIGINAL)]
    several = [
        PAMR.Config(stages=(Stage(rounds),), dilations=dilations, sigma=sigma)
        for rounds in (10, 30) for sigma in (0.05, 0.1) for dilations in ((1, 3, 5), (1, 2, 4, 8))
    ]  # fmt: skip
    yield "PAMR, best of 8 settings", [pamr(config) for config in several]
    yield "guided filter, best of 6", [guided_filter(r, eps) for r in (1, 2) for eps in (1e-2, 1e-3, 1e-4)]
    yield "one read-out: colours", [one_readout(lambda p: guide(p.frame))]
    yield "one read-out: LILA-tiny", [one_readout(lambda p: standardised(lila(p)))]
    yield "ours: colours", [in_context(lambda p: guide(p.frame))]
    yield "ours: colours + place", [in_context(colours_and_place)]
    yield "ours: EfficientNet", [in_context(deep)]
    yield "ours: EfficientNet + colours", [in_context(with_colours[0])]
    yield "ours: LILA-tiny", [in_context(lila)]
    yield "ours: LILA-tiny + colours", [in_context(with_colours[1])]


def measured(method: Method, pictures: list[Picture], how: str) -> list[float]:
    """Errors near edges and overall, mean over pictures."""
    found = [errors(method(coarse(p.depth, how).log(), p).exp(), p.depth) for p in pictures]
    return torch.tensor([list(pair) for pair in found]).mean(0).tolist()


def draw(folder: Path, name: str, method: Method, data: dict[str, list[Picture]]) -> None:
    """One picture of each set: inverse depth in grey."""
    for about, pictures in data.items():
        nearness = (-method(coarse(pictures[0].depth, "average").log(), pictures[0])).exp()
        top, low = (float(filled(pictures[0].depth).reciprocal().quantile(share)) for share in (0.99, 0.01))
        grey = ((nearness - low) / (top - low)).clamp(0, 1)[0].mul(255).byte()
        write_png(folder / f"{about}_{name.replace(' ', '_')}.png", grey.expand(3, -1, -1))


def peak_memory(size: tuple[int, int], channels: int) -> float:
    """By how many MB the process grows at most, for one frame from 224 x 224; run by a process of its own."""
    from fourd_core.upsampling.guides import guide_rows
    from fourd_core.upsampling.in_context import upsample_by_rows

    frame, deep, view = torch.rand(1, 3, *size), torch.rand(1, channels, 448, 448), exact(size, (448, 448))
    before = _peak_kb()
    upsample_by_rows(torch.rand(1, 1, 224, 224), guide_rows(frame, deep, view), size)
    return (_peak_kb() - before) / 1024


def _peak_kb() -> int:
    """The process's own peak: getrusage remembers the one it was started by."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def write_table(rows: list[dict[str, str]]) -> None:
    """Replace the table on the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition("<!-- table:upsampling -->\n")
    _, end, after = rest.partition("<!-- /table -->")
    if not (mark and end):
        raise SystemExit(f"{PAGE} has no place marked <!-- table:upsampling -->")
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    PAGE.write_text(before + mark + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or Path(folder) / "lila"
        if options.run is None and fourd(["run", str(RECIPE), "train", "--out", str(run)]):
            raise SystemExit("training failed")
        data = {"stereo pair": stereo(), "generated": generated()}
        rows = []
        for name, settings in methods(run):
            row = {"AbsRel in %, near edges / overall": name}
            for about, pictures in data.items():
                for how in VARIANTS:
                    near, overall = min(measured(method, pictures, how) for method in settings)
                    row[f"{about}, {how}"] = f"{near:.2f} / {overall:.2f}"
            rows.append(row)
            sys.stderr.write(f"{row}\n")
            if options.pictures is not None and len(settings) == 1:
                draw(options.pictures, name, settings[0], data)
    save("upsampling", rows, "python -m benchmarks.upsampling")
    write_table(rows)
    measure_memory()


def measure_memory() -> None:
    """Of single frames with 32 features and the colours, each in a process of its own."""
    rows = []
    for size in ((720, 1280), (1080, 1920), (2160, 3840)):
        program = f"from benchmarks.upsampling import peak_memory; print(peak_memory({size}, 32))"
        answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        rows.append({"pixels": f"{size[0]} x {size[1]}", "channels": 35, "peak MB": round(float(answer.stdout))})
    save("upsampling_memory", rows, "python -m benchmarks.upsampling")


if __name__ == "__main__":
    main()
