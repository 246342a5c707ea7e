"""Forms of one operation side by side: time, memory, error against float64, and how far from the machine's floor.

A `Case` is an operation at a size: inputs, forms that compute the same from them, and the fewest bytes and operations
that any form needs. `measure` runs the forms in turns within one process and gives a row for each; a form that fails
is a row with a note.
"""

from __future__ import annotations

import logging
import secrets
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from benchmarks.harness_machine import Machine
from fourd_core.kernels import choice

Size = Literal["gpu", "cpu", "quick"]
Inputs = dict[str, Tensor]
Form = Callable[..., Tensor | tuple[Tensor, ...]]

OURS, EAGER, SIMPLE = "fourd", "eager torch", "straightforward"
COMPILED, GRAPHS = "torch.compile", "CUDA graphs"
TF32 = "fourd, tf32"
"""`OURS` runs as users get it, `TF32` too, with torch told to take tf32 for float32 products; all others run with the
kernels' plain definitions."""
SECONDS = {"cuda": 1.0, "cpu": 15.0}
"""About how long a form is measured."""
FEWEST, MOST = 3, 15
"""Measurements of a form."""


@attrs.frozen
class Case:
    """One operation at one size.

    Attributes:
        name: the size, in words.
        inputs: from a generator, on its device; random numbers, no zeros.
        forms: on a device; each takes the inputs by name and returns one tensor or several. `SIMPLE` is also what
            computes the float64 reference.
        learned: inputs whose gradients are a part of the work; none: forward only.
        gigabytes: the fewest that must go through the memory: each input read and each output written once.
        gigaflops: the fewest operations.
        unit: whose ceiling these have: "float32", "tf32", "bfloat16".
        compiled: the form that is also compiled; None: none, or `forms` has one.
        accurate: the dtype of the reference; None: there is none.
    """

    name: str
    inputs: Callable[[torch.Generator], Inputs]
    forms: Callable[[torch.device], Mapping[str, Form]]
    gigabytes: float
    gigaflops: float
    unit: str = "float32"
    learned: tuple[str, ...] = ()
    compiled: str | None = EAGER
    accurate: torch.dtype | None = torch.float64

    def floor(self, ceilings: Mapping[str, float]) -> tuple[float, str]:
        """Milliseconds below which nothing can come on this machine, and what sets them."""
        moving = 1000 * self.gigabytes / ceilings["copy"]
        working = self.gigaflops / ceilings.get(self.unit, ceilings["float32"])
        return max((moving, "bytes"), (working, "operations"))


@attrs.define
class Measured:
    """What was found about a form so far."""

    milliseconds: list[float] = attrs.field(factory=list)
    megabytes: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.milliseconds) if self.milliseconds and not self.note else None


class Bench:
    """The forms of one case on one machine, on inputs of a fresh seed."""

    def __init__(self, case: Case, machine: Machine, compiled: bool = True, seed: int | None = None) -> None:
        self.case, self.machine = case, machine
        self.seed = secrets.randbits(31) if seed is None else seed
        self.sets = [self._inputs(0)]
        size = sum(tensor.nbytes for tensor in self.sets[0].values())
        if size < 3 * machine.cache_bytes:
            self.sets += [self._inputs(i) for i in range(1, min(32, 2 + 3 * machine.cache_bytes // size))]
        self.forms = {
            name: form
            for name, form in case.forms(machine.device).items()
            if compiled or name not in (COMPILED, GRAPHS)
        }
        if compiled and case.compiled is not None:
            logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it warns of every place it stops at
            self.forms[COMPILED] = torch.compile(self.forms[case.compiled], dynamic=False)
        self.found = {name: Measured() for name in self.forms}
        self.cotangents: dict[tuple[int, tuple[int, ...], torch.dtype], Tensor] = {}
        self.note = ""

    def _inputs(self, number: int) -> Inputs:
        return self.case.inputs(torch.Generator(self.machine.device).manual_seed(self.seed + number))

    def run(self) -> dict[str, Measured]:
        """All forms, in turns."""
        reference = self._reference()
        usual = {name: self._first(name, reference) for name in self.forms}
        del reference
        self.machine.release()
        seconds = SECONDS[self.machine.device.type]
        rounds = {
            name: max(FEWEST, min(MOST, int(1000 * seconds / max(expected, 1e-3))))
            for name, expected in usual.items()
            if not self.found[name].note
        }
        for number in range(max(rounds.values(), default=0)):
            for name in [name for name, count in rounds.items() if number < count]:
                self._guarded(name, lambda name=name: self._again(name, usual[name]))
        return self.found

    def _reference(self) -> list[Tensor] | None:
        if self.case.accurate is None:
            return None
        raised = {name: t.to(self.case.accurate) if t.is_floating_point() else t for name, t in self.sets[0].items()}
        try:
            with choice.using("plain"):
                return [t.detach() for t in self.evaluate(SIMPLE, raised)]
        except Exception as error:  # too large for this machine: then there are no errors in the table
            self.note = f"no reference: {_short(error)}"
            return None
        finally:
            self.cotangents.clear()  # those in float64 are large
            self.machine.release()

    def _first(self, name: str, reference: list[Tensor] | None) -> float:
        """Check a form, warm it up, and see how long it takes."""
        found, expected = self.found[name], 0.0

        def warm_up() -> None:
            for _ in range(2 if self.machine.device.type == "cuda" else 0):
                self.evaluate(name, self.sets[0])

        def check() -> None:
            # Compiled code allocates by itself, and would be compiled once more for the other mode.
            with nullcontext() if name in (COMPILED, GRAPHS) else _poisoned():
                got = self.evaluate(name, self.sets[0])
            if reference is not None:
                count = len(got) - len(self.case.learned)
                found.error = relative_error(got[:count], reference[:count])
                found.gradient_error = relative_error(got[count:], reference[count:]) if got[count:] else None

        def time_once() -> None:
            nonlocal expected
            expected = self._measure(name, float("inf"))

        for work in (warm_up, check, time_once):
            if not found.note:
                self._guarded(name, work)
        self.machine.release()
        return expected

    def _again(self, name: str, expected: float) -> None:
        if not self.found[name].note:
            self.found[name].milliseconds.append(self._measure(name, expected))

    def _measure(self, name: str, expected: float) -> float:
        """Milliseconds of one call; its peak memory goes into the record."""

        def call(number: int) -> list[Tensor]:
            return self.evaluate(name, self.sets[number % len(self.sets)])

        measured, megabytes = self.machine.peak(lambda: self.machine.milliseconds(call, expected))
        found = self.found[name]
        found.megabytes = max(filter(None, (found.megabytes, megabytes)), default=None)
        return measured

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """A form that fails ends with a note, out of memory included, and harms no other."""
        try:
            with nullcontext() if name in (OURS, TF32) else choice.using("plain"):
                work()
            self.machine.synchronize()
        except Exception as error:
            self.found[name].note = _short(error)
            error.__traceback__ = None  # it holds the form's tensors
            self.machine.release()

    def evaluate(self, name: str, inputs: Inputs) -> list[Tensor]:
        """Outputs of a form, then the gradients of what is learned."""
        case = self.case
        leaves = {key: t.detach().requires_grad_(key in case.learned) for key, t in inputs.items()}
        with torch.set_grad_enabled(bool(case.learned)):
            outputs = self.forms[name](**leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if not case.learned:
            return outputs
        given = [self._cotangent(i, output) for i, output in enumerate(outputs)]
        return outputs + list(torch.autograd.grad(outputs, [leaves[key] for key in case.learned], given))

    def _cotangent(self, number: int, output: Tensor) -> Tensor:
        """The same random gradient of an output for every form; a loss has gradient 1."""
        key = (number, tuple(output.shape), output.dtype)
        if key not in self.cotangents:
            generator = torch.Generator(output.device).manual_seed(self.seed + number)
            drawn = torch.randn(output.shape, generator=generator, device=output.device)
            self.cotangents[key] = (drawn if output.ndim else torch.ones_like(output)).to(output.dtype)
        return self.cotangents[key]


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest |found - wanted| / |wanted|, norms over a whole tensor; NaN where a number is missing."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
    return max(errors, key=lambda error: float("inf") if error != error else error)


@contextmanager
def _poisoned() -> Iterator[None]:
    """What is allocated and not written is NaN."""
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def rows(found: Mapping[str, Measured], floor: float) -> list[dict[str, Any]]:
    """A row for each form; the ratios say how many times faster it is than the two others."""
    simple, eager = (found[name].median if name in found else None for name in (SIMPLE, EAGER))
    return [
        {
            "form": name,
            "ms": item.median,
            "x straightforward": simple / item.median if simple and item.median else None,
            "x eager": eager / item.median if eager and item.median else None,
            "% of floor": 100 * floor / item.median if item.median else None,
            "peak MB": item.megabytes,
            "error": item.error,
            "gradient error": item.gradient_error,
            "measurements": len(item.milliseconds),
            "note": item.note,
        }
        for name, item in found.items()
    ]


def measure(case: Case, machine: Machine, ceilings: Mapping[str, float], compiled: bool = True) -> dict[str, Any]:
    """One case, as it goes into the record."""
    floor, bound = case.floor(ceilings)
    about = {
        "case": case.name, "backward": bool(case.learned), "gigabytes": case.gigabytes, "gigaflops": case.gigaflops,
        "unit": case.unit, "floor ms": floor, "bound by": bound,
    }  # fmt: skip
    try:
        bench = Bench(case, machine, compiled)
        return about | {"seed": bench.seed, "rows": rows(bench.run(), floor), "note": bench.note}
    except Exception as error:  # the inputs or what a form needs could not be made
        return about | {"rows": [], "note": _short(error)}
    finally:
        if compiled:
            torch.compiler.reset()
        machine.release()
