"""Both losses of a prediction and their gradient in one read, by Triton: see `kernels/gradient_matching.py`.

A program walks down some rows of a plane, a block of columns wide. The pair of a pixel with the one below is the next
row's pair with the one above; the pair with the left neighbour is computed twice, for that neighbour is another lane.
Every program writes its sums to a place of its own, and these are added up in a fixed order: results repeat exactly.
"""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from fourd_core.kernels.gradient_matching import GradientForm, Terms, before_scaling
from fourd_core.kernels.triton.compiled import Shipped

ROWS = 16
"""Rows that a program walks down; the row above them is read once more."""
SCALE_BLOCK = 4096


@triton.jit
@no_type_check
def _read(prediction, target, valid, mask, ACC: tl.constexpr):
    """Prediction, target (0 where not valid) and whether it is valid; outside the mask it is not."""
    v = tl.load(valid, mask=mask, other=0) != 0
    p = tl.load(prediction, mask=mask, other=0.0).to(ACC)
    g = tl.load(target, mask=mask, other=0.0).to(ACC)
    return p, tl.where(v, g, 0.0), v


@triton.jit
@no_type_check
def _pair(p0, g0, v0, p1, g1, v1, inverse_sigma, ABSOLUTE: tl.constexpr):
    """The weighted difference of two neighbours' steps, and its derivative by the second one's prediction."""
    step = p1 - p0
    wanted = g1 - g0
    size = tl.abs(wanted)
    weight = tl.where(v0 & v1, 1.0 - tl.exp(-size * inverse_sigma), 0.0)
    if ABSOLUTE:
        difference = tl.abs(step) - size
    else:
        difference = step - wanted
    pull = tl.where(difference > 0, weight, tl.where(difference < 0, -weight, 0.0))
    if ABSOLUTE:
        pull = tl.where(step > 0, pull, tl.where(step < 0, -pull, 0.0))
    return weight * tl.abs(difference), pull


@triton.jit
@no_type_check
def _matching_kernel(
    prediction, target, valid, bias, factors, gradient, sums, C, H, W,
    target_b, target_c, target_y, target_x, valid_b, valid_c, valid_y, valid_x,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, ABSOLUTE: tl.constexpr, GRADIENT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums (programs, 4): L1, pairs along x, pairs along y, gradient; factors (4): of the sums, and 1 / sigma."""
    program = tl.program_id(0)
    blocks, bands = tl.cdiv(W, BLOCK), tl.cdiv(H, ROWS)
    plane = (program // (blocks * bands)).to(tl.int64)
    y0 = program // blocks % bands * ROWS
    x = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = x < W
    place = plane * H * W + y0 * W + x
    prediction += place
    gradient += place
    target += plane // C * target_b + plane % C * target_c + y0.to(tl.int64) * target_y + x.to(tl.int64) * target_x
    valid += plane // C * valid_b + plane % C * valid_c + y0.to(tl.int64) * valid_y + x.to(tl.int64) * valid_x
    offset = tl.load(bias + plane).to(ACC)
    l1_factor, x_factor = tl.load(factors).to(ACC), tl.load(factors + 1).to(ACC)
    y_factor, inverse_sigma = tl.load(factors + 2).to(ACC), tl.load(factors + 3).to(ACC)

    l1 = tl.zeros((BLOCK,), dtype=ACC)
    edge_x = tl.zeros((BLOCK,), dtype=ACC)
    edge_y = tl.zeros((BLOCK,), dtype=ACC)
    total = tl.zeros((BLOCK,), dtype=ACC)
    up = tl.zeros((BLOCK,), dtype=ACC)
    p, g, v = _read(prediction, target, valid, inside, ACC)
    if GRADIENT:
        pa, ga, va = _read(prediction - W, target - target_y, valid - valid_y, x < tl.where(y0 > 0, W, 0), ACC)
        _, up = _pair(pa, ga, va, p, g, v, inverse_sigma, ABSOLUTE)
    for y in range(y0, tl.minimum(y0 + ROWS, H)):
        pb, gb, vb = _read(prediction + W, target + target_y, valid + valid_y, x < tl.where(y + 1 < H, W, 0), ACC)
        of_y, down = _pair(p, g, v, pb, gb, vb, inverse_sigma, ABSOLUTE)
        pr, gr, vr = _read(prediction + 1, target + target_x, valid + valid_x, x + 1 < W, ACC)
        of_x, right = _pair(p, g, v, pr, gr, vr, inverse_sigma, ABSOLUTE)
        error = p + offset - g
        l1 += tl.where(v, tl.abs(error), 0.0)
        edge_x += of_x
        edge_y += of_y
        if GRADIENT:
            pl, gl, vl = _read(prediction - 1, target - target_x, valid - valid_x, inside & (x > 0), ACC)
            _, left = _pair(pl, gl, vl, p, g, v, inverse_sigma, ABSOLUTE)
            sign = tl.where(error > 0, l1_factor, tl.where(error < 0, -l1_factor, 0.0))
            slope = tl.where(v, sign, 0.0) + x_factor * (left - right) + y_factor * (up - down)
            tl.store(gradient, slope.to(gradient.dtype.element_ty), mask=inside)
            total += slope
            up = down
            gradient += W
        p, g, v = pb, gb, vb
        prediction += W
        target += target_y
        valid += valid_y
    sums += program.to(tl.int64) * 4
    tl.store(sums, tl.sum(l1, 0))
    tl.store(sums + 1, tl.sum(edge_x, 0))
    tl.store(sums + 2, tl.sum(edge_y, 0))
    tl.store(sums + 3, tl.sum(total, 0))


@triton.jit
@no_type_check
def _count_kernel(
    valid, counts, C, H, W, valid_b, valid_c, valid_y, valid_x, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """counts (programs, 4): valid numbers, pairs along x, pairs along y; the fourth stays as it is."""
    program = tl.program_id(0)
    blocks, bands = tl.cdiv(W, BLOCK), tl.cdiv(H, ROWS)
    plane = (program // (blocks * bands)).to(tl.int64)
    y0 = program // blocks % bands * ROWS
    x = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid += plane // C * valid_b + plane % C * valid_c + y0.to(tl.int64) * valid_y + x.to(tl.int64) * valid_x
    numbers = tl.zeros((BLOCK,), dtype=tl.int32)
    pairs_x = tl.zeros((BLOCK,), dtype=tl.int32)
    pairs_y = tl.zeros((BLOCK,), dtype=tl.int32)
    v = tl.load(valid, mask=x < W, other=0).to(tl.int32)
    for y in range(y0, tl.minimum(y0 + ROWS, H)):
        numbers += v
        pairs_x += v & tl.load(valid + valid_x, mask=x + 1 < W, other=0).to(tl.int32)
        below = tl.load(valid + valid_y, mask=x < tl.where(y + 1 < H, W, 0), other=0).to(tl.int32)
        pairs_y += v & below
        v = below
        valid += valid_y
    counts += program.to(tl.int64) * 4
    tl.store(counts, tl.sum(numbers, 0))
    tl.store(counts + 1, tl.sum(pairs_x, 0))
    tl.store(counts + 2, tl.sum(pairs_y, 0))


@triton.jit
@no_type_check
def _scale_kernel(values, factor, size, BLOCK: tl.constexpr):
    """values *= factor, in place; nothing is read or written where the factor is 1."""
    by = tl.load(factor)
    if by != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + i, mask=i < size).to(by.dtype)
        tl.store(values + i, (value * by).to(values.dtype.element_ty), mask=i < size)


class Sums:
    """Both losses, and their gradient, of samples that come chunk after chunk.

    Args:
        valid: (b c h w), of all samples; bool, for its bytes are read.
        dtype: of the sums: float32 or float64.
    """

    def __init__(self, valid: Tensor, dtype: torch.dtype, terms: Terms) -> None:
        self.edge_weight = terms.edge_weight
        self.shape = b, c, h, w = valid.shape
        self.block = _block(w)
        self.per_plane = triton.cdiv(w, self.block) * triton.cdiv(h, ROWS)
        self.options = {"BLOCK": self.block, "ROWS": ROWS, "num_warps": self.block // 32}
        self.constants = {
            "ABSOLUTE": terms.form == "absolute",
            "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        }
        programs = b * c * self.per_plane
        self.sums = torch.empty(programs, 4, dtype=dtype, device=valid.device)
        counts = torch.zeros(programs, 4, dtype=torch.int32, device=valid.device)
        if programs:
            bytewise = valid.view(torch.uint8)
            _count_kernel[(programs,)](bytewise, counts, c, h, w, *bytewise.stride(), **self.options)
        self.counts = counts[:, :3].sum(0).clamp(min=1)
        self.factors = torch.cat([1 / self.counts.to(dtype), self.sums.new_full((1,), 1 / terms.sigma)])
        self.factors[1:3] *= terms.edge_weight

    def add(
        self, prediction: Tensor, target: Tensor, valid: Tensor, bias: Tensor, gradient: Tensor | None, first: int
    ) -> None:
        """Some samples.

        Args:
            prediction: (n c h w), contiguous.
            bias: (n c), contiguous; added to the prediction.
            gradient: (n c h w), contiguous; it is overwritten, in its own precision.
            first: the planes of the samples before.
        """
        _, c, h, w = self.shape
        planes = bias.numel()
        if not planes * self.per_plane:
            return
        bytewise = valid.view(torch.uint8)
        _matching_kernel[(planes * self.per_plane,)](
            prediction, target, bytewise, bias, self.factors, prediction if gradient is None else gradient,
            self.sums[first * self.per_plane :], c, h, w, *target.stride(), *bytewise.stride(),
            GRADIENT=gradient is not None, **self.options, **self.constants,
        )  # fmt: skip

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """The losses as `Matching` has them, when all samples have come."""
        l1, x, y = (self.sums[:, :3].sum(0, dtype=torch.float64) / self.counts).unbind()
        edge = x + y
        dtype = self.sums.dtype
        return (l1 + self.edge_weight * edge).to(dtype), l1.to(dtype), edge.to(dtype)

    def of_bias(self) -> Tensor:
        """The gradient of the bias (planes)."""
        return self.sums[:, 3].view(-1, self.per_plane).sum(1)


def scale_unless_one(values: Tensor, factor: Tensor) -> None:
    """Multiply contiguous values in place by a number that only the device knows."""
    if values.numel():
        accurate = torch.promote_types(values.dtype, torch.float32)
        grid = (triton.cdiv(values.numel(), SCALE_BLOCK),)
        _scale_kernel[grid](values, factor.to(accurate), values.numel(), BLOCK=SCALE_BLOCK, num_warps=8)


@torch.library.custom_op(
    "fourd::matching",
    mutates_args=(),
    schema="(Tensor prediction, Tensor target, Tensor valid, float sigma, str form, float edge_weight, "
    "bool differentiate) -> (Tensor, Tensor, Tensor, Tensor)",
)
def matching(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    sigma: float,
    form: str,
    edge_weight: float,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, L1, edge, and the loss's gradient by the prediction, empty unless it is wanted."""
    accurate = torch.promote_types(prediction.dtype, torch.float32)
    b, c, _, _ = prediction.shape
    gradient = prediction.new_empty(prediction.shape if differentiate else 0, dtype=before_scaling(prediction.dtype))
    none = torch.zeros(b, c, dtype=accurate, device=prediction.device)
    with torch.cuda.device_of(prediction):
        sums = Sums(valid, accurate, Terms(sigma, cast(GradientForm, form), edge_weight))
        sums.add(prediction.contiguous(), target, valid, none, gradient if differentiate else None, 0)
    return *sums.result(), gradient


@matching.register_fake
def _(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    sigma: float,
    form: str,
    edge_weight: float,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    accurate = torch.promote_types(prediction.dtype, torch.float32)
    loss, l1, edge = (prediction.new_empty((), dtype=accurate) for _ in range(3))
    shape = prediction.shape if differentiate else 0
    return loss, l1, edge, prediction.new_empty(shape, dtype=before_scaling(prediction.dtype))


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[3])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, incoming: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (gradient * incoming.to(gradient.dtype)).to(ctx.dtype), None, None, None, None, None, None


matching.register_autograd(_backward, setup_context=_keep_gradient)


def _block(width: int) -> int:
    """Columns of a program: a warp per 32, one pixel per lane, so that neighbours' loads are as orderly as its own."""
    return min((256, 128, 64), key=lambda block: triton.cdiv(width, block) * block)


def shipped() -> Iterator[Shipped]:
    """Views of 224 x 224 pixels, as LILA learns from."""
    names = [f"{name}_{axis}" for name in ("target", "valid") for axis in "bcyx"]
    integers = dict.fromkeys(("C", "H", "W", *names), "i32")
    divisible = ("H", "W", *(name for name in names if not name.endswith("_x")))
    contiguous = {"valid_x": 1, "BLOCK": _block(224), "ROWS": ROWS}
    warps = _block(224) // 32
    pointers = dict.fromkeys(("target", "bias", "factors", "sums"), "*fp32") | {"valid": "*u8"}
    for dtype in ("fp32", "bf16"):
        signature = pointers | integers | dict.fromkeys(("prediction", "gradient"), f"*{dtype}")
        for form in ("absolute", "signed"):
            for gradient in (True, False):
                constants = {"ABSOLUTE": form == "absolute", "GRADIENT": gradient, "ACC": tl.float32, "target_x": 1}
                name = f"gradient_matching {dtype} {form}{' with gradient' if gradient else ''}"
                yield Shipped(name, _matching_kernel, signature, contiguous | constants, warps, divisible=divisible)
    signature = {"valid": "*u8", "counts": "*i32"} | integers
    yield Shipped("gradient_matching count", _count_kernel, signature, contiguous, warps, divisible=divisible)
    signature = {"values": "*fp32", "factor": "*fp32", "size": "i32"}
    yield Shipped("gradient_matching scale", _scale_kernel, signature, {"BLOCK": SCALE_BLOCK}, 8, divisible=("size",))
