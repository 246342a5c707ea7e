"""The RAFT networks, large and small, with the module names of the official checkpoints.

Source: Teed and Deng, RAFT: Recurrent All-Pairs Field Transforms for Optical Flow (arXiv 2003.12039); reference:
princeton-vl/RAFT, core/raft.py, core/extractor.py, core/update.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_raft.correlation import VOLUME_LIMIT, Correlation, Storage
from fourd_raft.flow_network import Estimate, FlowNetwork, FrozenBatchNorm, grid
from fourd_raft.upsampling import STRIDE, bilinear, convex

Variant = Literal["large", "small"]


@attrs.frozen
class Size:
    """The widths of a RAFT network; which layers it is made of is the variant's business."""

    features: tuple[int, int, int, int, int] = (64, 64, 96, 128, 256)
    """Of the features that are correlated: channels of the stem, of three stages, and of the result."""
    context: tuple[int, int, int, int, int] = (64, 64, 96, 128, 256)
    """The same of the context encoder, whose result is split into the hidden state and the context."""
    correlation: tuple[int, ...] = (256, 192)
    """Of the motion encoder: channels of its layers for correlations, two in the large network, one in the small."""
    flow: tuple[int, int] = (128, 64)
    """Of the motion encoder: channels of its layers for the flow."""
    motion: int = 128
    """Channels that the motion encoder hands on, the flow's two among them."""
    hidden: int = 128
    """Channels of the hidden state."""
    flow_head: int = 256
    """Channels inside the head that turns the hidden state into a step of the flow."""
    mask: int = 256
    """Channels inside the head that makes the weights of the upsampling; the small network has none."""
    levels: int = 4
    """Levels of correlation, each of half the size of the one before it."""
    radius: int = 4
    """Of the window in which correlations are read."""

    def __attrs_post_init__(self) -> None:
        widths = (*self.features, *self.context, *self.correlation, *self.flow, self.hidden, self.flow_head, self.mask)
        if min(widths) < 1 or self.levels < 1 or self.radius < 0:
            raise ValueError("widths and levels must be positive, and the radius not negative")
        if self.features[0] != self.features[1] or self.context[0] != self.context[1]:
            raise ValueError("the stem and the first stage of an encoder must have the same width")
        if self.context[-1] <= self.hidden:
            raise ValueError("context must end in more channels than hidden: what is left over is the context")
        if self.motion <= 2:
            raise ValueError("motion must be more than 2: the flow's two channels are among them")


SIZES: dict[Variant, Size] = {
    "large": Size(),
    "small": Size(
        features=(32, 32, 64, 96, 128), context=(32, 32, 64, 96, 160), correlation=(96,), flow=(64, 32), motion=82,
        hidden=96, flow_head=128, radius=3,
    ),
}  # fmt: skip
"""The published networks."""

Norm = Callable[[int], nn.Module]


class Residual(nn.Module):
    """Two convolutions beside a shortcut; the norm of a shortcut that changes size has two names, as in the files."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.norm3 = norm(width)
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride), self.norm3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Maps of the block's width, as large as its stride leaves them."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.downsample(x) + y)


class Bottleneck(nn.Module):
    """The small network's block: three convolutions, a quarter as wide inside."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        inside = width // 4
        self.conv1 = nn.Conv2d(channels, inside, 1)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, padding=1)
        self.conv3 = nn.Conv2d(inside, width, 1)
        self.norm1, self.norm2, self.norm3 = norm(inside), norm(inside), norm(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.norm4 = norm(width)
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride), self.norm4)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Maps of the block's width, as large as its stride leaves them."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = F.relu(self.norm3(self.conv3(y)))
        return F.relu(self.downsample(x) + y)


class Encoder(nn.Module):
    """Frames to maps at an eighth of their size: a stem, three stages of two blocks, and a last convolution."""

    def __init__(
        self, widths: tuple[int, int, int, int, int], block: type[Residual] | type[Bottleneck], norm: Norm
    ) -> None:
        super().__init__()
        stem, one, two, three, result = widths
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3)
        self.norm1 = norm(stem)
        self.layer1 = nn.Sequential(block(stem, one, 1, norm), block(one, one, 1, norm))
        self.layer2 = nn.Sequential(block(one, two, 2, norm), block(two, two, 1, norm))
        self.layer3 = nn.Sequential(block(two, three, 2, norm), block(three, three, 1, norm))
        self.conv2 = nn.Conv2d(three, result, 1)

    def forward(self, frames: Float[Tensor, "b 3 h8 w8"]) -> Float[Tensor, "b c h w"]:
        """Maps with one place per 8 x 8 pixels."""
        x = F.relu(self.norm1(self.conv1(frames)))
        maps: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return maps


class MotionEncoder(nn.Module):
    """Correlations and flow to what the update is told of the motion; the flow itself comes last."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        window = size.levels * (2 * size.radius + 1) ** 2
        self.convc1 = nn.Conv2d(window, size.correlation[0], 1)
        if len(size.correlation) == 2:
            self.convc2 = nn.Conv2d(*size.correlation, 3, padding=1)
        self.convf1 = nn.Conv2d(2, size.flow[0], 7, padding=3)
        self.convf2 = nn.Conv2d(*size.flow, 3, padding=1)
        self.conv = nn.Conv2d(size.correlation[-1] + size.flow[-1], size.motion - 2, 3, padding=1)

    def forward(
        self, flow: Float[Tensor, "b 2 h w"], correlation: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The motion channels."""
        matches = F.relu(self.convc1(correlation))
        if hasattr(self, "convc2"):
            matches = F.relu(self.convc2(matches))
        steps = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([matches, steps], dim=1))), flow], dim=1)


class ConvGRU(nn.Module):
    """A gated recurrent unit of convolutions: one of 3 x 3 (small), or one along rows and one along columns (large)."""

    def __init__(self, hidden: int, inputs: int, separable: bool) -> None:
        super().__init__()
        self.names = ("1", "2") if separable else ("",)
        kernels = ((1, 5), (5, 1)) if separable else ((3, 3),)
        for name, (rows, columns) in zip(self.names, kernels, strict=True):
            for gate in ("convz", "convr", "convq"):
                conv = nn.Conv2d(hidden + inputs, hidden, (rows, columns), padding=(rows // 2, columns // 2))
                self.add_module(gate + name, conv)

    def forward(self, hidden: Float[Tensor, "b d h w"], inputs: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The next hidden state."""
        for name in self.names:
            update, reset, candidate = (self.get_submodule(gate + name) for gate in ("convz", "convr", "convq"))
            both = torch.cat([hidden, inputs], dim=1)
            z, r = update(both).sigmoid(), reset(both).sigmoid()
            q = candidate(torch.cat([r * hidden, inputs], dim=1)).tanh()
            hidden = (1 - z) * hidden + z * q
        return hidden


class FlowHead(nn.Module):
    """The hidden state to a step of the flow, in places."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 2 h w"]:
        """The step (x, y)."""
        step: Tensor = self.conv2(F.relu(self.conv1(hidden)))
        return step


class UpdateBlock(nn.Module):
    """What is repeated: the motion encoder, the recurrent unit, the flow head and, in the large network, the mask."""

    def __init__(self, size: Size, large: bool) -> None:
        super().__init__()
        self.encoder = MotionEncoder(size)
        self.gru = ConvGRU(size.hidden, size.context[-1] - size.hidden + size.motion, separable=large)
        self.flow_head = FlowHead(size.hidden, size.flow_head)
        self.mask: nn.Module | None = None
        if large:
            self.mask = nn.Sequential(
                nn.Conv2d(size.hidden, size.mask, 3, padding=1), nn.ReLU(), nn.Conv2d(size.mask, 9 * STRIDE**2, 1)
            )

    def forward(
        self, hidden: Float[Tensor, "b d h w"], context: Float[Tensor, "b c h w"],
        correlation: Float[Tensor, "b k h w"], flow: Float[Tensor, "b 2 h w"],
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b 2 h w"]]:  # fmt: skip
        """The next hidden state and a step of the flow."""
        hidden = self.gru(hidden, torch.cat([context, self.encoder(flow, correlation)], dim=1))
        return hidden, self.flow_head(hidden)


class RAFTNetwork(FlowNetwork):
    """RAFT; `forward` gives one flow per iteration.

    Args:
        size: widths, levels and radius.
        variant: which layers: "large" has residual blocks, batch normalisation in its context encoder, a separable
            recurrent unit and convex upsampling; "small" has bottlenecks, no norm there, a plain unit and bilinear
            upsampling. Both normalise the correlated features by instance.
    """

    def __init__(
        self, size: Size, variant: Variant, storage: Storage = "auto", volume_limit: int = VOLUME_LIMIT
    ) -> None:
        super().__init__(size.levels, size.radius, storage, volume_limit)
        large = variant == "large"
        block = Residual if large else Bottleneck
        self.hidden = size.hidden
        self.fnet = Encoder(size.features, block, nn.InstanceNorm2d)
        self.cnet = Encoder(size.context, block, FrozenBatchNorm if large else nn.Identity)
        self.update_block = UpdateBlock(size, large)

    def estimates(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"], correlation: Correlation,
        iterations: int,
    ) -> Iterator[Estimate]:  # fmt: skip
        """The flow after each of the iterations; it starts from zero."""
        state = self.cnet(first)
        hidden, context = state[:, : self.hidden].tanh(), state[:, self.hidden :].relu()
        start = grid(state)
        # The end points are kept, not the flow: sums in the order of the reference are rounded like its own.
        end = start.expand(len(state), -1, -1, -1)
        for _ in range(iterations):
            hidden, step = self.update_block(hidden, context, correlation(end), end - start)
            end = end + step
            yield Estimate(end - start, state[:, :0], hidden)

    def upsample(self, maps: Float[Tensor, "b c h w"], hidden: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h8 w8"]:
        """A convex mixture by the large network's weights; bilinear in the small one."""
        if self.update_block.mask is None:
            return bilinear(maps)
        return convex(maps, 0.25 * self.update_block.mask(hidden))
