"""What a camera does to a picture: exposure, contrast, blur, noise. The truth about its pixels stays as it is."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fourd_synth.draws import Draws
from fourd_synth.rendering import Window


def photographed(
    colour: Float[Tensor, "b t 3 h w"],
    frames: Int64[Tensor, "b t"],
    window: Window,
    draws: Draws,
    *,
    exposure: float,
    noise: float,
    blur: float,
) -> Float[Tensor, "b t 3 h w"]:
    """Pictures as taken, in [0, 1].

    Args:
        frames: numbers of the frames in their video; noise depends on them and on the pixel of the whole picture.
        exposure: spread of brightness and contrast, clip by clip.
        noise: greatest standard deviation.
        blur: the share of clips that are out of focus by up to a pixel.
    """

    def column(values: object) -> Float[Tensor, "b 1 1 1 1"]:
        return torch.as_tensor(values).to(colour).view(-1, 1, 1, 1, 1)

    gain = column(1 + exposure * draws.uniform(low=-1.0))
    contrast = column(exposure * draws.uniform(low=-1.0))
    deviation = column(noise * draws.uniform())
    softness = column((draws.uniform() < blur) * draws.uniform(high=0.5))
    salt = torch.from_numpy(draws.integer(stop=1 << 30)).to(colour.device)
    if exposure > 0:
        colour = (colour * gain).clamp(0, 1)
        colour = colour + contrast * colour * (1 - colour)
    if blur > 0:
        for axis in (-1, -2):
            around = _next(colour, axis, -1) + _next(colour, axis, 1)
            colour = colour + softness * (0.5 * around - colour)
    if noise > 0:
        colour = colour + deviation * _noise(colour, frames, window, salt)
    return colour.clamp(0, 1)


def _next(colour: Float[Tensor, "b t 3 h w"], axis: int, step: int) -> Float[Tensor, "b t 3 h w"]:
    """Each pixel's neighbour; beyond the edge the edge."""
    side = colour.shape[axis]
    return colour.index_select(axis, (torch.arange(side, device=colour.device) + step).clamp(0, side - 1))


def _noise(
    colour: Float[Tensor, "b t 3 h w"], frames: Int64[Tensor, "b t"], window: Window, salt: Int64[Tensor, " b"]
) -> Float[Tensor, "b t 3 h w"]:
    """Independent numbers of mean 0 and deviation 1 (a triangle's distribution), by hashing where they are."""
    channels, height, width = colour.shape[-3:]

    def count(size: int) -> Int64[Tensor, " size"]:
        return torch.arange(size, device=colour.device)

    x = (count(width) + window.corner[:, :1]).view(-1, 1, 1, 1, width)
    y = (count(height) + window.corner[:, 1:]).view(-1, 1, 1, height, 1)
    frame = (frames * 7919 + salt[:, None]).view(*frames.shape, 1, 1, 1)
    h = (x * 374761393 + y * 668265263 + count(channels).view(-1, 1, 1) * 2246822519 + frame * 97711) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 739982445) & 0xFFFFFFFF
    h = ((h ^ (h >> 12)) * 695872825) & 0xFFFFFFFF
    h = h ^ (h >> 15)
    return ((h & 0xFFFF) - (h >> 16)).to(colour.dtype) * (6**0.5 / 65536)
