"""Heads that answer from the known scene, as a plugin, so that the command line can be tried on perfect predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from known_scene import KnownScene

from fourd_core.data import Clip, Prediction, Tokens, Tracks
from fourd_core.interfaces import BackboneSpec, Head
from fourd_core.media.writers import write_png

SCENE = KnownScene(frames=6)
FRAME_RATE = 25
"""What pictures without a rate are taken to have."""


class Known(Head):
    """The scene's own prediction of one name, for the frames that the clip's times tell."""

    name: ClassVar[str]
    channels = 1

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.taps = (0,)

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        assert clip.times is not None
        frames = (clip.times[0] * FRAME_RATE).round().long()
        known = SCENE.predictions()[self.name].map(lambda tensor: tensor[:, frames])
        if not isinstance(known, Tracks):
            return known
        # One group of points at a time: those that were asked for, in the scene's own order.
        assert clip.queries is not None
        order = torch.cdist(clip.queries.xy[0], SCENE.tracks()[0].xy[0]).argmin(1)
        return known.map(lambda tensor: tensor[:, :, order])


class KnownDepth(Known):
    """Depth."""

    name, kind = "depth", "depth"


class KnownFlow(Known):
    """Flow."""

    name, kind, channels, unit = "flow", "flow", 2, "px"


class KnownCamera(Known):
    """Cameras."""

    name, kind = "camera", "cameras"


class KnownTrack(Known):
    """Tracks."""

    name, tracks = "track", True


class Silent(Known):
    """Depth, without a word about it beforehand."""

    name = "depth"


RECIPE = """
[backbone]
use = "toy_patches"

[data]
video = "scene"
view = "original"

[queries]
grid = 8

[heads.depth]
use = "known_depth"

[heads.flow]
use = "known_flow"

[heads.camera]
use = "known_camera"

[heads.track]
use = "known_track"

[stages.predict]
job = "predict"
window = 4
panel = 96
pictures = 2
movie = false
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the heads known to the registry, and write the scene's frames and a recipe; returns the recipe."""
    about = folder / "installed" / "known_fourd-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: known-fourd\nVersion: 0.1.0\n")
    heads: dict[str, type[Any]] = {
        "known_depth": KnownDepth, "known_flow": KnownFlow, "known_camera": KnownCamera, "known_track": KnownTrack,
        "known_silent": Silent,
    }  # fmt: skip
    lines = [f"{name} = known_heads:{head.__name__}" for name, head in heads.items()]
    (about / "entry_points.txt").write_text(
        "[fourd.plugin]\napi.1 = known_heads\n[fourd.heads]\n" + "\n".join(lines) + "\n"
    )
    monkeypatch.syspath_prepend(str(about.parent))
    (folder / "scene").mkdir()
    for number, frame in enumerate(SCENE.rgb):
        write_png(folder / "scene" / f"{number:03d}.png", frame)
    recipe = folder / "known.toml"
    recipe.write_text(RECIPE)
    return recipe
