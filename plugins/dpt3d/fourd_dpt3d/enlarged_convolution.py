"""A learned enlargement and the convolution behind it as one."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.rewrites import Rewrite
from fourd_dpt3d.convolution import Conv3x3x3

ENLARGED_CONVOLUTION = Rewrite(
    "enlargement and convolution in one",
    saves="On a CPU, without gradient: of L4P's heads for maps the finest level takes 0.7 instead of 1.7 s on one "
    "thread, the next 0.7 instead of 1.0 s, of 28 s in all; in l4p_tiny the finest 3.5 instead of 5.1 ms.",
)


def pays(x: Tensor, enlarge: nn.ConvTranspose3d) -> bool:
    """Whether `enlarged_convolution` is faster than the two layers one after the other, as far as is known.

    It is on a CPU, with 16 channels as with 512, where a voxel becomes eight or more (of two, it is slower). On CUDA
    nobody has measured it. And in training, where the kernels would be composed forward and backward, or in half
    precision, which would round them, the two layers stay two.
    """
    if not ENLARGED_CONVOLUTION.on or x.device.type != "cpu" or prod(enlarge.stride) < 8 or x.dtype.itemsize < 4:
        return False
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def enlarged_convolution(
    x: Float[Tensor, "b c t h w"], enlarge: nn.ConvTranspose3d, convolve: Conv3x3x3, count: int
) -> Float[Tensor, "b d n y x"]:
    """`convolve(enlarge(x), count)`, where `enlarge` has a stride as large as its kernel and `convolve` no bias.

    What one voxel of `x` becomes in the end is its enlargement, convolved: a kernel with one pixel more on every side.
    With it both layers are one transposed convolution, and the enlarged map, with its channels, never exists. The
    kernels are composed anew at each call, for the weights may have changed: a tenth of what is saved.
    """
    whole = [side * factor for side, factor in zip(x.shape[2:], enlarge.stride, strict=True)]
    kernel = F.conv3d(enlarge.weight, convolve.weight, padding=2)
    cells = x[:, :, : count // enlarge.stride[0] + 1]
    answer = F.conv_transpose3d(cells, kernel, stride=enlarge.stride, padding=1)[:, :, :count]
    return answer if enlarge.bias is None else answer + _constant(enlarge.bias, convolve, whole)[:, :, :count]


def _constant(bias: Float[Tensor, " c"], convolve: Conv3x3x3, size: list[int]) -> Float[Tensor, "1 d t h w"]:
    """A map of constant channels, convolved: the same everywhere but at the border, behind which there is nothing."""
    answer = convolve(bias.view(1, -1, 1, 1, 1).expand(-1, -1, *(min(side, 3) for side in size)))
    for axis, side in enumerate(size, start=2):
        index = torch.ones(side, dtype=torch.long, device=bias.device)
        index[0], index[-1] = 0, min(side, 3) - 1
        answer = answer.index_select(axis, index if side > 1 else index * 0)
    return answer
