"""The weights of one L4P head, out of a file that holds it alone or the whole model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def one_head(state: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """The decoder's weights under the names of `Decoder3D`, after `dpt.`.

    Other heads and the encoder are left out, and so are the second names that L4P's files have for some weights.

    Args:
        state: a published checkpoint (`l4p_model.task_heads.TASK.task_head.dpt.*`), or a head's own (`dpt.*`).
        task: the head's name in the published checkpoint.
    """
    inside = f"task_heads.{task}."
    found = {key.partition(inside)[2]: value for key, value in state.items() if inside in key} or dict(state)
    own = {key.removeprefix("task_head."): value for key, value in found.items()}
    return {key: value for key, value in own.items() if not key.startswith("dpt.scratch.layer_rn.")}
