"""Where textures come from: procedural patterns, pictures and videos of the user's, photographs of scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.media.cache import FrameCache
from fourd_core.media.locations import find
from fourd_core.media.video import open_source
from fourd_synth.patterns import patterns
from fourd_synth.settings import SceneConfig

FRAMES = 16
"""So many pictures are taken of a folder or video, evenly."""
PHOTOGRAPHS = ("brick", "coffee", "grass", "gravel", "hubble_deep_field", "ihc", "retina", "rocket")
"""Those of scikit-image that a wheel of it holds, in colour or as a material."""


def textures_of(config: SceneConfig, seed: int, *, held_out: bool) -> Float[Tensor, "k 3 s s"]:
    """The textures of one part: patterns of its own seed, and its half of the pictures.

    Raises:
        MediaError: a picture cannot be read, there is nothing for one of the parts, or scikit-image is not installed.
    """
    banks = [patterns(config.patterns, config.texture_pixels, seed)] if config.patterns else []
    places = [str(location) for location in config.textures] + (photographs() if config.photographs else [])
    pictures = [picture for place in places for picture in _read(place)]
    own = _halves(pictures)[held_out]
    if pictures and not own and not banks:
        raise MediaError("one picture cannot be a texture both to train on and to hold out: name two in data.textures")
    banks += [squares(picture, config.texture_pixels) for picture in own]
    return torch.cat(banks)


def photographs() -> list[str]:
    """Where the pictures are that scikit-image brings along.

    Raises:
        MediaError: it is not installed.
    """
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise MediaError("data.photographs needs scikit-image, which is not installed: pip install scikit-image")
    folder = Path(package.origin).parent / "data"
    found = [path for name in PHOTOGRAPHS for path in sorted(folder.glob(f"{name}.*"))]
    if not found:
        raise MediaError(f"this scikit-image brings no photographs along ({folder}): leave data.photographs out")
    return [str(path) for path in found]


def squares(picture: UInt8[Tensor, "3 h w"], side: int) -> Float[Tensor, "2 3 s s"]:
    """Two textures of a picture: its middle square, and the middle quarter of that, which shows finer things."""
    whole = min(picture.shape[-2:])
    return torch.cat([_middle(picture, crop, side) for crop in (whole, max(whole // 2, 1))])


def _middle(picture: UInt8[Tensor, "3 h w"], crop: int, side: int) -> Float[Tensor, "1 3 s s"]:
    top, left = ((size - crop) // 2 for size in picture.shape[-2:])
    cut = picture[None, :, top : top + crop, left : left + crop].float() / 255
    return F.interpolate(cut, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _read(place: str) -> list[UInt8[Tensor, "3 _ _"]]:
    pictures: list[UInt8[Tensor, "3 _ _"]] = []
    for source in find(place):
        video = open_source(source, FrameCache(0))
        count = min(FRAMES, video.frame_count)
        pictures += video.read([i * (video.frame_count - 1) // max(count - 1, 1) for i in range(count)])
    return pictures


def _halves(
    pictures: Sequence[UInt8[Tensor, "3 _ _"]],
) -> tuple[Sequence[UInt8[Tensor, "3 _ _"]], Sequence[UInt8[Tensor, "3 _ _"]]]:
    """What is trained on and what is held out: in order, so that frames of a video stay on one side."""
    cut = (len(pictures) + 1) // 2
    return pictures[:cut], pictures[cut:]
