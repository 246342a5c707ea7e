"""The benchmarks: straightforward forms compute what the definitions do, and tables say what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import harness_report as report
from benchmarks.cases import OPERATIONS, cases
from benchmarks.cases import l4p_window as window
from benchmarks.harness import EAGER, OURS, SIMPLE, Bench, Case, Inputs, measure, relative_error, rows
from benchmarks.harness_machine import Machine
from benchmarks.harness_targets import separate, verdicts
from fourd_core.kernels import choice

ROOT = Path(__file__).parents[1]
CEILINGS = {"copy": 10.0, "float32": 0.1}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few measurements; what the harness switches is as it was."""
    monkeypatch.setattr("benchmarks.harness.SECONDS", {"cpu": 0.0})
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    assert choice._form == "best"
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)


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


@pytest.mark.parametrize("filled", [True, False])
def test_what_nobody_wrote_is_not_a_number(filled: bool) -> None:
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = filled  # a run switches it off
    try:
        row = measure(cube("unwritten"), Machine(), CEILINGS, compiled=False)["rows"][0]
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
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
    assert report.put_into_readme("cpu", report.summary(report.read(tmp_path / "cpu-2", ["cube"])), page)
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before" and lines[-1] == "behind" and "old" not in lines
    assert lines[2].startswith("| operation |") and lines[4].startswith("| cube: cube |")
    assert not report.put_into_readme("gpu", [{"operation": "x"}], page)


def test_a_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = measure(cube("right"), Machine(), CEILINGS, compiled=False)["rows"]
    first |= {"ms": 12345.0, "x straightforward": 123.45, "% of floor": 100.0, "peak MB": 54321.0, "note": "n" * 120}
    case = {"case": "c" * 120, "backward": True, "floor ms": 1.0, "bound by": "bytes", "rows": [first, *others]}
    report.print_case("cube", case | {"note": "no reference"})
    _, title, *table, note, last = capsys.readouterr().out.splitlines()
    assert title == f"cube: {'c' * 120}; forward and backward; floor 1 ms by bytes"
    assert len(table) == 3 + 3 and all(len(line) <= 80 for line in table)
    assert table[3].split()[:3] == ["fourd", "12345", "123.45"]
    assert (note, last) == (f"fourd: {'n' * 120}", "no reference")


def test_what_other_commands_recorded() -> None:
    found = [{"form": "ratio", "s": "3.15 x", "peak MB": "1.9 x"}]
    found += [{"form": "difference, float64, one pair", "losses": "6e-16", "gradients": "1e-03"}]
    lines = list(separate({"lila_step": {"rows": found}}))
    told = [line[:12].strip() for line in lines]
    assert told == ["reached", "MISSED", *2 * ["not measured"], "reached", "MISSED"]
    assert all("(recorded by python -m benchmarks." in line for line in lines)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command measures a tiny case for every operation, and writes here; README.md stands beside."""

    def tiny(operation: str, _: str) -> Iterator[Case]:
        yield from [] if operation == "l4p_window" else [cube("right")]

    found = tmp_path / "results"
    found.mkdir()
    for name in ("lila_step", "l4p_1408"):
        shutil.copy(ROOT / f"benchmarks/results/{name}.json", found)
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(command, "RESULTS", found)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(command, "cases", tiny)
    monkeypatch.setattr(Machine, "ceilings", lambda *_: CEILINGS)
    return found


PAGE = "<!-- table:kernels-cpu -->\nold\n<!-- /table -->\n"


def test_a_whole_run_writes_the_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--no-compile"]) == 0
    page, told = report.README.read_text(encoding="utf-8"), capsys.readouterr().out
    assert all(f"| {name}: cube |" in page for name in OPERATIONS[:-1]) and "old" not in page
    assert f"written: the table in {report.README}" in told.splitlines()
    assert "l4p_window: it is measured on a GPU only" in told
    recorded = [line.partition("(recorded by ")[2] for line in told.splitlines() if "recorded by" in line]
    of_lila, of_l4p = "python -m benchmarks.lila_step)", "python -m benchmarks.l4p --width 1408)"
    assert list(dict.fromkeys(recorded)) == [of_lila, of_l4p]


def test_a_part_is_judged_alone(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither records that lie there nor other commands' are this run's; the project's table stays."""
    folder = results / Machine().slug
    report.write(folder, "local_affinity", {"ceilings": CEILINGS}, record(1.0)["cases"])
    for more, where in ([], folder), (["--out", str(tmp_path / "mine")], tmp_path / "mine"):
        assert command.main(["run", "--no-compile", "--only", "ridge", *more]) == 0
        told = capsys.readouterr().out.splitlines()
        judged = [line for line in told if line.startswith(("reached", "MISSED", "not measured"))]
        assert len(judged) == 1 and judged[0].startswith("reached       equal to float64: ridge")
        assert f"written: {where}/NAME.json of ridge" in told and (where / "ridge.json").is_file()
        assert told[-1].startswith("not written: the table in ")
        assert report.README.read_text(encoding="utf-8") == PAGE


def test_everything_but_elsewhere_leaves_the_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--no-compile", "--out", str(results / "mine")]) == 0
    told = capsys.readouterr().out
    assert "(recorded by" not in told and "equal to float64: ridge" in told
    assert report.README.read_text(encoding="utf-8") == PAGE


def test_a_quick_look_judges_nothing(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--quick"]) == 0
    told = capsys.readouterr().out
    assert "small sizes say nothing about the targets" in told
    assert "reached" not in told and "MISSED" not in told
    assert (results / Machine().slug / "quick/ridge.json").is_file()
    assert report.README.read_text(encoding="utf-8") == PAGE


def test_what_a_gpu_alone_does_is_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--only", "l4p_window"]) == 0
    told = capsys.readouterr().out
    assert "l4p_window: it is measured on a GPU only" in told and "nothing was measured" in told


def test_a_process_goes_on_after_another(results: Path) -> None:
    """What that one measured is judged with the rest, and both together are a whole run."""
    assert command.main(["run", "--no-compile", "--only", "ridge"]) == 0
    rest = [name for name in OPERATIONS if name != "ridge"]
    assert command.main(["run", "--no-compile", "--only", "ridge", "--after", "ridge", "--only", *rest]) == 0
    assert "| ridge: cube |" in report.README.read_text(encoding="utf-8")


def test_mistakes_are_found_first(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, says in (["--out", str(tmp_path / "file/x")], "/file/x cannot be written ("), (["--gpu"], "--gpu: "):
        assert command.main(["run", *words]) == 2
        told = capsys.readouterr()
        assert not told.out and says in told.err and told.err.count("\n") == 1


def test_stopped(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured before is kept."""

    def then_stopped(operation: str, _: str) -> Iterator[Case]:
        yield cube("right")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "cases", then_stopped)
    assert command.main(["run", "--no-compile"]) == 130
    folder = results / Machine().slug
    assert capsys.readouterr().err == f"\nstopped; what was measured is in {folder}\n"
    assert [path.name for path in folder.iterdir()] == ["ridge.json"]


def test_rows_without_a_comparison() -> None:
    case = cube("right")
    bench = Bench(case, Machine(), compiled=False)
    found = {name: item for name, item in bench.run().items() if name == OURS}
    assert rows(found, 1.0)[0]["x eager"] is None
