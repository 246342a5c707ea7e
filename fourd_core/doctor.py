"""`fourd doctor`: what this machine offers, and what to do about what it lacks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import attrs

from fourd_core import __version__, registry
from fourd_core.probe import cache_folder, probed

Verdict = Literal["ok", "note", "FAIL"]


@attrs.frozen
class Line:
    """One line of the diagnosis: "note" is something optional, "FAIL" something that nothing works without."""

    verdict: Verdict
    subject: str
    text: str


def run_doctor() -> int:
    """Write the diagnosis to stdout; returns 0, or 1 when something essential is broken."""
    failed = False
    for examination, package in EXAMINATIONS:
        for line in _guarded(examination, package):
            sys.stdout.write(f"{line.verdict:4}  {line.subject:10}  {line.text}\n")
            sys.stdout.flush()  # torch takes seconds: show what is known already
            failed |= line.verdict == "FAIL"
    return int(failed)


def _guarded(examination: Callable[[], Iterator[Line]], package: str) -> Iterator[Line]:
    """A library that raises at import is a line of the diagnosis, not the end of it."""
    try:
        yield from examination()
    except Exception as error:
        verdict: Verdict = "note" if package in OPTIONAL else "FAIL"
        text = f"{type(error).__name__}: {error}; reinstall it: pip install --force-reinstall {package}"
        yield Line(verdict, package, text)


def _python() -> Iterator[Line]:
    verdict: Verdict = "ok" if sys.version_info >= (3, 11) else "FAIL"
    yield Line(verdict, "python", f"{sys.version.split()[0]} ({sys.executable}), fourd {__version__}")


def _libraries() -> Iterator[Line]:
    """The core's own requirements, presence only: `pip check` compares versions."""
    try:
        needed = [item for item in requires("fourd-core") or () if ";" not in item]
    except PackageNotFoundError:
        yield Line(
            "note", "libraries", "fourd-core runs from a source folder; pip install -e . makes it a distribution"
        )
        return
    names = {item: re.split(r"[^\w.-]", item, maxsplit=1)[0] for item in needed}  # `fsspec[http]>=2024.6` is fsspec
    missing = [item for item, name in names.items() if _version(name) is None]
    if missing:
        yield Line("FAIL", "libraries", f"missing; pip install {' '.join(map(repr, missing))}")
    else:
        yield Line("ok", "libraries", f"all {len(needed)} that the core needs are installed")


def _torch() -> Iterator[Line]:
    import torch

    yield Line("ok", "torch", f"{torch.__version__}")
    yield Line(
        "ok",
        "threads",
        f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores "
        f"(set `threads` in a recipe or OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'N')} to change it)",
    )


def _cuda() -> Iterator[Line]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            major, minor = device.major, device.minor
            memory = device.total_memory / 2**30
            yield Line(
                "ok", "CUDA", f"cuda:{index} is {device.name}, {memory:.0f} GiB, compute capability {major}.{minor}"
            )
    elif torch.backends.mps.is_available():
        yield Line("ok", "GPU", "Apple's GPU through MPS")
    elif torch.version.cuda is None:
        text = "this build of torch is for the CPU; for an NVIDIA GPU install the build that https://pytorch.org names"
        yield Line("note", "CUDA", text)
    else:
        text = f"torch is built for CUDA {torch.version.cuda} but sees no GPU: is the driver there (nvidia-smi)?"
        yield Line("note", "CUDA", text)


def _triton() -> Iterator[Line]:
    import torch

    found = _version("triton")
    if found and torch.cuda.is_available():
        importlib.import_module("triton")
        yield Line("ok", "triton", found)
    elif torch.cuda.is_available():
        yield Line("note", "triton", "not installed, so that kernels run in their slower form; pip install triton")
    else:
        yield Line("note", "triton", f"{found or 'not installed'}; without an NVIDIA GPU it is not needed")


def _attention() -> Iterator[Line]:
    from fourd_core.kernels.attention import describe

    yield Line("ok", "attention", describe())


def _av() -> Iterator[Line]:
    import av

    missing = [name for name in ("h264", "hevc", "vp9") if not _codec(name, "r")]
    missing += [name for name in ("libx264",) if not _codec(name, "w")]
    text = f"{av.__version__} with FFmpeg {av.ffmpeg_version_info}"
    if missing:
        yield Line(
            "note", "PyAV", f"{text} lacks {', '.join(missing)}; pip install --force-reinstall av for the full one"
        )
    else:
        yield Line("ok", "PyAV", f"{text}: reads h264, hevc and vp9, writes mp4")


def _codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.codec.Codec(name, mode)
    except Exception:  # PyAV's own UnknownCodecError moved between versions
        return False
    return True


def _zarr() -> Iterator[Line]:
    yield Line("ok", "zarr", str(importlib.import_module("zarr").__version__))


def _plugins() -> Iterator[Line]:
    records = probed(registry.records(), fresh=True)
    for name in sorted({record.distribution for record in records}):
        mine = [record for record in records if record.distribution == name]
        broken = {record.problem for record in mine if record.problem}
        if broken:
            yield from (Line("note", "plugin", f"{name} {mine[0].version} is broken: {problem}") for problem in broken)
        else:
            names = ", ".join(f"{record.name} ({record.kind})" for record in mine)
            yield Line("ok", "plugin", f"{name} {mine[0].version}: {names}")
    if not records:
        yield Line("note", "plugins", "none are found; for example: pip install fourd-plugin-lila")
    if (chosen := os.environ.get("FOURD_PLUGINS")) is not None:
        yield Line("note", "plugins", f'FOURD_PLUGINS="{chosen}" limits them; unset it to use all')


def _cache() -> Iterator[Line]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror}); name another folder in FOURD_CACHE"
        yield Line("note", "cache", text)
        return
    free = shutil.disk_usage(folder).free / 2**30
    verdict: Verdict = "ok" if free > 1 else "note"
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20
    yield Line(verdict, "cache", f"{folder} holds {size:.0f} MiB, {free:.0f} GiB are free there (FOURD_CACHE moves it)")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


OPTIONAL = ("triton",)
EXAMINATIONS: tuple[tuple[Callable[[], Iterator[Line]], str], ...] = (
    (_python, "python"),
    (_libraries, "fourd-core"),
    (_torch, "torch"),
    (_cuda, "torch"),
    (_triton, "triton"),
    (_attention, "torch"),
    (_av, "av"),
    (_zarr, "zarr"),
    (_plugins, "fourd-core"),
    (_cache, "fourd-core"),
)
"""What is looked at, and what to reinstall when the looking itself fails."""
