"""Does a plugin import? Asked in a process of its own, and remembered until the plugin changes.

`fourd list` must name the plugins that raise at import without importing any and within a blink. So the question is put
once per installed version, in one subprocess for all plugins, and the answers lie in the cache folder. A refusal is
asked again as soon as anything was installed or removed: that is how users repair it.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from fourd_core import __version__, registry
from fourd_core.errors import PluginError
from fourd_core.inspection import find_module
from fourd_core.registry import Record

TIMEOUT = 120.0
"""Seconds for one import; torch alone takes several on a cold disk."""

_CHILD = """
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from fourd_core.probe import answer
answer(request)
"""


def cache_folder() -> Path:
    """Where fourd keeps what it can make again: `FOURD_CACHE`, or the platform's place for that."""
    if chosen := os.environ.get("FOURD_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fourd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fourd"


def probed(records: Sequence[Record], fresh: bool = False) -> list[Record]:
    """The same records, each with the reason if its import fails; says on stderr when it has to look anew.

    Args:
        fresh: ask again even where the answer is known.
    """
    hopeful = {_key(record): record for record in records if record.problem is None}
    known = {} if fresh else _read_cache()
    unknown = [record for key, record in hopeful.items() if not _still_holds(known.get(key), record)]
    if unknown:
        if not fresh:
            names = ", ".join(sorted({record.distribution for record in unknown}))
            sys.stderr.write(f"looking at plugins that are new or changed: {names}\n")
        known = _read_cache() | {
            key: {"stamp": _stamp(hopeful[key]), "environment": _environment(), "problem": problem}
            for key, problem in _ask(unknown).items()
        }
        _write_cache(known)
    problems = {key: known[key]["problem"] for key in hopeful if key in known}
    return [attrs.evolve(record, problem=record.problem or problems.get(_key(record))) for record in records]


def _key(record: Record) -> str:
    return f"{record.kind}/{record.distribution}:{record.name}"


def _still_holds(entry: dict[str, Any] | None, record: Record) -> bool:
    """A plugin that was fine stays so until it changes; a broken one may be mended by installing something."""
    if entry is None or entry["stamp"] != _stamp(record):
        return False
    return entry["problem"] is None or entry["environment"] == _environment()


def _stamp(record: Record) -> str:
    """What an answer depends on: the version and the sources of the plugin, fourd, and Python."""
    sources = _sources(record.entry_point.value.partition(":")[0].partition(".")[0])
    return f"{record.version} {sources} fourd {__version__} python {sys.version_info[:3]}"


@functools.lru_cache(maxsize=256)
def _sources(module: str) -> str:
    """Where a top-level module lies, how many source files it has, and when the newest was written."""
    spec = find_module(module)
    if spec is None:
        return "missing"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in folder.rglob("*.py")] or [Path(spec.origin or "")]
    times = [file.stat().st_mtime_ns for file in files if file.exists()]
    return f"{folders or spec.origin} {len(times)} {max(times, default=0)}"


# The first entry of sys.path is the script's or the current folder: not a property of the environment.
def _environment() -> int:
    """Changes whenever something is installed or removed."""
    folders = [Path(folder) for folder in sys.path[1:]]
    return max((folder.stat().st_mtime_ns for folder in folders if folder.is_dir()), default=0)


def _cache_file() -> Path:
    """One file for each environment and search path: what imports here may not import there."""
    import hashlib

    identity = repr((sys.prefix, sys.path[1:])).encode()
    return cache_folder() / f"plugins-{hashlib.blake2b(identity, digest_size=6).hexdigest()}.json"


def _read_cache() -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {key: entry for key, entry in content.items() if {"stamp", "environment", "problem"} <= entry.keys()}
    except (OSError, ValueError, AttributeError):  # none yet, unreadable or damaged: ask again
        return {}


def _write_cache(entries: dict[str, dict[str, Any]]) -> None:
    file = _cache_file()
    temporary = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        sys.stderr.write(f"this will be asked again next time: {file.parent} cannot be written ({error.strerror})\n")


def _ask(records: Sequence[Record]) -> dict[str, str | None]:
    """Import everything in a subprocess; begin a new one behind whatever took the last one down."""
    import tempfile

    verdicts: dict[str, str | None] = {}
    pending = list(records)
    with tempfile.TemporaryDirectory(prefix="fourd-") as folder:
        while pending:
            report = Path(folder) / f"{len(pending)}.jsonl"
            end = _spawn(pending, report)
            answers, begun = _read_report(report)
            verdicts |= answers
            if begun is not None:
                verdicts[begun] = f"importing it {end}; update or uninstall the plugin"
            elif not answers:
                sys.stderr.write(f"plugins could not be tried: the process that imports them {end}\n")
                break
            pending = [record for record in pending if _key(record) not in verdicts]
    return verdicts


def _spawn(records: Sequence[Record], report: Path) -> str:
    """One subprocess over `records`; returns how it ended, in words."""
    import signal
    import subprocess

    request = {"path": sys.path, "report": str(report), "records": [[r.kind, r.distribution, r.name] for r in records]}
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    try:
        process.communicate(json.dumps(request), timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"takes longer than {TIMEOUT:.0f} seconds"
    except BrokenPipeError:
        pass
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        return f"crashes Python ({signal.Signals(-process.returncode).name})"
    return f"ends Python (exit code {process.returncode})"


def _read_report(report: Path) -> tuple[dict[str, str | None], str | None]:
    """The answers, and the component that was begun without an answer."""
    answers: dict[str, str | None] = {}
    begun = None
    for line in report.read_text(encoding="utf-8").splitlines() if report.exists() else ():
        entry = json.loads(line)
        begun = entry["begun"]
        if "problem" in entry:
            answers[begun], begun = entry["problem"], None
    return answers, begun


def answer(request: dict[str, Any]) -> None:
    """The subprocess: import each component, and write what came of it before the next one can do harm."""
    with Path(request["report"]).open("w", encoding="utf-8") as out:

        def say(**entry: str | None) -> None:
            out.write(json.dumps(entry) + "\n")
            out.flush()

        for kind, distribution, name in request["records"]:
            key = f"{kind}/{distribution}:{name}"
            say(begun=key)
            try:
                registry.import_found(registry.pick(kind, f"{distribution}:{name}"))
                problem = None
            except PluginError as error:
                problem = str(error)
            except BaseException as error:
                problem = f"importing it raises {type(error).__name__}: {error}"
            say(begun=key, problem=problem)
