"""What a system gives a probe: the encoder's own map and the pixel features of each picture.

Source: google-research/lila, EvalBase.encode.
"""

from __future__ import annotations

from typing import cast

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Clip, Maps
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Head
from fourd_core.system import System


@attrs.frozen(eq=False)
class Features:
    """Feature maps of a batch of pictures.

    Attributes:
        encoder: one of the taps that the head reads, on the backbone's grid.
        pixels: the head's prediction, one vector per pixel.
    """

    encoder: Float[Tensor, "b e gh gw"]
    pixels: Float[Tensor, "b d h w"]


@attrs.frozen(eq=False)
class FeatureExtractor:
    """A system's frozen features, without gradient.

    Args:
        head: the head whose maps are the pixel features.
        tap: which of the taps that this head reads is the encoder's map; negative numbers count from the deepest.
    """

    system: System
    head: str = "features"
    tap: int = -1

    def check(self) -> None:
        """Refuse a head that the system lacks, or that has not so many taps.

        Raises:
            RecipeError: says which heads, or how many taps, there are.
        """
        taps = cast(Head, self.system.heads[self.head]).taps
        if not -len(taps) <= self.tap < len(taps):
            raise RecipeError(f'tap = {self.tap} does not exist: head "{self.head}" reads {len(taps)} taps')

    @torch.no_grad()
    def __call__(self, pictures: Float[Tensor, "b 3 h w"]) -> Features:
        """Features of pictures in [0, 1] whose sides the backbone divides, each picture a clip of one frame."""
        head = cast(Head, self.system.heads[self.head])
        clip = Clip(pictures[:, None])
        tokens = self.system.encode(clip.frames, heads=[self.head])
        maps = cast(Maps, head(tokens, clip))
        return Features(tokens[head.taps[self.tap]].as_maps()[:, 0], maps.values[:, 0])
