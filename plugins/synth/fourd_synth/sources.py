"""Where textures come from: procedural patterns, pictures and videos of the user's, photographs of scikit-image."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fourd_synth.patterns import patterns
from fourd_synth.settings import SceneConfig


def textures_of(config: SceneConfig, seed: int, *, held_out: bool) -> Float[Tensor, "k 3 s s"]:
    """The textures of one part: patterns of its own seed."""
    return patterns(config.patterns, config.texture_pixels, seed)
