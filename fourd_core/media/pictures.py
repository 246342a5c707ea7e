"""Maps as pictures: depth, flow and masks, each with colours of its own."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

OUTLINE = 0.85
"""Probability from which L4P's demonstration shows a pixel as moving; drawn as a line around."""
_WARM = (1.0, 0.25, 0.1)


def depth_range(depth: Float[Tensor, "*shape"], low: float = 0.02, high: float = 0.98) -> tuple[float, float] | None:
    """The quantiles `low` and `high` of the finite, positive depths: a range that a few outliers do not spoil.

    One range for a whole clip keeps its colours from flickering. None where no depth is valid.
    """
    valid = depth[torch.isfinite(depth) & (depth > 0)].flatten()
    if not len(valid):
        return None
    # `quantile` takes at most 2**24 numbers.
    valid = valid[:: -(-len(valid) // 2**20)].double()
    near, far = torch.quantile(valid, torch.tensor([low, high], dtype=torch.float64, device=valid.device)).tolist()
    return near, far


def depth_picture(depth: Float[Tensor, "t 1 h w"], near: float, far: float) -> UInt8[Tensor, "t 3 h w"]:
    """Depth as colour, near ones bright yellow and far ones dark violet; black where it is not finite or not positive.

    Colours follow 1 / depth, as the eye sees distances.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    inverse = 1 / depth.where(valid, 1.0)
    span = max(1 / near - 1 / far, 1e-12) if near > 0 else 1 / far
    share = ((inverse - 1 / far) / span).clamp(0, 1)
    return _to_8_bit(colours(share[:, 0]) * valid)


def colours(values: Float[Tensor, "t h w"]) -> Float[Tensor, "t 3 h w"]:
    """Numbers in [0, 1] as RGB in [0, 1], dark violet over green to bright yellow, equal steps looking equal."""
    table = _table().to(values)
    place = values.clamp(0, 1) * (len(table) - 1)
    below = place.long().clamp(max=len(table) - 2)
    weight = (place - below).unsqueeze(-1)
    return torch.lerp(table[below], table[below + 1], weight).movedim(-1, 1)


def flow_picture(flow: Float[Tensor, "t 2 h w"], largest: float | None = None) -> UInt8[Tensor, "t 3 h w"]:
    """Flow on the Middlebury colour wheel: hue is direction (right is red), white is rest; black where not finite.

    Args:
        largest: the length in pixels that is shown fully saturated, longer ones darker; by default the 99 % quantile.

    Source: Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011, figure 2.
    """
    valid = torch.isfinite(flow).all(dim=1, keepdim=True)
    flow = flow.where(valid, 0.0)
    largest = largest if largest is not None else largest_flow(flow)
    x, y = (flow / max(largest, 1e-12)).unbind(1)
    wheel = _wheel().to(flow)
    place = (torch.atan2(-y, -x) / math.pi + 1) / 2 * (len(wheel) - 1)
    below = place.long()
    hue = torch.lerp(wheel[below], wheel[(below + 1) % len(wheel)], (place - below).unsqueeze(-1)).movedim(-1, 1)
    length = torch.hypot(x, y).unsqueeze(1)
    # What is rounded to a little more is not longer: of uniform flow every pixel is the longest.
    return _to_8_bit(torch.where(length <= 1 + 1e-4, 1 - length * (1 - hue), hue * 0.75) * valid)


def largest_flow(flow: Float[Tensor, "t 2 h w"], quantile: float = 0.99) -> float:
    """The length that only one flow vector in a hundred exceeds, in pixels; at least 1."""
    length = torch.linalg.vector_norm(flow, dim=1).flatten()
    length = length[torch.isfinite(length)]
    if not len(length):
        return 1.0
    return max(1.0, float(torch.quantile(length[:: -(-len(length) // 2**20)].double(), quantile)))


def mask_picture(
    frames: UInt8[Tensor, "t 3 h w"], probability: Float[Tensor, "t 1 h w"], threshold: float = OUTLINE
) -> UInt8[Tensor, "t 3 h w"]:
    """The grey frames, the redder the more probable; a yellow line inside the border of what exceeds the threshold.

    Where the probability is not a number the frame stays grey.
    """
    share = probability.nan_to_num(0.0).clamp(0, 1)
    warm = share.new_tensor(_WARM).view(3, 1, 1)
    picture = torch.lerp(grey(frames).to(share), warm, 0.75 * share)
    inside = (share > threshold).float()
    eroded = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1), value=-1.0), 3, stride=1)
    yellow = share.new_tensor([1.0, 0.9, 0.2]).view(3, 1, 1)
    return _to_8_bit(torch.where(inside > eroded, yellow, picture))


def grey(frames: UInt8[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 h w"]:
    """Frames without their colours (ITU-R BT.709 luma), in [0, 1]."""
    weight = torch.tensor([0.2126, 0.7152, 0.0722], device=frames.device).view(3, 1, 1)
    return (frames.float() / 255 * weight).sum(1, keepdim=True).expand(-1, 3, -1, -1)


def _to_8_bit(rgb: Float[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 h w"]:
    return (rgb * 255).round().clamp(0, 255).to(torch.uint8)


@cache
def _table(steps: int = 256) -> Float[Tensor, "n 3"]:
    """A path through the colour space OKLab: lightness grows evenly while the hue turns from violet to yellow.

    Source of the space: Ottosson, A perceptual color space for image processing, 2020.
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    lightness = 0.27 + 0.66 * share
    hue = torch.deg2rad(300 - 195 * share)
    chroma = 0.095 + 0.19 * (share - 0.45) ** 2  # as colourful as sRGB allows: least so in the blue greens
    lab = torch.stack([lightness, chroma * torch.cos(hue), chroma * torch.sin(hue)], dim=-1)
    return _srgb(lab)


def _srgb(lab: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    to_cone = lab.new_tensor(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_linear = lab.new_tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (lab @ to_cone.T) ** 3 @ to_linear.T
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055)


@cache
def _wheel() -> Float[Tensor, "55 3"]:
    """Red, yellow, green, cyan, blue, magenta and the steps between them, of the numbers that the paper's code has."""
    corners = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=torch.float64)
    steps = (15, 6, 4, 11, 13, 6)
    parts = []
    for number, count in enumerate(steps):
        weight = torch.floor(255 * torch.arange(count) / count)[:, None].double() / 255
        start, end = corners[number], corners[(number + 1) % 6]
        parts.append(start + (end - start) * weight)
    return torch.cat(parts)
