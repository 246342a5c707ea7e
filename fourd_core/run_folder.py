"""The folder of a run, which can be looked at, resumed and repeated.

recipe.toml      the resolved recipe: every default written out, device and threads as they were
run.json         versions, seed, device, git state, weights and licences, the state of every stage
metrics.jsonl    one line per logged step
log.txt          what happened when; locked by the process that is at work
<stage>/         a stage's checkpoint, weights, tables, arrays, pictures
report.html      all of it on one page
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import attrs

from fourd_core.errors import FourdError, RunError
from fourd_core.files import disk_errors, write_json, write_text
from fourd_core.hooks import Hooks
from fourd_core.recipe import Recipe, dumps, load_recipe

WEIGHTS_FILE = "weights.safetensors"
"""What a finished training stage leaves in its folder."""
RECIPE_FILE, RECORD_FILE = "recipe.toml", "run.json"


_held: set[IO[str]] = set()
"""The locks of the runs that this process is at work in."""


def _let_go() -> None:
    # A forked reader of samples must not hold the lock: it may outlive a killed run by some seconds.
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Interrupted(Exception):  # noqa: N818 - not an error: the run stopped where the user asked it to
    """A stage stopped at the user's wish after saving what it had."""


@attrs.define
class Run:
    """One run and its folder; handed to jobs and hooks.

    Attributes:
        folder: where everything goes.
        recipe: the resolved recipe.
        record: the content of `run.json`.
        hooks: calls the life-cycle hooks of installed plugins.
        is_new: whether the folder is still to be made.
    """

    folder: Path
    recipe: Recipe
    record: dict[str, Any]
    hooks: Hooks
    is_new: bool
    _lock: IO[str] | None = None

    def create(self) -> None:
        """Make the folder or take over the one that is there, and keep other processes out of it.

        Raises:
            RunError: the folder is not writable, or another process is at work in it.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "log.txt").open("a", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process is at work in {self.folder}; choose another folder with --out") from error
        _held.add(self._lock)
        if self.is_new and (self.folder / RECIPE_FILE).exists():
            raise RunError(f"another process made {self.folder} a moment ago; choose another folder with --out")
        for left_by_a_kill in self.folder.rglob(".*.part*"):
            left_by_a_kill.unlink()
        write_text(self.folder / RECIPE_FILE, dumps(self.recipe))
        write_json(self.folder / RECORD_FILE, self.record)

    def close(self) -> None:
        """Let other processes in again."""
        if self._lock is not None:
            _held.discard(self._lock)
            self._lock.close()
            self._lock = None

    def stage_folder(self, stage: str) -> Path:
        """The folder of a stage, made when asked for."""
        folder = self.folder / stage
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Append one line to `metrics.jsonl` and tell the hooks."""
        path = self.folder / "metrics.jsonl"
        line = json.dumps({"stage": stage, "step": step, "time": round(time.time(), 3), **metrics})
        with disk_errors(path), path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
        self.hooks.step_finished(run=self, stage=stage, step=step, metrics=metrics)

    def forget_metrics_after(self, stage: str, step: int) -> None:
        """Drop the logged steps of a stage beyond `step`: a killed run had logged more than its checkpoint holds."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                write_text(path, "".join(line for line in lines if _kept(line, stage, step)))

    def note(self, message: str) -> None:
        """Append a line with the time to `log.txt`."""
        path = self.folder / "log.txt"
        with disk_errors(path), path.open("a", encoding="utf-8") as handle:
            handle.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {message}\n")

    def set_stage(self, stage: str, state: str, **facts: Any) -> None:
        """Write a stage's state (running, done, interrupted, failed) into `run.json`."""
        entry = self.record["stages"].setdefault(stage, {"job": self.recipe.stages[stage].job})
        entry.pop("message", None)
        entry.update(state=state, **facts)
        write_json(self.folder / RECORD_FILE, self.record)
        self.note(f"{stage}: {state}")

    def was_started(self, stage: str) -> bool:
        """Whether the stage was ever begun in this folder."""
        return stage in self.record["stages"]

    def is_done(self, stage: str) -> bool:
        """Whether the stage ended well in this folder before."""
        return bool(self.record["stages"].get(stage, {}).get("state") == "done")


class Follower(Run):
    """A run as processes beside the first one see it (`fourd_core.distributed`): they leave the folder alone."""

    def create(self) -> None:
        """Nothing."""

    def stage_folder(self, stage: str) -> Path:
        """The folder of a stage, which this process may not even have."""
        return self.folder / stage

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def forget_metrics_after(self, stage: str, step: int) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    def set_stage(self, stage: str, state: str, **facts: Any) -> None:
        """Nothing but the state in memory."""
        self.record["stages"].setdefault(stage, {}).update(state=state)


def _kept(line: str, stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:  # the kill cut this line
        return False
    return not (entry.get("stage") == stage and entry.get("step", 0) > step)


def trained_weights(folder: Path, recipe: Recipe) -> Path | None:
    """The weights of the last training stage that left some in a run folder."""
    files = [folder / name / WEIGHTS_FILE for name in recipe.stages]
    return next((file for file in reversed(files) if file.exists()), None)


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run that a folder holds; None where the folder is free for a new run.

    Raises:
        RunError: the folder holds something else, or a run that these versions cannot continue.
    """
    path = folder / RECIPE_FILE
    if path.exists():
        try:
            return load_recipe(path)
        except FourdError as error:
            raise RunError(f"{folder} holds a run that cannot go on with what is installed now: {error}") from error
    if folder.exists() and (not folder.is_dir() or any(_visible(folder))):
        raise RunError(f"{folder} exists and is not a run folder; choose another with --out")
    return None


def _visible(folder: Path) -> list[str]:
    """What lies in a folder, but for the leavings of a process that was killed as it made the run."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != "log.txt"]


def read_record(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a folder, or None where a kill came before it was written.

    Raises:
        RunError: it is damaged.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {**record, "stages": dict(record["stages"])}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); start anew in another folder with --out") from error
