"""Triton's kernels of the weighted ridge regression: its normal equations, and the gradient of the features.

Products: the rows of a sample are split, so that all of a GPU has work; every split writes partial sums of its own, and
a second kernel adds them in order. No atomics: two runs are equal to the bit. The root of the weight multiplies both
sides of a product, so that what tf32 rounds is still a Gram matrix and positive. Factor and solutions are torch's.
"""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor

from fourd_core.kernels.triton.compiled import Shipped

ROWS_OF_A_SPLIT = 512
"""At least; fewer would not pay for the partial sums they write."""
PROGRAMS = 528
"""As many splits as give about this many programs, four per processor of a H100: by the shapes alone, so that the same
numbers come from every GPU."""
ADDED = 1024
"""Numbers that one program adds up."""
TF32_FROM = 1e-2
"""The smallest `ridge` for which products in tf32 are good enough; `fourd_core/kernels/ridge.py` has the errors."""


@attrs.frozen
class Tiles:
    """How a kernel cuts its work."""

    precision: str
    """Of a product: "tf32" cuts its factors to 10 bits, "tf32x3" makes up for that by two more, "ieee" is exact."""
    sums: Any
    """Type of the sums."""
    side: int
    """Rows and columns of a tile, at most."""
    depth: int
    """Of a tile's products, at a time."""
    warps: int
    stages: int


def tiles(dtype: torch.dtype, ridge: float) -> Tiles:
    """The cut for sums of this type; it can be seen from `compiled.py` what a kernel takes on a GPU."""
    if dtype == torch.float64:
        return Tiles("ieee", tl.float64, side=32, depth=16, warps=4, stages=2)
    if ridge >= TF32_FROM:
        return Tiles("tf32", tl.float32, side=128, depth=32, warps=8, stages=3)
    return Tiles("tf32x3", tl.float32, side=64, depth=32, warps=4, stages=2)


def normal_equations(
    features: Tensor, targets: Tensor, weights: Tensor, bias: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """X'CX/N (b f f), exactly symmetric, and X'CY/N (b f k), f = d or d + 1; `ridge` only chooses the precision."""
    b, n, d = features.shape
    k, f = targets.shape[2], d + bias
    dtype = torch.promote_types(features.dtype, torch.float32)
    cut = tiles(dtype, ridge)
    wide, narrow = _side(d, cut.side), _side(k, cut.side)
    blocks = triton.cdiv(d, wide)
    programs = blocks * (blocks + 1) // 2 + blocks * triton.cdiv(k, narrow)
    splits = max(1, min(triton.cdiv(PROGRAMS, programs * b), triton.cdiv(n, ROWS_OF_A_SPLIT)))
    length = triton.cdiv(triton.cdiv(n, splits), cut.depth) * cut.depth
    splits = triton.cdiv(n, length)
    parts = features.new_empty(splits, b, f, f + k, dtype=dtype)
    _products[(b * splits * programs,)](
        features, targets, weights, parts, n, d, k, b, length, splits,
        *features.stride(), *targets.stride(), *weights.stride(),
        WIDE=wide, NARROW=narrow, DEPTH=cut.depth, BIAS=bias, PRECISION=cut.precision, SUMS=cut.sums,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    gram, cross = features.new_empty(b, f, f, dtype=dtype), features.new_empty(b, f, k, dtype=dtype)
    _added[(b * triton.cdiv(f * (f + k), ADDED),)](parts, gram, cross, n, f, k, b, splits, BLOCK=ADDED, SUMS=cut.sums)
    return gram, cross


def features_gradient(
    features: Tensor, targets: Tensor, weights: Tensor, z: Tensor, m: Tensor, solved: Tensor, ridge: float
) -> Tensor:
    """c/N (Y Z' - X~ M), and 0 for samples that are not solved, in one read of X and Y."""
    b, n, d = features.shape
    k, f = z.shape[2], z.shape[1]
    cut = tiles(z.dtype, ridge)
    wide = _side(d, cut.side)
    # [Z, -M] without its last row. Every program reads it: 0 where a tile reaches beyond, it needs no mask.
    linear = torch.cat([_padded(z[:, :d], cut.depth), _padded(-m[:, :d], cut.depth)], 2)
    gradient = torch.empty_like(features)
    _features_gradient[(b * triton.cdiv(n, cut.side) * triton.cdiv(d, wide),)](
        features, targets, weights, linear, solved, gradient, n, d, k, linear.shape[2],
        *features.stride(), *targets.stride(), *weights.stride(), *gradient.stride(),
        ROWS=cut.side, WIDE=wide, DEPTH=cut.depth, BIAS=f > d, PRECISION=cut.precision, SUMS=cut.sums,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return gradient


def _padded(matrices: Tensor, multiple: int) -> Tensor:
    """With columns of 0, so that their number is a multiple."""
    return torch.nn.functional.pad(matrices, (0, -matrices.shape[2] % multiple))


def _side(length: int, largest: int) -> int:
    """Of a tile: a power of two, at least the 16 that tensor cores want."""
    return int(min(largest, max(16, triton.next_power_of_2(length))))


@triton.jit
@no_type_check
def _products(
    x, y, c, parts, n, d, k, b, length, splits, x_b, x_n, x_d, y_b, y_n, y_k, c_b, c_n,
    WIDE: tl.constexpr, NARROW: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One tile of X'C[X Y] over the rows of one split of one sample; of the Gram part, its lower triangle of tiles.

    parts is (splits, b, f, f + k), f = d + BIAS.
    """
    blocks = tl.cdiv(d, WIDE)
    lower = blocks * (blocks + 1) // 2
    programs = lower + blocks * tl.cdiv(k, NARROW)
    place = tl.program_id(0) // programs
    tile = tl.program_id(0) % programs
    sample = (place // splits).to(tl.int64)
    split = place % splits
    first = split.to(tl.int64) * length
    rows = tl.minimum(length, n - first).to(tl.int32)
    x += sample * x_b + first * x_n
    y += sample * y_b + first * y_n
    c += sample * c_b + first * c_n
    f = d + BIAS
    parts += (split.to(tl.int64) * b + sample) * f * (f + k)
    if tile < lower:
        up = 0  # the block of columns
        while tile >= blocks - up:  # columns have one tile less each
            tile -= blocks - up
            up += 1
        i = (up + tile) * WIDE + tl.arange(0, WIDE)
        j = up * WIDE + tl.arange(0, WIDE)
        if tile == 0:
            sums, edge, total = _summed(
                x, x, c, i, i, d, d, x_d, x_d, x_n, x_n, c_n, rows, WIDE, WIDE, DEPTH, True, BIAS, PRECISION, SUMS
            )
            if BIAS:
                tl.store(parts + d * (f + k) + i, edge, mask=i < d)
                if up == 0:
                    tl.store(parts + d * (f + k) + d, total)
        else:
            sums, edge, total = _summed(
                x, x, c, i, j, d, d, x_d, x_d, x_n, x_n, c_n, rows, WIDE, WIDE, DEPTH, False, False, PRECISION, SUMS
            )
        tl.store(parts + i[:, None] * (f + k) + j[None, :], sums, mask=(i < d)[:, None] & (j < d)[None, :])
    else:  # names of their own: what both branches name must have one size
        block = (tile - lower) % blocks * WIDE + tl.arange(0, WIDE)
        q = (tile - lower) // blocks * NARROW + tl.arange(0, NARROW)
        cross, answers, _ = _summed(
            x, y, c, block, q, d, k, x_d, y_k, x_n, y_n, c_n, rows, WIDE, NARROW, DEPTH, False, BIAS, PRECISION, SUMS
        )
        tl.store(parts + block[:, None] * (f + k) + f + q[None, :], cross, mask=(block < d)[:, None] & (q < k)[None, :])
        if BIAS:  # noqa: SIM102  known when it is compiled, the other is not
            if (tile - lower) % blocks == 0:
                tl.store(parts + d * (f + k) + f + q, answers, mask=q < k)


@triton.jit
@no_type_check
def _summed(
    left, right, c, i, j, i_end, j_end, left_i, right_j, left_n, right_n, c_n, rows,
    WIDE: tl.constexpr, NARROW: tl.constexpr, DEPTH: tl.constexpr, SAME: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The sums over rows of c left_i right_j, and with a bias those of c right_j and of c."""
    sums = tl.zeros((WIDE, NARROW), dtype=SUMS)
    edge = tl.zeros((NARROW,), dtype=SUMS)
    total = tl.zeros((DEPTH,), dtype=SUMS)
    row = tl.arange(0, DEPTH)
    left += i.to(tl.int64)[:, None] * left_i + row[None, :] * left_n
    right += j.to(tl.int64)[:, None] * right_j + row[None, :] * right_n
    c += row * c_n
    for start in range(0, rows, DEPTH):
        here = row < rows - start
        root = tl.sqrt(tl.load(c, mask=here, other=0.0).to(SUMS))
        a = tl.load(left, mask=(i < i_end)[:, None] & here[None, :], other=0.0).to(SUMS) * root[None, :]
        if SAME:
            b = a
        else:
            b = tl.load(right, mask=(j < j_end)[:, None] & here[None, :], other=0.0).to(SUMS) * root[None, :]
        sums = tl.dot(a, tl.trans(b), sums, input_precision=PRECISION, out_dtype=SUMS)
        if BIAS:
            edge += tl.sum(b * root[None, :], 1)
            total += root * root
        left += DEPTH * left_n
        right += DEPTH * right_n
        c += DEPTH * c_n
    return sums, edge, tl.sum(total, 0)


@triton.jit
@no_type_check
def _added(parts, gram, cross, n, f, k, b, splits, BLOCK: tl.constexpr, SUMS: tl.constexpr):
    """The splits' sums added in order and divided by N; the Gram matrix's upper triangle is the lower one's mirror."""
    blocks = tl.cdiv(f * (f + k), BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    i = place // (f + k)
    j = place % (f + k)
    inside = place < f * (f + k)
    in_gram = inside & (j < f)
    source = tl.where(in_gram & (j > i), j * (f + k) + i, place)
    size = tl.cast(f * (f + k), tl.int64)
    parts += sample * size
    total = tl.zeros((BLOCK,), dtype=SUMS)
    for _ in range(splits):
        total += tl.load(parts + source, mask=inside, other=0.0)
        parts += b * size
    total /= n
    tl.store(gram + sample * f * f + i * f + j, total, mask=in_gram)
    tl.store(cross + sample * f * k + i * k + j - f, total, mask=inside & (j >= f))


@triton.jit
@no_type_check
def _features_gradient(
    x, y, c, linear, solved, gradient, n, d, k, pitch, x_b, x_n, x_d, y_b, y_n, y_k, c_b, c_n, g_b, g_n, g_d,
    ROWS: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Some rows of c/N [Y X~] linear', some of its columns; linear is (b, d, pitch)."""
    blocks = tl.cdiv(d, WIDE)
    place = tl.program_id(0) // blocks
    strips = tl.cdiv(n, ROWS)
    sample = (place // strips).to(tl.int64)
    first = place % strips * ROWS
    lane = tl.arange(0, ROWS)
    row = first.to(tl.int64) + lane
    here = lane < n - first
    column = tl.program_id(0) % blocks * WIDE + tl.arange(0, WIDE)
    wanted = column < d
    # The weights multiply the rows and not their sums: factors that are computed need not lie in shared memory, where
    # tensor cores would want those of maps transposed.
    weight = tl.load(c + sample * c_b + row * c_n, mask=here, other=0.0).to(SUMS)[:, None] / n
    q = tl.arange(0, DEPTH)
    by = linear + (sample * d + column)[None, :] * pitch + q[:, None]
    y += (sample * y_b + row * y_n)[:, None] + q.to(tl.int64)[None, :] * y_k
    x += (sample * x_b + row * x_n)[:, None] + q.to(tl.int64)[None, :] * x_d
    sums = tl.zeros((ROWS, WIDE), dtype=SUMS)
    for start in range(0, k, DEPTH):
        rows = tl.load(y, mask=here[:, None] & (q < k - start)[None, :], other=0.0).to(SUMS) * weight
        factors = tl.load(by, mask=wanted[None, :], other=0.0).to(SUMS)
        sums = tl.dot(rows, factors, sums, input_precision=PRECISION, out_dtype=SUMS)
        y += DEPTH * y_k
        by += DEPTH
    for start in range(0, d, DEPTH):
        rows = tl.load(x, mask=here[:, None] & (q < d - start)[None, :], other=0.0).to(SUMS) * weight
        factors = tl.load(by, mask=wanted[None, :], other=0.0).to(SUMS)
        sums = tl.dot(rows, factors, sums, input_precision=PRECISION, out_dtype=SUMS)
        x += DEPTH * x_d
        by += DEPTH
    if BIAS:
        last = tl.load(linear + (sample * d + column) * pitch + tl.cdiv(k, DEPTH) * DEPTH + d, mask=wanted, other=0.0)
        sums += weight * last[None, :]
    # 0 * inf is not 0: a sample without a solution may hold anything.
    sums = tl.where(tl.load(solved + sample) != 0, sums, 0.0)
    gradient += sample * g_b + row[:, None] * g_n + column.to(tl.int64)[None, :] * g_d
    tl.store(gradient, sums.to(gradient.dtype.element_ty), mask=here[:, None] & wanted[None, :])


def shipped() -> Iterator[Shipped]:
    """For maps of 224 x 224 pixels with 128 features, 67 or 35 cues and a bias, at both precisions."""
    numbers = ("x", "y", "c", "parts", "gram", "cross", "linear", "gradient")
    divisible = ("n", "d", "length", "pitch", "x_b", "x_d", "y_b", "y_k", "c_b", "g_b", "g_d")

    def item(kernel: Any, about: str, cut: Tiles, constants: dict[str, Any]) -> Shipped:
        types = {name: "*fp32" if name in numbers else "i32" for name in kernel.arg_names} | {"solved": "*i1"}
        name = f"ridge, {about}, {cut.precision}"
        return Shipped(name, kernel, types, constants, cut.warps, cut.stages, divisible)

    for ridge in (TF32_FROM, TF32_FROM / 2):
        cut = tiles(torch.float32, ridge)
        common = {"DEPTH": cut.depth, "PRECISION": cut.precision, "SUMS": cut.sums, "x_n": 1, "y_n": 1, "c_n": 1}
        wide = _side(128, cut.side)
        for k in (67, 35):
            sizes = {"WIDE": wide, "NARROW": _side(k, cut.side), "BIAS": True}
            yield item(_products, f"products with {k} cues", cut, common | sizes)
        sizes = {"ROWS": cut.side, "WIDE": wide, "BIAS": True}
        yield item(_features_gradient, "gradient", cut, common | sizes | {"g_n": 1})
    cut = tiles(torch.float32, TF32_FROM)
    yield item(_added, "sums", attrs.evolve(cut, warps=4), {"BLOCK": ADDED, "SUMS": cut.sums})
