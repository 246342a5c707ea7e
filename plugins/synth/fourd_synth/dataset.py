"""The data set `synth`: dynamic scenes that are made when they are asked for, with all that is true of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from jaxtyping import Int
from torch import Tensor

from fourd_core.data import Clip, Predictions
from fourd_core.interfaces import Dataset, Split
from fourd_core.randomness import seed_for
from fourd_synth.generating import Generator, Request
from fourd_synth.settings import SceneConfig
from fourd_synth.sources import textures_of
from fourd_synth.textures import TextureBank
from fourd_synth.video import SynthVideo


class Synth(Dataset):
    """Scenes of moving things before moving cameras, each a function of (seed, number)."""

    Config = SceneConfig

    @classmethod
    def example(cls) -> SceneConfig:
        """Few, short and small videos."""
        return cls.Config(pixels=16, frames=3, count=1, held_out=1, patterns=4, texture_pixels=32, tracks=4)

    def __init__(self, config: SceneConfig) -> None:
        self.config = self.view = config
        self._generators: dict[str, Generator] = {}

    def videos(self, split: Split) -> SynthVideos:
        """The videos of a split, made as they are read; "all" are those held out, as there is no end of the others."""
        part, count = ("train", self.config.count) if split == "train" else ("held_out", self.config.held_out)
        return SynthVideos(self, part, range(count))

    @torch.no_grad()
    def generate(
        self, split: Split, numbers: Int[Tensor, " b"], frames: int, crop: int | None, tracks: int, device: torch.device
    ) -> tuple[Clip, Predictions]:
        """Clips by number, made on the device, and what is true of them; see the README for what is random.

        Beside the five known truths there is the mask "occluded": 1 where what a pixel shows is hidden or outside the
        picture in the frame before, NaN where that is not sure.

        Raises:
            ValueError: more frames or pixels than the videos have.
        """
        request = Request(frames, crop, tracks, torch.device(device))
        return self.generator("train" if split == "train" else "held_out").clips(numbers.tolist(), request)

    def generator(self, part: str) -> Generator:
        """What makes the clips of "train" or "held_out"; its textures are made at the first call.

        Raises:
            MediaError: a texture cannot be read.
        """
        if part not in self._generators:
            seed = seed_for(self.config.seed, "synth", part)
            bank = TextureBank(textures_of(self.config, seed, held_out=part == "held_out"))
            self._generators[part] = Generator(self.config, seed, bank)
        return self._generators[part]


class SynthVideos(Sequence):  # type: ignore[type-arg]  # as Sequence[Video], checkers of types at run time would open one
    """The videos of a part, each made when it is read."""

    def __init__(self, data: Synth, part: str, numbers: range) -> None:
        self._data, self._part, self._numbers = data, part, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[SynthVideo]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> SynthVideo: ...
    @overload
    def __getitem__(self, index: slice) -> SynthVideos: ...
    def __getitem__(self, index: int | slice) -> SynthVideo | SynthVideos:
        if isinstance(index, slice):
            return SynthVideos(self._data, self._part, self._numbers[index])
        number = self._numbers[index]
        return SynthVideo(self._data.generator(self._part), number, f"{self._part}/{number}")
