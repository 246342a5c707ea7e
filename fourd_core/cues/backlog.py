"""What is missing in a store, cut into units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
from jaxtyping import Int64

from fourd_core.cues.index import codes_of, items_of
from fourd_core.cues.store import UNUSED, StoredCue
from fourd_core.cues.work import Unit
from fourd_core.errors import RunError

Places = Int64[np.ndarray, "_"]


@attrs.frozen(eq=False)
class Backlog:
    """Units of one cue that are to be computed, made one by one as they are asked for.

    Attributes:
        videos: the number of each clip's video.
        items: the clips as the store has them.
        units: the number of each unit, and which of the clips are in it.
    """

    cue: str
    videos: Int64[np.ndarray, " n"]
    items: Int64[np.ndarray, "n columns"]
    units: list[tuple[int, Places]]

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[Unit]:
        return (Unit(self.cue, number, self.videos[part], self.items[part]) for number, part in self.units)


def make_backlog(stored: StoredCue, rows: Int64[np.ndarray, "n columns"], keys: Sequence[str]) -> Backlog:
    """Units of those rows of a plan that are not computed; there is room for all of them in the store afterwards.

    Units that were planned before, not computed, and are still wanted whole come first and as they were, so that a
    killed job ends with the files of one that was not. The others are new, behind all that are there: a worker of a
    killed job that is still at work can only write what it was asked for.

    Raises:
        RunError: the store has clips of another number of frames; it cannot be written.
    """
    items = items_of(rows, keys)
    planned = stored.items()
    if planned.shape[1] != items.shape[1]:
        raise RunError(
            f"{stored.store.shown} keeps clips of {planned.shape[1] - 1} frames for the cue {stored.name}, and "
            f"training draws {items.shape[1] - 1}; choose another cue_cache"
        )
    missing = ~np.isin(codes_of(items), codes_of(stored.counting_rows()[0]))
    videos, items = rows[missing, 0], items[missing]
    units = _planned_before(stored, planned, items)
    rest = np.ones(len(items), bool)
    for _, part in units:
        rest[part] = False
    places = np.flatnonzero(rest)
    if len(places):
        first = stored.append(items[places])
        parts = np.split(places, range(stored.unit, len(places), stored.unit))
        units += list(enumerate(parts, start=first))
    return Backlog(stored.name, videos, items, units)


def _planned_before(
    stored: StoredCue, planned: Int64[np.ndarray, "rows columns"], items: Int64[np.ndarray, "n columns"]
) -> list[tuple[int, Places]]:
    """Units that have room but no file, all of whose clips are among `items`."""
    codes = codes_of(items)
    order = np.argsort(codes)
    done, free = stored.done(), np.ones(len(items), bool)
    units = []
    for number in range(len(planned) // stored.unit):
        if number in done or not len(items):
            continue
        clips = planned[number * stored.unit : (number + 1) * stored.unit]
        wanted = codes_of(clips[clips[:, 0] != UNUSED])
        found = np.searchsorted(codes, wanted, sorter=order)
        part = order[np.minimum(found, len(order) - 1)]
        if len(part) and bool((codes[part] == wanted).all()) and bool(free[part].all()):
            free[part] = False
            units.append((number, part))
    return units
