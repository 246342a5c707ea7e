"""A whole plugin in miniature: patches as tokens, a linear head, a running average as memory, brightness to learn.

Nothing here is a stand-in: each component does what it says, in as few lines as its contract allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fourd_core.data import Clip, CueMaps, Maps, Prediction, TokenMap, Tokens
from fourd_core.interfaces import (
    Backbone,
    BackboneSpec,
    CueProvider,
    Dataset,
    Head,
    Memory,
    Metric,
    Objective,
    Result,
    Sample,
    Split,
    TapSpec,
)  # fmt: skip
from fourd_core.testing import miniature

PATCH = 8


class Patches(Backbone):
    """Two taps: the mean colour of every 8x8 patch, and its square."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        tap = TapSpec(3, (1, PATCH, PATCH))
        self.spec = BackboneSpec((tap, tap), (1, PATCH, PATCH), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        self.spec.check(frames)
        means = nn.functional.avg_pool2d((frames.flatten(0, 1) - 0.5) / 0.5, PATCH).unflatten(0, frames.shape[:2])
        return Tokens({tap: TokenMap.from_maps(means ** (tap + 1)) for tap in taps})


class LinearHead(Head):
    """One linear map from a tap to a number per patch, repeated over its pixels."""

    unit = "1"
    channels = 1

    @attrs.frozen
    class Config:
        """Which layer to read."""

        tap: int = 0
        """The tap number."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.taps = (backbone.tap(config.tap),)
        self.linear = nn.Linear(backbone.taps[self.taps[0]].dim, 1)

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        maps = TokenMap(self.linear(tokens[self.taps[0]].values), tokens[self.taps[0]].grid).as_maps()
        return Maps(maps.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1), unit=self.unit)


class RunningAverage(Memory):
    """Tokens mixed with the mean tokens of the frames that are behind."""

    @attrs.frozen
    class Config:
        """How strongly the past counts."""

        weight: float = 0.5
        """Share of the past in what the head sees."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.weight = config.weight

    def initial(self, tokens: Tokens, clip: Clip) -> dict[int, Tensor]:
        return {tap: item.values.mean(1, keepdim=True) for tap, item in tokens.layers.items()}

    def read(self, state: dict[int, Tensor], tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        mixed = {
            tap: TokenMap(torch.lerp(item.values, state[tap], self.weight), item.grid)
            for tap, item in tokens.layers.items()
        }
        return Tokens(mixed), clip

    def update(
        self, state: dict[int, Tensor], tokens: Tokens, clip: Clip, prediction: Prediction, shift: int
    ) -> dict[int, Tensor]:
        return {tap: torch.lerp(old, tokens[tap].values.mean(1, keepdim=True), 0.5) for tap, old in state.items()}


class Brightness(CueProvider):
    """The mean of the three colours."""

    kind = "map"

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, clip: Clip) -> CueMaps:
        return CueMaps(clip.frames.detach().mean(2, keepdim=True), "map")


def small_system() -> Any:
    """What the objective and the metric below work on, for their contract tests."""
    head = LinearHead(LinearHead.Config(), miniature.Patches.spec)
    return miniature.Miniature(heads={"value": head}, cues={"brightness": Brightness(Brightness.Config())})


class Regression(Objective):
    """Squared distance between the head `value` and the cue `brightness`."""

    @attrs.frozen
    class Config:
        """What is read from the video."""

        size: int = 64
        """Side of the square cut from the middle of a frame."""

    @classmethod
    def example_system(cls) -> Any:
        return small_system()

    def __init__(self, config: Config, system: Any) -> None:
        super().__init__()
        self.size = config.size

    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        videos = data.videos(split)
        video = videos[int(torch.randint(len(videos), (), generator=generator))]
        frame = video.read([int(torch.randint(video.frame_count, (), generator=generator))])
        top, left = (frame.shape[-2] - self.size) // 2, (frame.shape[-1] - self.size) // 2
        return {"frames": frame[..., top : top + self.size, left : left + self.size]}

    def forward(self, system: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        clip = Clip(batch["frames"] / 255)
        noise = 0.01 * torch.rand(clip.frames.shape, generator=generator).to(clip.frames.device)
        prediction = system(Clip(clip.frames + noise))["value"].values
        return {"loss": nn.functional.mse_loss(prediction, system.cues["brightness"](clip).values)}


class MeanError(Metric):
    """Mean distance between the head `value` and the cue `brightness` on held-out frames."""

    @attrs.frozen
    class Config:
        """How much is measured."""

        frames: int = 4
        """Frames from the start of each video."""

    @classmethod
    def example_system(cls) -> Any:
        return small_system()

    def __init__(self, config: Config) -> None:
        self.frames = config.frames

    def measure(self, system: Any, data: Dataset) -> Result:
        rows = []
        for video in data.videos("held_out"):
            clip = Clip(video.read(range(self.frames))[None, :, :, :64, :64] / 255)
            error = (system(clip)["value"].values - system.cues["brightness"](clip).values).abs().mean()
            rows.append({"video": video.name, "error": float(error)})
        return Result("brightness error", tuple(rows), {"frames": self.frames, "split": "held_out"})
