"""Local affinity and its rounds of averaging: every neighbour is read where it is, and each result written once.

The maps have their channels last in memory, so that a pixel's neighbours are whole rows for a group of threads.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fourd_core.kernels.triton.compiled import Shipped

PIXELS = 64
"""Of a program that computes weights."""
TILE = 1024
"""Pixels times channels of a program that averages."""


def local_affinity(
    guide: Float[Tensor, "b c h w"], dilations: Sequence[int], sigma: float, eps: float
) -> Float[Tensor, "b n h w"]:
    """`fourd_core.kernels.local_affinity.local_affinity` by one kernel."""
    weights: Tensor = _local_affinity(guide, list(dilations), sigma, eps)
    return weights


def propagate(
    maps: Float[Tensor, "b c h w"], weights: Float[Tensor, "b n h w"], dilations: Sequence[int], iterations: int
) -> Float[Tensor, "b c h w"]:
    """`fourd_core.kernels.local_affinity.propagate` by a kernel per round."""
    result: Tensor = _propagate(maps, weights, list(dilations), iterations)
    return result


@triton.jit
@no_type_check
def _within(at, length):
    """The place, or the nearest one of the border."""
    return tl.minimum(tl.maximum(at, 0), length - 1)


@triton.jit
@no_type_check
def _affinity(
    guide, weights, channels, h, w,
    SIGMA: tl.constexpr, EPS: tl.constexpr, DILATIONS: tl.constexpr,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The weights of BLOCK pixels' neighbours, of which there are at most TAPS."""
    kinds: tl.constexpr = len(DILATIONS)
    tiles = tl.cdiv(h * w, BLOCK)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    tap = tl.arange(0, TAPS)
    # The eight steps in rows of three, without the middle one.
    step = tap % 8 + (tap % 8 >= 4).to(tl.int32)
    distance = tl.zeros((TAPS,), tl.int32)
    for kind in tl.static_range(kinds):
        distance = tl.where(tap // 8 == kind, DILATIONS[kind], distance)
    y = _within((pixel // w)[None, :] + ((step // 3 - 1) * distance)[:, None], h)
    x = _within((pixel % w)[None, :] + ((step % 3 - 1) * distance)[:, None], w)
    real = (tap < 8 * kinds)[:, None]
    ok = real & (pixel < h * w)[None, :]
    guide += sample * channels * h * w
    scores = tl.zeros((TAPS, BLOCK), ACC)
    for _ in range(channels):
        centre = tl.load(guide + pixel, mask=pixel < h * w, other=0.0).to(ACC)
        contrast = tl.load(guide + y * w + x, mask=ok, other=0.0).to(ACC) - centre[None, :]
        contrast = tl.where(ok, contrast, 0.0)
        total, squares = tl.sum(contrast, 0), tl.sum(contrast * contrast, 0)
        variance = (squares - total * total / (9 * kinds)) / (9 * kinds - 1)
        scores -= tl.abs(contrast) / (channels * (EPS + SIGMA * tl.sqrt(tl.maximum(variance, 0.0))))[None, :]
        guide += h * w
    scores = tl.where(real, scores, float("-inf"))
    likely = tl.exp(scores - tl.max(scores, 0)[None, :])
    likely /= tl.sum(likely, 0)[None, :]
    weights += sample * (8 * kinds) * h * w
    tl.store(weights + tap[:, None].to(tl.int64) * h * w + pixel[None, :], likely, mask=ok)


@triton.jit
@no_type_check
def _average(
    maps, weights, averages, channels, h, w,
    DILATIONS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A round, for BLOCK pixels and CHANNELS channels."""
    tiles = tl.cdiv(h * w, BLOCK)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    ok = pixel < h * w
    both = ok[:, None] & (channel < channels)[None, :]
    y, x = pixel // w, pixel % w
    maps += sample * h * w * channels
    averages += sample * h * w * channels
    weights += sample * (8 * len(DILATIONS)) * h * w
    total = tl.zeros((BLOCK, CHANNELS), ACC)
    for kind in tl.static_range(len(DILATIONS)):
        for step in tl.static_range(9):
            if step != 4:
                row = _within(y + (step // 3 - 1) * DILATIONS[kind], h)
                neighbour = row * w + _within(x + (step % 3 - 1) * DILATIONS[kind], w)
                weight = tl.load(weights + pixel, mask=ok, other=0.0).to(ACC)
                values = maps + neighbour.to(tl.int64)[:, None] * channels + channel[None, :]
                total += weight[:, None] * tl.load(values, mask=both, other=0.0).to(ACC)
                weights += h * w
    averages += pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(averages, total.to(averages.dtype.element_ty), mask=both)


@torch.library.custom_op(
    "fourd::local_affinity",
    mutates_args=(),
    schema="(Tensor guide, int[] dilations, float sigma, float eps) -> Tensor",
)
def _local_affinity(
    guide: Float[Tensor, "b c h w"], dilations: Sequence[int], sigma: float, eps: float
) -> Float[Tensor, "b n h w"]:
    guide, weights = guide.contiguous(), _weights(guide, dilations)
    b, channels, h, w = guide.shape
    if weights.numel():
        taps = triton.next_power_of_2(weights.shape[1])
        grid = (b * triton.cdiv(h * w, PIXELS),)
        settings = sigma, eps, tuple(dilations), taps, PIXELS, _accurate(guide)
        with torch.cuda.device_of(guide):
            _affinity[grid](guide, weights, channels, h, w, *settings)
    return weights


@torch.library.custom_op(
    "fourd::propagate",
    mutates_args=(),
    schema="(Tensor maps, Tensor weights, int[] dilations, int iterations) -> Tensor",
)
def _propagate(
    maps: Float[Tensor, "b c h w"], weights: Float[Tensor, "b n h w"], dilations: Sequence[int], iterations: int
) -> Float[Tensor, "b c h w"]:
    b, channels, h, w = maps.shape
    current, weights = maps.contiguous(memory_format=torch.channels_last), weights.contiguous()
    result = torch.empty_like(maps, memory_format=torch.channels_last)
    if not maps.numel() or iterations < 1:
        return result.copy_(maps)
    # Between two rounds in float32: rounded to bfloat16 each time, ten rounds end 0.04 off for maps between 0 and 1.
    exact = torch.promote_types(maps.dtype, torch.float32)
    between = [torch.empty_like(result, dtype=exact) for _ in range(min(2, iterations - 1))]
    pixels, group = _tile(channels)
    grid = (b * triton.cdiv(h * w, pixels), triton.cdiv(channels, group))
    settings = tuple(dilations), pixels, group, _accurate(maps)
    with torch.cuda.device_of(maps):
        for number in range(iterations):
            averages = between[number % 2] if number < iterations - 1 else result
            _average[grid](current, weights, averages, channels, h, w, *settings)
            current = averages
    return result


@_local_affinity.register_fake
def _(guide: Tensor, dilations: Sequence[int], sigma: float, eps: float) -> Tensor:
    return _weights(guide, dilations)


@_propagate.register_fake
def _(maps: Tensor, weights: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.channels_last)


def _weights(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    b, _, h, w = guide.shape
    return guide.new_empty(b, 8 * len(dilations), h, w, dtype=torch.promote_types(guide.dtype, torch.float32))


def _accurate(like: Tensor) -> Any:
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def _tile(channels: int) -> tuple[int, int]:
    """Pixels and channels of a program."""
    group = min(64, triton.next_power_of_2(channels))
    # Rows that do not begin at multiples of 16 are loaded number by number: a larger tile spills registers then.
    tile = TILE if channels % 16 == 0 else TILE // 4
    return tile // group, group


def shipped() -> Iterator[Shipped]:
    """LILA's, and PAMR's first authors'."""
    sizes = dict.fromkeys(("channels", "h", "w"), "i32")
    near: tuple[int, ...] = (1, 3, 5)
    far: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    for dilations in (near, far):
        taps = triton.next_power_of_2(8 * len(dilations))
        settings = {
            "SIGMA": 0.05,
            "EPS": 1e-5,
            "DILATIONS": dilations,
            "TAPS": taps,
            "BLOCK": PIXELS,
            "ACC": tl.float32,
        }
        name = f"local_affinity weights {dilations}"
        yield Shipped(name, _affinity, {"guide": "*fp32", "weights": "*fp32", **sizes}, settings, divisible=("h", "w"))
    single, first, last = ("fp32", "fp32"), ("bf16", "fp32"), ("fp32", "bf16")
    launched = [(near, 32, single), (near, 384, single), (near, 384, first), (near, 384, last)]
    for dilations, channels, (read, written) in [*launched, (near, 35, single), (far, 21, single)]:
        block, group = _tile(channels)
        settings = {"DILATIONS": dilations, "BLOCK": block, "CHANNELS": group, "ACC": tl.float32}
        types = {"maps": f"*{read}", "weights": "*fp32", "averages": f"*{written}", **sizes}
        divisible = ("h", "w") if channels % 16 else ("channels", "h", "w")
        name = f"local_affinity round {dilations} {read} to {written}, {channels} channels"
        yield Shipped(name, _average, types, settings, divisible=divisible)
