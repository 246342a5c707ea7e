"""Thousands of queried points through a head that tracks: in groups that fit into the memory at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import Tensor

from fourd_core.data import Clip, Tokens, Tracks
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Head, Memory, State

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
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, Mapping):
        return {key: moved(item, device) for key, item in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(moved(item, device) for item in state)
    return state


def group_size(head: Head, clip: Clip) -> int:
    """How many points go through together."""
    each = head.query_bytes(clip) * len(clip.frames)
    if not each:
        return LARGEST
    return max(1, min(LARGEST, int(free_memory(clip.frames.device) * SHARE / each)))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, as far as they can be known; 4 GiB where they cannot."""
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_by_torch
    known = [room for room in (_available(), _room_in_container()) if room is not None]
    return min(known, default=4 * 2**30)


def _available() -> int | None:
    """What Linux would give without swapping; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _room_in_container() -> int | None:
    """What a control group leaves to its processes; None where there is no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no second version of control groups, or the limit is "max"
        return None
