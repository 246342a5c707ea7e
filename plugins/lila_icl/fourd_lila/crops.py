"""Random views of a frame, and the same cuts for the maps that belong to it.

Frames and views are square. A crop is drawn in pixels of the base frame; `theta` says it in the coordinates of
`affine_grid`, so that a cue map of any resolution that covers the whole frame can be cut to the view.
Source: google-research/lila, dataload.py.
"""

from __future__ import annotations

import math

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.precision import at_least_float32, own_precision


@attrs.frozen
class Crop:
    """A square of the base frame, mirrored left to right if `flip`."""

    top: int
    left: int
    side: int
    flip: bool = False

    def theta(self, base: int) -> Float[Tensor, "2 3"]:
        """The affine map from the view's coordinates to those of the base frame, both from -1 to 1 (edge to edge)."""
        scale = self.side / base
        x = (2 * self.left + self.side) / base - 1
        y = (2 * self.top + self.side) / base - 1
        return torch.tensor([[-scale if self.flip else scale, 0, x], [0, scale, y]])

    def cut(self, frame: UInt8[Tensor, "3 base base"], size: int) -> UInt8[Tensor, "3 size size"]:
        """The view of a frame."""
        bottom, right = self.top + self.side, self.left + self.side
        view = resize(frame[None, :, self.top : bottom, self.left : right], (size, size))[0]
        return view.flip(-1) if self.flip else view


def random_flip(generator: torch.Generator, probability: float) -> bool:
    """True with the given probability."""
    return torch.rand((), generator=generator).item() < probability


def random_crop(base: int, area: tuple[float, float], generator: torch.Generator) -> Crop:
    """A square crop at a uniform place whose share of the frame's area is uniform in `area`."""
    least, most = area
    share = least + (most - least) * torch.rand((), generator=generator).item()
    side = min(max(round(base * math.sqrt(share)), 1), base)
    top, left = torch.randint(base - side + 1, (2,), generator=generator).tolist()
    return Crop(top, left, side)


def resize(frames: UInt8[Tensor, "t 3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "t 3 h2 w2"]:
    """Bilinear with antialiasing."""
    if frames.shape[-2:] == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True)


def base_frames(frames: UInt8[Tensor, "t 3 h w"], base: int) -> UInt8[Tensor, "t 3 base base"]:
    """The central square of frames whose smaller side was resized to `base`."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    height, width = base * height // short, base * width // short
    top, left = round((height - base) / 2), round((width - base) / 2)
    return resize(frames, (height, width))[..., top : top + base, left : left + base].contiguous()


def cut_maps(
    maps: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"], size: int
) -> Float[Tensor, "b c size size"]:
    """Maps of whole frames, sampled bilinearly where the views' pixels lie (zeros beyond the frame).

    In float32 (float64 for float64 maps) also under autocast: coordinates in half precision are wrong by up to half a
    pixel.
    """
    with own_precision(maps.device):
        maps = at_least_float32(maps)
        grid = F.affine_grid(theta.to(maps), [len(maps), 1, size, size], align_corners=False)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
