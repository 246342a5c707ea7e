"""A piece of a long training on a machine that is lent for minutes: python -m benchmarks.train_piece RECIPE STAGE ...

    python -m benchmarks.train_piece recipes/l4p_small.toml grow_2 --minutes 9 --out out
    python -m benchmarks.train_piece recipes/l4p_small.toml grow_2 --minutes 9 --out out2 --weights out --set ...

It trains for so many minutes and leaves in `--out` what is worth carrying away: weights in half precision, in files of
at most 15 MiB (`weights-00.safetensors` ...), and `metrics.jsonl`. With `--weights FOLDER` it starts from such files.
The optimiser's state stays behind (it is four times as large): a piece warms up again, and draws other samples than the
one before (its seed comes from the weights, unless `--set seed=...`). `--site FOLDER` names a folder
with the Python packages that the machine lacks, as `pip install --target FOLDER --no-deps ...` makes it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
PATIENCE = 60
"""Seconds in which a training that was told to end must have saved its state."""
LARGEST = 15 * 2**20
MODEL = "model/"
FILES = "weights-*.safetensors"


def shards(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in half precision, as few groups as stay below LARGEST each (a larger tensor is a group alone)."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in state.items():
        half = (value.half() if value.is_floating_point() else value).contiguous()
        if groups[-1] and size + half.nbytes > LARGEST:
            groups.append({})
            size = 0
        groups[-1][name] = half
        size += half.nbytes
    return groups


def joined(folder: Path) -> dict[str, Tensor]:
    """What `shards` took apart."""
    files = sorted(folder.glob(FILES))
    if not files:
        sys.exit(f"{folder} has no {FILES}")
    return {name: value for file in files for name, value in load_file(file).items()}


def train(options: argparse.Namespace, run: Path, start: Path | None) -> None:
    """`fourd run` for so many minutes, then the signal at which it saves its state and ends."""
    sets = [word for key in options.set for word in ("--set", key)]
    if start is not None:
        sets += ["--set", f"trained={start}"]
        if not any(key.startswith("seed=") for key in options.set):  # else it would learn from the same clips again
            sets += ["--set", f"seed={zlib.crc32(start.read_bytes())}"]
    command = [sys.executable, "-m", "fourd_core", "run", options.recipe, *options.stages, "--out", str(run), *sets]
    paths = [
        str(ROOT),
        *(str(path) for path in sorted(ROOT.glob("plugins/*"))),
        *([options.site] if options.site else []),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        process.wait(options.minutes * 60)
    except subprocess.TimeoutExpired:
        process.terminate()  # it saves its state and ends; SIGINT is ignored where a script started us behind an `&`
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """Train, and put what is worth keeping into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--site")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run, start = Path(folder, "run"), None
        if options.weights is not None:
            start = Path(folder, "start.safetensors")
            given = joined(options.weights)
            save_file({name: x.float() if x.is_floating_point() else x for name, x in given.items()}, start)
        train(options, run, start)
        left = sorted([*run.glob("*/weights.safetensors"), *run.glob("*/checkpoint.safetensors")], key=os.path.getmtime)
        if not left:
            sys.exit("the training left no weights; its message stands above")
        state = {name.removeprefix(MODEL): value for name, value in load_file(left[-1]).items()
                 if not name.startswith(("optimizer/", "average/"))}  # fmt: skip
        parts = shards(state)
        wrong = [name for part in parts for name, value in part.items() if not torch.isfinite(value).all()]
        if wrong:
            sys.exit(f"{wrong[0]} is not finite in half precision")
        for number, part in enumerate(parts):
            save_file(part, options.out / f"weights-{number:02}.safetensors")
        if (run / "metrics.jsonl").exists():
            shutil.copy(run / "metrics.jsonl", options.out / "metrics.jsonl")


if __name__ == "__main__":
    main()
