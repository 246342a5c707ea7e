"""How much memory is free, and giving back what is not used any more."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch


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


def give_back() -> None:
    """Let the system have what was freed: over thousands of windows glibc's heap would fray and grow."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
