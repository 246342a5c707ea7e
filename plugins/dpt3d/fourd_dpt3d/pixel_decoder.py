"""LILA's pixel decoder: four taps of a backbone to features for every pixel, each frame by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, cast

import attrs
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourd_core.data import Clip, Maps, Tokens
from fourd_core.interfaces import BackboneSpec, Head, PretrainedWeights
from fourd_core.recipe import Location
from fourd_core.rewrites import Rewrite
from fourd_core.weights import load_weights, read_state_dict
from fourd_dpt3d.blocks import FeatureFusion, reassembly, resized

LEVELS = 4
FRUGAL_BACKWARD = Rewrite(
    "enlarged maps computed again",
    saves="In training on a CPU one map at full size is kept in place of three, and gradients exist of a few pictures "
    "at a time: LILA's decoder, forward and backward for 4 frames of 224 x 224, takes 690 instead of 810 MB, in "
    "the same 7.8 s on one thread.",
)
CHUNK_BYTES = 2**25
"""A map of the pictures that are finished together is as large or larger: what is smaller the C library does not give
back at once, but keeps in pieces that fit nothing else."""
OTHER_PARTS = ("pretrained.", "depth_net.", "flow.", "pamr.")
"""What LILA's training saves beside the decoder: encoder and teachers."""


class PixelDecoder(Head):
    """DPT decoder of LILA: pixel features from four taps of a backbone.

    The defaults fit DINOv2 ViT-S. The state dict has the names of LILA's files, `latent_head.*` and `fnorm.*`.
    Source: LILA paper, architecture; google-research/lila, dpt_lila.py (SmallDPTHead).
    """

    kind = "features"

    @attrs.frozen
    class Config:
        taps: tuple[int, int, int, int] = (2, 5, 8, 11)
        """The backbone's layers to read, shallow to deep; negative numbers count from the last."""
        features: int = 256
        """Channels inside the decoder, even; the prediction has half as many."""
        out_channels: tuple[int, int, int, int] = (48, 96, 192, 384)
        """Channels to which each tap is projected before it is reassembled."""
        reassemble: tuple[float, float, float, float] = (4.0, 2.0, 1.0, 0.5)
        """How each tap's map is resampled: a whole number enlarges, 0.5 halves, 1 keeps; all 1 for a pyramid."""
        weights: Location | None = None
        """A LILA checkpoint; none: the decoder starts at random."""

        def __attrs_post_init__(self) -> None:
            for name in ("taps", "out_channels", "reassemble"):
                if len(getattr(self, name)) != LEVELS:
                    raise ValueError(f"{name} must have {LEVELS} entries, got {len(getattr(self, name))}")
            if self.features < 2 or self.features % 2:
                raise ValueError(f"features must be a positive even number, got {self.features}")
            if min(self.out_channels) < 1:
                raise ValueError(f"out_channels must be positive, got {tuple(self.out_channels)}")

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.config = config
        self.taps = tuple(backbone.tap(number) for number in config.taps)
        self.channels = config.features // 2
        for tap in self.taps:
            if (frames := backbone.taps[tap].stride[0]) != 1:
                raise ValueError(f"the decoder needs one map per frame, and tap {tap} has one per {frames} frames")
        dims = [backbone.taps[tap].dim for tap in self.taps]
        self.latent_head = FusionDecoder(dims, config.out_channels, config.reassemble, config.features)
        # In LILA's training the norm's scale and shift belong to no optimiser: the read-out is linear and absorbs them.
        self.fnorm = nn.LayerNorm(self.channels, eps=1e-5).requires_grad_(False)

    @classmethod
    def example(cls) -> Any:
        """A narrow decoder."""
        return cls.Config(features=16, out_channels=(8, 8, 16, 16))

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        if self.config.weights is None:
            return None
        return PretrainedWeights(self.config.weights, licence="not stated by its publisher", source="LILA")

    def load_pretrained(self) -> None:
        """Read the decoder's part of the configured checkpoint.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another decoder's; says which settings it was made with.
        """
        if self.config.weights is None:
            return
        state = read_state_dict(self.config.weights)
        found = looks_like(state)
        advice = f"It is a decoder with {found}: set these, or take another file" if found else ""
        load_weights(self, state, location=self.config.weights, ignore_prefixes=OTHER_PARTS, advice=advice)

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """Features of every pixel, at the clip's own size, with mean 0 and variance 1 over the channels."""
        maps = [tokens[tap].as_maps() for tap in self.taps]
        b, t = maps[0].shape[:2]
        normed: Tensor = self.latent_head([m.flatten(0, 1) for m in maps], clip.size, self.fnorm)
        return Maps(normed.unflatten(0, (b, t)))


class FusionDecoder(nn.Module):
    """Four maps, shallow to deep, to one map of any size: `latent_head` of LILA's files, `depth_head` of others.

    Args:
        dims: channels of the four maps.
        out_channels: channels to which they are projected.
        reassemble: by how much each is resampled afterwards.
        features: channels of the fusion.
        hidden: channels between the last two convolutions; by default half of the fusion's.
        channels: of the answer; by default half of the fusion's.
    """

    def __init__(
        self, dims: Sequence[int], out_channels: Sequence[int], reassemble: Sequence[float], features: int,
        hidden: int | None = None, channels: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        half = features // 2
        hidden, self.channels = hidden or half, channels or half
        self.projects = nn.ModuleList([nn.Conv2d(dim, c, 1) for dim, c in zip(dims, out_channels, strict=True)])
        self.resize_layers = nn.ModuleList([reassembly(c, f) for c, f in zip(out_channels, reassemble, strict=True)])
        self.scratch = nn.ModuleDict(
            {f"layer{n}_rn": nn.Conv2d(c, features, 3, padding=1, bias=False) for n, c in enumerate(out_channels, 1)}
            | {f"refinenet{n}": FeatureFusion(features, deepest=n == LEVELS) for n in range(1, LEVELS + 1)}
            | {
                "output_conv1": nn.Conv2d(features, half, 3, padding=1),
                "output_conv2": nn.Sequential(
                    nn.Conv2d(half, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, self.channels, 1)
                ),
            }
        )

    def forward(
        self, maps: Sequence[Float[Tensor, "b _ _ _"]], size: tuple[int, int], norm: nn.Module | None = None
    ) -> Float[Tensor, "b d H W"]:
        """The decoded map at `size`, through `norm` of each pixel's channels where there is one."""
        levels = self.levels(maps)
        fused: Tensor | None = None
        for n in range(LEVELS, 1, -1):
            fused = self.scratch[f"refinenet{n}"](levels[n - 1], fused, levels[n - 2].shape[-2:])
        refined = cast(FeatureFusion, self.scratch["refinenet1"]).refined(levels[0], fused)
        norm = norm or nn.Identity()
        # A few pictures at a time: then large gradients, too, exist of a few at a time.
        each = self.channels * prod(size) * refined.element_size()
        count = -(-CHUNK_BYTES // each) if frugal_for(refined) else len(refined)
        parts = [self.finished(pictures, size, norm) for pictures in refined.split(count)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def finished(
        self, refined: Float[Tensor, "b c h w"], size: tuple[int, int], norm: nn.Module
    ) -> Float[Tensor, "b d H W"]:
        """All that is larger than the finest level: twice enlarged, a convolution behind each, and the norm."""
        block, convolve = cast(FeatureFusion, self.scratch["refinenet1"]), self.scratch["output_conv1"]
        hidden, activate, last = cast(nn.Sequential, self.scratch["output_conv2"])
        h, w = refined.shape[-2:]
        x = frugal(lambda x: convolve(block.enlarged(x, (2 * h, 2 * w))), refined)
        x = frugal(lambda x: hidden(resized(x, size)), x)
        # Channels lie innermost in memory all the way from the tokens, so that this permutation moves nothing.
        return frugal(lambda x: norm(last(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), activate(x))

    def levels(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Each map projected, reassembled and brought to the fusion's width."""
        layers = zip(maps, self.projects, self.resize_layers, strict=True)
        return [self.scratch[f"layer{n}_rn"](resize(project(x))) for n, (x, project, resize) in enumerate(layers, 1)]


def frugal_for(x: Tensor) -> bool:
    """Whether memory is saved: on a CPU. On CUDA nobody has measured it, and a compiler decides for itself."""
    return FRUGAL_BACKWARD.on and x.device.type == "cpu" and not torch.compiler.is_compiling()


def frugal(layers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layers(x)`, of which only `x` is kept for the backward pass, which computes the rest again.

    Where the last layer is a convolution it is not computed again: the backward pass needs its input alone.
    """
    if not frugal_for(x) or not torch.is_grad_enabled():
        return layers(x)
    answer: Tensor = checkpoint(layers, x, use_reentrant=False, preserve_rng_state=False)
    return answer


def looks_like(state: Mapping[str, Tensor]) -> str | None:
    """The settings of the decoder that a LILA checkpoint holds, or None where it seems to hold none."""
    keys = ["latent_head.scratch.output_conv1.weight"] + [f"latent_head.projects.{n}.weight" for n in range(LEVELS)]
    if any(key not in state for key in keys):
        return None
    out_channels = [state[key].shape[0] for key in keys[1:]]
    return f"features = {state[keys[0]].shape[1]}, out_channels = {out_channels}"
