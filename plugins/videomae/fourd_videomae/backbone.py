"""VideoMAEv2 as a backbone of fourd: sizes, normalisation, taps and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.data import Grid, TokenMap, Tokens
from fourd_core.interfaces import Backbone, BackboneSpec, PretrainedWeights, TapSpec
from fourd_core.kernels.attention import Backend, check_backend
from fourd_core.recipe import Location
from fourd_core.weights import load_weights, read_state_dict
from fourd_videomae.checkpoints import looks_like, to_official
from fourd_videomae.network import VisionTransformer
from fourd_videomae.sizes import SIZES, Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoMAE(Backbone):
    """VideoMAEv2 video transformer (ViT-S/B/L/H/g); tap n is the output of block n - 1, tap 0 the embedded patches.

    A token stands for a block of frames, rows and columns, and sees the whole clip. The last tap alone is after the
    network's final LayerNorm.
    Source: Wang et al., VideoMAE V2 (arXiv 2303.16727); as L4P uses it: Badki et al., L4P (arXiv 2502.13078).
    """

    @attrs.frozen
    class Config:
        variant: Literal["tiny", "s", "b", "l", "h", "g"] = "s"
        """The published size: patches of 2 x 16 x 16, and of 2 x 14 x 14 for g."""
        weights: Location | None = None
        """A checkpoint with the names of VideoMAE, VideoMAEv2, L4P or transformers; none: random weights."""
        checkpointing: bool = False
        """Save memory in training: keep only the blocks' inputs and compute the rest again for the gradients."""
        size: Size | None = None
        """A size of one's own instead of a published one."""
        attention: Backend = "auto"
        """Who computes attention: torch ("sdpa"), xformers (with CUDA only), or the faster of the two where that was
        measured ("auto")."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size = config.size or SIZES[config.variant]
        check_backend(config.attention, size.embed_dim // size.heads)
        self.network = VisionTransformer(size, config.checkpointing, config.attention)
        self.spec = BackboneSpec(
            taps=(TapSpec(size.embed_dim, size.patch),) * (size.depth + 1),
            multiple=size.patch,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            window=(16, 8),
        )

    @classmethod
    def example(cls) -> Any:
        """Three narrow blocks."""
        return cls.Config(size=Size(embed_dim=32, depth=3, heads=2, patch=(2, 8, 8)))

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        if self.config.weights is None:
            return None
        licence = "its publisher's, often for non-commercial use only: see fourd-plugin-videomae's README"
        return PretrainedWeights(self.config.weights, licence=licence, source="VideoMAE, VideoMAEv2 or L4P")

    def load_pretrained(self) -> None:
        """Read the configured checkpoint under whichever known naming it has.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's; says which size it looks like.
        """
        if self.config.weights is None:
            return
        state = to_official(read_state_dict(self.config.weights))
        found = looks_like(state)
        advice = f"It looks like {found}: correct variant or size, or take another file" if found else ""
        load_weights(self.network, state, location=self.config.weights, advice=advice)

    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int]) -> Tokens:
        """Tokens of the asked taps, on a grid of one per patch.

        Raises:
            ValueError: a size that is not divisible by the patch.
        """
        self.spec.check(frames)
        _, t, _, h, w = frames.shape
        time, rows, columns = self.spec.multiple
        grid = Grid(t // time, h // rows, w // columns)
        layers = self.network(self.normalise(frames), taps)
        return Tokens({tap: TokenMap(values, grid) for tap, values in layers.items()})

    def last_blocks(self, count: int) -> Sequence[nn.Module]:
        """The deepest blocks and the final norm; L4P's second stage trains three.

        Raises:
            ValueError: it has fewer blocks.
        """
        blocks = self.network.blocks
        if count > len(blocks):
            raise ValueError(f"the backbone has {len(blocks)} blocks, not {count}")
        return [*blocks[len(blocks) - count :], self.network.norm]

    def normalise(self, frames: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
        """From [0, 1] to the network's own input range."""
        mean = frames.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = frames.new_tensor(IMAGENET_STD)[:, None, None]
        return (frames - mean) / std
