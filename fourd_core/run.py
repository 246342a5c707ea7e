"""A run: a recipe at work in a folder that can be looked at, resumed and repeated.

recipe.toml      the resolved recipe: every default written out, device and threads as they were
run.json         versions, seed, device, git state, weights and licences, the state of every stage
metrics.jsonl    one line per logged step
log.txt          what happened when
<stage>/         a stage's checkpoint, weights, tables, arrays, pictures
report.html      all of it on one page
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import torch

import fourd_core
from fourd_core import registry
from fourd_core.errors import FourdError, RecipeError, RunError
from fourd_core.files import disk_errors, write_json, write_text
from fourd_core.hooks import Hooks
from fourd_core.interfaces import Component, PretrainedWeights
from fourd_core.jobs import Job
from fourd_core.recipe import ComponentConfig, Recipe, dumps, load_recipe
from fourd_core.system import System, build_dataset, build_system, pick_device

WEIGHTS_FILE = "weights.safetensors"


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
    """

    folder: Path
    recipe: Recipe
    record: dict[str, Any]
    hooks: Hooks

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
            write_text(path, "".join(line for line in path.open(encoding="utf-8") if _kept(line, stage, step)))

    def note(self, message: str) -> None:
        """Append a line with the time to `log.txt`."""
        path = self.folder / "log.txt"
        with disk_errors(path), path.open("a", encoding="utf-8") as handle:
            handle.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {message}\n")

    def set_stage(self, stage: str, state: str, **facts: Any) -> None:
        """Write a stage's state (running, done, interrupted, failed) into `run.json`."""
        self.record["stages"].setdefault(stage, {"job": self.recipe.stages[stage].job})
        self.record["stages"][stage].update(state=state, **facts)
        write_json(self.folder / "run.json", self.record)
        self.note(f"{stage}: {state}")

    def is_done(self, stage: str) -> bool:
        """Whether the stage ended well in this folder before."""
        return bool(self.record["stages"].get(stage, {}).get("state") == "done")


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


def run_recipe(recipe: Recipe, folder: Path, stages: Sequence[str] = (), command: Sequence[str] = ()) -> Run:
    """Run a recipe's stages in order in `folder`; stages that are done there already are not repeated.

    Everything that can be checked before writing is checked first, so that a mistake leaves no folder behind.

    Raises:
        FourdError: what is wrong and what to do.
        Interrupted: Ctrl-C; the folder is resumable.
    """
    for stage in stages:
        if stage not in recipe.stages:
            raise RecipeError(f"there is no stage '{stage}' in this recipe; it has: {', '.join(recipe.stages)}")
    device = pick_device(recipe.device)
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    recipe = attrs.evolve(recipe, device=str(device), threads=torch.get_num_threads())

    system = build_system(recipe).to(device)
    data = build_dataset(recipe)
    wanted = {name: recipe.stages[name] for name in (stages or recipe.stages)}
    jobs = {name: stage.config.create(name, stage.config, system, data, recipe) for name, stage in wanted.items()}
    run = open_run(recipe, folder, command, system)
    pending = {name: job for name, job in jobs.items() if not run.is_done(name)}
    for job in pending.values():
        job.prepare()
    _create(run)
    _restore(run, system)
    run.hooks.run_started(run=run)
    status = "failed"
    try:
        for name, job in pending.items():
            _run_stage(run, name, job)
        status = "done"
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        run.hooks.run_finished(run=run, status=status)
        _write_report(run, needed=status == "done")
    return run


def _run_stage(run: Run, name: str, job: Job) -> None:
    run.set_stage(name, "running")
    run.hooks.stage_started(run=run, stage=name)
    start = time.monotonic()
    spent = run.record["stages"][name].get("seconds", 0.0)
    state, facts = "failed", {}
    try:
        job.run(run)
        state = "done"
    except (Interrupted, KeyboardInterrupt):
        state = "interrupted"
        raise Interrupted(name) from None
    except FourdError as error:
        facts["message"] = str(error)
        raise
    finally:
        try:
            run.set_stage(name, state, seconds=round(spent + time.monotonic() - start, 2), **facts)
        except RunError:
            if state == "done":
                raise
            # The disk that failed the stage refuses the note about it too; the first complaint counts.
    run.hooks.stage_finished(run=run, stage=name)


def _write_report(run: Run, needed: bool) -> None:
    from fourd_core.report.page import write_report

    try:
        write_report(run.folder)
    except RunError:
        if needed:
            raise
        # The disk that stopped the run refuses the page about it too; the first complaint counts.


def open_run(recipe: Recipe, folder: Path, command: Sequence[str], system: System) -> Run:
    """The run that `folder` holds, when it holds this recipe, or a new one that is not written yet.

    Raises:
        RunError: the folder belongs to something else, or to a run of another recipe.
    """
    from fourd_core.hooks import load_hooks

    text = dumps(recipe)
    if (folder / "run.json").exists() and (folder / "recipe.toml").exists():
        old = (folder / "recipe.toml").read_text(encoding="utf-8")
        if old != text:
            raise RunError(
                f"{folder} holds a run of another recipe ({_first_difference(old, text)}); "
                "choose another folder with --out, or repeat that run with `fourd rerun`"
            )
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not a run folder; choose another with --out")
    else:
        record = _new_record(recipe, command, system)
    return Run(folder, recipe, record, load_hooks())


def _create(run: Run) -> None:
    """Make the folder of a new run with its recipe and record; nothing to do for one that goes on."""
    with disk_errors(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / "recipe.toml", dumps(run.recipe))
    write_json(run.folder / "run.json", run.record)


def _restore(run: Run, system: System) -> None:
    """Give the system the weights that earlier stages of this run trained."""
    from fourd_core.weights import read_state_dict

    weights = trained_weights(run.folder, run.recipe)
    if weights is not None:
        system.load_trained_state(read_state_dict(str(weights)), str(weights))


def _first_difference(old: str, new: str) -> str:
    pairs = zip([*old.splitlines(), ""], [*new.splitlines(), ""], strict=False)
    before, now = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return f"there: {before.strip() or 'nothing'}; now: {now.strip() or 'nothing'}"


def _new_record(recipe: Recipe, command: Sequence[str], system: System) -> dict[str, Any]:
    return {
        "fourd": fourd_core.__version__,
        "name": recipe.name,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(command),
        "seed": recipe.seed,
        "device": recipe.device,
        "precision": recipe.precision,
        "threads": recipe.threads,
        "python": sys.version.split()[0],
        "versions": _versions(),
        "git": _git_state(),
        "weights": _weights(system, recipe),
        "stages": {},
    }


def component_sections(recipe: Recipe) -> dict[str, ComponentConfig]:
    """Every component section of a recipe by its dotted path."""
    sections = {"backbone": recipe.backbone, "data": recipe.data}
    for group in ("heads", "memories", "cues"):
        sections |= {f"{group}.{name}": section for name, section in getattr(recipe, group).items()}
    for name, stage in recipe.stages.items():
        for key, value in attrs.asdict(stage.config, recurse=False).items():
            inner = value if isinstance(value, dict) else {"": value}
            sections |= {
                ".".join(filter(None, ("stages", name, key, k))): v
                for k, v in inner.items()
                if isinstance(v, ComponentConfig)
            }
    return sections


def _versions() -> dict[str, str]:
    """The version of the core, of every plugin that is in use, and of what these require."""
    found: dict[str, str] = {}
    for plugin in registry.plugin_distributions():
        packages = [point.module for point in plugin.entry_points if point.group == "fourd.plugin"]
        if registry.normalised(plugin.name) != registry.CORE and not sys.modules.keys() & set(packages):
            continue
        found[registry.normalised(plugin.name)] = plugin.version
        # A requirement with a marker (an extra, another platform) may be absent.
        names = [re.match(r"[\w.-]+", line) for line in plugin.requires or () if "extra ==" not in line]
        for name in (match[0] for match in names if match):
            with suppress(importlib.metadata.PackageNotFoundError):
                found[registry.normalised(name)] = importlib.metadata.version(name)
    return dict(sorted(found.items()))


def named_weights(system: System) -> list[tuple[str, PretrainedWeights]]:
    """The published weights that a system's components read, by the component's section."""
    components: dict[str, Component] = {"backbone": system.backbone}
    for group in ("heads", "memories", "cues"):
        components |= {f"{group}.{name}": part for name, part in getattr(system, group).items()}
    used = [(where, part.pretrained()) for where, part in components.items()]
    return [(where, weights) for where, weights in used if weights is not None]


def _weights(system: System, recipe: Recipe) -> list[dict[str, Any]]:
    rows = [{"component": where, **attrs.asdict(weights)} for where, weights in named_weights(system)]
    if recipe.weights is not None:
        rows.append({"component": "trained", "location": recipe.weights, "licence": "as its run says"})
    return rows


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the repository we stand in, or None outside of one."""

    def git(*words: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10, env=environment
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def rerun(folder: Path, out: Path, stages: Sequence[str] = (), command: Sequence[str] = ()) -> Run:
    """Repeat a run, or some of its stages, from its resolved recipe in a new folder.

    Raises:
        RunError: not a run folder.
    """
    recipe_file = folder / "recipe.toml"
    if not recipe_file.exists():
        raise RunError(f"{folder} is not a run folder: it has no recipe.toml")
    return run_recipe(load_recipe(recipe_file), out, stages, command)
