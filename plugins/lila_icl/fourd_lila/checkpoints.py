"""LILA's published checkpoints in the names of a recipe's parts: `backbone` and `heads.features`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fourd_core.errors import WeightsError

PARTS = {
    "pretrained.": "backbone.network.",
    "latent_head.": "heads.features.latent_head.",
    "fnorm.": "heads.features.fnorm.",
}
"""Beginnings of names there and here."""
TEACHERS = ("depth_net.", "flow.", "pamr.")
"""What training saves beside them: Depth Anything, SEA-RAFT, PAMR's buffers."""
POSITIONS = "pretrained.pos_embed"
"""Always DINOv2's own, as in the reference."""


def to_recipe(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict as `Recipe.weights` takes it: the decoder, and the encoder where the file has it.

    Raises:
        WeightsError: it holds a part that LILA does not have.
    """
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == POSITIONS or name.startswith(TEACHERS):
            continue
        start = next((start for start in PARTS if name.startswith(start)), None)
        if start is None:
            raise WeightsError(f"this is not LILA's published checkpoint, or a newer one: no part is called {name}")
        named[PARTS[start] + name.removeprefix(start)] = value
    return named
