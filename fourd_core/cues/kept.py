"""What training reads instead of asking its teachers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from fourd_core.cues.index import Codes, codes_of, items_of
from fourd_core.cues.packing import unpack
from fourd_core.cues.plan import Listing, Plan, digest_of, hash_of, keys_of, make_plan
from fourd_core.cues.provenance import difference, provenance_of
from fourd_core.cues.store import CueStore, StoredCue
from fourd_core.data import CueMaps
from fourd_core.errors import RunError
from fourd_core.interfaces import Dataset, KeptCues, Objective, Video
from fourd_core.recipe import Recipe
from fourd_core.recipe.values import plain
from fourd_core.system import System


def plan_record(recipe: Recipe, stage: str, data: Dataset, batches: int, places: int) -> dict[str, Any]:
    """What the draws of a training follow from, and how far they were computed."""
    objective = recipe.stages[stage].config.objective
    return {
        "seed": recipe.seed,
        "stage": stage,
        "objective": digest_of(plain(objective)),
        "videos": digest_of(keys_of(data.videos("train"))),
        "cues": sorted(recipe.cues),
        "batches": batches,
        "places": places,
    }


class StoredCues(KeptCues):
    """The maps of a store, found by video and frames; may be pickled and used after a fork.

    Attributes:
        failed: keys of the videos that could not be read.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        store = CueStore.find(location)
        if store is None:
            raise RunError(f"there are no cue maps at {location}; run the stage that computes them")
        self.shown, self.failed = store.shown, frozenset(store.failed)
        self._index: dict[str, tuple[Codes, Int64[np.ndarray, " n"]]] = {}
        self._cues: dict[str, StoredCue] = {}
        self._process = os.getpid()

    def read(self, cue: str, video: Video, frames: Sequence[int]) -> CueMaps:
        """As `KeptCues.read`; `frames` in any order."""
        key = video.key or video.name
        stored = self._cue(cue)
        if stored.attributes["each_frame_alone"]:
            maps = np.concatenate([self._row(cue, key, (frame,)) for frame in frames])
        else:
            order = np.argsort(frames, kind="stable")
            maps = np.empty_like(found := self._row(cue, key, tuple(sorted(frames))))
            maps[order] = found
        return unpack(maps, stored.attributes["kind"])

    def has(self, cue: str, plan: Plan, rows: Int64[np.ndarray, "n columns"]) -> Shaped[np.ndarray, " n"]:
        """Which rows of a plan are kept."""
        codes, _ = self._lookup(cue)
        return np.isin(codes_of(items_of(rows, plan.keys)), codes)

    def _row(self, cue: str, key: str, frames: tuple[int, ...]) -> Shaped[np.ndarray, "t c h w"]:
        codes, rows = self._lookup(cue)
        code = codes_of(np.array([[hash_of(key), *frames]], np.int64))
        place = int(np.searchsorted(codes, code)[0]) if code.dtype == codes.dtype else len(codes)
        if place == len(codes) or codes[place] != code[0]:
            what = f"frame{'s' * (len(frames) > 1)} {' and '.join(map(str, frames))} of {key}"
            raise RunError(f"{self.shown} holds no maps of {what} for the cue {cue}; run the stage cues again")
        try:
            return self._cue(cue).read(int(rows[place]))
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(f"the maps of the cue {cue} in {self.shown} cannot be read: {error}") from error

    def _lookup(self, cue: str) -> tuple[Codes, Int64[np.ndarray, " n"]]:
        if cue not in self._index:
            items, rows = self._cue(cue).counting_rows()
            codes, first = np.unique(codes_of(items), return_index=True)
            self._index[cue] = codes, rows[first]
        return self._index[cue]

    def _cue(self, name: str) -> StoredCue:
        if self._process != os.getpid():  # connections do not survive a fork
            self._cues, self._process = {}, os.getpid()
        if name not in self._cues:
            store = CueStore.find(self._location)
            cue = store.cue(name) if store is not None else None
            if cue is None:
                raise RunError(f"{self.shown} holds no cue called {name}; run the stage cues again")
            self._cues[name] = cue
        return self._cues[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cues": {}}


def check_made_alike(store: CueStore, system: System, recipe: Recipe, stage: str, objective: Objective) -> None:
    """Refuse maps that were made by other teachers than these, or of other views of the frames.

    Raises:
        RunError: which cue, and what differs.
    """
    for name, provider in system.cues.items():
        stored = store.cue(name)
        if stored is None:
            continue
        differs = difference(stored.attributes["provenance"], provenance_of(recipe, name, provider, stage, objective))
        if differs:
            raise RunError(
                f"the maps of the cue {name} in {store.shown} were made by {differs}; choose another cue_cache, or "
                "delete it and run the stage cues again"
            )


def open_kept(
    recipe: Recipe, system: System, data: Dataset, stage: str, objective: Objective, batches: int, places: int
) -> StoredCues | None:
    """What the recipe's `cue_cache` holds for a training, after a look at whether it is the right one and whole.

    The objective's `skip_videos` are set to the videos that could not be read, since its draws depend on them.

    Args:
        batches: forward passes of the training in all, over all its steps.
        places: samples of one of them, over all its processes.
    Returns:
        None where the recipe names no cache, nothing is there yet, or the recipe has no cues.
    Raises:
        RunError: it was made by another network, with other weights, at another resolution, or lacks draws.
    """
    store = CueStore.find(recipe.cue_cache) if recipe.cue_cache is not None and system.cues else None
    if store is None:
        return None
    check_made_alike(store, system, recipe, stage, objective)
    kept = StoredCues(store.location)
    objective.skip_videos = kept.failed
    record = plan_record(recipe, stage, data, batches, places)
    if not any(covers(done, record) for done in store.plans):
        _check_whole(
            kept, store, system, make_plan(Listing(data), objective, recipe.seed, stage, batches, places), record
        )
    return kept


def covers(done: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether one record of `plan_record` says that all draws of another are kept."""
    same = all(done.get(key) == wanted[key] for key in ("seed", "stage", "objective", "videos"))
    return (
        same
        and set(done["cues"]) >= set(wanted["cues"])
        and all(done[key] >= wanted[key] for key in ("batches", "places"))
    )


def _check_whole(kept: StoredCues, store: CueStore, system: System, plan: Plan, record: dict[str, Any]) -> None:
    for name, provider in system.cues.items():
        rows = plan.of(provider)
        lacking = len(rows) if store.cue(name) is None else int((~kept.has(name, plan, rows)).sum())
        lacking += len(plan.failed)
        if lacking:
            others = any(done["videos"] == record["videos"] for done in store.plans)
            made_for = "" if others or not store.plans else " (it was made for other videos)"
            raise RunError(
                f"{store.shown} lacks {lacking} of the {len(rows)} clips that [stages.{record['stage']}] draws, for "
                f"the cue {name}{made_for}; run the stage cues again, or leave cue_cache out"
            )
