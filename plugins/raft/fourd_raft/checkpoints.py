"""The names under which weights of RAFT and SEA-RAFT are published, translated to those of the networks here.

The authors' files need no translation, but for the prefix `module.` that training on several devices leaves.
torchvision names RAFT's modules in its own way. The norm of a shortcut has two names in the authors' files, one in
torchvision's and in files whose writer keeps a tensor only once (safetensors): the other name is added. Of the whole
state of a LILA training run, what lies below `flow.model.` is taken.

Sources: princeton-vl/RAFT, princeton-vl/SEA-RAFT, torchvision models/optical_flow/raft.py, google-research/lila
dpt_lila.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]

LILA_PREFIX = "flow.model."
PARALLEL_PREFIX = "module."

_TORCHVISION = (
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"^(fnet|cnet)\.conv\.", r"\1.conv2."),
    (r"^(fnet|cnet)\.convnormrelu\.0\.", r"\1.conv1."),
    (r"^(fnet|cnet)\.convnormrelu\.1\.", r"\1.norm1."),
    (r"\.convnormrelu(\d)\.0\.", r".conv\1."),
    (r"\.convnormrelu(\d)\.1\.", r".norm\1."),
    (r"\.motion_encoder\.convcorr(\d)\.0\.", r".encoder.convc\1."),
    (r"\.motion_encoder\.convflow(\d)\.0\.", r".encoder.convf\1."),
    (r"\.motion_encoder\.conv\.0\.", ".encoder.conv."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)
"""Pattern in torchvision's name, and what the official one has in its place."""


def to_raft(state: State) -> dict[str, Tensor]:
    """A checkpoint of RAFT under the official names; names that are not known stay as they are."""
    state = without_prefixes(state)
    return _with_both_names(from_torchvision(state) if _is_torchvision(state) else state, "norm3")


def to_sea_raft(state: State) -> dict[str, Tensor]:
    """A checkpoint of SEA-RAFT under the official names; names that are not known stay as they are."""
    return _with_both_names(without_prefixes(state), "bn3")


def without_prefixes(state: State) -> dict[str, Tensor]:
    """The network's own names: of a LILA run's state only the flow network, and no prefix of parallel training."""
    if any(LILA_PREFIX in key for key in state):
        state = {key.partition(LILA_PREFIX)[2]: value for key, value in state.items() if LILA_PREFIX in key}
    if all(key.startswith(PARALLEL_PREFIX) for key in state):
        state = {key.removeprefix(PARALLEL_PREFIX): value for key, value in state.items()}
    return dict(state)


def from_torchvision(state: State) -> dict[str, Tensor]:
    """A `raft_large` or `raft_small` of torchvision under the official names, the norms of shortcuts under one."""
    separable = any(".convgru2." in key for key in state)
    gate = r".gru.conv\2\1." if separable else r".gru.conv\2."
    official = {}
    for key, value in state.items():
        for pattern, name in (*_TORCHVISION, (r"\.recurrent_block\.convgru(\d)\.conv([zrq])\.", gate)):
            key = re.sub(pattern, name, key)
        official[key] = value
    return official


def looks_like(state: State) -> str | None:
    """The section of a recipe that the published network of an officially named checkpoint needs, or None."""
    if "init_conv.weight" in state and "fnet.conv1.weight" in state:
        variant = "m" if "fnet.layer3.5.conv1.weight" in state else "s"
        return f'use = "sea_raft", variant = "{variant}"'
    if "update_block.gru.convz1.weight" in state:
        return 'use = "raft", variant = "large"'
    if "update_block.gru.convz.weight" in state:
        return 'use = "raft", variant = "small"'
    return None


def _is_torchvision(state: State) -> bool:
    return any(key.startswith("feature_encoder.") for key in state)


def _with_both_names(state: State, name: str) -> dict[str, Tensor]:
    """The norm of a shortcut under `downsample.1` and under `name`, where the checkpoint has only one of them.

    The small RAFT has a `norm3` of another kind, but its norms carry no numbers.
    """
    full = dict(state)
    for key, value in state.items():
        full.setdefault(key.replace(".downsample.1.", f".{name}."), value)
        full.setdefault(key.replace(f".{name}.", ".downsample.1."), value)
    return full
