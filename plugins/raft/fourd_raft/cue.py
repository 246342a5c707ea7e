"""RAFT and SEA-RAFT as cues: optical flow between the two frames of a clip, both ways at once."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from torch import nn

from fourd_core.data import Clip, CueMaps
from fourd_core.interfaces import CueProvider, PretrainedWeights
from fourd_core.precision import own_precision
from fourd_core.recipe import Location
from fourd_core.weights import load_weights, read_state_dict
from fourd_raft import raft_network, sea_raft_network
from fourd_raft.checkpoints import State, looks_like, to_raft, to_sea_raft
from fourd_raft.correlation import VOLUME_LIMIT, Storage
from fourd_raft.flow_network import FlowNetwork
from fourd_raft.raft_network import RAFTNetwork
from fourd_raft.sea_raft_network import SEARAFTNetwork

LICENCE = "BSD-3-Clause is the code's; see `fourd weights show NAME` for what is known of the weights'"


class _NetworkFlow(nn.Module, CueProvider):
    """What the two components share; the arithmetic is that of the network's own precision, float32."""

    kind = "flow"
    network: FlowNetwork
    weights: Location | None
    iterations: int
    source: str

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        return None if self.weights is None else PretrainedWeights(self.weights, LICENCE, self.source)

    def check_size(self, size: tuple[int, int]) -> None:
        """As `FlowNetwork.check`."""
        self.network.check(size)

    def forward(self, clip: Clip) -> CueMaps:
        """Flow of every frame to the other one, in pixels of the clip: `b 2 2 h w`.

        Raises:
            ValueError: a clip that has not two frames, or frames that are too small (see `FlowNetwork.check`).
        """
        if clip.frames.shape[1] != 2:
            raise ValueError(f"flow needs clips of 2 frames, got {clip.frames.shape[1]}")
        kind = next(self.network.parameters()).dtype
        with torch.no_grad(), own_precision(clip.frames.device):
            return CueMaps(self.network.both_ways(clip.frames.to(kind), self.iterations), "flow")

    def _load(self, state: State) -> None:
        assert self.weights is not None
        found = looks_like(state)
        advice = f"It looks like {found}: write that, or take another file" if found else ""
        load_weights(self.network, state, location=self.weights, advice=advice)


class RAFT(_NetworkFlow):
    """RAFT optical flow between the two frames of a clip, forward and backward.

    Source: Teed and Deng, RAFT: Recurrent All-Pairs Field Transforms for Optical Flow (arXiv 2003.12039).
    """

    source = "Teed and Deng, RAFT, ECCV 2020; torchvision"

    @attrs.frozen
    class Config:
        """Which network, how often it iterates, and how it keeps correlations."""

        variant: Literal["large", "small"] = "large"
        """The published network."""
        iterations: int = attrs.field(default=12, validator=attrs.validators.ge(1))
        """Steps of refinement; LILA's predecessor FlowFeat took 20."""
        weights: Location | None = None
        """A checkpoint with the authors' or torchvision's names; none: random weights."""
        correlation: Storage = "auto"
        """Keep all correlations (volume), or compute those that are read (on_the_fly); auto: see `volume_limit`."""
        volume_limit: int = attrs.field(default=VOLUME_LIMIT, validator=attrs.validators.ge(0))
        """Bytes of all correlations of a batch, up to which "auto" keeps them."""
        size: raft_network.Size | None = None
        """Widths of one's own instead of the published ones; the variant still says which layers there are."""

        def __attrs_post_init__(self) -> None:
            layers = 2 if self.variant == "large" else 1
            if self.size is not None and len(self.size.correlation) != layers:
                raise ValueError(f"size.correlation: the {self.variant} network has {layers} such layers")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.weights, self.iterations = config.weights, config.iterations
        size = config.size or raft_network.SIZES[config.variant]
        self.network = RAFTNetwork(size, config.variant, config.correlation, config.volume_limit)

    @classmethod
    def example(cls) -> Any:
        """Narrow layers, two levels."""
        size = raft_network.Size(
            features=(8, 8, 8, 8, 8), context=(8, 8, 8, 8, 16), correlation=(8, 8), flow=(8, 8), motion=8, hidden=8,
            flow_head=8, mask=8, levels=2, radius=2,
        )  # fmt: skip
        return cls.Config(iterations=2, size=size)

    def load_pretrained(self) -> None:
        """Read the configured checkpoint under whichever known naming it has.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's; says which one it looks like.
        """
        if self.weights is not None:
            self._load(to_raft(read_state_dict(self.weights)))


class SEARAFT(_NetworkFlow):
    """SEA-RAFT optical flow between the two frames of a clip, forward and backward.

    Source: Wang, Lipson and Deng, SEA-RAFT: Simple, Efficient, Accurate RAFT for Optical Flow (arXiv 2405.14793).
    """

    source = "Wang, Lipson and Deng, SEA-RAFT, ECCV 2024"

    @attrs.frozen
    class Config:
        """Which network, how often it iterates, and how it normalises and keeps correlations."""

        variant: Literal["s", "m", "l"] = "m"
        """The published network; l has the layers and weights of m."""
        iterations: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
        """Steps of refinement; by default the reference's: 4, and 12 of variant l."""
        weights: Location | None = None
        """A checkpoint with the authors' names; none: random weights."""
        batch_statistics: bool = False
        """Normalise by mean and variance of the frames of each call, as LILA's training does, whose flow network is
        left in training mode; here the collected statistics stay as they are. A clip's flow then depends on the clips
        that stand beside it in the batch."""
        correlation: Storage = "auto"
        """Keep all correlations (volume), or compute those that are read (on_the_fly); auto: see `volume_limit`."""
        volume_limit: int = attrs.field(default=VOLUME_LIMIT, validator=attrs.validators.ge(0))
        """Bytes of all correlations of a batch, up to which "auto" keeps them."""
        size: sea_raft_network.Size | None = None
        """A shape of one's own instead of a published one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.weights = config.weights
        chosen = config.iterations
        self.iterations = sea_raft_network.ITERATIONS[config.variant] if chosen is None else chosen
        size = config.size or sea_raft_network.SIZES[config.variant]
        self.each_clip_alone = not config.batch_statistics
        self.network = SEARAFTNetwork(size, config.batch_statistics, config.correlation, config.volume_limit)

    @classmethod
    def example(cls) -> Any:
        """Narrow layers, two levels."""
        size = sea_raft_network.Size(
            stem=8, stages=(8, 8, 8), blocks=(1, 1, 1), dim=8, refinements=1, levels=2, radius=2
        )
        return cls.Config(iterations=2, size=size)

    def load_pretrained(self) -> None:
        """Read the configured checkpoint.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's; says which one it looks like.
        """
        if self.weights is not None:
            self._load(to_sea_raft(read_state_dict(self.weights)))
