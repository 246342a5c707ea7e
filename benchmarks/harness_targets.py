"""What the kernels must show, and whether the records of a machine show it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import Any

import attrs

from benchmarks.harness import EAGER, OURS, SIMPLE, TF32

Record = Mapping[str, Any]
Measure = Callable[[Record, Record], float | None]
"""A number from a case and the machine's ceilings; None: a form of it is missing."""


def _row(case: Record, form: str) -> Record:
    return next((row for row in case["rows"] if row["form"] == form), {})


def times(case: Record, _: Record, than: str, form: str = OURS) -> float | None:
    """How many times faster ours is than another form."""
    ours, other = _row(case, form).get("ms"), _row(case, than).get("ms")
    return other / ours if ours and other else None


def field(case: Record, _: Record, name: str) -> float | None:
    """Of our row."""
    return _row(case, OURS).get(name)


def bandwidth(case: Record, ceilings: Record, form: str = OURS) -> float | None:
    """Percent of the measured copy that the fewest bytes reach in our time."""
    ours = _row(case, form).get("ms")
    return 100 * case["gigabytes"] / ceilings["copy"] / (ours / 1000) if ours else None


def worst_error(case: Record, _: Record) -> float | None:
    """Of outputs and gradients; NaN where a number is missing."""
    row = _row(case, OURS)
    errors = [row[name] for name in ("error", "gradient error") if row.get(name) is not None]
    return max(errors, key=lambda error: float("inf") if error != error else error, default=None)


def behind_straightforward(case: Record, _: Record) -> float | None:
    """Our error over that of the straightforward form, where both round alike."""
    ours, other = _row(case, OURS).get("error"), _row(case, SIMPLE).get("error")
    return ours / other if ours is not None and other else None


def behind_fastest(case: Record, _: Record) -> float | None:
    """Our time over that of the fastest form."""
    known = [row["ms"] for row in case["rows"] if row.get("ms")]
    ours = _row(case, OURS).get("ms")
    return ours / min(known) if ours else None


@attrs.frozen
class Target:
    """One line: `measure` of the cases of an operation must be at least or at most `bound`.

    `case` are words that the case's name contains.
    """

    says: str
    operation: str
    measure: Measure
    bound: float
    most: bool = False
    case: str = ""
    backward: bool | None = None

    def of(self, record: Record) -> Iterator[tuple[str, float | None]]:
        """The number of every case that it is about."""
        for case in record["cases"]:
            if self.case in case["case"] and self.backward in (None, case["backward"]):
                yield case["case"], self.measure(case, record["ceilings"])


EAGERLY, SIMPLY = partial(times, than=EAGER), partial(times, than=SIMPLE)
LINEAR, WHOLE_VIEW = "prediction and loss", "50176"
ROUNDED = {"ridge": 5e-3, "matching": 1e-2, "map_readout": 5e-3, "local_affinity": 1e-5, "attention": 2e-2,
           "l4p_track": 1e-2}  # fmt: skip
"""The largest error that a GPU may have: what tf32, and of attention bfloat16, rounds away. A wrong kernel has more."""
GPU_TARGETS = (
    Target("prediction and loss, times eager", "matching", EAGERLY, 8, case=LINEAR),
    Target("prediction and loss, % of the copy's bandwidth", "matching", bandwidth, 50, case=LINEAR),
    Target("the same in tf32, times eager", "matching", partial(times, than=EAGER, form=TF32), 8, case=LINEAR),
    Target("the same in tf32, % of the copy's bandwidth", "matching", partial(bandwidth, form=TF32), 50, case=LINEAR),
    Target("ridge over whole views, times eager", "ridge", EAGERLY, 3, case=WHOLE_VIEW),
    Target("ridge over whole views, times straightforward", "ridge", SIMPLY, 3, case=WHOLE_VIEW),
    Target("soft argmax of 128 points, times eager", "map_readout", EAGERLY, 8, backward=False),
    Target("soft argmax of 128 points, times straightforward", "map_readout", SIMPLY, 8, backward=False),
    Target("10 rounds of PAMR, times eager", "local_affinity", EAGERLY, 10, case="384"),
    Target("10 rounds of PAMR, times straightforward", "local_affinity", SIMPLY, 10, case="384"),
    Target("L4P's window, times straightforward", "l4p_window", SIMPLY, 3, case="bfloat16"),
    Target("L4P's window, ms", "l4p_window", partial(field, name="ms"), 70, most=True),
    Target("L4P's window, MB above the weights", "l4p_window", partial(field, name="peak MB"), 8000, most=True),
    Target("L4P's window, error over straightforward's", "l4p_window", behind_straightforward, 1.5, most=True),
    Target("attention: our time over the fastest backend's", "attention", behind_fastest, 1.05, most=True),
    *(
        Target(f"a kernel earns its place: {name}, times eager", name, EAGERLY, 1.3)
        for name in ("ridge", "matching", "map_readout", "local_affinity")
    ),
    *(
        Target(f"equal to float64: {name}, worst relative error", name, worst_error, bound, most=True)
        for name, bound in ROUNDED.items()
    ),
)
CPU_TARGETS = (
    Target("PAMR by LILA's schedule, times straightforward", "local_affinity", SIMPLY, 3, case="schedule"),
    Target("L4P's tracking head, times straightforward", "l4p_track", SIMPLY, 2),
    *(
        Target(f"equal to float64: {name}, worst relative error", name, worst_error, 1e-5, most=True)
        for name in ("ridge", "matching", "map_readout", "local_affinity", "attention", "l4p_track")
    ),
)


def verdicts(records: Mapping[str, Record], gpu: bool, asked: Container[str] | None = None) -> Iterator[str]:
    """A line for each target and case: reached, missed or not measured.

    Args:
        records: by operation; what a run measured.
        gpu: whose targets.
        asked: operations that the run was asked for; of others nothing is said. None: all.
    """
    for target in GPU_TARGETS if gpu else CPU_TARGETS:
        if asked is not None and target.operation not in asked:
            continue
        wanted = f"{'at most' if target.most else 'at least'} {target.bound:g}"
        found = list(target.of(records[target.operation])) if target.operation in records else []
        if not found:
            yield f"not measured  {target.says}, {wanted}"
        for case, number in found:
            if number is None:
                yield f"not measured  {target.says}, {wanted} ({case})"
                continue
            reached = number <= target.bound if target.most else number >= target.bound
            yield f"{'reached' if reached else 'MISSED ':<12}  {target.says}: {number:.3g}, {wanted} ({case})"


SEPARATE = {"lila_step": "python -m benchmarks.lila_step", "l4p_1408": "python -m benchmarks.l4p --width 1408"}
"""Records of other commands, and these."""


def separate(results: Mapping[str, Any]) -> Iterator[str]:
    """What other commands measured earlier on a CPU, in processes of their own: `benchmarks/results/NAME.json`.

    Args:
        results: by name; what is not there was not measured.
    """
    for name, says, columns in (
        ("lila_step", "LILA's training step", {"s": 2.0, "peak MB": 2.0}),
        ("l4p_1408", "L4P's tracking head at the published width", {"first, s": 2.0, "with history, s": 2.0}),
    ):
        by = f"(recorded by {SEPARATE[name]})"
        rows = results.get(name, {"rows": []})["rows"]
        ratio = next((row for row in rows if row["form"] == "ratio"), {})
        for column, bound in columns.items():
            if column not in ratio:
                yield f"not measured  {says}, {column}, at least {bound:g} times less {by}"
                continue
            number = float(ratio[column].split()[0])
            verdict = "reached" if number >= bound else "MISSED "
            yield f"{verdict:<12}  {says}, {column}: {number:g} times less, at least {bound:g} {by}"
    rows = results.get("lila_step", {"rows": []})["rows"]
    exact = next((row for row in rows if "difference, float64" in row["form"]), {})
    for column in ("losses", "gradients"):
        if column in exact:
            verdict = "reached" if float(exact[column]) <= 1e-5 else "MISSED "
            says = f"LILA's training step, {column} in float64: {exact[column]} apart, at most 1e-5"
            yield f"{verdict:<12}  {says} (recorded by {SEPARATE['lila_step']})"
