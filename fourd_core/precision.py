"""Where half precision would hurt: arithmetic in the tensors' own precision, whatever autocast says around it.

With `precision = "bf16"` networks run under autocast: their matrix products and convolutions round to bfloat16, which
has 8 bits, and all sums inside them are kept in float32. `KEPT` lists what is computed in float32 all the same, by
the core and by plugins, and why. Such a function brings its inputs to at least float32 and works in `own_precision`, or
without matrix products, which autocast does not touch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def own_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast is off for this device, the meta device included."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Kept(NamedTuple):
    """Something that stays in float32."""

    operation: str
    error: float
    """What bfloat16 would cost, at most, as measured on a CPU in the case of tests/test_precision.py."""
    of: str
    """What that is an error of."""


KEPT = {
    "ridge": Kept(
        "weighted ridge: Gram matrix, right side, factor and solution",
        0.053,
        "the linear map, relative (128 features, spectrum exp(-6i/d), ridge 0.01)",
    ),
    "soft_argmax": Kept(
        "soft-argmax of tracks, and the product that its maps come from",
        0.63,
        "positions, in pixels of 224",
    ),
    "losses": Kept(
        "losses: differences and sums",
        0.18,
        "the gradient, relative (a prediction within 0.01 of its target)",
    ),
    "poses": Kept(
        "camera poses, rays and points; similarities and alignments, which are float64",
        1.6,
        "projected points, in pixels of 224",
    ),
    "affinity": Kept(
        "weights of local averaging (PAMR)",
        0.35,
        "a weight; they add up to 1 (a guide with a contrast of 0.05)",
    ),
    "last_layer": Kept(
        "the last layer of decoders, which gives flow, log depth, logits and rays",
        0.25,
        "flow between 64 and 128 pixels, in pixels",
    ),
    "places": Kept(
        "encodings of query points and positions of tokens, before they are added to patches",
        0.15,
        "a query point's encoding, which lies within 1",
    ),
}
"""The operations that stay in float32 under autocast, with the measured reason."""
