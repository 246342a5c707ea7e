"""Checkpoints of every naming scheme give the network the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fourd_videomae.checkpoints import looks_like, to_official
from fourd_videomae.network import VisionTransformer
from fourd_videomae.sizes import SIZES, Size
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]
DATA = Path(__file__).parent / "data"
SIZE = Size(embed_dim=16, depth=3, heads=2, patch=(2, 4, 4), mlp_ratio=2.5)


def official() -> State:
    """An encoder in which every number is another one."""
    generator = torch.Generator().manual_seed(0)
    shapes = VisionTransformer(SIZE).state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def as_pretraining(state: State) -> State:
    decoder = {"blocks.0.attn.qkv.weight": torch.zeros(24, 8), "norm.weight": torch.ones(8), "head.bias": torch.ones(6)}
    rest = {"mask_token": torch.zeros(1, 1, 8), "encoder_to_decoder.weight": torch.zeros(8, 16)}
    return with_prefix(state, "encoder.") | with_prefix(decoder, "decoder.") | rest


def as_finetuning(state: State) -> State:
    """A classifier: its one norm after the blocks is that of the mean token."""
    renamed = {f"fc_{key}" if key.startswith("norm.") else key: value for key, value in state.items()}
    return renamed | {"head.weight": torch.zeros(400, 16), "head.bias": torch.zeros(400)}


def as_l4p(state: State) -> State:
    heads = {
        "task_heads.depth.task_head.dpt.head1.0.weight": torch.zeros(2),
        "task_heads.track_2d.norm.bias": torch.ones(1),
    }
    return with_prefix(with_prefix(state, "video_encoder.") | heads, "l4p_model.")


def as_transformers(state: State) -> State:
    """The names that a `VideoMAEModel` writes to a file."""
    changes = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks.": "encoder.layer.",
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "attn.q_bias": "attention.attention.q_bias",
        "attn.v_bias": "attention.attention.v_bias",
    }  # fmt: skip
    renamed = {}
    for key, value in state.items():
        key = f"layer{key}" if key.startswith("norm.") else key
        for old, new in changes.items():
            key = key.replace(old, new)
        if "attn.qkv" in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[key.replace("attn.qkv", f"attention.attention.{part}")] = rows.clone()
        else:
            renamed[key] = value
    return renamed


def in_memory(state: State) -> State:
    """The names that newer versions of transformers have in memory; some have had a bias of the keys."""
    names = {"attention.q_bias": "attention.query.bias", "attention.v_bias": "attention.value.bias"}
    renamed = {}
    for key, value in as_transformers(state).items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = value
    biases = {key.replace("query", "key"): torch.zeros(16) for key in renamed if key.endswith("query.bias")}
    return renamed | biases


def as_transformers_classifier(state: State) -> State:
    model = as_transformers(state)
    norm = {f"fc_norm.{kind}": model.pop(f"layernorm.{kind}") for kind in ("weight", "bias")}
    return with_prefix(model, "videomae.") | norm | {"classifier.bias": torch.zeros(400)}


def as_transformers_pretraining(state: State) -> State:
    decoder = {"layer.0.attention.attention.key.weight": torch.zeros(8, 8), "norm.weight": torch.zeros(8)}
    return with_prefix(as_transformers(state), "videomae.") | with_prefix(decoder, "decoder.")


NAMINGS: list[Callable[[State], State]] = [
    dict, as_pretraining, as_finetuning, as_l4p, as_transformers, in_memory, as_transformers_classifier,
    as_transformers_pretraining, lambda state: with_prefix(as_finetuning(state), "model."),
]  # fmt: skip


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming(naming: Callable[[State], State]) -> None:
    wanted = official()
    translated = to_official(naming(wanted))
    assert translated.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(translated[key], value), key


def test_equals_what_transformers_computes() -> None:
    stored = load_file(DATA / "transformers_tiny.safetensors")
    hub = {key.removeprefix("hub/"): value for key, value in stored.items() if key.startswith("hub/")}
    network = VisionTransformer(Size(embed_dim=16, depth=2, heads=2, patch=(2, 4, 4), mlp_ratio=2.5)).eval()
    network.load_state_dict(to_official(hub))
    with torch.no_grad():
        taps = network(stored["x"], [1, 2])
    torch.testing.assert_close(taps[1], stored["hidden_state_1"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(taps[2], stored["last_hidden_state"], rtol=1e-5, atol=1e-5)


def test_a_norm_of_the_tokens_goes_before_that_of_the_mean() -> None:
    wanted = official()
    both = as_finetuning(wanted) | {"norm.weight": torch.full((16,), 7.0), "norm.bias": torch.full((16,), 8.0)}
    translated = to_official(both)
    assert translated["norm.weight"].eq(7).all()
    assert translated["norm.bias"].eq(8).all()
    assert translated.keys() == wanted.keys()


def test_what_is_not_understood_stays() -> None:
    two = with_prefix(official(), "student.") | with_prefix(official(), "teacher.")
    for state in (two, {"fc.weight": torch.zeros(3)}, official() | {"pos_embed": torch.zeros(1, 8, 16)}):
        assert to_official(state).keys() == state.keys()


def test_what_it_looks_like() -> None:
    assert looks_like(official()) == "embed_dim = 16, depth = 3, patch = [2, 4, 4] and MLPs of 40 channels"
    for name, size in SIZES.items():
        with torch.device("meta"):
            assert looks_like(VisionTransformer(size).state_dict()) == f'variant = "{name}"'
    image = official() | {"patch_embed.proj.weight": torch.zeros(16, 3, 14, 14)}
    assert looks_like(image) == "a transformer for single images (its patches have no frames)"
    assert looks_like({"weight": torch.zeros(1)}) is None
