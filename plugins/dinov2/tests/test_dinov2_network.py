"""The network against the numbers and names of the official implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fourd_dinov2.backbone import SIZES, Size
from fourd_dinov2.network import VisionTransformer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fourd_core.weights import load_weights

DATA = Path(__file__).parent / "data"
NUMBERS = [("plain", "56x42"), ("plain", "98x126"), ("reg4", "56x42")]
SIDES = {"native70x70": (5, 5), "56x42": (4, 3), "98x126": (7, 9)}
"""Rows and columns of patches."""


def official(name: str) -> tuple[VisionTransformer, dict[str, Tensor], list[int]]:
    """The network with the stored weights, the stored numbers, and the stored blocks' numbers."""
    path = DATA / f"dinov2_tiny_{name}.safetensors"
    with safe_open(path, "pt") as handle:
        meta = json.loads(handle.metadata()["meta"])
    stored = load_file(path)
    registers = meta["num_register_tokens"] == 4
    network = VisionTransformer(
        meta["embed_dim"], meta["depth"], meta["heads"], meta["img_size"], registers=registers
    ).eval()
    state = {key.removeprefix("sd."): value for key, value in stored.items() if key.startswith("sd.")}
    load_weights(network, state, location=str(path))
    return network, stored, meta["layers"]


def build(size: Size, registers: bool) -> VisionTransformer:
    return VisionTransformer(size.embed_dim, size.depth, size.heads, size.image_size, size.ffn, registers)


@pytest.mark.parametrize(("name", "image"), NUMBERS)
def test_equals_the_official_numbers(name: str, image: str) -> None:
    network, stored, blocks = official(name)
    with torch.no_grad():
        normed = network(stored[f"{image}.x"], blocks)
        raw = network(stored[f"{image}.x"], blocks, norm=False)
    for index, block in enumerate(blocks):
        expected = {part: stored[f"{image}.layer{index}.{part}"] for part in ("tokens", "cls", "raw")}
        torch.testing.assert_close(normed[block].patches, expected["tokens"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(normed[block].cls, expected["cls"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(raw[block].patches, expected["raw"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normed[3].cls, stored[f"{image}.x_norm_clstoken"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "reg4"])
@pytest.mark.parametrize("image", SIDES)
def test_position_table_of_the_small_network(name: str, image: str) -> None:
    network, stored, _ = official(name)
    torch.testing.assert_close(network.positions(*SIDES[image]), stored[f"{image}.pos"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("registers", "family"), [(False, "offset0.1"), (True, "antialias_offset0")])
@pytest.mark.parametrize("size", [(224, 224), (336, 448), (476, 840), (518, 714)])
def test_position_table_of_the_published_size(registers: bool, family: str, size: tuple[int, int]) -> None:
    stored = load_file(DATA / "dinov2_posembed37.safetensors")
    network = VisionTransformer(2, 0, 1, registers=registers)
    network.pos_embed.data = stored["pos_embed"]
    expected = stored[f"{family}_{size[0]}x{size[1]}"]
    torch.testing.assert_close(network.positions(size[0] // 14, size[1] // 14), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("registers", [False, True])
def test_position_table_of_any_size(registers: bool) -> None:
    network = VisionTransformer(1, 0, 1, registers=registers)
    rounding_traps = (39, 43, 78, 86, 115, 123, 156)  # of a scale factor without the offset
    for side in (*range(1, 38), *rounding_traps, 399):
        assert network.positions(side, 2).shape == (1, 1 + 2 * side, 1)


def test_position_table_is_resampled_in_float32() -> None:
    network = VisionTransformer(8, 0, 1).to(torch.bfloat16)
    expected = VisionTransformer(8, 0, 1)
    expected.pos_embed.data = network.pos_embed.data.float()
    assert torch.equal(network.positions(16, 20), expected.positions(16, 20))


@pytest.mark.parametrize("registers", [False, True])
def test_positions_are_not_rounded_to_the_precision_of_autocast(registers: bool) -> None:
    network = VisionTransformer(8, 1, 2, image_size=70, registers=registers)
    images = torch.randn(2, 3, 70, 70)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        patches, tokens = network.patch_embed(images), network.embed(images)
    assert (patches.dtype, tokens.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(tokens[:, -25:], patches + network.pos_embed[:, 1:])
    assert torch.equal(tokens[:, :1], (network.cls_token + network.pos_embed[:, :1]).expand(2, -1, -1))
    with torch.no_grad():
        outputs = network.bfloat16()(images.bfloat16(), [0])
    assert outputs[0].patches.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "numbers"), [
    ("vits14", 22_056_576), ("vitb14", 86_580_480), ("vitl14", 304_368_640), ("vitg14", 1_136_480_768),
    ("vits14_reg4", 22_058_112),
])  # fmt: skip
def test_names_and_shapes_of_the_published_files(name: str, numbers: int) -> None:
    published = json.loads((DATA / "official_keys.json").read_text())[name]
    with torch.device("meta"):
        network = build(SIZES[name[3]], registers=name.endswith("reg4"))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == published
    assert sum(p.numel() for p in network.parameters()) == numbers


def test_the_largest_keeps_its_gate_with_registers() -> None:
    published = json.loads((DATA / "official_keys.json").read_text())["vitg14"]
    with torch.device("meta"):
        network = build(SIZES["g"], registers=True)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert shapes.pop("register_tokens") == [1, 4, 1536]
    assert shapes == published


def test_nothing_deeper_than_the_deepest_tap_is_run() -> None:
    network, stored, _ = official("plain")
    ran: list[int] = []
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    outputs = network(stored["56x42.x"], [2, 1])
    assert ran == [0, 1, 2]
    assert sorted(outputs) == [1, 2]


def test_every_used_parameter_learns() -> None:
    network = VisionTransformer(16, 2, 2, 28, ffn="swiglu", registers=True)
    out = network(torch.randn(1, 3, 42, 28), [1])[1]
    (out.patches.square().sum() + out.cls.sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == ["mask_token"]


def test_registers_change_the_numbers_but_not_the_shape() -> None:
    network, stored, _ = official("reg4")
    x = stored["56x42.x"]
    with torch.no_grad():
        before = network(x, [3])[3].patches
        assert isinstance(network.register_tokens, nn.Parameter)
        network.register_tokens[..., 0] += 1
        after = network(x, [3])[3].patches
    assert before.shape == after.shape == (1, 12, 32)
    assert (before - after).abs().max() > 1e-3
