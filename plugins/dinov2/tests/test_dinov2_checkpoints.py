"""Checkpoints of other naming schemes give the official network the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fourd_dinov2.checkpoints import from_timm, from_transformers, looks_like, to_official, translation
from fourd_dinov2.network import VisionTransformer
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.weights import load_weights

DATA = Path(__file__).parent / "data"


def from_hub() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    stored = load_file(DATA / "transformers_swiglu_reg4.safetensors")
    state = {key.removeprefix("hub/"): value for key, value in stored.items() if key.startswith("hub/")}
    return state, stored


def in_memory(hub: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second generation of transformers' names, as `Dinov2WithRegistersModel.state_dict()` has them."""
    changes = {
        "attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj",
        "weights_out": "down_proj",
    }  # fmt: skip
    renamed = {}
    for key, value in hub.items():
        for old, new in changes.items():
            key = key.replace(old, new)
        if "weights_in" in key:
            gate, up = value.chunk(2)
            renamed |= {key.replace("weights_in", "gate_proj"): gate, key.replace("weights_in", "up_proj"): up}
        else:
            renamed[key] = value
    return renamed


def as_timm(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """What timm makes of an official file with registers and SwiGLU."""
    state = {k.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): v for k, v in official.items()}
    del state["mask_token"]
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def assert_stored_numbers(state: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    network = VisionTransformer(16, 2, 2, 42, ffn="swiglu", registers=True).eval()
    load_weights(network, state, location="here", optional=["mask_token"])
    with torch.no_grad():
        normed, raw = network(stored["x"], [1]), network(stored["x"], [0], norm=False)
    expected = stored["last_hidden_state"]
    torch.testing.assert_close(normed[1].patches, expected[:, 5:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normed[1].cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw[0].patches, stored["hidden_state_1"][:, 5:], rtol=1e-5, atol=1e-5)


def test_transformers() -> None:
    hub, stored = from_hub()
    for state in (hub, in_memory(hub), {f"dinov2.{key}": value for key, value in hub.items()}):
        assert translation(state) is from_transformers
        assert_stored_numbers(to_official(state), stored)


def test_timm() -> None:
    hub, stored = from_hub()
    state = as_timm(from_transformers(hub))
    assert translation(state) is from_timm
    assert_stored_numbers(to_official(state), stored)


@pytest.mark.parametrize("name", ["plain", "reg4"])
def test_official_names_stay(name: str) -> None:
    stored = load_file(DATA / f"dinov2_tiny_{name}.safetensors")
    state = {key.removeprefix("sd."): value for key, value in stored.items() if key.startswith("sd.")}
    for given in (state, {key: value for key, value in state.items() if key != "mask_token"}):
        translated = to_official(given)
        assert translated.keys() == given.keys()
        assert all(translated[key] is given[key] for key in given)


def test_what_it_looks_like() -> None:
    state = {"cls_token": torch.zeros(1, 1, 768), "pos_embed": torch.zeros(1, 1370, 768)}
    assert looks_like(state) == 'variant = "b", registers = false'
    assert looks_like(state | {"register_tokens": torch.zeros(1, 4, 768)}) == 'variant = "b", registers = true'
    assert looks_like({"cls_token": torch.zeros(1, 1, 5), "pos_embed": torch.zeros(1, 1370, 5)}) is None
    assert looks_like({"weight": torch.zeros(1)}) is None
