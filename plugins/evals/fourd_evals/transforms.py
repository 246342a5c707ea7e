"""The random and the fixed ways in which pictures reach a probe, on tensors, with randomness handed in.

They follow the descriptions of torchvision's and albumentations' transforms of the same names; the random numbers are
others, their distributions are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

TRIES = 10
GREY = (0.2989, 0.587, 0.114)
"""ITU-R BT.601 luma, as torchvision rounds it."""


class Crop(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, maps: Tensor) -> Tensor:
        """The part of maps `... h w`."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One random number."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def chance(probability: float, generator: torch.Generator) -> bool:
    """Whether something with this probability happens."""
    return uniform(0, 1, generator) < probability


def random_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Crop:
    """RandomResizedCrop's rectangle: a share `scale` of the area, width over height within `ratio`, log-uniform.

    Ten tries; then the largest rectangle in the middle that keeps to `ratio`.
    """
    height, width = size
    for _ in range(TRIES):
        area = height * width * uniform(*scale, generator)
        aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1]), generator))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (), generator=generator))
            return Crop(top, int(torch.randint(width - w + 1, (), generator=generator)), h, w)
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def center_crop(size: tuple[int, int], side: int) -> Crop:
    """The square in the middle; of a picture that is smaller, all that there is."""
    height, width = min(side, size[0]), min(side, size[1])
    return Crop(round((size[0] - height) / 2), round((size[1] - width) / 2), height, width)


def short_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size after Resize: the smaller side at `side`, the other one cut off to whole pixels."""
    height, width = size
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def input_size(size: tuple[int, int], side: int, multiple: Sequence[int]) -> tuple[int, int]:
    """All of a picture with its smaller side at `side`, both to the nearest multiple that the backbone takes."""
    scale = side / min(size)
    rows, columns = multiple[-2:]
    return max(1, round(size[0] * scale / rows)) * rows, max(1, round(size[1] * scale / columns)) * columns


def resized(maps: Float[Tensor, "c h w"], size: tuple[int, int], antialias: bool = False) -> Float[Tensor, "c y x"]:
    """Bilinear, align_corners=False."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def resized_picture(picture: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 y x"]:
    """Bilinear between the four nearest pixels in 8 bits, as OpenCV does it for albumentations; no antialias."""
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    return torch.from_numpy(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)).permute(2, 0, 1)


def resized_labels(labels: Int64[Tensor, "h w"], size: tuple[int, int]) -> Int64[Tensor, "y x"]:
    """Nearest, as OpenCV finds it; labels must be below 256."""
    pixels = labels.to(torch.uint8).numpy()
    return torch.from_numpy(
        cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=cv2.INTER_NEAREST)
    ).long()


def colour_jitter(
    picture: Float[Tensor, "3 h w"],
    strengths: tuple[float, float, float],
    generator: torch.Generator,
) -> Float[Tensor, "3 h w"]:
    """ColorJitter: brightness, contrast, saturation in random order, by factors within `1 - x .. 1 + x`, in [0, 1].

    Brightness multiplies; contrast mixes with the mean grey, saturation with the grey picture.
    """
    for kind in torch.randperm(3, generator=generator).tolist():
        factor = uniform(max(0.0, 1 - strengths[kind]), 1 + strengths[kind], generator)
        grey = torch.einsum("chw,c->hw", picture, picture.new_tensor(GREY))
        other = (torch.zeros_like(grey), grey.mean().expand_as(grey), grey)[kind]
        picture = (factor * picture + (1 - factor) * other).clamp(0, 1)
    return picture
