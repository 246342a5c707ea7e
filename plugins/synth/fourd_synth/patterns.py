"""Procedural textures: checks, stripes, dots, bricks and clouds, in random colours, with fine detail."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fourd_synth.draws import Draws

KINDS = 6


def patterns(count: int, side: int, seed: int) -> Float[Tensor, "k 3 s s"]:
    """Textures in [0, 1] that repeat without a seam; each depends on the seed and its number alone."""
    d = Draws(seed, range(count))
    kind, frequency = d.integer(stop=KINDS), 2 ** (2 + d.integer(stop=3))
    wobble, radius = d.uniform(high=0.3), d.uniform(low=0.2, high=0.45)
    slant, grain = d.integer(stop=2), d.uniform(low=0.1, high=0.5)
    palette = torch.from_numpy(d.uniform(4, 3, low=0.05, high=0.95)).float()
    salts = torch.from_numpy(d.integer(2, stop=1 << 30))
    centres = (torch.arange(side) + 0.5) / side
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    textures = torch.empty(count, 3, side, side)
    for i in range(count):
        clouds, ridges = _clouds(u, v, int(salts[i, 0]))
        f = int(frequency[i])
        bend = (clouds - 0.5) * float(wobble[i])
        uu, vv = u + bend, v - bend
        if kind[i] == 0:
            mask = ((uu * f).floor() + (vv * f).floor()) % 2
        elif kind[i] == 1:
            mask = 0.5 + 0.5 * torch.sin(2 * math.pi * f * (uu + int(slant[i]) * vv))
        elif kind[i] == 2:
            mask = (((uu * f) % 1 - 0.5) ** 2 + ((vv * f) % 1 - 0.5) ** 2 < float(radius[i]) ** 2).float()
        elif kind[i] == 3:
            row = (vv * f).floor()
            mask = (((uu * f * 0.5 + 0.5 * (row % 2)) % 1 < 0.06) | ((vv * f) % 1 < 0.1)).float()
        else:
            field = clouds if kind[i] == 4 else ridges
            mask = ((field - field.mean()) / field.std() * 0.5 + 0.5).clamp(0, 1)
        detail, other = _clouds(u, v, int(salts[i, 1]))
        share = 0.6 * ((other if i % 2 else detail) * 3 - 1).clamp(0, 1)
        first, second, third, fourth = palette[i][:, :, None, None]
        base = first * (1 - mask) + second * mask
        fine = third * (1 - mask) + fourth * mask
        textures[i] = base * (1 - share) + fine * share + (detail - 0.5) * float(grain[i])
    return textures.clamp(0, 1)


def _clouds(
    u: Float[Tensor, "s s"], v: Float[Tensor, "s s"], salt: int
) -> tuple[Float[Tensor, "s s"], Float[Tensor, "s s"]]:
    """Noise of all scales, soft and ridged, in [0, 1]."""
    soft, ridged = torch.zeros_like(u), torch.zeros_like(u)
    total, weight, period = 0.0, 1.0, 4
    while period <= len(u) // 2:
        noise = _noise(u * period, v * period, period, salt + period)
        soft += weight * noise
        ridged += weight * (1 - (2 * noise - 1).abs())
        total += weight
        weight, period = weight * 0.62, period * 2
    return soft / total, ridged / total


def _noise(u: Float[Tensor, "s s"], v: Float[Tensor, "s s"], period: int, salt: int) -> Float[Tensor, "s s"]:
    """Smoothed random numbers at whole positions, which repeat after `period`."""
    left, top = u.floor(), v.floor()
    across, down = u - left, v - top
    across, down = across * across * (3 - 2 * across), down * down * (3 - 2 * down)
    x, y = left.long(), top.long()
    a, b, c, d = (_hashed((x + i) % period, (y + j) % period, salt) for j in (0, 1) for i in (0, 1))
    return (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down


def _hashed(x: Int[Tensor, "s s"], y: Int[Tensor, "s s"], salt: int) -> Float[Tensor, "s s"]:
    """A number in [0, 1) for each pair of whole numbers."""
    h = (x * 374761393 + y * 668265263 + salt * 362437 + 1442695041) & 0xFFFFFFFF
    for shift, factor in ((13, 1274126177), (16, 1103515245), (15, 668265263)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    return ((h ^ (h >> 13)) & 0xFFFFFF).float() / 2**24
