"""A teacher's maps as the numbers that are kept, and back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from fourd_core.data import CueKind, CueMaps
from fourd_core.errors import RunError
from fourd_core.geometry.flow import flow_disagreement

Precision = Literal["float16", "float32"]


def pack(maps: CueMaps, precision: Precision) -> Shaped[np.ndarray, "b t c h w"]:
    """The channels of the maps, NaN where they are not valid; behind those of flow the disagreement of its two maps.

    The disagreement is computed before anything is rounded.

    Raises:
        RunError: a number is too large for float16.
    """
    values = maps.values.detach().float()
    valid = values.isfinite().all(2, keepdim=True)
    if maps.valid is not None:
        valid &= maps.valid
    parts = [values.where(valid, torch.nan)]
    if maps.kind == "flow":
        given = maps.disagreement
        parts.append(flow_disagreement(values) if given is None else given.detach().float())
    packed = torch.cat(parts, 2)
    kept = packed.to(torch.float16 if precision == "float16" else torch.float32)
    if bool((kept.isinf() & packed.isfinite()).any()):
        raise RunError('a map has numbers over 65504, too large for float16; set precision = "float32" in the stage')
    return kept.cpu().numpy()


def unpack(kept: Shaped[np.ndarray, "t c h w"], kind: CueKind) -> CueMaps:
    """The maps of one clip in float32; what is not valid is zero."""
    packed: Tensor = torch.from_numpy(np.ascontiguousarray(kept)).float()[None]
    values, disagreement = (packed[:, :, :2], packed[:, :, 2:]) if kind == "flow" else (packed, None)
    valid = ~values.isnan().any(2, keepdim=True)
    return CueMaps(values.where(valid, 0.0), kind, valid, disagreement)
