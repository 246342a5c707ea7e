"""The names under which DINOv2's weights are published, translated to the official ones.

Official files (facebookresearch/dinov2) need no translation. timm drops `mask_token`, packs ViT-g's gate under the
MLP's names, and with registers adds the class token's position to the class token itself. transformers splits `qkv`
and has changed its names once; both generations are understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fourd_dinov2.network import REGISTERS

State = Mapping[str, Tensor]

_TRANSFORMERS: tuple[tuple[str, str, int], ...] = (
    (r"attention\.attention\.query|attention\.q_proj", "attn.qkv", 0),
    (r"attention\.attention\.key|attention\.k_proj", "attn.qkv", 1),
    (r"attention\.attention\.value|attention\.v_proj", "attn.qkv", 2),
    (r"attention\.output\.dense|attention\.o_proj", "attn.proj", 0),
    (r"mlp\.weights_in", "mlp.w12", 0),
    (r"mlp\.gate_proj", "mlp.w12", 0),
    (r"mlp\.up_proj", "mlp.w12", 1),
    (r"mlp\.weights_out|mlp\.down_proj", "mlp.w3", 0),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma", 0),
    (r"^encoder\.layer\.", "blocks.", 0),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj", 0),
    (r"^embeddings\.position_embeddings", "pos_embed", 0),
    (r"^embeddings\.", "", 0),
    (r"^layernorm\.", "norm.", 0),
)
"""Pattern, official name, and the place of the piece where several make one official tensor."""

_VARIANTS = {384: "s", 768: "b", 1024: "l", 1536: "g"}


def to_official(state: State) -> dict[str, Tensor]:
    """A checkpoint of any known naming under the official names; unknown names stay as they are."""
    return translation(state)(state)


def translation(state: State) -> Callable[[State], dict[str, Tensor]]:
    """The function that translates a checkpoint with such keys."""
    if any(key.startswith(("embeddings.", "dinov2.embeddings.")) for key in state):
        return from_transformers
    if "reg_token" in state or _packs_gate(state):
        return from_timm
    return dict


def from_transformers(state: State) -> dict[str, Tensor]:
    """A `Dinov2Model` or `Dinov2WithRegistersModel` of Hugging Face transformers, from a hub file or from memory."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name, place = key.removeprefix("dinov2."), 0
        for pattern, official, piece in _TRANSFORMERS:
            name, found = re.subn(pattern, official, name)
            place += piece if found else 0
        pieces.setdefault(name, {})[place] = value
    return {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}


def from_timm(state: State) -> dict[str, Tensor]:
    """A `vit_*_patch14_dinov2` or `vit_*_patch14_reg4_dinov2` of timm."""
    official = dict(state)
    if "reg_token" in official:
        official["register_tokens"] = official.pop("reg_token")
        # Its class token already holds its position: leave nothing to add.
        table = official["pos_embed"]
        official["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    if _packs_gate(state):
        official = {k.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): v for k, v in official.items()}
    return official


def looks_like(state: State) -> str | None:
    """The settings of the published DINOv2 model that an official-named checkpoint seems to be, or None."""
    if "cls_token" not in state or "pos_embed" not in state:
        return None
    variant = _VARIANTS.get(state["cls_token"].shape[-1])
    if variant is None:
        return None
    registers = "register_tokens" in state and state["register_tokens"].shape[1] == REGISTERS
    return f'variant = "{variant}", registers = {str(registers).lower()}'


def _packs_gate(state: State) -> bool:
    """Whether the MLP's first layer is twice as wide as its second expects: value and gate in one."""
    first, second = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
