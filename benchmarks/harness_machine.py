"""What this machine can do at best, and how time and memory are taken on it: a CPU's one thread, or a CUDA device."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Call = Callable[[int], object]
"""A piece of work; the number says which of several sets of inputs it takes."""

GPU_SPAN = 0.005
"""Seconds of a GPU between two events, at least: shorter calls are repeated."""
GPU_PAUSE = 20_000_000
"""Cycles, about 10 ms, for which a GPU waits before repeated calls: these are launched meanwhile, so that a call that
takes less time than Python needs to launch it is not measured as Python."""


class Machine:
    """A CPU of which one thread is used: processor time, so that neighbours matter little, and resident memory."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.slug = f"cpu-{os.cpu_count()}"
        self.cache_bytes = 0
        """Inputs are rotated through three times as much memory."""

    def about(self) -> dict[str, Any]:
        """For the record."""
        return {
            "device": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "python": platform.python_version(), "torch": torch.__version__, "triton": installed("triton"),
            "xformers": installed("xformers"),
        }  # fmt: skip

    def milliseconds(self, call: Call, expected: float) -> float:
        """One measurement of one call, which takes about `expected` milliseconds."""
        start = time.process_time()
        call(0)
        return 1000 * (time.process_time() - start)

    def peak(self, call: Callable[[], object]) -> tuple[Any, float | None]:
        """What a call returns, and the most megabytes it took above what was there; None where that is not known."""
        if not Path("/proc/self/clear_refs").exists():
            return call(), None
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory that the process has kept would be used unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = _resident("VmRSS")
        result = call()
        return result, _resident("VmHWM") - before

    def alive(self) -> bool:
        """Whether it can still work after what failed."""
        return True

    def synchronize(self) -> None:
        """Wait for it, so that its errors are raised here."""

    def release(self) -> None:
        """Give memory back between two forms; a CPU's is free as soon as nobody refers to it."""

    def ceilings(self, quick: bool) -> dict[str, float]:
        """GB/s of a large copy, read and written, and TFLOP/s of a large matrix product by precision."""
        return {"copy": self._copy(2**24 if quick else 2**26), "float32": self._product(torch.float32, 1024)}

    def _copy(self, count: int) -> float:
        source = torch.rand(count, device=self.device)
        target = torch.full_like(source, torch.nan)
        return 2 * source.nbytes / self._best(lambda _: target.copy_(source)) / 1e6

    def _product(self, dtype: torch.dtype, side: int) -> float:
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        return 2 * side**3 / self._best(lambda _: a @ b) / 1e9

    def _best(self, call: Call) -> float:
        call(0)
        return statistics.median(self.milliseconds(call, 0) for _ in range(7))


class Gpu(Machine):
    """A CUDA device: events around calls, and what torch's allocator hands out."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.properties = torch.cuda.get_device_properties(0)
        self.slug = re.sub(r"[^a-z0-9]+", "-", self.properties.name.lower()).strip("-")
        self.cache_bytes = int(getattr(self.properties, "L2_cache_size", 50 * 2**20))

    def about(self) -> dict[str, Any]:
        """As above."""
        device = {"device": self.properties.name, "GB": round(self.properties.total_memory / 1e9)}
        return super().about() | device | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}

    def milliseconds(self, call: Call, expected: float) -> float:
        """As above."""
        calls = max(1, min(50, int(1000 * GPU_SPAN / max(expected, 1e-3))))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if calls > 1:
            torch.cuda._sleep(GPU_PAUSE)
        start.record()
        for number in range(calls):
            call(number)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / calls

    def peak(self, call: Callable[[], object]) -> tuple[Any, float | None]:
        """As above."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 1e6

    def alive(self) -> bool:
        """An illegal access ends all later work of the process."""
        try:
            torch.ones(1, device=self.device).item()
        except RuntimeError:
            return False
        return True

    def synchronize(self) -> None:
        """As above."""
        torch.cuda.synchronize()

    def release(self) -> None:
        """As above."""
        gc.collect()
        with suppress(RuntimeError):  # after an illegal access this fails too, and `alive` tells
            torch.cuda.empty_cache()

    def ceilings(self, quick: bool) -> dict[str, float]:
        """As above; "tf32" is what a float32 product gives with the matrix units' own precision."""
        side = 4096 if quick else 8192
        found = {"copy": self._copy(2**28 if quick else 2**30), "bfloat16": self._product(torch.bfloat16, side)}
        found["float32"] = self._product(torch.float32, side)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            found["tf32"] = self._product(torch.float32, side)
        finally:
            torch.set_float32_matmul_precision(before)
        self.release()
        return found


def installed(name: str) -> str | None:
    """The version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6
