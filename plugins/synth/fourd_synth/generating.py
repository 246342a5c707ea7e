"""Batches of clips with their truth, by number: the scenes are made, rendered, kept for reuse, varied."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fourd_core.data import Clip, Predictions
from fourd_core.randomness import seed_for
from fourd_synth.draws import Draws
from fourd_synth.following import follow
from fourd_synth.photographing import photographed
from fourd_synth.rendering import Rendered, Window, render
from fourd_synth.sampling import sample_scenes
from fourd_synth.scenes import Counts
from fourd_synth.settings import SceneConfig
from fourd_synth.textures import TextureBank
from fourd_synth.truths import Scene, truth_of
from fourd_synth.variants import vary
from fourd_synth.views import Views, views_of


class Request(NamedTuple):
    """What is asked of clips, their numbers apart."""

    frames: int
    crop: int | None
    tracks: int
    device: torch.device


class Generator:
    """The clips of one part of the data set.

    Attributes:
        seed: of this part.
    """

    def __init__(self, config: SceneConfig, seed: int, bank: TextureBank, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.seed, self.dtype = config, seed, dtype
        self.bank = bank
        self._kept: OrderedDict[int, Scene] = OrderedDict()
        self._kept_for: Request | None = None

    def views(self, numbers: Sequence[int], first: Int64[np.ndarray, " b"], count: int) -> Views:
        """Tables of scenes for `count` frames from each one's `first`, and one frame before and behind these."""
        config = self.config
        scenes = sample_scenes(
            Counts(*config.things),
            self.seed,
            numbers,
            speed=config.speed,
            layers=config.layers,
            duration=config.frames / config.frame_rate,
        )
        frame = first[:, None] + np.arange(-1, count + 1) - (config.frames - 1) / 2
        return views_of(scenes, frame / config.frame_rate, self.dtype)

    @torch.no_grad()
    def clips(self, numbers: Sequence[int], request: Request) -> tuple[Clip, Predictions]:
        """The clips of these numbers; equal numbers give equal bits in any batch on one machine.

        Raises:
            ValueError: more frames than the videos have, or a crop larger than their pictures.
        """
        config = self.config
        if request.frames > config.frames:
            raise ValueError(
                f"clips of {request.frames} frames do not fit into videos of {config.frames}: set data.frames"
            )
        if request.crop is not None and request.crop > config.pixels:
            raise ValueError(f"a crop of {request.crop} pixels does not fit into {config.pixels}: set data.pixels")
        scenes = self._scenes([number // config.reuse for number in numbers], request)
        varied = vary(scenes, Draws(seed_for(self.seed, "variant"), numbers), reuse=config.reuse > 1)
        return truth_of(varied)

    def _scenes(self, scenes: Sequence[int], request: Request) -> Scene:
        """The scenes of a batch: those that are kept, and the others made together."""
        if self.config.reuse == 1:
            return self._made(scenes, request)
        if request != self._kept_for:
            self._kept.clear()
            self._kept_for = request
        missing = [scene for scene in dict.fromkeys(scenes) if scene not in self._kept]
        if missing:
            made = self._made(missing, request)
            self._kept.update((scene, made.part(i)) for i, scene in enumerate(missing))
        batch = Scene.stack([self._kept[scene] for scene in scenes])
        for scene in dict.fromkeys(scenes):
            self._kept.move_to_end(scene)
        limit = max(len(missing), self.config.cache_mb * 2**20 // max(batch.nbytes // len(scenes), 1))
        while len(self._kept) > limit:
            self._kept.popitem(last=False)
        return batch

    def _made(self, numbers: Sequence[int], request: Request) -> Scene:
        config, side = self.config, request.crop or self.config.pixels
        draws = Draws(seed_for(self.seed, "clip"), numbers)
        first = draws.integer(stop=config.frames - request.frames + 1)
        corner = torch.from_numpy(draws.integer(2, stop=config.pixels - side + 1)).to(request.device)
        views = self.views(numbers, first, request.frames).to(request.device)
        window = Window(corner, (side, side), config.pixels)
        frames = (torch.arange(request.frames, device=request.device) + 1).expand(len(numbers), -1)
        rendered = self.rendered(views, window, frames, (-1, 1) if config.reuse > 1 else (-1,))
        in_video = frames - 1 + torch.from_numpy(first).to(request.device)[:, None]
        colour = self.photographed(rendered, in_video, window, numbers)
        tracks = follow(views, window, frames, frames, request.tracks, draws) if request.tracks else None
        return Scene.of(rendered, colour, views, window, frames, tracks, in_video / config.frame_rate)

    def rendered(
        self,
        views: Views,
        window: Window,
        frames: Int64[Tensor, "b t"],
        directions: Sequence[int],
        pictures: bool = True,
    ) -> Rendered:
        """Some frames of scenes, before a camera has added anything."""
        bank = self.bank.to(frames.device) if pictures else None
        return render(views, window, frames, bank=bank, shading=self.config.shading, directions=directions)

    def photographed(
        self, rendered: Rendered, frames: Int64[Tensor, "b t"], window: Window, numbers: Sequence[int]
    ) -> Float[Tensor, "b t 3 h w"]:
        """The pictures as the data set shows them."""
        config = self.config
        assert rendered.colour is not None
        draws = Draws(seed_for(self.seed, "camera"), numbers)
        return photographed(
            rendered.colour, frames, window, draws, exposure=config.exposure, noise=config.noise, blur=config.blur
        )
