"""`fourd doctor` and the table of `fourd list`, as a user sees them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import attrs
import pytest

from fourd_core import doctor
from fourd_core.doctor import Line, run_doctor
from fourd_core.listing import print_components, table
from fourd_core.probe import cache_folder
from fourd_core.registry import Record


def diagnosis(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "FOURD_CACHE": str(tmp_path / "cache"), "FOURD_PLUGINS": "", **environment}
    command = [sys.executable, "-c", "import sys; from fourd_core.doctor import run_doctor; sys.exit(run_doctor())"]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)


def lines(text: str) -> dict[str, tuple[str, str]]:
    """Verdict and text by subject."""
    return {line[6:16].strip(): (line[:4].strip(), line[18:]) for line in text.splitlines()}


def test_doctor_on_this_machine(tmp_path: Path) -> None:
    import torch

    result = diagnosis(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = lines(result.stdout)
    assert {"python", "torch", "threads", "triton", "attention", "PyAV", "zarr", "plugin", "cache"} <= found.keys()
    assert found["torch"] == ("ok", torch.__version__)
    assert found["PyAV"][0] == "ok" and re.search(r"FFmpeg \d", found["PyAV"][1])
    assert found["cache"][1].startswith(str(tmp_path / "cache"))
    assert 'FOURD_PLUGINS="" limits them' in found["plugins"][1]
    if not torch.cuda.is_available():
        assert found["attention"] == ("ok", "sdpa (torch's own); xformers is not used: there is no CUDA device")


def test_requirements_are_told_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=2.10", "fsspec[http]>=2024.6", "numpy", "attrs!=20.1,>=19", "xformers>=1; extra == 'gpu'"]
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    assert list(doctor._libraries()) == [Line("ok", "libraries", "all 4 that the core needs are installed")]
    needed.append("no-such-library[all]>=2")
    assert list(doctor._libraries()) == [Line("FAIL", "libraries", "missing; pip install 'no-such-library[all]>=2'")]


@pytest.fixture
def install_sick(tmp_path: Path) -> Path:
    """A folder with a distribution whose hook raises at import."""
    site = tmp_path / "site"
    info = site / "acme_sick-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-sick\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fourd.plugin]\napi.1 = acme_sick\n[fourd.hooks]\nsick = acme_sick:Sick\n")
    (site / "acme_sick.py").write_text("raise RuntimeError('a fever')\nclass Sick: pass\n")
    return site


def test_doctor_reports_a_broken_plugin_and_an_unwritable_cache_without_failing(
    tmp_path: Path, install_sick: Path
) -> None:
    (tmp_path / "a file").write_text("")
    settings = {
        "PYTHONPATH": str(install_sick),
        "FOURD_PLUGINS": "acme-sick",
        "FOURD_CACHE": str(tmp_path / "a file" / "cache"),
    }
    result = diagnosis(tmp_path, **settings)
    assert result.returncode == 0, result.stdout
    assert "acme-sick 1.0 is broken: cannot be imported: RuntimeError: a fever" in result.stdout
    verdict, text = lines(result.stdout)["cache"]
    assert verdict == "note" and "FOURD_CACHE" in text


def test_something_essential_that_is_broken_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def _av() -> list[Line]:
        raise ImportError("libavcodec.so: no such file")

    monkeypatch.setattr(doctor, "EXAMINATIONS", ((doctor._python, "python"), (_av, "av")))
    assert run_doctor() == 1
    ok, failed = capsys.readouterr().out.splitlines()
    assert ok.startswith("ok    python")
    assert failed.startswith("FAIL  av") and "libavcodec.so" in failed and "pip install --force-reinstall av" in failed


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURD_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("FOURD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path("/xdg/fourd")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "fourd"


POINT = EntryPoint("x", "x:X", "fourd.heads")
DEPTH = Record("heads", "depth", "fourd-plugin-dpt3d", "0.1.0", "Depth along the optical axis.", POINT)
SICK = Record(
    "cues", "flow", "acme-flow", "2.0", "Flow.", POINT, "cannot be imported: RuntimeError: a fever; update it"
)


def test_table_names_what_a_recipe_writes_and_cuts_nothing_off() -> None:
    other = attrs.evolve(DEPTH, distribution="acme-depth", version="3.1")
    text = list(table([SICK, DEPTH, other], 1000))
    assert text == [
        "cues",
        "  flow              acme-flow 2.0             BROKEN: cannot be imported: RuntimeError: a fever; update it",
        "heads",
        "  dpt3d:depth       fourd-plugin-dpt3d 0.1.0  Depth along the optical axis.",
        "  acme-depth:depth  acme-depth 3.1            Depth along the optical axis.",
    ]


@pytest.mark.parametrize("width", [20, 60, 80])
def test_table_on_a_narrow_terminal_keeps_every_word(width: int) -> None:
    text = list(table([SICK, DEPTH], width))
    words = " ".join(text).split()
    assert [word for word in words if word in str(SICK.problem).split()] == str(SICK.problem).split()
    if width >= 60:
        assert max(map(len, text)) <= width


def test_list_without_any_component(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FOURD_CACHE", str(tmp_path))
    monkeypatch.setattr("fourd_core.registry.records", lambda kind=None: [])
    assert print_components() == 0
    assert "pip install fourd-plugin-lila" in capsys.readouterr().out


def test_list_says_what_is_switched_off(install_sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install_sick)
    monkeypatch.setenv("FOURD_PLUGINS", "effnet")
    *_, last = table([DEPTH], 1000)
    assert last.startswith('switched off by FOURD_PLUGINS="effnet": ') and "acme-sick" in last
