"""For tests of stages: a backbone in three blocks with a number that only training changes; data that names no root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn
from toy_fourd import PATCH, Patches

from fourd_core.data import TokenMap, Tokens
from fourd_core.interfaces import BackboneSpec, Dataset, Split, TapSpec, Video
from fourd_core.media.dataset import VideoFiles
from fourd_core.recipe import Location
from fourd_core.registry import API_VERSION

ENTRY_POINTS = f"""
[fourd.plugin]
api.{API_VERSION} = learn_parts

[fourd.backbones]
blocks = learn_parts:Blocks

[fourd.datasets]
tree = learn_parts:Tree
"""


def install(folder: Path) -> None:
    """Let whoever has `folder` in its path find this plugin."""
    info = folder / "learn_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: learn-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


class Blocks(Patches):
    """The mean colours of patches, then three residual blocks (a tap each) and a norm on the last."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.norm = nn.LayerNorm(3)
        self.register_buffer("trained_on", torch.zeros((), dtype=torch.int64))
        colours = (0.5, 0.5, 0.5)
        self.spec = BackboneSpec((TapSpec(3, (1, PATCH, PATCH)),) * 3, (1, PATCH, PATCH), colours, colours)

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        """Counts the samples that it sees in training mode."""
        if self.training:
            self.trained_on += len(frames)
        first = super().forward(frames, [0])[0]
        values, layers = first.values, {}
        for number, block in enumerate(self.blocks):
            values = values + torch.tanh(block(values))
            layers[number] = self.norm(values) if number == 2 else values
        return Tokens({tap: TokenMap(layers[tap], first.grid) for tap in taps})

    def last_blocks(self, count: int) -> Sequence[nn.Module]:
        """The deepest, and the norm."""
        if count > len(self.blocks):
            raise ValueError(f"the backbone has 3 blocks, not {count}")
        return [*self.blocks[-count:], self.norm]


class Tree(Dataset):
    """All videos below a folder, the last half of them held out."""

    @attrs.frozen
    class Config:
        """Where they are."""

        root: Location | None = None
        """The folder."""

    def __init__(self, config: Config) -> None:
        self.files = VideoFiles(VideoFiles.Config(root=config.root, held_out=0.5))

    def videos(self, split: Split) -> Sequence[Video]:
        """As they come split."""
        return self.files.videos(split)
