"""Convolution over time and space, also of few channels on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SMALL = 20480
"""Channels x frames x rows up to which torch leaves a single clip to a form that is ten times slower than oneDNN's."""


class Conv3x3x3(nn.Conv3d):
    """Kernel 3, padding 1, stride 1; the numbers and the parameters are `nn.Conv3d`'s.

    On a CPU torch gives the convolution to oneDNN where it has much to do, or more than one clip. A single clip with
    few channels becomes two here: its earlier and its later frames, each with one frame more on either side. And in
    bfloat16 oneDNN's gradient of the weights is noise where two frames are padded by it (torch 2.13): so they are here.
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, x: Float[Tensor, "b c t h w"], count: int | None = None) -> Float[Tensor, "b d n h w"]:
        """The convolved clips.

        Args:
            count: their first frames alone. What follows these is read where the clip has it, and is padding where it
                has not: a clip that was cut must have one frame more than `count`.
        """
        b, c, t, h, _ = x.shape
        count = t if count is None else min(count, t)
        there = min(count + 1, t)
        noisy = there == 2 and (x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))
        slow = x.device.type == "cpu" and b == 1 and c * there * h <= SMALL
        if slow and not noisy:
            half = -(-count // 2)
            padded = F.pad(x[:, :, :there], (0, 0, 0, 0, 1, 1 + 2 * half - there))
            clips = torch.cat([padded[:, :, : half + 2], padded[:, :, half:]])
            earlier, later = F.conv3d(clips, self.weight, self.bias, padding=(0, 1, 1)).split(1)
            return torch.cat([earlier, later[:, :, : count - half]], 2)
        if count == t and not (noisy and x.device.type == "cpu"):
            return super().forward(x)
        padded = F.pad(x[:, :, :there], (0, 0, 0, 0, 1, 1 + count - there))
        return F.conv3d(padded, self.weight, self.bias, padding=(0, 1, 1))
