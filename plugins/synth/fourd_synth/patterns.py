"""Procedural textures: checks, stripes, dots, bricks and clouds, in random colours, with fine detail."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
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
    (clouds, ridges), (detail, other) = _clouds(count, side, d), _clouds(count, side, d)
    centres = (torch.arange(side) + 0.5) / side
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    textures = torch.empty(count, 3, side, side)
    for i in range(count):
        f = int(frequency[i])
        bend = (clouds[i] - 0.5) * float(wobble[i])
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
            field = clouds[i] if kind[i] == 4 else ridges[i]
            mask = ((field - field.mean()) / field.std() * 0.5 + 0.5).clamp(0, 1)
        share = 0.6 * ((other if i % 2 else detail)[i] * 3 - 1).clamp(0, 1)
        first, second, third, fourth = palette[i][:, :, None, None]
        base = first * (1 - mask) + second * mask
        fine = third * (1 - mask) + fourth * mask
        textures[i] = base * (1 - share) + fine * share + (detail[i] - 0.5) * float(grain[i])
    return textures.clamp(0, 1)


def _clouds(count: int, side: int, d: Draws) -> tuple[Float[Tensor, "k s s"], Float[Tensor, "k s s"]]:
    """Noise of all scales, soft and ridged, in [0, 1]: random numbers on ever finer lattices, smoothly connected."""
    soft, ridged = torch.zeros(count, side, side), torch.zeros(count, side, side)
    total, weight, period = 0.0, 1.0, 4
    while period <= side // 2:
        noise = _between(torch.from_numpy(d.uniform(period, period)).float(), side)
        soft += weight * noise
        ridged += weight * (1 - (2 * noise - 1).abs())
        total += weight
        weight, period = weight * 0.62, period * 2
    return soft / total, ridged / total


def _between(lattice: Float[Tensor, "k p p"], side: int) -> Float[Tensor, "k s s"]:
    """A lattice that repeats, at the pixels between its points."""
    period = lattice.shape[1]
    place = (torch.arange(side) + 0.5) * (period / side)
    first = place.long()
    share = place - first
    share = share * share * (3 - 2 * share)
    second = (first + 1) % period
    rows = torch.lerp(lattice[:, first], lattice[:, second], share[:, None])
    return torch.lerp(rows[..., first], rows[..., second], share)
