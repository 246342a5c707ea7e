"""The tracking head's part of L4P's checkpoints.

Its names are the same here, behind whatever stands before them in a file (`l4p_model.task_heads.track_2d.`); what the
memory owns stands beside what the head owns.
"""

from __future__ import annotations

from torch import nn

from fourd_core.interfaces import PretrainedWeights
from fourd_core.recipe import Location
from fourd_core.weights import load_weights, read_state_dict

ANCHOR = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""A name that only a tracking head has."""
HEAD_PARTS = ("prompt_encoder.", "mask_decoder.")
MEMORY_PARTS = ("prompt_feature_linear_layer.", "processed_video_features_proj.", "processed_video_mask_token.")


def pretrained(location: Location | None) -> PretrainedWeights | None:
    """Where the weights come from."""
    if location is None:
        return None
    return PretrainedWeights(location, licence="its publisher's: L4P's release is CC BY-NC-SA 4.0", source="L4P")


def load_part(module: nn.Module, location: Location | None) -> None:
    """Read what a head or a memory owns of a checkpoint, and leave everything else in it aside.

    Raises:
        WeightsError: missing, damaged, unsafe, NaN, or another network's.
    """
    if location is None:
        return
    state = read_state_dict(location)
    prefix = next((key.removesuffix(ANCHOR) for key in state if f".{key}".endswith(f".{ANCHOR}")), "")
    own = tuple({f"{key.split('.')[0]}." for key in module.state_dict()})
    tracker = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = [part for part in (*HEAD_PARTS, *MEMORY_PARTS) if part not in own]
    load_weights(module, tracker, location=location, ignore_prefixes=others)
