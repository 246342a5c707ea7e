"""Thousands of queried points through a head that tracks: in groups that fit into the memory at hand."""

from __future__ import annotations

from typing import cast

import attrs
import torch

from fourd_core.data import Clip, Tokens, Tracks
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Head, Memory, State
from fourd_core.memory import free_memory
from fourd_core.states import each

SHARE = 0.25
"""Of the free memory, what a group of points may take."""
LARGEST = 1024
"""Points in a group at most: more gain nothing."""


def track(
    name: str, head: Head, memory: Memory | None, tokens: Tokens, clip: Clip, states: list[State], shift: int | None
) -> tuple[Tracks, list[State]]:
    """One window of a head that tracks.

    Args:
        name: of the head, for the message.
        states: of the memory, one for each group of points; empty before the first window.
        shift: as in `System.step`.
    Returns:
        the tracks of all points, and the memory's states for the next window.
    Raises:
        RecipeError: nobody said which points.
    """
    if clip.queries is None or clip.queries.count == 0:
        raise RecipeError(
            f"[heads.{name}] follows points, and none are named; say which in [queries], for example grid = 16"
        )
    count = clip.queries.count
    groups = len(states) or -(-count // group_size(head, clip))
    bounds = [count * i // groups for i in range(groups + 1)]
    device = clip.frames.device
    parts: list[Tracks] = []
    kept: list[State] = []
    for i in range(groups):
        part = attrs.evolve(clip, queries=clip.queries.part(bounds[i], bounds[i + 1]))
        seen = tokens, part
        if memory is not None:
            state = moved(states[i], device) if states else memory.initial(tokens, part)
            seen = memory.read(state, tokens, part)
        tracks = cast(Tracks, head(*seen))
        if memory is not None and shift is not None:
            state = memory.update(state, tokens, part, tracks, shift)
            kept.append(state if groups == 1 else moved(state, torch.device("cpu")))
        parts.append(attrs.evolve(tracks, remembered={}))  # it may be large, and the memory has what it needs
    return parts[0] if groups == 1 else Tracks.join(parts), kept


def moved(state: State, device: torch.device) -> State:
    """A memory's state with its tensors on a device: those of many groups wait in the CPU's memory for their turn."""
    return each(state, lambda tensor: tensor.to(device))


def group_size(head: Head, clip: Clip) -> int:
    """How many points go through together."""
    each = head.query_bytes(clip) * len(clip.frames)
    if not each:
        return LARGEST
    return max(1, min(LARGEST, int(free_memory(clip.frames.device) * SHARE / each)))
