"""DINOv2 as a backbone of fourd: sizes, normalisation, and time folded into the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Grid, TokenMap, Tokens
from fourd_core.interfaces import Backbone, BackboneSpec, PretrainedWeights, TapSpec
from fourd_core.kernels.attention import Backend, check_backend
from fourd_core.recipe import Location
from fourd_core.weights import load_weights, read_state_dict
from fourd_dinov2.checkpoints import looks_like, to_official
from fourd_dinov2.network import PATCH, FeedForward, VisionTransformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@attrs.frozen
class Size:
    """The shape of a vision transformer with patches of 14 x 14 pixels."""

    embed_dim: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; they divide the channels among them."""
    image_size: int = 518
    """Side in pixels of the square images that the position table was made for."""
    ffn: FeedForward = "mlp"
    """The feed-forward of a block: "swiglu" in ViT-g, "mlp" in the others."""

    def __attrs_post_init__(self) -> None:
        if min(self.embed_dim, self.depth, self.heads) < 1 or self.embed_dim % self.heads:
            raise ValueError("embed_dim, depth and heads must be positive, and embed_dim divisible by heads")
        if self.image_size < PATCH or self.image_size % PATCH:
            raise ValueError(f"image_size must be a multiple of {PATCH}")


SIZES = {"s": Size(384, 12, 6), "b": Size(768, 12, 12), "l": Size(1024, 24, 16), "g": Size(1536, 40, 24, ffn="swiglu")}


class DinoV2(Backbone):
    """DINOv2 vision transformer (ViT-S/B/L/g, patch 14); tap n is the output of block n.

    Tokens lie on the centres of their patches. Each frame is seen by itself: time is folded into the batch.
    Source: Oquab et al., DINOv2 (arXiv 2304.07193); Darcet et al., registers (arXiv 2309.16588).
    """

    @attrs.frozen
    class Config:
        variant: Literal["s", "b", "l", "g"] = "s"
        """The published size."""
        registers: bool = False
        """Whether the network has four register tokens."""
        weights: Location | None = None
        """A checkpoint with official, timm or transformers names; none: random weights."""
        norm: bool = True
        """Apply the final LayerNorm to the tokens of every tap."""
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
        self.network = VisionTransformer(
            size.embed_dim, size.depth, size.heads, size.image_size, size.ffn, config.registers, config.attention
        )
        self.spec = BackboneSpec(
            taps=(TapSpec(size.embed_dim, (1, PATCH, PATCH)),) * size.depth,
            multiple=(1, PATCH, PATCH),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    @classmethod
    def example(cls) -> Any:
        """Four narrow blocks."""
        return cls.Config(size=Size(embed_dim=32, depth=4, heads=2, image_size=70))

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        if self.config.weights is None:
            return None
        return PretrainedWeights(self.config.weights, licence="Apache-2.0", source="DINOv2, Meta AI")

    def load_pretrained(self) -> None:
        """Read the configured checkpoint under whichever known naming it has.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's; says which DINOv2 it looks like.
        """
        if self.config.weights is None:
            return
        state = to_official(read_state_dict(self.config.weights))
        found = looks_like(state)
        advice = f"It looks like DINOv2 with {found}: set these, or take another file" if found else ""
        load_weights(self.network, state, location=self.config.weights, optional=["mask_token"], advice=advice)

    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int]) -> Tokens:
        """Patch tokens of the asked blocks, one grid of `h / 14 x w / 14` per frame.

        Raises:
            ValueError: a side that is not divisible by 14.
        """
        b, t, _, h, w = frames.shape
        self.spec.check(frames)
        grid = Grid(t, h // PATCH, w // PATCH)
        layers = self.network(self.normalise(frames).flatten(0, 1), taps, norm=self.config.norm)
        patches = {tap: output.patches.unflatten(0, (b, t)).flatten(1, 2) for tap, output in layers.items()}
        return Tokens({tap: TokenMap(values, grid) for tap, values in patches.items()})

    def normalise(self, frames: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
        """From [0, 1] to the network's own input range."""
        mean = frames.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = frames.new_tensor(IMAGENET_STD)[:, None, None]
        return (frames - mean) / std
