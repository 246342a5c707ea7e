"""The expected position straight from the low-resolution map: no enlarged map is ever written.

The centres of four neighbouring places of the small map are the corners of a cell; each pixel of the enlarged map lies
in one cell (a border cell has its corners twice). Forward, a lane has a cell and walks through its pixels; backward, a
lane has a place, and walks through its four cells. So no two lanes add to one sum, and two runs are bit-equal.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fourd_core.kernels.triton.compiled import Shipped

CELLS = 512
"""Lanes' cells or places of a program at a time."""
WARPS = 8


def expected_position(heat: Float[Tensor, "n t y x"], size: tuple[int, int]) -> Float[Tensor, "n t 2"]:
    """`fourd_core.kernels.map_readout.expected_position`, forward and backward by a kernel each."""
    xy: Tensor
    xy, _ = _expected_position(heat, *size)
    return xy


@triton.jit
@no_type_check
def _first(cell, small, large):
    """The first pixel whose centre lies in the cell that begins at place `cell`, -1 before the first place."""
    return tl.where(cell < 0, 0, tl.minimum(((2 * cell + 1) * large + small - 1) // (2 * small), large))


@triton.jit
@no_type_check
def _pixels(cell, small, large, ACC: tl.constexpr):
    """A cell's first pixel, how many there are, and where in the cell the first one's centre is (0 to 1)."""
    first = _first(cell, small, large)
    count = _first(cell + 1, small, large) - first
    # In whole numbers, which are exact.
    fraction = ((2 * first + 1) * small - (2 * cell + 1) * large).to(ACC) / (2 * large)
    return first, count, fraction


@triton.jit
@no_type_check
def _corners(heat, row, column, y, x, ok, ACC: tl.constexpr):
    """The map's values at a cell's corners, those beyond the border being the nearest ones."""
    top, bottom = tl.maximum(row, 0) * x, tl.minimum(row + 1, y - 1) * x
    left, right = tl.maximum(column, 0), tl.minimum(column + 1, x - 1)
    a = tl.load(heat + top + left, mask=ok, other=0.0).to(ACC)
    b = tl.load(heat + top + right, mask=ok, other=0.0).to(ACC)
    c = tl.load(heat + bottom + left, mask=ok, other=0.0).to(ACC)
    d = tl.load(heat + bottom + right, mask=ok, other=0.0).to(ACC)
    return a, b, c, d


@triton.jit
@no_type_check
def _forward(
    heat, xy, normaliser, frames, stride_n, stride_t, y, x, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A map: sum p (x, y), and log sum exp. A lane has every BLOCK-th cell, of at most ROWS x COLUMNS pixels."""
    place = tl.program_id(0).to(tl.int64)
    heat += place // frames * stride_n + place % frames * stride_t
    down, right = tl.full((1,), 2 * y, ACC) / (2 * height), tl.full((1,), 2 * x, ACC) / (2 * width)
    most, total = tl.full((BLOCK,), -3.0e38, ACC), tl.zeros((BLOCK,), ACC)
    total_x, total_y = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, (y + 1) * (x + 1), BLOCK):
        cell = start + tl.arange(0, BLOCK)
        ok = cell < (y + 1) * (x + 1)
        row, column = cell // (x + 1) - 1, cell % (x + 1) - 1
        first_y, rows, from_top = _pixels(row, y, height, ACC)
        first_x, columns, from_left = _pixels(column, x, width, ACC)
        ok = ok & (rows > 0) & (columns > 0)
        a, b, c, d = _corners(heat, row, column, y, x, ok, ACC)
        # The largest logit of a cell's pixels is one of its outermost four's. The small map's maximum is a bound too,
        # but all pixels around a high peak may lie so far below it that their exponentials vanish.
        highest = most
        for i in tl.static_range(2):
            at_y = from_top + i * (rows - 1) * down
            left = a + at_y * (c - a)
            slope = b + at_y * (d - b) - left
            highest = tl.maximum(highest, tl.where(ok, left + from_left * slope, highest))
            last = from_left + (columns - 1) * right
            highest = tl.maximum(highest, tl.where(ok, left + last * slope, highest))
        shrunk = tl.exp(most - highest)
        total, total_x, total_y, most = total * shrunk, total_x * shrunk, total_y * shrunk, highest
        x0, y0 = first_x.to(ACC) + 0.5, first_y.to(ACC) + 0.5
        for i in range(ROWS):
            at_y = from_top + i * down
            left = a + at_y * (c - a)
            slope = b + at_y * (d - b) - left
            base, step = left + from_left * slope - highest, right * slope
            row_total, row_x = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
            inside = ok & (i < rows)
            for j in tl.range(0, COLUMNS, loop_unroll_factor=4):
                likely = tl.exp(tl.where(inside & (j < columns), base + j * step, float("-inf")))
                row_total += likely
                row_x += likely * (x0 + j)
            total += row_total
            total_x += row_x
            total_y += row_total * (y0 + i)
    highest = tl.max(most, 0)
    shrunk = tl.exp(most - highest)
    everything = tl.sum(total * shrunk, 0)
    tl.store(xy + 2 * place, tl.sum(total_x * shrunk, 0) / everything)
    tl.store(xy + 2 * place + 1, tl.sum(total_y * shrunk, 0) / everything)
    tl.store(normaliser + place, highest + tl.log(everything))


@triton.jit
@no_type_check
def _backward(
    heat, xy, normaliser, d_xy, d_heat, frames, stride_n, stride_t, y, x, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """BLOCK places of a map: the sum of p (dx^ (x - x^) + dy^ (y - y^)) over the pixels that a place has a share in."""
    place = tl.program_id(0).to(tl.int64)
    heat += place // frames * stride_n + place % frames * stride_t
    down, right = tl.full((1,), 2 * y, ACC) / (2 * height), tl.full((1,), 2 * x, ACC) / (2 * width)
    mean_x, mean_y = tl.load(xy + 2 * place), tl.load(xy + 2 * place + 1)
    d_x, d_y, log_total = tl.load(d_xy + 2 * place), tl.load(d_xy + 2 * place + 1), tl.load(normaliser + place)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < y * x
    result = tl.zeros((BLOCK,), ACC)
    for above in tl.static_range(2):
        row = at // x - above
        first_y, rows, from_top = _pixels(row, y, height, ACC)
        # Its share of a pixel: (1 - fraction) if it is the cell's upper corner, fraction if the lower one, 1 if both.
        both_y = (row < 0) | (row >= y - 1)
        for before in tl.static_range(2):
            column = at % x - before
            first_x, columns, from_left = _pixels(column, x, width, ACC)
            both_x = (column < 0) | (column >= x - 1)
            a, b, c, d = _corners(heat, row, column, y, x, ok, ACC)
            share_x = tl.where(both_x, 1.0, from_left if before else 1.0 - from_left)
            step_x = tl.where(both_x, 0.0, right if before else -right)
            x0, y0 = first_x.to(ACC) + 0.5 - mean_x, first_y.to(ACC) + 0.5 - mean_y
            for i in range(ROWS):
                at_y = from_top + i * down
                left = a + at_y * (c - a)
                slope = b + at_y * (d - b) - left
                base, step = left + from_left * slope - log_total, right * slope
                along = d_y * (y0 + i) + d_x * x0
                inside = ok & (i < rows)
                of_row = tl.zeros((BLOCK,), ACC)
                for j in tl.range(0, COLUMNS, loop_unroll_factor=4):
                    likely = tl.exp(tl.where(inside & (j < columns), base + j * step, float("-inf")))
                    of_row += likely * (along + j * d_x) * (share_x + j * step_x)
                share_y = tl.where(both_y, 1.0, at_y if above else 1.0 - at_y)
                result += of_row * share_y
    tl.store(d_heat + place * y * x + at, result.to(d_heat.dtype.element_ty), mask=ok)


@torch.library.custom_op(
    "fourd::expected_position", mutates_args=(), schema="(Tensor heat, int height, int width) -> (Tensor, Tensor)"
)
def _expected_position(
    heat: Float[Tensor, "n t y x"], height: int, width: int
) -> tuple[Float[Tensor, "n t 2"], Float[Tensor, "n t"]]:
    """The positions, and log sum exp of each enlarged map, which the backward pass needs."""
    heat, (xy, normaliser) = _in_rows(heat), _empty(heat)
    if xy.numel():
        with torch.cuda.device_of(heat):
            _forward[(normaliser.numel(),)](
                heat, xy, normaliser, *_measures(heat, height, width), **_options(heat, height, width)
            )
    return xy, normaliser


@torch.library.custom_op(
    "fourd::expected_position_backward",
    mutates_args=(),
    schema="(Tensor heat, Tensor xy, Tensor normaliser, Tensor d_xy, int height, int width) -> Tensor",
)
def _expected_position_backward(
    heat: Float[Tensor, "n t y x"],
    xy: Float[Tensor, "n t 2"],
    normaliser: Float[Tensor, "n t"],
    d_xy: Float[Tensor, "n t 2"],
    height: int,
    width: int,
) -> Float[Tensor, "n t y x"]:
    """The gradient towards the maps, from that towards the positions."""
    heat, d_heat = _in_rows(heat), torch.empty_like(heat, memory_format=torch.contiguous_format)
    if heat.numel():
        grid = (normaliser.numel(), triton.cdiv(heat[0, 0].numel(), CELLS))
        tensors = heat, xy.contiguous(), normaliser.contiguous(), d_xy.contiguous(), d_heat
        with torch.cuda.device_of(heat):
            _backward[grid](*tensors, *_measures(heat, height, width), **_options(heat, height, width))
    return d_heat


@_expected_position.register_fake
def _(heat: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    return _empty(heat)


@_expected_position_backward.register_fake
def _(heat: Tensor, xy: Tensor, normaliser: Tensor, d_xy: Tensor, height: int, width: int) -> Tensor:
    return torch.empty_like(heat, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
    heat, *ctx.size = inputs
    ctx.save_for_backward(heat, *output)


def _gradient(ctx: Any, d_xy: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return _expected_position_backward(*ctx.saved_tensors, d_xy, *ctx.size), None, None


_expected_position.register_autograd(_gradient, setup_context=_keep)


def _in_rows(heat: Tensor) -> Tensor:
    """Maps whose pixels follow each other; from map to map may be further."""
    return heat if heat.stride(-1) == 1 and heat.stride(-2) == heat.shape[-1] else heat.contiguous()


def _empty(heat: Tensor) -> tuple[Tensor, Tensor]:
    accurate = torch.promote_types(heat.dtype, torch.float32)
    return heat.new_empty(*heat.shape[:2], 2, dtype=accurate), heat.new_empty(heat.shape[:2], dtype=accurate)


def _measures(heat: Tensor, height: int, width: int) -> tuple[int, ...]:
    _, frames, y, x = heat.shape
    return frames, heat.stride(0), heat.stride(1), y, x, height, width


def _options(heat: Tensor, height: int, width: int) -> dict[str, Any]:
    return {
        "ROWS": -(-height // heat.shape[-2]),
        "COLUMNS": -(-width // heat.shape[-1]),
        "BLOCK": CELLS,
        "ACC": tl.float64 if heat.dtype == torch.float64 else tl.float32,
        "num_warps": WARPS,
    }


def shipped() -> Iterator[Shipped]:
    """L4P's: 64 x 64 to 224 x 224; L4P-tiny's: 28 x 28 to 112 x 112."""
    integers = ("frames", "stride_n", "stride_t", "y", "x", "height", "width")
    divisible = ("frames", "stride_n", "stride_t", "height", "width")
    for dtype in ("fp32", "bf16"):
        signature = {"heat": f"*{dtype}", "xy": "*fp32", "normaliser": "*fp32", **dict.fromkeys(integers, "i32")}
        constants = {"ROWS": 4, "COLUMNS": 4, "BLOCK": CELLS, "ACC": tl.float32}
        yield Shipped(f"map_readout forward {dtype}", _forward, signature, constants, WARPS, divisible=divisible)
        signature |= {"d_xy": "*fp32", "d_heat": f"*{dtype}"}
        yield Shipped(f"map_readout backward {dtype}", _backward, signature, constants, WARPS, divisible=divisible)
