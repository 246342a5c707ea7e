"""L4P's published checkpoint in the names of a recipe's parts.

A recipe that takes its weights from there names its heads as here: `depth`, `flow`, `motion`, `cameras`, `track`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fourd_core.errors import WeightsError

PARTS = {
    "video_encoder.": "backbone.network.",
    "task_heads.depth.task_head.": "heads.depth.",
    "task_heads.flow_2d_backward.task_head.": "heads.flow.",
    "task_heads.dyn_mask.task_head.": "heads.motion.",
    "task_heads.camray.task_head.": "heads.cameras.",
    "task_heads.track_2d.prompt_encoder.": "heads.track.prompt_encoder.",
    "task_heads.track_2d.mask_decoder.": "heads.track.mask_decoder.",
    "task_heads.track_2d.": "memories.track.",
}
"""Beginnings of names there and here; the first that fits counts."""
SECOND_NAMES = ".scratch.layer_rn."
"""Part of the names under which each dense head's file holds four weights again (`scratch.layer1_rn` and so on)."""
ROOT = "l4p_model."


def to_recipe(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict as `Recipe.weights` takes it.

    Raises:
        WeightsError: it holds a part that L4P does not have.
    """
    return {new: value for name, value in state.items() if (new := _renamed(name.removeprefix(ROOT))) is not None}


def _renamed(name: str) -> str | None:
    if SECOND_NAMES in name:
        return None
    for there, here in PARTS.items():
        if name.startswith(there):
            return here + name.removeprefix(there)
    raise WeightsError(f"this is not L4P's published checkpoint, or a newer one: no part of L4P is called {name}")
