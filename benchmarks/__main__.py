"""What the kernels and rewrites buy on this machine: python -m benchmarks run [--gpu] [--quick] [--only NAME ...]

A table for each operation and size, and `benchmarks/results/MACHINE/NAME.json`. README.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness_report as report
from benchmarks.cases import OPERATIONS, cases
from benchmarks.harness import Size, measure
from benchmarks.harness_machine import Gpu, Machine
from benchmarks.harness_targets import separate, verdicts

RESULTS = Path(__file__).parent / "results"
SEPARATE = ("lila_step", "l4p_1408")


def main() -> None:
    """Measure, print, keep."""
    options = _options()
    if options.gpu and not torch.cuda.is_available():
        raise SystemExit("--gpu: torch sees no CUDA device here; leave --gpu out to measure the CPU")
    if not options.gpu:
        torch.set_num_threads(1)
    start = time.monotonic()
    machine = Gpu() if options.gpu else Machine()
    folder = options.out or (RESULTS / machine.slug / "quick" if options.quick else RESULTS / machine.slug)
    ceilings = machine.ceilings(options.quick)
    about = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.about(),
    }
    about["ceilings"] = report.rounded(ceilings)
    copied, *products = (f"{name} {value:.3g}" for name, value in ceilings.items())
    report.say(f"{machine.slug}: {copied} GB/s, products {', '.join(products)} TFLOP/s")
    size: Size = "quick" if options.quick else "gpu" if options.gpu else "cpu"
    for number, operation in enumerate(options.only):
        minutes = (time.monotonic() - start) / 60
        if minutes > options.minutes:
            report.say(f"{options.minutes:g} minutes are over; left out: --only {' '.join(options.only[number:])}")
            break
        _run(operation, size, machine, about, folder, compiled=options.compile)
        if not machine.alive():
            _go_on_afresh(options.only[number + 1 :], options.minutes - minutes)
            break
    _conclude(folder, machine, options)


def _run(operation: str, size: Size, machine: Machine, about: dict[str, Any], folder: Path, compiled: bool) -> None:
    """One operation; what is measured is on the disk after every case."""
    done: list[dict[str, Any]] = []
    try:
        for case in cases(operation, size):
            done.append(measure(case, machine, about["ceilings"], compiled))
            report.print_case(operation, done[-1])
            report.write(folder, operation, about, done)
    except Exception as error:  # its module cannot be loaded: the others can
        report.say(f"{operation}: {type(error).__name__}: {error}")


def _go_on_afresh(left: list[str], minutes: float) -> None:
    """After an illegal access a process can do nothing more on a GPU: another one measures the rest."""
    report.say("the device does not answer any more; going on in a new process")
    if left:
        words = [word for word in sys.argv[1:] if word not in OPERATIONS and word != "--only"]
        words += ["--minutes", str(minutes), "--only", *left]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *words])


def _conclude(folder: Path, machine: Machine, options: argparse.Namespace) -> None:
    """Targets, and the table of README.md where this was a whole measurement for the record."""
    records = report.read(folder)
    if options.quick:
        return
    for line in verdicts(records, options.gpu):
        report.say(line)
    if not options.gpu:
        kept = {name: RESULTS / f"{name}.json" for name in SEPARATE}
        for line in separate({n: json.loads(p.read_text(encoding="utf-8")) for n, p in kept.items() if p.exists()}):
            report.say(line)
    if options.out is None:
        report.put_into_readme(machine.slug.split("-")[0], report.summary(records))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("run", choices=["run"])
    parser.add_argument("--gpu", action="store_true", help="the first CUDA device, at the sizes of a GPU")
    parser.add_argument("--quick", action="store_true", help="small sizes, and nothing compiled")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), metavar="NAME",
                        help=f"some of: {', '.join(OPERATIONS)}")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the JSON files; benchmarks/results/MACHINE by default")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no operation after so many")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    options = parser.parse_args()
    options.compile = options.compile and not options.quick
    return options


if __name__ == "__main__":
    main()
