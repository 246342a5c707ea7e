"""What teachers say about the frames that a training will draw, computed once, in parallel, and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from itertools import chain
from typing import Any, ClassVar

import attrs
import numpy as np
from attrs.validators import ge
from jaxtyping import Int64

from fourd_core.cues.backlog import Backlog, make_backlog
from fourd_core.cues.crew import Crew, cluster, import_distributed, threads
from fourd_core.cues.index import codes_of, items_of
from fourd_core.cues.kept import check_made_alike, covers, plan_record
from fourd_core.cues.packing import Precision
from fourd_core.cues.plan import Listing, Plan, make_plan
from fourd_core.cues.provenance import provenance_of
from fourd_core.cues.store import CueStore, StoredCue
from fourd_core.cues.work import Settings, Stopped, Workplace
from fourd_core.errors import RecipeError, RunError
from fourd_core.files import write_json
from fourd_core.interfaces import CueProvider, Objective
from fourd_core.jobs import Job
from fourd_core.jobs.stopping import stop_signals
from fourd_core.media.arrays import CONVENTIONS
from fourd_core.progress import track
from fourd_core.provenance import versions
from fourd_core.run_folder import Interrupted, Run

RESULT_FILE = "result.json"


Items = Int64[np.ndarray, "n columns"]


class CuesJob(Job):
    """Computes every cue for every frame that a training stage will draw, each once, into the recipe's `cue_cache`."""

    config: CuesConfig

    def prepare(self) -> None:
        where, wanted = f"stages.{self.stage}", self.config.stage
        if not self.system.cues:
            raise RecipeError(f"[{where}] has nobody to ask: the recipe has no [cues.NAME]")
        for name, cue in self.system.cues.items():
            if not cue.each_clip_alone:
                raise RecipeError(
                    f"[cues.{name}] as it is set answers about a clip by the clips beside it in a batch, so they "
                    "cannot be kept; set it otherwise, or leave cue_cache out"
                )
        if self.recipe.cue_cache is None:
            raise RecipeError(f'[{where}] has no place to keep cues: set cue_cache = "a folder or URL" in the recipe')
        if wanted not in self.system.objectives:
            trains = ", ".join(self.system.objectives) or "none"
            raise RecipeError(f'{where}.stage = "{wanted}" is no training stage of this recipe, which has: {trains}')
        self.objective: Objective = self.system.objectives[wanted]  # type: ignore[assignment]
        self.location = self.recipe.cue_cache
        self.system.load_cues()
        if self.recipe.cluster is not None:
            if self.location.startswith("memory://"):
                raise RecipeError("cue_cache is in the memory of one process, which the workers of [cluster] are not")
            import_distributed()
        self._find()
        self.listing = Listing(self.data)
        make_plan(self.listing, self.objective, self.recipe.seed, wanted, 1, 1)  # opens the data

    def _find(self) -> CueStore | None:
        store = CueStore.find(self.location)
        if store is not None and self.system.device.type != "meta":
            check_made_alike(store, self.system, self.recipe, self.config.stage, self.objective)
            for name in self.system.cues:
                cue = store.cue(name)
                there = cue.attributes["precision"] if cue is not None else self.config.precision
                if there != self.config.precision:
                    raise RunError(
                        f'{store.shown} keeps the cue {name} in {there}; set stages.{self.stage}.precision = "{there}"'
                        ", or choose another cue_cache"
                    )
        return store

    def run(self, run: Run) -> None:
        about = {"conventions": CONVENTIONS, "versions": versions(), "data": self.recipe.data.use}
        store = self._find() or CueStore.create(self.location, about)
        with store.alone(), stop_signals() as stop_wanted, ExitStack() as stack:
            store.sweep()
            stack.callback(store.sweep)
            if self.config.retry and store.failed:
                store.update(failed={}, plans=[])
            before = {name: stored.counting_rows()[0] for name, stored in self._stored(store).items()}
            try:
                plan = self._complete(store, run, stack, stop_wanted.is_set)
            except Stopped:
                raise Interrupted(self.stage) from None
            record = plan_record(self.recipe, self.config.stage, self.listing, *self._extent())
            store.update(plans=[*(plan for plan in store.plans if not covers(record, plan)), record])
            self._report(run, store, before, plan)

    def _complete(self, store: CueStore, run: Run, stack: ExitStack, stop_wanted: Callable[[], bool]) -> Plan:
        """Compute what is missing; again where videos could not be read, since others are drawn in their place."""
        crew: Crew | None = None
        while True:
            plan = self._plan(store, run)
            backlogs = [self._backlog(store, name, cue, plan) for name, cue in self.system.cues.items()]
            total = sum(map(len, backlogs))
            if not total:
                return plan
            crew = crew or stack.enter_context(self._crew(store))
            failed: dict[str, str] = {}
            outcomes = crew.run(chain.from_iterable(backlogs), stop_wanted)
            for outcome in track(outcomes, self.stage, total, warm_up=crew.width):
                failed |= outcome.failed
            if failed:
                self._leave_out(store, failed, run)

    def _plan(self, store: CueStore, run: Run) -> Plan:
        """What training draws; again where videos could not be opened, until the draws name none of these."""
        while True:
            self.objective.skip_videos = frozenset(store.failed)
            plan = make_plan(self.listing, self.objective, self.recipe.seed, self.config.stage, *self._extent())
            if not plan.failed:
                return plan
            self._leave_out(store, plan.failed, run)

    def _leave_out(self, store: CueStore, failed: Mapping[str, str], run: Run) -> None:
        """Remember videos that cannot be read; the draws of every training change with them."""
        for key, reason in failed.items():
            message = f"{key} is left out: {reason}"
            sys.stderr.write(f"{self.stage}: {message}\n")
            run.note(f"{self.stage}: {message}")
        store.update(failed={**store.failed, **failed}, plans=[])

    def _backlog(self, store: CueStore, name: str, provider: CueProvider, plan: Plan) -> Backlog:
        rows = plan.of(provider)
        stored = store.cue(name) or store.add_cue(name, self.config.unit, rows.shape[1], self._about(name, provider))
        return make_backlog(stored, rows, plan.keys)

    def _stored(self, store: CueStore) -> dict[str, StoredCue]:
        found = {name: store.cue(name) for name in self.system.cues}
        return {name: stored for name, stored in found.items() if stored is not None}

    def _about(self, name: str, provider: CueProvider) -> dict[str, Any]:
        channels = {"flow": ["x", "y", "disagreement"], "disparity": ["disparity"]}.get(provider.kind, [])
        return {
            "kind": provider.kind,
            "channels": channels,
            "each_frame_alone": provider.each_frame_alone,
            "precision": self.config.precision,
            "provenance": provenance_of(self.recipe, name, provider, self.config.stage, self.objective),
        }

    def _crew(self, store: CueStore) -> AbstractContextManager[Crew]:
        config, system = self.config, self.system
        settings = Settings(config.stage, config.batch, config.precision)
        if self.recipe.cluster is not None:
            return cluster(self.recipe, settings)
        place = Workplace(settings, store, self.data, system.cues, self.objective, system.device)
        return threads(place, config.threads)

    def _extent(self) -> tuple[int, int]:
        """Batches and places of the training."""
        config = self.recipe.stages[self.config.stage].config
        return config.steps * config.accumulate, config.batch_size * self.config.processes

    def _report(self, run: Run, store: CueStore, before: Mapping[str, Items], plan: Plan) -> None:
        rows, cues = [], self._stored(store)
        for name, stored in cues.items():
            items, sizes = items_of(plan.of(self.system.cues[name]), plan.keys), stored.done()
            reused = int(np.isin(codes_of(items), codes_of(before[name])).sum()) if name in before else 0
            computed = len(stored.counting_rows()[0]) - len(before.get(name, ()))
            rows.append(
                {"cue": name, "clips": len(items), "computed": computed, "reused": reused, "units": len(sizes),
                 "bytes": sum(sizes.values())}
            )  # fmt: skip
        failed = [{"video": key, "reason": reason} for key, reason in store.failed.items()]
        about = {"store": store.shown, "draws": len(plan.rows), "videos": len(plan.keys), "failed": failed}
        about["cues"] = {name: stored.attributes for name, stored in cues.items()}
        said = ", ".join(
            f"{row['computed']} of {row['cue']} computed and {row['reused']} there already" for row in rows
        )
        left_out = f"; {len(failed)} videos left out" if failed else ""
        summary = f"{self.stage}: {said}{left_out}; kept in {store.shown}"
        sys.stdout.write(summary + "\n")
        run.note(summary)
        notes = [f"{len(failed)} of {len(plan.keys)} videos could not be read and are left out"] if failed else []
        table = {"title": f"cues for {self.config.stage}", "rows": rows, "protocol": about, "notes": notes}
        write_json(run.stage_folder(self.stage) / RESULT_FILE, [table])


@attrs.frozen
class CuesConfig:
    """`job = "cues"`: which training's frames, and how the work is cut."""

    create: ClassVar[type[Job]] = CuesJob

    stage: str = "train"
    """The training stage whose draws are meant."""
    processes: int = attrs.field(default=1, validator=ge(1))
    """How many processes that training will have (torchrun): each draws `batch_size` samples of every batch."""
    threads: int = attrs.field(default=4, validator=ge(1))
    """Threads that read and decode, where there is no [cluster]; the teachers answer one after another."""
    batch: int = attrs.field(default=8, validator=ge(1))
    """Clips that a teacher is shown at a time."""
    unit: int = attrs.field(default=64, validator=ge(1))
    """Clips per piece of work, which is one file; a store keeps to the number that it was made with."""
    precision: Precision = "float16"
    """Of the numbers in the store."""
    retry: bool = False
    """Try videos again that could not be read before."""
