"""Generated sequences with exact masks: pieces of film stills that move, turn, grow and hide one another.

The picture of an object and its outline move by one map, and a pixel belongs to the topmost object whose outline holds
its centre; so masks are known exactly, whatever blur and noise do to the pictures. Everything follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor

SIZE = 256, 448
FRAMES = 24
HARMONICS = 4
"""Of an outline's radius over its angle."""
SHUTTER, EXPOSURES = 0.4, 3
"""Motion blur: a frame is the mean of pictures at so many times within this share of a frame's duration."""
CONTRAST, PLACES = 0.15, 20
"""An object is cut from where the still's grey value varies so much, if one of so many places has it."""
NOISE = 0.01
"""Standard deviation of each frame's noise; frames are in [0, 1]."""


@attrs.frozen
class Motion:
    """Where a thing is at time t (in frames): centre, angle and size, each a line plus a slow swing."""

    centre: tuple[float, float]
    """x, y at time 0, pixels."""
    velocity: tuple[float, float] = (0.0, 0.0)
    """Pixels per frame."""
    swing: tuple[float, float] = (0.0, 0.0)
    """Amplitude in x and y, pixels."""
    angle: float = 0.0
    spin: float = 0.0
    """Radians, and radians per frame."""
    growth: float = 0.0
    """Amplitude of the logarithm of the size."""
    period: float = 24.0
    """Of swing and growth, frames."""

    def at(self, t: float) -> tuple[float, float, float, float]:
        """x, y, angle, size at time t."""
        wave = math.sin(2 * math.pi * t / self.period)
        x, y = (c + v * t + s * wave for c, v, s in zip(self.centre, self.velocity, self.swing, strict=True))
        return x, y, self.angle + self.spin * t, math.exp(self.growth * wave)

    def own_coordinates(self, points: Float[Tensor, "h w 2"], t: float) -> Float[Tensor, "h w 2"]:
        """Points of the frame in the thing's own unmoved coordinates, around its centre."""
        x, y, angle, size = self.at(t)
        moved = points - points.new_tensor([x, y])
        cos, sin = math.cos(angle) / size, math.sin(angle) / size
        return moved @ moved.new_tensor([[cos, -sin], [sin, cos]])


@attrs.frozen(eq=False)
class Piece:
    """A piece of a still: what lies within an outline around a place of it, and how it moves.

    Attributes:
        still: the picture it is cut from.
        place: x, y in the still, pixels, of the piece's centre.
        radius: mean distance of the outline from the centre, pixels; inf for all of the still: a background.
        waves: cosine and sine amplitudes of the outline's radius, relative, by harmonic from the second on.
    """

    still: UInt8[Tensor, "3 h w"]
    place: tuple[float, float]
    motion: Motion
    radius: float = math.inf
    waves: Float[Tensor, "k 2"] = attrs.field(factory=lambda: torch.zeros(0, 2))

    def covers(self, own: Float[Tensor, "h w 2"]) -> Bool[Tensor, "h w"]:
        """Which points, in the piece's own coordinates, lie within its outline."""
        place = torch.view_as_complex(own.contiguous())
        direction = torch.sgn(place)
        outline, power = torch.ones_like(own[..., 0]), direction
        for cosine, sine in self.waves.tolist():
            power = power * direction  # e^{i k angle}, k = 2, 3, ...
            outline += cosine * power.real + sine * power.imag
        return place.abs() < self.radius * outline

    def box(self, t: float, finer: int = 1) -> tuple[slice, slice]:
        """Rows and columns outside of which the piece covers nothing, of `finer` samples a pixel."""
        x, y, _, growth = self.motion.at(t)
        reach = min(self.radius * growth * (1 + float(self.waves.abs().sum())), 1e6)
        rows, columns = (
            slice(max(int((centre - reach) * finer), 0), max(math.ceil((centre + reach) * finer), 0))
            for centre in (y, x)
        )
        return rows, columns

    def colours(self, own: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
        """The still's colours at points in the piece's own coordinates, mirrored beyond its border."""
        height, width = self.still.shape[-2:]
        grid = 2 * (own + own.new_tensor(self.place)) / own.new_tensor([width, height]) - 1
        picture = self.still[None].float() / 255
        return F.grid_sample(picture, grid[None, None], padding_mode="reflection", align_corners=False)[0, :, 0].T


@attrs.frozen(eq=False)
class Filmed:
    """Frames and their exact masks: 0 is the background, objects count from 1, the later the nearer."""

    frames: UInt8[Tensor, "t 3 h w"]
    masks: UInt8[Tensor, "t h w"]


def pixel_centres(size: tuple[int, int], finer: int = 1) -> Float[Tensor, "h w 2"]:
    """x, y of the centres of pixels, or of `finer` times as many samples along each axis."""
    y, x = ((torch.arange(side * finer) + 0.5) / finer for side in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def mask_at(pieces: Sequence[Piece], size: tuple[int, int], t: float) -> UInt8[Tensor, "h w"]:
    """Which piece each pixel's centre shows; the first piece is the background, 0."""
    points = pixel_centres(size)
    mask = torch.zeros(size, dtype=torch.uint8)
    for number, piece in enumerate(pieces[1:], 1):
        box = piece.box(t)
        mask[box][piece.covers(piece.motion.own_coordinates(points[box], t))] = number
    return mask


def picture_at(pieces: Sequence[Piece], size: tuple[int, int], t: float) -> Float[Tensor, "3 h w"]:
    """The picture at one instant, four samples a pixel."""
    points = pixel_centres(size, finer=2)
    picture = torch.zeros(*points.shape[:2], 3)
    for piece in pieces:
        box = piece.box(t, finer=2)
        own = piece.motion.own_coordinates(points[box], t)
        covered = piece.covers(own)
        picture[box][covered] = piece.colours(own[covered])
    return F.avg_pool2d(picture.permute(2, 0, 1), 2)


def render(pieces: Sequence[Piece], size: tuple[int, int], frames: int, generator: Generator) -> Filmed:
    """All frames, with motion blur and noise, and their masks (at the middle of the exposure)."""
    pictures = []
    for t in range(frames):
        times = [t + SHUTTER * ((n + 0.5) / EXPOSURES - 0.5) for n in range(EXPOSURES)]
        mean = torch.stack([picture_at(pieces, size, time) for time in times]).mean(0)
        noisy = mean + NOISE * torch.randn(mean.shape, generator=generator)
        pictures.append((noisy.clamp(0, 1) * 255).round().to(torch.uint8))
    masks = torch.stack([mask_at(pieces, size, t) for t in range(frames)])
    return Filmed(torch.stack(pictures), masks)


def random_sequence(
    stills: Sequence[UInt8[Tensor, "3 h w"]], seed: int, size: tuple[int, int] = SIZE, frames: int = FRAMES
) -> Filmed:
    """Two to four objects over a panned background, all from stills, as the seed has it.

    Objects that are hidden in the first frame could not be followed: their order is drawn again until each shows there.
    """
    generator = Generator().manual_seed(seed)
    for _ in range(100):
        pieces = _random_pieces(stills, size, frames, generator)
        areas = torch.bincount(mask_at(pieces, size, 0).flatten().long(), minlength=len(pieces))
        if areas.min() >= size[0] * size[1] / 200:
            return render(pieces, size, frames, generator)
    raise ValueError(f"seed {seed} gives no sequence whose objects are all to be seen in the first frame")


def _random_pieces(
    stills: Sequence[UInt8[Tensor, "3 h w"]], size: tuple[int, int], frames: int, generator: Generator
) -> list[Piece]:
    def uniform(least: float, most: float) -> float:
        return least + (most - least) * torch.rand((), generator=generator).item()

    def still() -> UInt8[Tensor, "3 h w"]:
        return stills[int(torch.randint(len(stills), (), generator=generator))]

    height, width = size
    unit = height / 256
    ground = still()
    pan = Motion(
        (width / 2, height / 2), (uniform(-1.5, 1.5) * unit, uniform(-0.5, 0.5) * unit),
        angle=uniform(-0.05, 0.05), spin=uniform(-0.004, 0.004), growth=uniform(-0.08, 0.08), period=2.0 * frames,
    )  # fmt: skip
    pieces = [Piece(ground, (ground.shape[2] / 2, ground.shape[1] / 2), pan)]
    for _ in range(int(torch.randint(2, 5, (), generator=generator))):
        source, radius = still(), uniform(24, 56) * unit
        start = uniform(0.15, 0.85) * width, uniform(0.2, 0.8) * height
        end = uniform(0.15, 0.85) * width, uniform(0.2, 0.8) * height
        velocity = (end[0] - start[0]) / frames, (end[1] - start[1]) / frames
        motion = Motion(
            start, velocity, (uniform(-12, 12) * unit, uniform(-12, 12) * unit), 0.0, uniform(-0.05, 0.05),
            uniform(-0.3, 0.3), uniform(0.6, 2.0) * frames,
        )  # fmt: skip
        place = _textured_place(source, radius, generator)
        strength = torch.rand(HARMONICS, 2, generator=generator) * 2 - 1
        waves = 0.25 * strength / torch.arange(2, HARMONICS + 2)[:, None]
        pieces.append(Piece(source, place, motion, radius, waves))
    return pieces


def _textured_place(still: UInt8[Tensor, "3 h w"], radius: float, generator: Generator) -> tuple[float, float]:
    """x, y around which the still has contrast: the best of a few places, or the first that will do."""
    rows, columns = still.shape[1:]
    grey, r = still.float().mean(0) / 255, round(radius)
    best, most = (columns / 2, rows / 2), -1.0
    for _ in range(PLACES):
        x, y = (r + torch.rand(2, generator=generator) * torch.tensor([columns - 2 * r, rows - 2 * r])).tolist()
        contrast = float(grey[int(y) - r : int(y) + r, int(x) - r : int(x) + r].std())
        if contrast > most:
            best, most = (x, y), contrast
        if contrast >= CONTRAST:
            break
    return best
