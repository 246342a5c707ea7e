"""Scaled dot-product attention: the one attention function of the project, and who computes it.

    out = softmax(scale * q k') v        (softmax over the keys)

Source: Vaswani et al., Attention Is All You Need, section 3.2.1, equation 1.

There is no kernel of our own here: torch has good ones (cuDNN's, FlashAttention 2, a memory-efficient one), which
`torch.nn.functional.scaled_dot_product_attention` chooses from, and `xformers.ops.memory_efficient_attention` has
others. xformers is loaded at the first use, and never on a machine without CUDA: that takes seconds, logs a warning,
and none of its operators works there.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fourd_core.errors import RunError

Backend = Literal["auto", "sdpa", "xformers"]
"""Who computes attention, as recipes write it: "sdpa" is torch's own function; "auto" is that too, except where
`FASTER_BY_XFORMERS` says otherwise."""
_BACKENDS = get_args(Backend)

FASTER_BY_XFORMERS: frozenset[tuple[tuple[int, int], int, torch.dtype]] = frozenset()
"""Compute capability, head width and dtype where `python -m benchmarks run --gpu` has shown xformers to be faster.
Nothing was measured yet, so nothing is here."""

ON_HOPPER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""The order in which torch's kernels are tried there: only cuDNN's is written for its tensor cores."""

MANY_KEYS = 128
"""From so many on. cuDNN plans anew for every shape, which a few tokens of each of many points, in groups of all sizes,
would never pay back."""


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    scale: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "b h n e"]:
    """Every query's average of the values, weighted by how well its key fits.

    Transposed views of one fused projection are taken as they are, by every backend.

    Args:
        scale: factor of the scores; None: `d ** -0.5`.
        backend: see `Backend`; on the meta device it makes no difference.
    Raises:
        ValueError: the shapes do not belong together, or there is no such backend.
        RunError: xformers is asked for and cannot be used here, or not for these tensors.
    """
    if not (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[3] == k.shape[3]
        and k.shape[2] == v.shape[2]
    ):
        raise ValueError(
            f"attention needs q 'b h n d', k 'b h m d' and v 'b h m e', got {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    _require_backend(backend)
    if _takes_xformers(q, backend):
        return _by_xformers(q, k, v, scale)
    if q.is_cuda and k.shape[-2] >= MANY_KEYS and _is_hopper(q.device):
        with sdpa_kernel(ON_HOPPER, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def check_backend(backend: Backend, head_width: int) -> None:
    """Refuse a backend that cannot be used on this machine; a backbone calls it as it is built.

    Args:
        head_width: channels of a head, `d`.
    Raises:
        ValueError: why not, and what to set; or there is no such backend.
    """
    _require_backend(backend)
    if backend == "xformers" and (reason := why_not_xformers() or _why_not_width(head_width)):
        raise ValueError(f'attention = "xformers" cannot be used here: {reason}; set attention = "auto"')


def _require_backend(backend: Backend) -> None:
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be 'auto', 'sdpa' or 'xformers', got {backend!r}")


def why_not_xformers() -> str:
    """Why xformers cannot be used on this machine, as the end of a sentence; empty where it can."""
    return _xformers()[1]


def describe() -> str:
    """Who computes attention here and why xformers does not, in one line."""
    own = "torch's own"
    if torch.cuda.is_available() and _is_hopper(torch.device("cuda", 0)):
        own += ", cuDNN's kernel first"
    if reason := why_not_xformers():
        return f"sdpa ({own}); xformers is not used: {reason}"
    measured = "where it was measured to be faster, and " if FASTER_BY_XFORMERS else ""
    return f'sdpa ({own}); xformers {version("xformers")} {measured}where a recipe says attention = "xformers"'


def _is_hopper(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_properties(device).major == 9


def _takes_xformers(q: Tensor, backend: Backend) -> bool:
    if backend == "xformers":
        return not q.is_meta
    if backend == "sdpa" or not FASTER_BY_XFORMERS or not q.is_cuda:
        return False
    device = torch.cuda.get_device_properties(q.device)
    return ((device.major, device.minor), q.shape[-1], q.dtype) in FASTER_BY_XFORMERS and not why_not_xformers()


def _by_xformers(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m e"], scale: float | None
) -> Float[Tensor, "b h n e"]:
    operators, reason = _xformers()
    if not reason and not q.is_cuda:
        reason = f'it needs CUDA tensors, and these are on {q.device.type} (device = "{q.device.type}")'
    if reason := reason or _why_not_width(q.shape[-1]):
        raise RunError(f'attention = "xformers" cannot be used here: {reason}; set attention = "auto"')
    parts = (part.transpose(1, 2) for part in (q, k, v))  # its layout is b n h d
    try:
        out: Tensor = operators.memory_efficient_attention(*parts, scale=scale)
    except NotImplementedError as error:  # float64, for example; what it says takes a page
        raise RunError(
            f'attention = "xformers" cannot be used here: it has no operator for heads of {q.shape[-1]} channels in '
            f'{q.dtype} on this device; set attention = "auto"'
        ) from error
    return out.transpose(1, 2)


def _why_not_width(head_width: int) -> str:
    return f"it needs heads of a multiple of 8 channels, and these have {head_width}" if head_width % 8 else ""


@cache
def _xformers() -> tuple[Any, str]:
    """The module `xformers.ops`, or None, and why not."""
    if not torch.cuda.is_available():
        return None, "there is no CUDA device"
    try:
        version("xformers")
    except PackageNotFoundError:
        return None, "it is not installed (pip install xformers)"
    return _imported()


def _imported() -> tuple[Any, str]:
    """As `_xformers`, where trying is worth the seconds."""
    if (runtime := _cuda_runtime()) is not None:
        with suppress(OSError):  # then xformers says the same below
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    log = logging.getLogger("xformers")
    log.addFilter(_is_no_complaint)
    try:
        library, operators = importlib.import_module("xformers._cpp_lib"), importlib.import_module("xformers.ops")
    except Exception as error:  # another version of flash-attn than it wants, for example
        return None, f"importing it fails with {type(error).__name__}: {_first_line(error)}"
    finally:
        log.removeFilter(_is_no_complaint)
    if library._built_with_cuda:
        torch.compiler.allow_in_graph(_by_xformers)  # its Python is not for torch.compile to read
        return operators, ""
    cause = _first_line(_root(library._cpp_library_load_exception))
    remedy = " (pip install nvidia-cuda-runtime-cu12 brings it)" if "libcudart.so.12" in cause else ""
    return None, f"its library does not load beside torch {torch.__version__}: {cause}{remedy}"


def _cuda_runtime() -> Path | None:
    """The CUDA 12 runtime of the package index, which the published xformers needs and a torch for CUDA 13 lacks."""
    try:
        package = distribution("nvidia-cuda-runtime-cu12")
    except PackageNotFoundError:
        return None
    path = Path(str(package.locate_file("nvidia/cuda_runtime/lib/libcudart.so.12")))
    return path if path.is_file() else None


def _is_no_complaint(record: logging.LogRecord) -> bool:
    """Whether a record of xformers' log is anything but that its library does not load, which we say ourselves."""
    return "WARNING[XFORMERS]" not in record.getMessage()


def _root(error: BaseException) -> BaseException:
    """The first of a chain of exceptions."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
