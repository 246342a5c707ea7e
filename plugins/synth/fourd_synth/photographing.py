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
    soft = torch.from_numpy(draws.chance(blur)).to(colour.device)
    softness = column(draws.uniform(high=0.5))[soft]
    salt = torch.from_numpy(draws.integer(stop=1 << 30)).to(colour.device)
    if exposure > 0:
        colour = (colour * gain).clamp_(0, 1)
        colour = colour * (1 + contrast - contrast * colour)
    if soft.any():
        blurred = colour[soft]
        for axis in (-1, -2):
            around = _next(blurred, axis, -1) + _next(blurred, axis, 1)
            blurred = blurred + softness * (0.5 * around - blurred)
        colour[soft] = blurred
    if noise > 0:
        colour = colour + deviation * _noise(colour, frames, window, salt)
    return colour.clamp_(0, 1)


def _next(colour: Float[Tensor, "b t 3 h w"], axis: int, step: int) -> Float[Tensor, "b t 3 h w"]:
    """Each pixel's neighbour; beyond the edge the edge."""
    side = colour.shape[axis]
    return colour.index_select(axis, (torch.arange(side, device=colour.device) + step).clamp(0, side - 1))


def _noise(
    colour: Float[Tensor, "b t 3 h w"], frames: Int64[Tensor, "b t"], window: Window, salt: Int64[Tensor, " b"]
) -> Float[Tensor, "b t 3 h w"]:
    """Independent numbers of mean 0 and deviation 1, evenly distributed, by hashing where they are."""
    height, width = colour.shape[-2:]
    x = torch.arange(width, device=colour.device) + window.corner[:, :1]
    y = torch.arange(height, device=colour.device) + window.corner[:, 1:]
    frame = (frames * 7919 + salt[:, None]) * 97711
    along_y = (frame[:, :, None] + y[:, None] * 668265263) & 0xFFFFFFFF
    h = (along_y[..., None] + (x * 374761393)[:, None, None]) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 739982445) & 0xFFFFFFFF
    h = ((h ^ (h >> 12)) * 695872825) & 0xFFFFFFFF
    h = h ^ (h >> 15)
    ten = torch.stack([h & 1023, (h >> 10) & 1023, (h >> 20) & 1023], 2)
    return (ten.to(colour.dtype) - 511.5) * (12**0.5 / 1024)
