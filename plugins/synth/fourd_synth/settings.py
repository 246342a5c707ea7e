"""What a recipe may say about generated scenes."""

from __future__ import annotations

import attrs

from fourd_core.media.views import ViewConfig
from fourd_core.recipe import Location
from fourd_synth.shading import Shading

_SHARE = [attrs.validators.ge(0.0), attrs.validators.le(1.0)]


@attrs.frozen(kw_only=True)
class SceneConfig(ViewConfig):
    """Which scenes are made, how they are filmed, and how a network sees them."""

    pixels: int = attrs.field(default=112, validator=attrs.validators.ge(8))
    """The side of the square picture that the cameras take, and of what a network sees of it."""
    frames: int = attrs.field(default=24, validator=attrs.validators.ge(2))
    """Frames of each video."""
    frame_rate: float = attrs.field(default=12.0, validator=attrs.validators.gt(0))
    """Frames per second: fewer make larger motion from frame to frame."""
    seed: int = 0
    """Another seed makes other scenes and textures."""
    count: int = attrs.field(default=1_000_000_000, validator=attrs.validators.ge(1))
    """Videos to train on; none is made before it is taken."""
    held_out: int = attrs.field(default=64, validator=attrs.validators.ge(0))
    """Videos that are not trained on: of another seed, with other textures."""
    speed: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))
    """Scales all motion; every scene draws a pace of its own, from a quarter of it to half as much again."""
    layers: float = attrs.field(default=0.0, validator=_SHARE)
    """The share of scenes that are flat layers, which slide, turn and grow before a background: cheap to begin with."""
    things: tuple[int, int, int, int] = attrs.field(default=(4, 4, 3, 3))
    """At most so many ellipsoids, boxes, cylinders and cut-outs."""
    shading: Shading = "lambert"
    """plain: textures as they are; lambert: lit by a lamp; glossy: and some of them shine."""
    exposure: float = attrs.field(default=0.25, validator=_SHARE)
    """How much brightness and contrast differ from clip to clip."""
    noise: float = attrs.field(default=0.02, validator=_SHARE)
    """The greatest standard deviation of the camera's noise."""
    blur: float = attrs.field(default=0.25, validator=_SHARE)
    """The share of clips that are a little out of focus."""
    reuse: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """So many clips in a row are made of one scene, mirrored, backwards, in other colours: rendered only once as long
    as it is kept."""
    cache_mb: int = attrs.field(default=1024, validator=attrs.validators.ge(1))
    """Megabytes of clips that are kept for reuse, on the device."""
    tracks: int = attrs.field(default=64, validator=attrs.validators.ge(0))
    """Points whose way is known in each video."""
    patterns: int = attrs.field(default=48, validator=attrs.validators.ge(0))
    """Procedural textures."""
    textures: tuple[Location, ...] = ()
    """Further ones: pictures, folders of them, videos (of which some frames are taken)."""
    photographs: bool = attrs.field(default=False)
    """Whether those that scikit-image brings along are textures too; it must be installed."""
    texture_pixels: int = attrs.field(default=128, validator=attrs.validators.in_((32, 64, 128, 256, 512)))
    """The side of a texture."""

    @things.validator
    def _(self, attribute: object, value: tuple[int, ...]) -> None:
        if min(value) < 1:
            raise ValueError(f"things needs room for at least one of each shape, not {list(value)}")

    @photographs.validator
    def _(self, attribute: object, value: bool) -> None:
        if self.patterns == 0 and not self.textures and not value:
            raise ValueError("there are no textures: set patterns, textures or photographs")
