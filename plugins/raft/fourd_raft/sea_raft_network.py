"""The SEA-RAFT network with the module names of the official checkpoints.

Source: Wang, Lipson and Deng, SEA-RAFT: Simple, Efficient, Accurate RAFT for Optical Flow (arXiv 2405.14793);
reference: princeton-vl/SEA-RAFT, core/raft.py, core/extractor.py, core/update.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_raft.correlation import VOLUME_LIMIT, Correlation, Storage
from fourd_raft.flow_network import Estimate, FlowNetwork, FrozenBatchNorm, grid
from fourd_raft.upsampling import STRIDE, convex

Variant = Literal["s", "m", "l"]
NORM_EPS = 1e-6
OUTPUTS = 6
"""Of the flow head: the flow, then for the two Laplace distributions of its error their weights (before a softmax) and
their log scales (before they are limited to 0 .. 10 for the first and to 0 for the second)."""


@attrs.frozen
class Size:
    """The shape of a SEA-RAFT network; all its other widths follow from `dim`."""

    stem: int = 64
    """Channels of the encoders' first convolution."""
    stages: tuple[int, int, int] = (64, 128, 256)
    """Channels of the encoders' three stages."""
    blocks: tuple[int, int, int] = (3, 4, 6)
    """Residual blocks of each stage."""
    dim: int = 128
    """Channels of the hidden state and of the context; features have twice as many."""
    refinements: int = 2
    """ConvNeXt blocks of an iteration."""
    levels: int = 4
    """Levels of correlation, each of half the size of the one before it."""
    radius: int = 4
    """Of the window in which correlations are read."""

    def __attrs_post_init__(self) -> None:
        if min(self.stem, *self.stages, *self.blocks, self.refinements, self.levels) < 1 or self.radius < 0:
            raise ValueError("widths, blocks, refinements and levels must be positive, and the radius not negative")
        if self.dim < 4 or self.dim % 2:
            raise ValueError("dim must be even and at least 4")


SIZES: dict[Variant, Size] = {"s": Size(blocks=(2, 2, 2)), "m": Size(), "l": Size()}
"""The published networks: the encoders of S are ResNet-18's, those of M ResNet-34's; L is M run for longer."""
ITERATIONS: dict[Variant, int] = {"s": 4, "m": 4, "l": 12}
"""How often the reference's configurations for evaluation (config/eval/*.json) iterate."""


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut; the norm of a shortcut that changes size has two names, as in the files."""

    def __init__(self, channels: int, width: int, stride: int, batch_statistics: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = FrozenBatchNorm(width, batch_statistics)
        self.bn2 = FrozenBatchNorm(width, batch_statistics)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.bn3 = FrozenBatchNorm(width, batch_statistics)
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride), self.bn3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Maps of the block's width; unlike in a ResNet the second convolution has a ReLU of its own."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.downsample(x) + y)


class Encoder(nn.Module):
    """The beginning of a ResNet, without its pooling: maps at an eighth of the frames' size."""

    def __init__(self, channels: int, size: Size, batch_statistics: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, size.stem, 7, stride=2, padding=3)
        self.bn1 = FrozenBatchNorm(size.stem, batch_statistics)
        widths = (size.stem, *size.stages)
        stages = []
        for number, count in enumerate(size.blocks):
            before, width = widths[number : number + 2]
            blocks = [BasicBlock(before, width, 2 if number else 1, batch_statistics)]
            blocks += [BasicBlock(width, width, 1, batch_statistics) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.final_conv = nn.Conv2d(size.stages[-1], 2 * size.dim, 1)

    def forward(self, frames: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b d h w"]:
        """Maps with one place per 8 x 8 pixels."""
        x = F.relu(self.bn1(self.conv1(frames)))
        maps: Tensor = self.final_conv(self.layer3(self.layer2(self.layer1(x))))
        return maps


class MotionEncoder(nn.Module):
    """Correlations and flow to what the update is told of the motion; the flow itself comes last."""

    def __init__(self, window: int, dim: int) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(window, 2 * dim, 1)
        self.convc2 = nn.Conv2d(2 * dim, dim + dim // 2, 3, padding=1)
        self.convf1 = nn.Conv2d(2, dim, 7, padding=3)
        self.convf2 = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.conv = nn.Conv2d(2 * dim, dim - 2, 3, padding=1)

    def forward(
        self, flow: Float[Tensor, "b 2 h w"], correlation: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The motion channels."""
        matches = F.relu(self.convc2(F.relu(self.convc1(correlation))))
        steps = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([matches, steps], dim=1))), flow], dim=1)


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block whose result is projected to the width of the hidden state."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.final = nn.Conv2d(channels, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Maps of the hidden state's width."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        out: Tensor = self.final(x + y.permute(0, 3, 1, 2))
        return out


class UpdateBlock(nn.Module):
    """What is repeated: the motion encoder and the ConvNeXt blocks, each of which replaces the hidden state."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.encoder = MotionEncoder(size.levels * (2 * size.radius + 1) ** 2, size.dim)
        self.refine = nn.ModuleList([ConvNeXtBlock(3 * size.dim, size.dim) for _ in range(size.refinements)])

    def forward(
        self, hidden: Float[Tensor, "b d h w"], context: Float[Tensor, "b d h w"],
        correlation: Float[Tensor, "b k h w"], flow: Float[Tensor, "b 2 h w"],
    ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        """The next hidden state."""
        inputs = torch.cat([context, self.encoder(flow, correlation)], dim=1)
        for block in self.refine:
            hidden = block(torch.cat([hidden, inputs], dim=1))
        return hidden


class SEARAFTNetwork(FlowNetwork):
    """SEA-RAFT; `forward` gives the flow that the context alone suggests, then one per iteration.

    Each has six channels: the flow and the mixture of two Laplace distributions of its error (see `OUTPUTS`).

    Args:
        size: widths, levels and radius.
        batch_statistics: normalise by the statistics of each call's frames, see `FrozenBatchNorm`; the features of the
            first and of the second frames are then normalised apart in `forward`, together in `both_ways`. Of both
            directions at once the two are the same, since both sets hold the same frames.
    """

    def __init__(
        self, size: Size, batch_statistics: bool = False, storage: Storage = "auto", volume_limit: int = VOLUME_LIMIT
    ) -> None:
        super().__init__(size.levels, size.radius, storage, volume_limit)
        dim = size.dim
        self.cnet = Encoder(6, size, batch_statistics)
        self.init_conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1)
        self.upsample_weight = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * dim, 9 * STRIDE**2, 1)
        )
        self.flow_head = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * dim, OUTPUTS, 3, padding=1)
        )
        self.fnet = Encoder(3, size, batch_statistics)
        self.update_block = UpdateBlock(size)

    def estimates(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"], correlation: Correlation,
        iterations: int,
    ) -> Iterator[Estimate]:  # fmt: skip
        """The flow before the first and after each of the iterations."""
        hidden, context = self.init_conv(self.cnet(torch.cat([first, second], dim=1))).chunk(2, dim=1)
        start = grid(hidden)
        flow, mixture = self.flow_head(hidden).tensor_split([2], dim=1)
        yield Estimate(flow, mixture, hidden)
        for _ in range(iterations):
            hidden = self.update_block(hidden, context, correlation(start + flow), flow)
            step, mixture = self.flow_head(hidden).tensor_split([2], dim=1)
            flow = flow + step
            yield Estimate(flow, mixture, hidden)

    def upsample(self, maps: Float[Tensor, "b c h w"], hidden: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h8 w8"]:
        """A convex mixture by weights that are made from the hidden state."""
        return convex(maps, 0.25 * self.upsample_weight(hidden))
