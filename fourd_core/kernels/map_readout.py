"""From low-resolution maps to numbers: the expected position, and the mean over all pixels of the enlarged map.

Enlarged bilinearly, a pixel centre `i + 0.5` of `N` lies at `(i + 0.5) n / N - 0.5` between the small map's `n` values,
never beyond the first and the last; that is torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fourd_core.kernels.choice import by_triton
from fourd_core.precision import own_precision

IN_CACHE = 2**18
"""Pixels of enlarged maps that a processor's core holds at once; more go through its cache in vain."""


def expected_position(heat: Float[Tensor, "n t y x"], size: tuple[int, int]) -> Float[Tensor, "n t 2"]:
    """The mean of the pixel centres (x, y) under the softmax of the map, enlarged bilinearly to `size` pixels.

        v = U_y m U_x',   p = softmax(v),   x^ = sum p x,   y^ = sum p y
        dm = U_y' D U_x,  D = p (dx^ (x - x^) + dy^ (y - y^))

    where the rows of U_y and U_x hold the two weights of each pixel. A few enlarged maps at a time are in memory, in
    the backward pass too, which makes them again; Triton makes none. Half precision is computed, and answered, in
    float32, whatever autocast says.
    Source: Badki et al., L4P (arXiv 2502.13078), section 3.3.1: a soft argmax of each frame's heat map.

    Args:
        size: rows and columns.
    Raises:
        ValueError: no such maps, maps without a pixel, or a size that is no two whole numbers above 0.
    """
    _require(heat, "n t y x", size)
    if by_triton(heat):
        from fourd_core.kernels.triton import map_readout

        return map_readout.expected_position(heat, size)
    accurate = heat.to(torch.promote_types(heat.dtype, torch.float32))
    with own_precision(heat.device):
        # Time needs no interpolation: the map has a slice for each frame.
        maps = accurate.flatten(0, 1)
        # A compiler makes its own loops.
        if torch.compiler.is_compiling():
            xy = _positions(maps, _enlargement(maps, size))
        else:
            xy = _PartByPart.apply(maps, size)  # type: ignore[no-untyped-call]
    return xy.view(*heat.shape[:2], 2)


def enlarged_mean(maps: Float[Tensor, "n m t y x"], size: tuple[int, int]) -> Float[Tensor, "n m t"]:
    """The mean of each map enlarged bilinearly to `size` pixels, without enlarging it; in float32 at least.

    Of the mean over the enlarged map, each place of the small map has a fixed share: its column's times its row's,
    uneven for most sizes.

    Args:
        size: rows and columns.
    Raises:
        ValueError: no such maps, maps without a pixel, or a size that is no two whole numbers above 0.
    """
    _require(maps, "n m t y x", size)
    like = maps.new_empty(0, dtype=torch.promote_types(maps.dtype, torch.float32))
    rows, columns = (_interpolation(*pair, like).mean(0) for pair in zip(maps.shape[-2:], size, strict=True))
    # Sums of products, not matrix products: autocast would round those to its own precision.
    return ((maps * columns).sum(-1) * rows).sum(-1)


def _require(maps: Tensor, axes: str, size: tuple[int, int]) -> None:
    if maps.ndim != len(axes.split()) or 0 in maps.shape[-2:]:
        raise ValueError(f"maps must be '{axes}' with a pixel or more, got {tuple(maps.shape)}")
    # As it is exported, a size that is computed from a shape is a torch.SymInt.
    if not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(n, int | torch.SymInt) and n > 0 for n in size)
    ):
        raise ValueError(f"size must be two whole numbers above 0, rows and columns, got {size}")


class _PartByPart(torch.autograd.Function):
    """`_positions`, of as many maps at a time as suit the device."""

    @staticmethod
    def forward(ctx: Any, maps: Float[Tensor, "r y x"], size: tuple[int, int]) -> Float[Tensor, "r 2"]:
        enlarge = _enlargement(maps, size)
        xy = torch.cat([_positions(part, enlarge) for part in maps.split(_at_a_time(maps, size))])
        ctx.size = size
        ctx.save_for_backward(maps, xy)
        return xy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_xy: Float[Tensor, "r 2"]) -> tuple[Float[Tensor, "r y x"], None]:
        maps, xy = ctx.saved_tensors
        enlarge, step = _enlargement(maps, ctx.size), _at_a_time(maps, ctx.size)
        parts = zip(maps.split(step), xy.split(step), d_xy.split(step), strict=True)
        with own_precision(maps.device):
            return torch.cat([_gradient(*part, enlarge) for part in parts]), None


def _at_a_time(maps: Tensor, size: tuple[int, int]) -> int:
    """How many maps: a cache full of enlarged ones per core, a quarter of a gigabyte elsewhere."""
    pixels = IN_CACHE * torch.get_num_threads() if maps.device.type == "cpu" else 2**26
    return max(1, pixels // max(1, size[0] * size[1]))


class _Enlargement(NamedTuple):
    """Of maps of one size to another, in the maps' precision."""

    top: Int[Tensor, " Y"]
    bottom: Int[Tensor, " Y"]
    down: Float[Tensor, "Y 1"]
    """Each pixel's place between the rows `top` and `bottom`."""
    rows: Float[Tensor, "Y y"]
    columns: Float[Tensor, "X x"]
    y: Float[Tensor, " Y"]
    x: Float[Tensor, " X"]
    """Pixel centres."""


def _enlargement(maps: Float[Tensor, "r y x"], size: tuple[int, int]) -> _Enlargement:
    (height, width), (enlarged_height, enlarged_width) = maps.shape[-2:], size
    top, bottom, down = _between(height, enlarged_height, maps)
    rows, columns = _interpolation(height, enlarged_height, maps), _interpolation(width, enlarged_width, maps)
    y, x = (torch.arange(n, dtype=maps.dtype, device=maps.device) + 0.5 for n in size)
    return _Enlargement(top, bottom, down[:, None], rows, columns, y, x)


def _likely(maps: Float[Tensor, "r y x"], enlarge: _Enlargement) -> Float[Tensor, "r Y X"]:
    """The softmax of each enlarged map."""
    wide = maps @ enlarge.columns.mT
    # Whole rows are copied faster than multiplied: in all twice as fast as F.interpolate on a CPU.
    logits = torch.lerp(wide.index_select(1, enlarge.top), wide.index_select(1, enlarge.bottom), enlarge.down)
    return logits.flatten(1).softmax(-1).view_as(logits)


def _positions(maps: Float[Tensor, "r y x"], enlarge: _Enlargement) -> Float[Tensor, "r 2"]:
    likely = _likely(maps, enlarge)
    return torch.stack([(likely.sum(-2) * enlarge.x).sum(-1), (likely.sum(-1) * enlarge.y).sum(-1)], -1)


def _gradient(
    maps: Float[Tensor, "r y x"], xy: Float[Tensor, "r 2"], d_xy: Float[Tensor, "r 2"], enlarge: _Enlargement
) -> Float[Tensor, "r y x"]:
    """That of `_positions` towards the maps."""
    along_x = d_xy[:, :1] * (enlarge.x - xy[:, :1])
    along_y = d_xy[:, 1:] * (enlarge.y - xy[:, 1:])
    d_logits = _likely(maps, enlarge).mul_(along_y[..., None] + along_x[:, None])
    return (enlarge.rows.mT @ d_logits) @ enlarge.columns


def _interpolation(length: int, enlarged: int, like: Tensor) -> Float[Tensor, "enlarged length"]:
    """U: what each enlarged place takes of each small one."""
    low, high, fraction = _between(length, enlarged, like)
    places = torch.arange(length, device=like.device)
    return (low[:, None] == places) * (1 - fraction[:, None]) + (high[:, None] == places) * fraction[:, None]


def _between(
    length: int, enlarged: int, like: Tensor
) -> tuple[Int[Tensor, " enlarged"], Int[Tensor, " enlarged"], Float[Tensor, " enlarged"]]:
    """Between which two small places each enlarged one lies, and how far towards the second (in `like`'s dtype)."""
    # Step by step as F.interpolate: where logits are steep, the last digit of a place is seen in the positions.
    place = (torch.arange(enlarged, dtype=like.dtype, device=like.device) + 0.5) * (length / enlarged) - 0.5
    low = place.clamp_(min=0).long()
    return low, (low + 1).clamp(max=length - 1), place - low
