"""One unit of work: read some frames, ask a teacher, write one file."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import attrs
import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from fourd_core.build import build_component, build_dataset, build_system, pick_device
from fourd_core.cues.kept import check_made_alike
from fourd_core.cues.packing import Precision, pack
from fourd_core.cues.plan import hash_of, keys_of
from fourd_core.cues.store import CueStore
from fourd_core.data import Clip
from fourd_core.errors import MediaError, RunError
from fourd_core.interfaces import CueProvider, Dataset, Objective
from fourd_core.precision import own_precision
from fourd_core.recipe import Recipe, parse
from fourd_core.system import NamedCues


@attrs.frozen(eq=False)
class Unit:
    """Rows of one file that are still to be computed.

    Attributes:
        videos: the number of each row's video in the data.
        items: as the store has them: the hash of the video's key, then frames.
    """

    cue: str
    number: int
    videos: Int64[np.ndarray, " n"]
    items: Int64[np.ndarray, "n columns"]


@attrs.frozen
class Settings:
    """What all units of a job have in common."""

    stage: str
    """The training stage whose objective says what teachers see."""
    batch: int
    precision: Precision


@attrs.frozen
class Outcome:
    """What became of a unit: written, or else why videos could not be read, by key."""

    failed: dict[str, str] = attrs.field(factory=dict)


class Stopped(Exception):  # noqa: N818 - not an error: the user wished it
    """A unit was left unfinished."""


class Workplace:
    """What one process needs for any unit; threads share it.

    Each thread has a copy of the data set, since an open video serves one thread at a time; so frames are decoded side
    by side. A teacher answers one thread after another: on one device two callers gain nothing but need twice the
    memory, and classical ones change settings of their whole process (OpenCV's number of threads).
    """

    def __init__(
        self, settings: Settings, store: CueStore, data: Dataset, cues: Mapping[str, CueProvider],
        objective: Objective, device: torch.device,
    ) -> None:  # fmt: skip
        self.settings, self.store, self.data = settings, store, data
        self.cues, self.objective, self.device = cues, objective, device
        self.stop = threading.Event()
        self._teacher = threading.Lock()
        self._own = threading.local()

    def compute(self, unit: Unit) -> Outcome:
        """Compute and write a unit, if that is not done yet; nothing is asked or written where a video fails.

        Raises:
            FourdError: a teacher's answer cannot be kept, or the store cannot be written.
            Stopped: `stop` was set.
        """
        stored = self.store.cue(unit.cue)
        assert stored is not None
        # Its answer may have been lost on the way, with the worker that gave it.
        if stored.is_done(unit.number):
            return Outcome()
        frames, failed = self._frames(unit)
        if not failed:
            stored.write(unit.number, np.concatenate(list(self._maps(unit.cue, frames))))
        return Outcome(failed)

    def _frames(self, unit: Unit) -> tuple[list[UInt8[Tensor, "t 3 h w"]], dict[str, str]]:
        """The frames of each row as the teacher shall see them, and why videos could not be read."""
        frames, failed = [], dict[str, str]()
        for number, (expected, *indices) in zip(unit.videos.tolist(), unit.items.tolist(), strict=True):
            self._check_stop()
            videos, keys = self._videos
            if number >= len(keys) or hash_of(keys[number]) != expected:
                raise RunError(
                    f"[data] lists other videos here than where the job was started (number {number} is "
                    f"{keys[number] if number < len(keys) else 'missing'}); all workers must see the same data"
                )
            if keys[number] in failed:
                continue
            try:
                frames.append(self.objective.cue_frames(videos[number], indices))
            except MediaError as error:
                failed[keys[number]] = str(error)
        return frames, failed

    @property
    def _videos(self) -> tuple[Sequence[Any], list[str]]:
        if not hasattr(self._own, "videos"):
            videos = copy.deepcopy(self.data).videos("train")
            self._own.videos = videos, keys_of(videos)
        return cast(tuple[Sequence[Any], list[str]], self._own.videos)

    def _maps(self, cue: str, frames: Sequence[UInt8[Tensor, "t 3 h w"]]) -> Iterator[Shaped[np.ndarray, "b t c h w"]]:
        sizes = sorted({tuple(clip.shape) for clip in frames})
        if len(sizes) > 1:
            raise RunError(f"[cues.{cue}] clips must be shown in one size, and there are {sizes[0]} and {sizes[1]}")
        for start in range(0, len(frames), self.settings.batch):
            self._check_stop()
            clips = torch.stack(list(frames[start : start + self.settings.batch]))
            with self._teacher:
                maps = self._ask(cue, clips.to(self.device).float() / 255)
            yield maps

    @torch.no_grad()
    def _ask(self, cue: str, frames: Float[Tensor, "b t 3 h w"]) -> Shaped[np.ndarray, "b t c h w"]:
        with own_precision(self.device):
            return pack(self.cues[cue](Clip(frames)), self.settings.precision)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped


_places: dict[tuple[str, Settings, str], Workplace] = {}
_building = threading.Lock()


def compute_elsewhere(text: str, settings: Settings, device: str, unit: Unit) -> Outcome:
    """`Workplace.compute` in a worker process, which builds its workplace from the recipe's text, once.

    Only the cues are built for real; the backbone and the objective remain shapes on the meta device.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)  # as dask itself has it: a machine is filled by workers
    with _building:
        if (text, settings, device) not in _places:
            _places.clear()
            _places[text, settings, device] = _build(parse(text), settings, pick_device(device))
        place = _places[text, settings, device]
    return place.compute(unit)


def _build(recipe: Recipe, settings: Settings, device: torch.device) -> Workplace:
    with torch.device("meta"):
        system = build_system(recipe)
    cues = {name: build_component(part, recipe.seed, f"cues.{name}") for name, part in recipe.cues.items()}
    for cue in cues.values():
        cue.load_pretrained()
        if isinstance(cue, nn.Module):
            cue.requires_grad_(False).to(device).train(False)
    system.cues = NamedCues(cues)
    objective = cast(Objective, system.objectives[settings.stage])
    assert recipe.cue_cache is not None
    store = CueStore.find(recipe.cue_cache)
    if store is None:
        raise RunError(f"a worker sees nothing at {recipe.cue_cache}; cue_cache must be a place that all of them share")
    check_made_alike(store, system, recipe, settings.stage, objective)  # its weights may be other files than ours
    return Workplace(settings, store, build_dataset(recipe), cues, objective, device)
