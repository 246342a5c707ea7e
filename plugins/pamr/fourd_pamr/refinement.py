"""Pixel-adaptive mask refinement in stages, coarse to fine."""

from __future__ import annotations

from typing import Any

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourd_core.kernels.local_affinity import local_affinity, propagate


@attrs.frozen
class Stage:
    """Rounds of averaging at one size."""

    iterations: int
    """How often the map is averaged."""
    size: tuple[int, int] | None = None
    """Height and width in pixels to which guide and map are resized first; none: the guide's own."""

    def __attrs_post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1 pixel, got {tuple(self.size)}")


def _positive(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError(f"{attribute.name} must be greater than 0, got {value}")


class PAMR:
    """Moves a coarse map's edges onto a guide picture's edges, without gradient; has no weights.

    The defaults are LILA's, `ORIGINAL` holds the first authors'.
    Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, section 3.2
    (visinf/1-stage-wseg, models/mods/pamr.py); LILA paper, self-distillation cues (google-research/lila).
    """

    @attrs.frozen
    class Config:
        stages: tuple[Stage, ...] = (Stage(20, (56, 56)), Stage(10, (112, 112)), Stage(5))
        """Coarse to fine; each starts from the one before, and the last should have the guide's own size."""
        dilations: tuple[int, ...] = (1, 3, 5)
        """Distances in pixels at which a pixel has its neighbours, eight at each."""
        sigma: float = attrs.field(default=0.05, validator=_positive)
        """How many local standard deviations a contrast may have before a neighbour loses weight."""
        eps: float = attrs.field(default=1e-5, validator=_positive)
        """Added to the scaled standard deviation, in the guide's unit."""

        def __attrs_post_init__(self) -> None:
            if not self.stages:
                raise ValueError("stages must name at least one stage")
            if not self.dilations or min(self.dilations) < 1:
                raise ValueError(f"dilations must be distances of at least 1 pixel, got {self.dilations}")

    def __init__(self, config: Config) -> None:
        self.config = config

    @torch.no_grad()
    def __call__(self, maps: Float[Tensor, "b c h w"], guide: Float[Tensor, "b k H W"]) -> Float[Tensor, "b c y x"]:
        """The refined maps at the last stage's size, in the maps' dtype.

        Args:
            maps: anything that belongs to the scene (features, labels, scores), at any resolution.
            guide: the picture that has the edges, RGB in [0, 1].
        Raises:
            ValueError: another batch size in `maps` than in `guide`.
        """
        if len(maps) != len(guide):
            raise ValueError(f"one guide belongs to each map: got {len(maps)} maps and {len(guide)} guides")
        config = self.config
        for stage in config.stages:
            size = stage.size or guide.shape[-2:]
            weights = local_affinity(_resized(guide, size), config.dilations, config.sigma, config.eps)
            maps = propagate(_resized(maps, size), weights, config.dilations, stage.iterations)
        return maps


ORIGINAL = PAMR.Config(stages=(Stage(10),), dilations=(1, 2, 4, 8, 12, 24), sigma=0.1, eps=1e-8)
"""The settings of visinf/1-stage-wseg: one stage at the guide's size, a wider reach."""


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
