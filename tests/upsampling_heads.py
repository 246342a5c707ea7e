"""Perfect heads of a small network as a plugin: the known scene's maps, averaged to what the network sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F
from known_scene import KnownScene

from fourd_core.data import Clip, Maps, Tokens
from fourd_core.interfaces import BackboneSpec, Head
from fourd_core.media.writers import write_png
from fourd_core.recipe import Location
from fourd_core.upsampling.streaming import Upsample, Upsampling

SCENE = KnownScene(frames=10)
KNOWN = SCENE.predictions()
FRAME_RATE = 25
"""What pictures without a rate are taken to have."""


class Low(Head):
    """One of the scene's predictions, for the frames that the clip's times tell."""

    name: ClassVar[str]
    channels = 1

    @attrs.frozen
    class Config:
        upsample: Upsample = "bilinear"
        """How its maps reach the video's pixels."""
        upsample_features: Location | None = None
        """Whose features show where edges are."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.taps = (0,)
        self.upsampling = Upsampling(config.upsample, config.upsample_features)

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """The scene's map at the clip's size."""
        assert clip.times is not None
        known = KNOWN[self.name]
        frames = (clip.times[0] * FRAME_RATE).round().long()
        assert isinstance(known, Maps)
        return attrs.evolve(known, values=F.adaptive_avg_pool2d(known.values[0, frames], clip.size)[None])


class LowDepth(Low):
    """Depth; unknown in one corner."""

    name, kind = "depth", "depth"

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """The scene's depth, with a hole."""
        answer = super().forward(tokens, clip)
        answer.values[..., :2, :2] = 0
        return answer


class LowFlow(Low):
    """Flow, in the pixels of the clip."""

    name, kind, channels, unit = "flow", "flow", 2, "px"

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """The scene's flow."""
        answer = super().forward(tokens, clip)
        shrunk = torch.tensor(clip.size[::-1]) / torch.tensor(SCENE.size[::-1])
        return attrs.evolve(answer, values=answer.values * shrunk.view(2, 1, 1))


class LowMoving(Low):
    """The box, which moves."""

    name, kind = "moving", "mask"


class Orange(Low):
    """The box, by its colour: right in every part of the frame."""

    name, kind = "moving", "mask"

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """Where there is more red than blue."""
        return Maps((clip.frames[:, :, :1] > clip.frames[:, :, 2:]) * 0.9 + 0.05, kind="mask")


class LowFeatures(Low):
    """The scene's features."""

    name, kind, channels = "features", "features", 4


RECIPE = """
[backbone]
use = "toy_patches"

[data]
video = "scene"
pixels = 24

[heads.depth]
use = "low_depth"

[heads.flow]
use = "low_flow"

[heads.moving]
use = "low_moving"

[stages.predict]
job = "predict"
window = 4
stride = 2
movie = false
pictures = 0
precision = "float32"
"""

FEATURES = """
[backbone]
use = "toy_patches"

[data]
video = "scene"
pixels = 72

[heads.points]
use = "low_features"
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the heads known to the registry; write the scene's frames, `low.toml` and `features.toml`."""
    about = folder / "installed" / "low_fourd-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: low-fourd\nVersion: 0.1.0\n")
    heads: dict[str, type[Any]] = {
        "low_depth": LowDepth, "low_flow": LowFlow, "low_moving": LowMoving, "low_features": LowFeatures,
    }  # fmt: skip
    lines = [f"{name} = upsampling_heads:{head.__name__}" for name, head in heads.items()]
    (about / "entry_points.txt").write_text(
        "[fourd.plugin]\napi.1 = upsampling_heads\n[fourd.heads]\n" + "\n".join(lines) + "\n"
    )
    monkeypatch.syspath_prepend(str(about.parent))
    (folder / "scene").mkdir()
    for number, frame in enumerate(SCENE.rgb):
        write_png(folder / "scene" / f"{number:03d}.png", frame)
    (folder / "features.toml").write_text(FEATURES)
    recipe = folder / "low.toml"
    recipe.write_text(RECIPE)
    return recipe
