"""The names under which VideoMAE's weights are published, translated to those of the official pre-training encoder.

    pre-training      `encoder.*`, beside a decoder, which is left out
    fine-tuning       no prefix (`model.*` on the Hugging Face hub); `head.*` is left out
    L4P               `l4p_model.video_encoder.*`, beside its heads, which are left out
    transformers      `videomae.*`, with names of its own and q, k, v apart

The encoder is found by its patch embedding, whatever stands before that name; all else in the file is left out.

A fine-tuned classifier has no final norm of its tokens: it averages them and normalises the mean (`fc_norm`). That
norm takes the final norm's place here, so the last tap of such a file is nothing that the classifier ever saw; the
other taps are its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fourd_videomae.sizes import SIZES

State = Mapping[str, Tensor]

_PATCHES = "patch_embed.proj.weight"
_PATCHES_TRANSFORMERS = "embeddings.patch_embeddings.projection.weight"

_TRANSFORMERS: tuple[tuple[str, str, int], ...] = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj.", 0),
    (r"^encoder\.layer\.", "blocks.", 0),
    (r"attention\.attention\.(query\.bias|q_bias)", "attn.q_bias", 0),
    (r"attention\.attention\.(value\.bias|v_bias)", "attn.v_bias", 0),
    (r"attention\.attention\.query\.weight", "attn.qkv.weight", 0),
    (r"attention\.attention\.key\.weight", "attn.qkv.weight", 1),
    (r"attention\.attention\.value\.weight", "attn.qkv.weight", 2),
    (r"attention\.output\.dense\.", "attn.proj.", 0),
    (r"intermediate\.dense\.", "mlp.fc1.", 0),
    (r"output\.dense\.", "mlp.fc2.", 0),
    (r"layernorm_before\.", "norm1.", 0),
    (r"layernorm_after\.", "norm2.", 0),
    (r"^layernorm\.", "norm.", 0),
)
"""Pattern, official name, and the place of the piece where several make one official tensor."""


def to_official(state: State) -> dict[str, Tensor]:
    """A checkpoint of any known naming under the official encoder's names.

    Names that mean nothing here stay as they are, and so does everything where no single encoder is found.
    """
    for patches, translate in ((_PATCHES, from_official), (_PATCHES_TRANSFORMERS, from_transformers)):
        found = [key for key in state if f".{key}".endswith(f".{patches}")]
        if len(found) == 1:
            return translate(state, found[0].removesuffix(patches))
    return dict(state)


def from_official(state: State, prefix: str) -> dict[str, Tensor]:
    """An encoder of VideoMAE, VideoMAEv2 or L4P, whose names begin with `prefix`."""
    encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    kept = {key: value for key, value in encoder.items() if not key.startswith(("head.", "fc_norm."))}
    return _classifier_norm(encoder) | kept


def from_transformers(state: State, prefix: str) -> dict[str, Tensor]:
    """A `VideoMAEModel` of Hugging Face transformers, or one inside another model, whose names begin with `prefix`."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        # A bias of the keys, where there is one, adds the same to all scores of a query: the softmax does not see it.
        if not key.startswith(prefix) or key.endswith("attention.attention.key.bias"):
            continue
        name, place = key.removeprefix(prefix), 0
        for pattern, official, piece in _TRANSFORMERS:
            name, found = re.subn(pattern, official, name)
            place += piece if found else 0
        pieces.setdefault(name, {})[place] = value
    encoder = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}
    return _classifier_norm(state) | encoder


def looks_like(state: State) -> str | None:
    """What network an official-named checkpoint seems to be, in words, or None."""
    patches, first = state.get(_PATCHES), state.get("blocks.0.mlp.fc1.weight")
    if patches is None or first is None:
        return None
    if patches.ndim != 5:
        return "a transformer for single images (its patches have no frames)"
    dim, patch = patches.shape[0], tuple(patches.shape[2:])
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for name, size in SIZES.items():
        if (size.embed_dim, size.depth, size.patch, size.mlp_dim) == (dim, depth, patch, len(first)):
            return f'variant = "{name}"'
    return f"embed_dim = {dim}, depth = {depth}, patch = {list(patch)} and MLPs of {len(first)} channels"


def _classifier_norm(state: State) -> dict[str, Tensor]:
    """The norm of a classifier's mean token under the name of the final norm, if there is one."""
    return {key.removeprefix("fc_"): value for key, value in state.items() if key.startswith("fc_norm.")}
