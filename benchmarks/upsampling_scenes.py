"""Pictures with true depth: scikit-image's stereo pair, and generated layers of textured moving shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data
from torch import Tensor

from fourd_core.media.video import open_video

CLIP = Path(__file__).parent.parent / "examples/bigbuckbunny.mp4"
SIZE = (480, 736)
"""Multiples of the encoder's 32 pixels."""
FOCAL, BASELINE, OFFSET = 994.978, 0.193001, 31.086
"""Of the stereo pair: pixels, metres, pixels."""
STEP, NEAR = 0.05, 4
"""An edge is where neighbouring depths differ by more than this share; near it are pixels within so many pixels."""


class Picture(NamedTuple):
    """A picture in [0, 1] and its depth, NaN where it is not known."""

    frame: Float[Tensor, "1 3 h w"]
    depth: Float[Tensor, "1 1 h w"]


def stereo() -> list[Picture]:
    """The left picture of Middlebury's motorcycle, cut to `SIZE`; depth from disparity, in metres."""
    left, _, disparity = data.stereo_motorcycle()
    depth = np.where(np.isfinite(disparity), FOCAL * BASELINE / (disparity + OFFSET), np.nan)
    rows, columns = slice(10, 10 + SIZE[0]), slice(2, 2 + SIZE[1])
    frame = torch.from_numpy(left[rows, columns].copy()).permute(2, 0, 1)[None].float() / 255
    return [Picture(frame, torch.from_numpy(depth[rows, columns]).float()[None, None])]


def generated() -> list[Picture]:
    """Three scenes at two moments each."""
    textures = open_video(str(CLIP)).read([0, 30, 60, 90, 120]).float() / 255
    return [picture for seed in range(3) for picture in _scene(seed, textures, times=(0.0, 10.0))]


def _scene(seed: int, textures: Float[Tensor, "n 3 h w"], times: tuple[float, ...], shapes: int = 9) -> list[Picture]:
    """Slanted ellipses, boxes and stars at 2 to 7 m before a slope at 8 to 10 m, each with a texture of its own."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    frames = [_texture(random, textures, 1.0)] * len(times)
    depths = [8 + 2 * y / SIZE[0]] * len(times)
    for distance in np.sort(random.uniform(2, 7, shapes))[::-1]:
        texture = _texture(random, textures, random.uniform(1, 2)) * random.uniform(0.7, 1.1, (3, 1, 1))
        centre, velocity = random.uniform(0, 1, 2) * SIZE[::-1], random.uniform(-3, 3, 2)
        radius, angle = random.uniform(40, 130, 2), random.uniform(0, np.pi)
        power, points = random.choice([1.0, 2.0, 8.0]), random.integers(3, 8) if random.random() < 0.4 else 0
        for number, time in enumerate(times):
            u, v = _turned(x - centre[0] - velocity[0] * time, y - centre[1] - velocity[1] * time, angle, radius)
            inside = np.abs(u) ** power + np.abs(v) ** power < 1
            if points:
                inside = np.hypot(u, v) < 0.7 + 0.3 * np.cos(points * np.arctan2(v, u))
            moved = np.roll(texture, np.rint(velocity[::-1] * time).astype(int), (1, 2))
            frames[number] = np.where(inside, moved, frames[number])
            depths[number] = np.where(inside, distance * (1 + 0.08 * u), depths[number])
    return [
        Picture(torch.from_numpy(frame.clip(0, 1)).float()[None], torch.from_numpy(depth).float()[None, None])
        for frame, depth in zip(frames, depths, strict=True)
    ]


def _turned(
    x: NDArray[np.float64], y: NDArray[np.float64], angle: float, radius: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cos, sin = np.cos(angle), np.sin(angle)
    return (x * cos + y * sin) / radius[0], (y * cos - x * sin) / radius[1]


def _texture(random: np.random.Generator, textures: Float[Tensor, "n 3 h w"], zoom: float) -> NDArray[np.float32]:
    """A part of one of the textures, enlarged to `SIZE`."""
    height, width = (int(side / zoom) for side in SIZE)
    picture = textures[random.integers(len(textures))]
    top, left = random.integers(picture.shape[1] - height + 1), random.integers(picture.shape[2] - width + 1)
    part = picture[None, :, top : top + height, left : left + width]
    enlarged: NDArray[np.float32] = F.interpolate(part, SIZE, mode="bilinear", align_corners=False)[0].numpy()
    return enlarged


def coarse(depth: Float[Tensor, "1 1 h w"], how: str, cell: int = 8) -> Float[Tensor, "1 1 y x"]:
    """The depth of cells of 8 x 8 pixels: "average" of what is known, "nearest" to the middle, or "noisy": the average
    times exp of normal noise of 2 %."""
    if how == "nearest":
        return depth[..., cell // 2 :: cell, cell // 2 :: cell].clone()
    known = F.avg_pool2d(depth.isfinite().float(), cell)
    average = (F.avg_pool2d(depth.nan_to_num(0.0), cell) / known).where(known > 0, torch.nan)
    if how == "noisy":
        average *= (0.02 * torch.randn(average.shape, generator=torch.Generator().manual_seed(0))).exp()
    return average


def filled(maps: Float[Tensor, "1 1 h w"]) -> Float[Tensor, "1 1 h w"]:
    """Unknown pixels as the nearest known one."""
    unknown = ~maps[0, 0].isfinite().numpy()
    nearest = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return maps[..., torch.from_numpy(nearest[0]), torch.from_numpy(nearest[1])]


def near_edges(depth: Float[Tensor, "1 1 h w"]) -> Bool[Tensor, "1 1 h w"]:
    """Known pixels within `NEAR` pixels of an edge; where depth is unknown the nearest known one stands for it."""
    log = filled(depth)[0, 0].log()
    edge = torch.zeros(log.shape, dtype=torch.bool)
    down, along = log.diff(dim=0).abs() > STEP, log.diff(dim=1).abs() > STEP
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= along
    edge[:, :-1] |= along
    near = torch.from_numpy(ndimage.distance_transform_edt(~edge.numpy()) <= NEAR)
    return near[None, None] & depth.isfinite()


def errors(found: Float[Tensor, "1 1 h w"], depth: Float[Tensor, "1 1 h w"]) -> Iterator[float]:
    """AbsRel in percent near edges, and overall."""
    relative = (found - depth).abs() / depth
    for where in (near_edges(depth), depth.isfinite()):
        yield 100 * float(relative[where].mean())
