"""Masked L1 and edge-weighted gradient matching between a predicted map and a target.

With forward differences D along one axis, edge weight w = 1 - exp(-|D target| / sigma):
    absolute   mean of  w * | |D prediction| - |D target| |     (google-research/lila, func_utils.py)
    signed     mean of  w * |  D prediction  -  D target  |     (LILA paper, edge gradient matching)
The means run over the pairs of neighbours that are both valid; the two axes are averaged apart and added.

`masked_l1` and `gradient_matching` say it in plain torch. `matching` gives both losses and the gradient at once: by a
Triton kernel that reads everything once, or on the CPU in pieces that stay in the processor's cache.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.kernels.choice import by_triton

GradientForm = Literal["absolute", "signed"]
_FORMS = get_args(GradientForm)
PIECE = 1 << 16
"""Numbers that a thread of the CPU works on at a time."""


def masked_mean(values: Float[Tensor, "*shape"], valid: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean of the valid values; 0, with gradient 0, where none is valid.

    Raises:
        ValueError: the shapes differ.
        TypeError: valid is not bool.
    """
    if values.shape != valid.shape:
        raise ValueError(f"values and valid must have one shape, got {tuple(values.shape)} and {tuple(valid.shape)}")
    require_bool(valid)
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def masked_l1(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """The mean absolute difference over the valid numbers; 0 where none is valid.

    Raises:
        ValueError: the shapes differ, or are not those of maps.
        TypeError: valid is not bool.
    """
    _require_maps(prediction, target, valid)
    return masked_mean((prediction - target).abs(), valid)


def gradient_matching(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    valid: Bool[Tensor, "b c h w"],
    sigma: float = 0.1,
    form: GradientForm = "absolute",
) -> Float[Tensor, ""]:
    """How far the prediction's edges are from the target's, most where the target has edges; 0 where nothing is valid.

    Args:
        sigma: the target's step at which the weight reaches 1 - 1/e, in the target's unit.
        form: compare absolute or signed forward differences.
    Raises:
        ValueError: the shapes differ, or are not those of maps; sigma is not above 0; no such form.
        TypeError: valid is not bool.
    """
    _require_maps(prediction, target, valid)
    require_terms(sigma, form)
    loss = prediction.new_zeros(())
    # A NaN where nothing is valid would reach the gradient through 0 * NaN.
    target = torch.where(valid, target, 0)
    for axis in (-1, -2):
        step, wanted = prediction.diff(dim=axis), target.diff(dim=axis)
        weight = 1 - torch.exp(-wanted.abs() / sigma)
        difference = step.abs() - wanted.abs() if form == "absolute" else step - wanted
        size = valid.shape[axis] - 1
        both = valid.narrow(axis, 0, size) & valid.narrow(axis, 1, size)
        loss = loss + masked_mean(weight * difference.abs(), both)
    return loss


class Terms(NamedTuple):
    """The arguments of `matching` that say what the loss is."""

    sigma: float
    form: GradientForm
    edge_weight: float


class Matching(NamedTuple):
    """Both losses and their sum; only the sum carries a gradient."""

    loss: Float[Tensor, ""]
    """`l1 + edge_weight * edge`."""
    l1: Float[Tensor, ""]
    edge: Float[Tensor, ""]


def matching(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    valid: Bool[Tensor, "b c h w"],
    sigma: float = 0.1,
    form: GradientForm = "absolute",
    edge_weight: float = 1.0,
) -> Matching:
    """`masked_l1` plus so many times `gradient_matching`, in float32 (float64 for a float64 prediction).

    The gradient, of the prediction alone, is made together with the value: beside it and some small pieces, nothing
    of the prediction's size is held. It is not differentiable again. What is not valid may be NaN in the target.

    Raises:
        ValueError: the shapes differ, or are not those of maps; sigma is not above 0; no such form.
        TypeError: valid is not bool.
    """
    _require_maps(prediction, target, valid)
    require_terms(sigma, form)
    target, differentiate = target.detach(), torch.is_grad_enabled() and prediction.requires_grad
    if by_triton(prediction, target, valid):
        from fourd_core.kernels.triton.gradient_matching import matching as in_one_read

        loss, l1, edge, _ = in_one_read(prediction, target, valid, sigma, form, edge_weight, differentiate)
        return Matching(loss, l1.detach(), edge.detach())
    if in_cache(prediction) and prediction.numel():
        terms = Terms(sigma, form, edge_weight)
        return Matching(*_InPieces.apply(prediction, target, valid, terms, differentiate))  # type: ignore[no-untyped-call]
    return _as_defined(prediction, target, valid, sigma, form, edge_weight)


def in_cache(values: Tensor) -> bool:
    """Whether work in pieces pays: on a CPU, if no compiler fuses the definition's operations anyway."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def before_scaling(dtype: torch.dtype) -> torch.dtype:
    """The type in which a gradient of tensors of this type waits for the factor of the backward pass.

    float16 is kept in float32: gradients of means over millions of numbers are 0 in it before the loss is scaled up.
    """
    return torch.promote_types(dtype, torch.bfloat16)


def require_terms(sigma: float, form: GradientForm) -> None:
    """Raises ValueError unless sigma is above 0 and there is such a form."""
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    if form not in _FORMS:
        raise ValueError(f"form must be 'absolute' or 'signed', got {form!r}")


def require_bool(valid: Tensor) -> None:
    """Raises TypeError for a mask of any other type: kernels read its bytes, and sums its values."""
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be bool, got {str(valid.dtype).removeprefix('torch.')}")


def _require_maps(prediction: Tensor, target: Tensor, valid: Tensor) -> None:
    if not prediction.shape == target.shape == valid.shape:
        raise ValueError(
            f"prediction, target and valid must have one shape, got {tuple(prediction.shape)}, {tuple(target.shape)} "
            f"and {tuple(valid.shape)}"
        )
    if prediction.ndim != 4 or 0 in prediction.shape[2:]:
        raise ValueError(f"maps must be 'b c h w' with a pixel or more, got {tuple(prediction.shape)}")
    require_bool(valid)


def _as_defined(
    prediction: Tensor, target: Tensor, valid: Tensor, sigma: float, form: GradientForm, edge_weight: float
) -> Matching:
    accurate = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = prediction.to(accurate), target.to(accurate)
    # Invalid targets are replaced for both losses: a NaN would come back in the gradient as 0 * NaN.
    target = torch.where(valid, target, 0)
    l1 = masked_l1(prediction, target, valid)
    edge = gradient_matching(prediction, target, valid, sigma, form)
    return Matching(l1 + edge_weight * edge, l1.detach(), edge.detach())


def count(valid: Bool[Tensor, "b c h w"]) -> tuple[int, int, int]:
    """How many numbers, neighbours along x and neighbours along y are valid; on the CPU."""
    numbers = pairs_x = pairs_y = 0
    for sample in valid:
        numbers += int(sample.count_nonzero())
        pairs_x += int((sample[..., 1:] & sample[..., :-1]).count_nonzero())
        pairs_y += int((sample[..., 1:, :] & sample[..., :-1, :]).count_nonzero())
    return numbers, pairs_x, pairs_y


class Pieces:
    """Adds up both losses, and fills in their gradient, over planes that come piece after piece.

    A piece's pixels stand in one row in memory: neighbours are 1 apart along x and w apart along y. So every operation
    runs over one array; pairs that wrap around a border are masked like invalid ones.

    Args:
        counts: of the whole, by `count`.
        dtype: of predictions and gradients.
    """

    def __init__(self, counts: tuple[int, int, int], dtype: torch.dtype, terms: Terms) -> None:
        self.counts, self.terms = [max(count, 1) for count in counts], terms
        self.sums = [0.0, 0.0, 0.0]
        # Nine arrays of a piece, 262 kB per thread each in float32, stay in the second or third level of cache; with
        # smaller pieces the calls would take longer than the work.
        self.size = PIECE * torch.get_num_threads()
        self.zero, self.one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
        self.work = torch.empty(7, 0, dtype=dtype)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """The losses as `Matching` has them, of all pieces so far."""
        l1, x, y = (total / count for total, count in zip(self.sums, self.counts, strict=True))
        loss = l1 + self.terms.edge_weight * (x + y)
        return self.zero.new_tensor(loss), self.zero.new_tensor(l1), self.zero.new_tensor(x + y)

    def add(
        self,
        prediction: Float[Tensor, "c r w"],
        target: Float[Tensor, "c r w"],
        valid: Bool[Tensor, "c r w"],
        shared_row: bool,
        gradient: Float[Tensor, "c r w"] | None,
    ) -> None:
        """Rows of some planes.

        Args:
            prediction: contiguous.
            shared_row: the last row belongs to the rows below, which come later; here it is the last but one's
                neighbour only.
            gradient: contiguous; the gradient is added to it.
        """
        channels, rows, columns = prediction.shape
        together = max(1, self.size // max(rows * columns, 1))
        for start in range(0, channels, together):
            part = slice(start, start + together)
            written = None if gradient is None else gradient[part]
            self._add(prediction[part], target[part], valid[part], shared_row, written)

    def _add(
        self, prediction: Tensor, target: Tensor, valid: Tensor, shared_row: bool, gradient: Tensor | None
    ) -> None:
        size, columns = prediction.numel(), prediction.shape[-1]
        if self.work.shape[1] < size:
            self.work = self.work.new_empty(len(self.work), size)
        wanted, counted, both, *spare = self.work[:, :size].unbind()
        torch.where(valid, target.to(wanted.dtype), self.zero, out=wanted.view(valid.shape))
        mask, pairs = counted.view(valid.shape).copy_(valid), both.view(valid.shape)
        p, dp = prediction.view(-1), None if gradient is None else gradient.view(-1)

        torch.mul(counted[columns:], counted[: size - columns], out=both[: size - columns])
        pairs[:, -1] = 0
        self._add_pairs(2, columns, p, wanted, both, spare, dp)
        if shared_row:
            mask[:, -1] = 0
        torch.mul(counted[1:], counted[:-1], out=both[:-1])
        pairs[:, :, -1] = 0
        self._add_pairs(1, 1, p, wanted, both, spare, dp)

        error, sign = spare[:2]
        torch.sub(p, wanted, out=error).mul_(counted)
        torch.sgn(error, out=sign)
        self.sums[0] += float(torch.dot(error, sign))
        if dp is not None:
            dp.add_(sign, alpha=1 / self.counts[0])

    def _add_pairs(
        self, which: int, distance: int, p: Tensor, wanted: Tensor, both: Tensor, spare: list[Tensor], dp: Tensor | None
    ) -> None:
        """Neighbours along one axis: the pixels that are so far apart in memory, where `both` is 1."""
        pairs = p.numel() - distance
        step, target_step, weight, difference = (array[:pairs] for array in spare)
        torch.sub(p[distance:], p[:pairs], out=step)
        torch.sub(wanted[distance:], wanted[:pairs], out=target_step).mul_(both[:pairs])
        torch.abs(target_step, out=weight)
        if self.terms.form == "absolute":
            torch.abs(step, out=difference).sub_(weight)
        else:
            torch.sub(step, target_step, out=difference)
        # 1 - exp(-|step| / sigma), which is 0 at masked pairs, for their step is 0.
        torch.sub(self.one, weight.mul_(-1 / self.terms.sigma).exp_(), out=weight)
        pull = torch.sgn(difference, out=target_step).mul_(weight)
        self.sums[which] += float(torch.dot(pull, difference))
        if dp is not None:
            if self.terms.form == "absolute":
                pull.mul_(step.sgn_())
            scale = self.terms.edge_weight / self.counts[which]
            dp[distance:].add_(pull, alpha=scale)
            dp[:pairs].sub_(pull, alpha=scale)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, target: Tensor, valid: Tensor, terms: Terms, differentiate: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        accurate = torch.promote_types(prediction.dtype, torch.float32)
        h, w = prediction.shape[-2:]
        pieces = Pieces(count(valid), accurate, terms)
        gradient = torch.empty(prediction.shape, dtype=accurate) if differentiate else None
        # Whole planes, as many as make a piece; of a plane that is larger, some rows.
        channels, rows = max(1, pieces.size // max(h * w, 1)), h if h * w <= pieces.size else max(1, pieces.size // w)
        for b, planes in enumerate(prediction):
            for c in range(0, len(planes), channels):
                for y in range(0, h, rows):
                    part = b, slice(c, c + channels), slice(y, y + rows + 1)
                    written = None if gradient is None else gradient[part]
                    if written is not None:
                        written[:, min(y, 1) :] = 0
                    piece = prediction[part].to(accurate).contiguous()
                    pieces.add(piece, target[part], valid[part], y + rows < h, written)
        result = pieces.result()
        ctx.mark_non_differentiable(*result[1:])
        ctx.save_for_backward(None if gradient is None else gradient.to(before_scaling(prediction.dtype)))
        ctx.dtype = prediction.dtype
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # Most losses are differentiated as they are, and a copy of the gradient costs as much as a tenth of making it.
        scaled = gradient if incoming == 1 else gradient * incoming.to(gradient.dtype)
        return scaled.to(ctx.dtype), None, None, None, None
