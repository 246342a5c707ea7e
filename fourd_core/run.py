"""Running a recipe: build and check everything, then one stage after another in a run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import torch

from fourd_core.build import build_dataset, build_system, data_of, pick_device
from fourd_core.distributed import current, joined
from fourd_core.errors import FourdError, RecipeError, RunError
from fourd_core.hooks import Hooks, load_hooks
from fourd_core.interfaces import Head
from fourd_core.jobs import Job
from fourd_core.provenance import new_record, versions, weights_in_use
from fourd_core.recipe import Location, Recipe
from fourd_core.recipe.values import plain
from fourd_core.run_folder import Follower, Interrupted, Run, read_recipe, read_record, trained_weights
from fourd_core.system import System
from fourd_core.weights import read_state_dict


def run_recipe(recipe: Recipe, folder: Path, stages: Collection[str] = (), command: Sequence[str] = ()) -> Run:
    """Run a recipe's stages in its order: those named, or all but the ones that are run by name only.

    What is done in `folder` is not repeated.

    Everything that can be checked before writing is checked first, so that a mistake leaves no folder behind. Where
    torchrun started several processes they train together, and only the first one returns from here.

    Raises:
        FourdError: what is wrong and what to do.
        Interrupted: Ctrl-C; the folder is resumable.
    """
    for stage in stages:
        if stage not in recipe.stages:
            raise RecipeError(f"there is no stage '{stage}' in this recipe; it has: {', '.join(recipe.stages)}")
    stages = stages or [name for name, stage in recipe.stages.items() if not getattr(stage.config, "by_name", False)]
    with joined() as group:
        start = group.from_first(lambda: _look(recipe, folder))
        recipe = attrs.evolve(recipe, device=start.device, threads=start.threads)
        with group.together():
            run, system, jobs = _build(recipe, folder, start, stages, command)
        try:
            run.create()
            if group.first:
                _restore(run, system, jobs)
            _run_stages(run, jobs)
        finally:
            run.close()
    return run


@attrs.frozen
class _Start:
    """What the first process finds in the run's folder and decides for all.

    Attributes:
        device: of the recipe as it will be.
        threads: of the recipe as it will be.
        record: the `run.json` that is there.
        is_new: whether the folder is still to be made.
    """

    device: str
    threads: int | None
    record: dict[str, Any] | None
    is_new: bool


def _look(recipe: Recipe, folder: Path) -> _Start:
    started = read_recipe(folder)
    recipe = _settled(recipe, started)
    if started is None:
        return _Start(recipe.device, recipe.threads, None, is_new=True)
    _check_same(recipe, started, folder)
    return _Start(recipe.device, recipe.threads, read_record(folder), is_new=False)


def _build(
    recipe: Recipe, folder: Path, start: _Start, stages: Collection[str], command: Sequence[str]
) -> tuple[Run, System, dict[str, Job]]:
    """The run, its system, and the jobs that are to be done, prepared."""
    first = current().first
    device = _prepare_torch(recipe)
    done = _done_stages(start.record)
    system = build_system(recipe, named_weights=not _starts_fresh(recipe, stages, done)).to(device)
    run: Run
    if first:
        hooks = load_hooks()
        record = start.record or new_record(recipe, command, system)
        run = Run(folder, recipe, record, hooks, start.is_new)
    else:
        run = Follower(folder, recipe, start.record or {"stages": {}}, Hooks(), start.is_new)
    shared = build_dataset(recipe)
    jobs = {
        name: stage.config.create(name, stage.config, system, data_of(recipe, name, shared), recipe)
        for name, stage in recipe.stages.items()
        if name in stages and not run.is_done(name) and (first or stage.job == "train")
    }
    _check_order(run, jobs)
    for job in jobs.values():
        job.prepare()
    if start.is_new:
        run.record["versions"] = versions()  # a stage may have loaded further plugins
    known = run.record.setdefault("weights", [])
    for used, its in [(system, recipe), *((job.system, job.recipe) for job in jobs.values())]:
        known += [row for row in weights_in_use(used, its) if row not in known]
    if not jobs and first:
        sys.stderr.write(f"note: everything that was asked for is done already in {folder}\n")
    return run, system, jobs


def _done_stages(record: Mapping[str, Any] | None) -> set[str]:
    stages = record["stages"] if record is not None else {}
    return {name for name, facts in stages.items() if facts.get("state") == "done"}


def _starts_fresh(recipe: Recipe, stages: Collection[str], done: Collection[str]) -> bool:
    """Whether no stage that is to be run needs the weights that the recipe names.

    So it is where the heads come, or will come, from a training that starts afresh, or where no stage looks at them.
    """
    for name, stage in recipe.stages.items():
        asked = name in stages and name not in done
        if stage.job == "train" and (asked or name in done):
            return bool(stage.config.start == "fresh")
        if asked and stage.job != "cues":
            return False
    return bool(recipe.stages)


def _settled(recipe: Recipe, started: Recipe | None) -> Recipe:
    """The recipe with device and threads as they will be: as stated, as in the run that goes on, as found here."""
    threads = recipe.threads or (started.threads if started else None) or torch.get_num_threads()
    device = started.device if started and recipe.device == "auto" else str(pick_device(recipe.device))
    return attrs.evolve(recipe, device=device, threads=threads)


def _prepare_torch(recipe: Recipe) -> torch.device:
    assert recipe.threads is not None
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # For debugging: every new tensor would be written twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = pick_device(recipe.device)
    if current().size > 1 and (device.index is not None or device.type == "mps"):
        raise RunError(
            f'device = "{recipe.device}": torchrun started {current().size} processes, each with a GPU of its own '
            'or on the CPU; use "auto", "cuda" or "cpu"'
        )
    return device


def _check_same(recipe: Recipe, started: Recipe, folder: Path) -> None:
    started = attrs.evolve(started, cluster=recipe.cluster)  # who computes changes no number
    if recipe == started:
        return
    old, new = _by_key(plain(started)), _by_key(plain(recipe))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = "; ".join(f"{key} = {old.get(key, 'nothing')} there, {new.get(key, 'nothing')} now" for key in keys[:3])
    more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
    raise RunError(
        f"{folder} holds a run of another recipe ({shown}{more}). "
        f"Choose another folder with --out, or go on with that run: fourd run {folder}/recipe.toml --out {folder}"
    )


def _by_key(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _by_key(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def _check_order(run: Run, jobs: Collection[str]) -> None:
    """What a later stage made must be made of what the training stages before it learned.

    Raises:
        RunError: a stage would train behind the back of one that was run already, or be skipped half-trained.
    """
    order = list(run.recipe.stages)
    for place, name in enumerate(order):
        if run.recipe.stages[name].job != "train":
            continue
        # Cues are the teachers' and not made of what is learned.
        after = [other for other in order[place + 1 :] if run.recipe.stages[other].job != "cues"]
        later = [other for other in after if run.was_started(other)]
        if name in jobs and later:
            raise RunError(
                f"{run.folder} holds results of {', '.join(later)} from before {name} was trained; "
                f"choose another folder with --out"
            )
        if name not in jobs and run.was_started(name) and not run.is_done(name) and set(after) & set(jobs):
            raise RunError(f"the stage {name} is not finished in {run.folder}; run it before the stages after it")


def _restore(run: Run, system: System, jobs: dict[str, Job]) -> None:
    """Give the system the weights that earlier stages of this run trained; record what has changed since."""
    now = versions()
    if run.record["versions"] != now:
        changed = [name for name in now if run.record["versions"].get(name) != now[name]]
        run.note(f"goes on with other versions of {', '.join(changed)}")
        run.record.setdefault("later_versions", []).append({name: now[name] for name in changed})
    weights = trained_weights(run.folder, run.recipe)
    if weights is not None:
        system.load_trained_state(read_state_dict(str(weights)), str(weights))
    elif not (run.recipe.weights or run.recipe.trained) and _only_looks(run.recipe, jobs):
        fresh = [name for name, head in system.heads.items() if cast(Head, head).pretrained() is None]
        if fresh:
            note = f"nothing has trained {', '.join(fresh)}, and no weights are named"
            sys.stderr.write(f"note: {note}\n")
            run.record["notes"] = sorted({*run.record.get("notes", []), note})


def _only_looks(recipe: Recipe, jobs: Collection[str]) -> bool:
    """Whether some of these stages use the heads and none of them trains any."""
    kinds = {recipe.stages[name].job for name in jobs}
    return "train" not in kinds and bool(kinds - {"cues"})


def _run_stages(run: Run, jobs: dict[str, Job]) -> None:
    run.hooks.run_started(run=run)
    status = "failed"
    try:
        for name, job in jobs.items():
            _run_stage(run, name, job)
        status = "done"
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        if current().first:
            _write_report(run, needed=status == "done")
        run.hooks.run_finished(run=run, status=status)


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


def rerun(folder: Path, out: Path, stages: Collection[str] = (), command: Sequence[str] = ()) -> Run:
    """Repeat a run, or some of its stages, from its resolved recipe in a new folder.

    Stages that come after a training which is not repeated start from the weights it left.

    Raises:
        RunError: not a run folder.
    """
    recipe = read_recipe(folder)
    if recipe is None:
        raise RunError(f"{folder} is not a run folder: it has no recipe.toml")
    trains = [name for name, stage in recipe.stages.items() if stage.job == "train"]
    weights = trained_weights(folder, recipe)
    if stages and weights is not None and not set(trains) & set(stages):
        recipe = attrs.evolve(recipe, trained=Location(str(weights.resolve())))
    return run_recipe(recipe, out, stages, command)
