"""Coarse maps at full resolution, with the edges that pixel features see.

`in_context` is the function, for any map and any features; `guides` makes features of frames; `streaming` uses both
where a recipe's head says `upsample = "in_context"`.
"""

from fourd_core.upsampling.guides import guide
from fourd_core.upsampling.in_context import upsample_in_context

__all__ = ["guide", "upsample_in_context"]
