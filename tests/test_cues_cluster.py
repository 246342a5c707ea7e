"""The cue job on dask: workers that die, nobody at the address, a scheduler that goes away.

Each in a process of its own, as dask changes the Python that it is imported into (importlib_metadata's finder).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cue_parts import RECIPE, calls, install, write_videos
from helpers import Fourd, shell_environment

TESTS = Path(__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The recipe beside its videos."""
    install(tmp_path / "site")
    write_videos(tmp_path / "videos", count=8)
    (tmp_path / "cues.toml").write_text(RECIPE + "\n[cues.bright]\nuse = 'counted'\nkind = 'map'\nalone = true\n")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    """A shell in which the teachers are installed."""
    shell = shell_environment()
    return {**shell, "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(TESTS), shell["PYTHONPATH"]])}


def maps(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in sorted(store.glob("*/*/*")) if file.is_file()}


def test_one_of_three_workers_is_killed_twice(
    folder: Path, fourd_process: Fourd, fourd: Fourd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as from threads, and no clip asked twice but those that a killed worker was at."""
    words = ["run", "cues.toml", "cues", "--set", "stages.train.steps=24", "--set", "cues.flow.deaths=2"]
    said = fourd_process(*words, "--out", "a", "--set", "cluster.workers=3", env=environment(folder), check=0)
    asked = calls(folder)
    assert (folder / "calls.txt.deaths").read_text() == "xx"
    assert "Traceback" not in said.stderr
    (folder / "calls.txt").unlink()
    monkeypatch.syspath_prepend(folder / "site")
    fourd(*words, "--out", "b", "--set", "cue_cache=threads.zarr", check=0)
    once = calls(folder)
    assert len(once) > 6 and len(asked) == len(once) + 2
    killed, threads = maps(folder / "kept.zarr"), maps(folder / "threads.zarr")
    assert killed == threads and len(killed) > 20
    assert not list(folder.glob("kept.zarr/**/*.partial"))


SCRIPT = """
import json, subprocess, sys, time
from pathlib import Path
from fourd_core.cli import main

def dask(what, *words):
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{what}", *words], **quiet)

def cues(number, *words):
    sys.stderr.write(f"== {main(['run', 'cues.toml', 'cues', '--out', f'run{number}', *words])}\\n")

cues(1, "--cluster", "tcp://127.0.0.1:9")
scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "s.json")
Path("scheduler.pid").write_text(str(scheduler.pid))
while not (Path("s.json").exists() and Path("s.json").read_text().endswith("}")):
    time.sleep(0.05)
address = json.loads(Path("s.json").read_text())["address"]
cues(2, "--cluster", address)
worker = dask("worker", address, "--no-nanny", "--no-dashboard", "--nthreads", "1", "--name", "one")
from distributed import Client
with Client(address, set_as_default=False) as client:
    client.wait_for_workers(1)
cues(3, "--cluster", address, "--set", "cues.flow.kill=scheduler.pid")
worker.kill()
cues(4)
"""


def test_the_address_of_a_cluster(folder: Path) -> None:
    """`--cluster`: nobody there, a scheduler without workers, one that dies; then threads end the work."""
    (folder / "cues.toml").write_text(RECIPE)
    env = environment(folder) | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert re.findall(r"== (\d+)\n", done.stderr) == ["2", "2", "2", "0"], done.stderr
    nobody, idle, lost, _, _ = re.split(r"== \d+\n", done.stderr)
    assert "fourd: no dask scheduler answers at tcp://127.0.0.1:9" in nobody
    assert "has no workers; start some with `dask worker`" in idle
    assert "fourd: the connection to the cluster's scheduler is lost; everything that was written is kept" in lost
    assert "Traceback" not in done.stderr
    (row,) = json.loads((folder / "run4/cues/result.json").read_text())[0]["rows"]
    assert row["reused"] >= 8 and row["computed"] + row["reused"] == row["clips"]
    assert not list(folder.glob("kept.zarr/**/*.partial"))
