"""The benchmarks: straightforward forms compute what the definitions do, and tables say what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import harness_report as report
from benchmarks.cases import OPERATIONS, cases
from benchmarks.cases import l4p_window as window
from benchmarks.harness import EAGER, OURS, SIMPLE, Bench, Case, Inputs, measure, relative_error, rows
from benchmarks.harness_machine import Machine
from benchmarks.harness_targets import verdicts
from fourd_core.kernels import choice

ROOT = Path(__file__).parents[1]
CEILINGS = {"copy": 10.0, "float32": 0.1}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few measurements; what the harness switches is as it was."""
    monkeypatch.setattr("benchmarks.harness.SECONDS", {"cpu": 0.0})
    yield
    assert choice._form == "best"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "l4p_window"])
def test_every_form_computes_the_same(operation: str) -> None:
    for case in cases(operation, "quick"):
        bench = Bench(case, Machine(), compiled=False, seed=3)
        exact = {key: t.double() if t.is_floating_point() else t for key, t in bench.sets[0].items()}
        wanted = [t.detach() for t in bench.evaluate(SIMPLE, exact)]
        assert len(wanted) > len(case.learned)
        for name in bench.forms:
            for inputs, close in ((exact, 1e-9), (bench.sets[0], 2e-5)):
                assert relative_error(bench.evaluate(name, inputs), wanted) < close, (case.name, name)


def test_rounding_a_prediction_turns_no_gradient_around() -> None:
    """As tf32 does, which drops 13 bits: without room around the loss's kinks the error would be 0.07."""
    *_, case = cases("matching", "quick")
    bench = Bench(case, Machine(), compiled=False, seed=3)
    inputs = bench.sets[0]
    bits = {key: (inputs[key].view(torch.int32) & -(2**13)).view(torch.float32) for key in ("features", "readout")}
    got, wanted = (bench.evaluate(SIMPLE, given) for given in (inputs | bits, inputs))
    assert 1e-4 < relative_error(got, wanted) < 5e-3


def test_whole_windows_are_equal_to_the_straightforward_form() -> None:
    system = window.system_on(torch.device("cpu"), ROOT / "recipes/l4p_tiny.toml")
    generator, side, count = torch.Generator().manual_seed(5), 32, 3
    inputs = {
        "frames": torch.rand(1, window.FRAMES, 3, side, side, generator=generator).double(),
        "frame": torch.randint(0, window.FRAMES, (1, count), generator=generator),
        "xy": side * torch.rand(1, count, 2, generator=generator),
    }
    tracker = window.tracker_of(system, (window.FRAMES, side, side))
    with torch.no_grad():
        ours, simple = window.whole(system, **inputs), window.straightforward(system, tracker, **inputs)
    assert [t.shape[1] for t in ours[:3]] == [window.SHIFT] * 3
    for mine, other in zip(ours, simple, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def cube(form: str) -> Case:
    """x ** 3, by forms right and wrong; each input number is read and its gradient written."""

    def right(x: Tensor) -> Tensor:
        return x * x * x

    def unwritten(x: Tensor) -> Tensor:
        return torch.empty_like(x) * x.detach() + 0 * x

    def broken(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room\nat all")

    def inputs(generator: torch.Generator) -> Inputs:
        return {"x": torch.randn(64, 1024, generator=generator)}

    ours = {"right": right, "unwritten": unwritten, "broken": broken, "off": lambda x: 1.01 * right(x)}[form]
    return Case("cube", inputs, lambda _: {OURS: ours, EAGER: right, SIMPLE: right}, 1.0, 20.0, learned=("x",))


def test_a_case_in_numbers() -> None:
    found = measure(cube("right"), Machine(), CEILINGS, compiled=False)
    assert (found["floor ms"], found["bound by"], found["backward"]) == (200.0, "operations", True)
    for row in found["rows"]:
        assert row["ms"] > 0
        assert 0 < row["error"] < 1e-6 and 0 < row["gradient error"] < 1e-6
        assert row["% of floor"] == pytest.approx(100 * 200 / row["ms"])
        assert row["measurements"] == 3
    mine, eager, simple = found["rows"]
    assert mine["x eager"] == pytest.approx(eager["ms"] / mine["ms"])
    assert mine["x straightforward"] == pytest.approx(simple["ms"] / mine["ms"])
    again = Bench(cube("right"), Machine(), compiled=False)
    assert again.seed != found["seed"]


def test_a_wrong_number_is_seen() -> None:
    row = measure(cube("off"), Machine(), CEILINGS, compiled=False)["rows"][0]
    assert row["error"] == pytest.approx(0.01, rel=1e-3) and row["gradient error"] == pytest.approx(0.01, rel=1e-3)


def test_what_nobody_wrote_is_not_a_number() -> None:
    row = measure(cube("unwritten"), Machine(), CEILINGS, compiled=False)["rows"][0]
    assert row["error"] != row["error"]


def test_a_form_that_fails_is_a_note() -> None:
    first, *others = measure(cube("broken"), Machine(), CEILINGS, compiled=False)["rows"]
    assert first["note"] == "OutOfMemoryError: no room" and first["ms"] is None
    assert all(row["ms"] and not row["note"] and row["x straightforward"] for row in others)


def test_a_case_without_a_reference_says_so() -> None:
    def single_only(x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError("no room")
        return x * x

    case = Case(
        "square", cube("right").inputs, lambda _: {OURS: lambda x: x * x, SIMPLE: single_only}, 1.0, 1.0, compiled=None
    )
    found = measure(case, Machine(), CEILINGS, compiled=False)
    assert found["note"] == "no reference: OutOfMemoryError: no room"
    assert all(row["ms"] and row["error"] is None for row in found["rows"])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is known on Linux only")
def test_peak_memory_of_a_call() -> None:
    machine = Machine()
    held, megabytes = machine.peak(lambda: torch.ones(5_000_000).sum())
    assert held == 5_000_000 and megabytes == pytest.approx(20, abs=4)
    _, megabytes = machine.peak(lambda: torch.ones(1_000_000).sum())
    assert megabytes == pytest.approx(4, abs=3)


def record(ours: float, error: float = 1e-7, gradient_error: float = 1e-7) -> dict[str, object]:
    """A measured case of LILA's schedule; the straightforward form takes 9 ms."""
    about = {"case": "LILA's schedule of 4 x 32", "backward": False, "gigabytes": 0.01, "floor ms": 1.0}
    times = {OURS: ours, EAGER: 6.0, SIMPLE: 9.0}
    numbers = {"error": error, "gradient error": gradient_error, "peak MB": 5.0}
    found = [{"form": form, "ms": ms} | numbers for form, ms in times.items()]
    return {"ceilings": CEILINGS, "cases": [about | {"rows": found}]}


def test_targets_are_reached_or_missed() -> None:
    def told(**how: float) -> list[str]:
        return [
            line[:12].strip() for line in verdicts({"local_affinity": record(**how)}, gpu=False) if "4 x 32" in line
        ]

    assert told(ours=3.0) == ["reached", "reached"]
    assert told(ours=3.1) == ["MISSED", "reached"]
    assert told(ours=3.0, error=2e-5) == ["reached", "MISSED"]
    assert told(ours=3.0, error=float("nan")) == ["reached", "MISSED"]
    assert told(ours=3.0, gradient_error=float("nan")) == ["reached", "MISSED"]
    assert any("MISSED" in line and "equal" in line for line in verdicts({"local_affinity": record(1.0, 1e-3)}, True))
    assert any("not measured" in line and "tracking head" in line for line in verdicts({}, gpu=False))
    assert sum("PAMR" in line for line in verdicts({"local_affinity": record(1.0)}, gpu=True)) == 2


def test_the_record_and_the_table(tmp_path: Path) -> None:
    case = measure(cube("right"), Machine(), CEILINGS, compiled=False)
    report.write(tmp_path / "cpu-2", "cube", {"ceilings": CEILINGS}, [case])
    kept = json.loads((tmp_path / "cpu-2/cube.json").read_text(encoding="utf-8"))
    assert kept["cases"][0]["rows"][0]["ms"] == pytest.approx(case["rows"][0]["ms"], rel=1e-3)
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table:kernels-cpu -->\nold\n<!-- /table -->\nbehind\n", encoding="utf-8")
    assert report.put_into_readme("cpu", report.summary(report.read(tmp_path / "cpu-2")), page)
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before" and lines[-1] == "behind" and "old" not in lines
    assert lines[2].startswith("| operation |") and lines[4].startswith("| cube: cube |")
    assert not report.put_into_readme("gpu", [{"operation": "x"}], page)


def test_rows_without_a_comparison() -> None:
    case = cube("right")
    bench = Bench(case, Machine(), compiled=False)
    found = {name: item for name, item in bench.run().items() if name == OURS}
    assert rows(found, 1.0)[0]["x eager"] is None
