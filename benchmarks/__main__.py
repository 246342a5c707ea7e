"""What the kernels and rewrites buy on this machine: python -m benchmarks run [--gpu] [--quick] [--only NAME ...]

A table for each operation and size, and `benchmarks/results/MACHINE/NAME.json`. README.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks import harness_report as report
from benchmarks.cases import OPERATIONS, cases
from benchmarks.harness import Size, measure
from benchmarks.harness_machine import Gpu, Machine
from benchmarks.harness_targets import SEPARATE, separate, verdicts
from fourd_core.cli import INTERRUPTED
from fourd_core.errors import FourdError, RunError

RESULTS = Path(__file__).parent / "results"


@attrs.define
class Run:
    """One call of the command.

    Attributes:
        words: its arguments as they were typed.
        measured: operations all of whose cases this run has measured.
        absent: operations that have no case on this machine or at this size.
    """

    words: list[str]
    options: argparse.Namespace
    machine: Machine
    folder: Path
    measured: list[str]
    absent: list[str] = attrs.field(factory=list)

    @property
    def whole(self) -> bool:
        """Whether it is one for the record: of everything, at full size."""
        everything = {*self.measured, *self.absent} == set(OPERATIONS)
        return everything and not self.options.quick and self.options.out is None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; returns the exit code: 0 done, 2 a mistake that was explained, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(words)
    try:
        if options.gpu and not torch.cuda.is_available():
            raise RunError("--gpu: torch sees no CUDA device here; leave --gpu out to measure the CPU")
        machine = Gpu() if options.gpu else Machine()
        usual = RESULTS / machine.slug / "quick" if options.quick else RESULTS / machine.slug
        run = Run(words, options, machine, _writable(options.out or usual), measured=list(options.after))
    except FourdError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    try:
        _measure(run)
        _conclude(run)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped; what was measured is in {run.folder}\n")
        return INTERRUPTED
    return 0


def _writable(folder: Path) -> Path:
    """The folder, made; a mistake in its name is found before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}); name another folder with --out") from error


def _measure(run: Run) -> None:
    """Every operation that was asked for."""
    start, options, machine = time.monotonic(), run.options, run.machine
    if not options.gpu:
        torch.set_num_threads(1)
    ceilings = machine.ceilings(options.quick)
    about = {
        "command": " ".join(["python -m benchmarks", *run.words]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.about(),
    }
    about["ceilings"] = report.rounded(ceilings)
    copied, *products = (f"{name} {value:.3g}" for name, value in ceilings.items())
    report.say(f"{machine.slug}: {copied} GB/s, products {', '.join(products)} TFLOP/s")
    for number, operation in enumerate(options.only):
        minutes = (time.monotonic() - start) / 60
        if minutes > options.minutes:
            report.say(f"{options.minutes:g} minutes are over; left out: --only {' '.join(options.only[number:])}")
            break
        _operation(operation, run, about)
        if not machine.alive():
            _go_on_afresh(run, options.only[number + 1 :], options.minutes - minutes)
            break


def _operation(operation: str, run: Run, about: dict[str, Any]) -> None:
    """One operation; what is measured is on the disk after every case."""
    size: Size = "quick" if run.options.quick else "gpu" if run.options.gpu else "cpu"
    done: list[dict[str, Any]] = []
    try:
        for case in cases(operation, size):
            done.append(measure(case, run.machine, about["ceilings"], run.options.compile))
            report.print_case(operation, done[-1])
            report.write(run.folder, operation, about, done)
    except Exception as error:  # its module cannot be loaded: the others can
        report.say(f"{operation}: {type(error).__name__}: {error}")
        return
    (run.measured if done else run.absent).append(operation)
    if not done:
        report.say(f"\n{operation}: it is measured on a GPU only, at full size (--gpu without --quick)")


def _go_on_afresh(run: Run, left: list[str], minutes: float) -> None:
    """After an illegal access a process can do nothing more on a GPU: another one measures the rest."""
    report.say("the device does not answer any more; going on in a new process")
    if left:
        words = [
            *run.words,
            "--minutes",
            str(minutes),
            "--after",
            *run.measured,
            "--only",
            *left,
        ]  # the last ones count
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *words])


def _conclude(run: Run) -> None:
    """Targets of what this run measured; the table of README.md where it was a whole measurement for the record."""
    records = report.read(run.folder, run.measured)
    report.say("")
    if run.options.quick:
        report.say("small sizes say nothing about the targets: none is judged")
    else:
        for line in verdicts(records, run.options.gpu, asked=[*run.options.after, *run.options.only]):
            report.say(line)
    if run.whole and not run.options.gpu:
        kept = {name: RESULTS / f"{name}.json" for name in SEPARATE}
        for line in separate({n: json.loads(p.read_text(encoding="utf-8")) for n, p in kept.items() if p.exists()}):
            report.say(line)
    report.say(f"written: {run.folder}/NAME.json of {', '.join(records)}" if records else "nothing was measured")
    if not run.whole:
        report.say(f"not written: the table in {report.README}, which takes a whole run (no --quick, --only, --out)")
    elif report.put_into_readme(run.machine.slug.split("-")[0], report.summary(records), report.README):
        report.say(f"written: the table in {report.README}")
    else:
        report.say(f"not written: the table in {report.README}, which has no place for {run.machine.slug}")


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("run", choices=["run"])
    parser.add_argument("--gpu", action="store_true", help="the first CUDA device, at the sizes of a GPU")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing compiled, no target judged")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), metavar="NAME",
                        help=f"some of: {', '.join(OPERATIONS)}")  # fmt: skip
    parser.add_argument("--after", nargs="*", default=[], help=argparse.SUPPRESS)  # measured by a process that ended
    parser.add_argument("--out", type=Path, help="folder of the JSON files; benchmarks/results/MACHINE by default")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no operation after so many")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    options = parser.parse_args(words)
    options.compile = options.compile and not options.quick
    return options


if __name__ == "__main__":
    sys.exit(main())
