"""What teachers said before training, as part of a sample: one entry per tensor of a cue."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from fourd_core.data import CueKind, CueMaps

PARTS = ("values", "valid", "disagreement")


def turned(maps: CueMaps, swap: bool, mirror: bool) -> CueMaps:
    """A clip's maps for its frames in the other order, mirrored left to right, or both.

    Flow needs nothing more when its two frames swap places: each map leads to the other frame, whichever is first.
    """

    def turn(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.flip([axis for axis, wanted in ((1, swap), (-1, mirror)) if wanted])

    values = turn(maps.values)
    assert values is not None
    if mirror and maps.kind == "flow":
        values = values * values.new_tensor([-1.0, 1.0])[:, None, None]
    return attrs.evolve(maps, values=values, valid=turn(maps.valid), disagreement=turn(maps.disagreement))


def as_sample(name: str, maps: CueMaps) -> dict[str, Tensor]:
    """The tensors of one clip's maps without the batch axis, by names of a sample."""
    known = torch.ones_like(maps.values[:, :, :1], dtype=torch.bool) if maps.valid is None else maps.valid
    parts = {"values": maps.values, "valid": known, "disagreement": maps.disagreement}
    return {f"cue.{name}.{part}": tensor[0] for part, tensor in parts.items() if tensor is not None}


def from_batch(name: str, kind: CueKind, batch: Mapping[str, Tensor]) -> CueMaps | None:
    """The maps that `as_sample` put into a batch's samples, or None where the teacher was not asked before."""
    parts = {part: batch.get(f"cue.{name}.{part}") for part in PARTS}
    values = parts["values"]
    return None if values is None else CueMaps(values, kind, parts["valid"], parts["disagreement"])
