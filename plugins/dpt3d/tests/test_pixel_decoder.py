"""The pixel decoder against the reference's stored numbers and the official files' names and sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from fourd_dpt3d.blocks import FeatureFusion, reassembly, resized
from fourd_dpt3d.pixel_decoder import PixelDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourd_core.data import Clip, Grid, TokenMap, Tokens
from fourd_core.errors import WeightsError
from fourd_core.interfaces import BackboneSpec, TapSpec

DATA = Path(__file__).parent / "data"
WHOLE = Path(__file__).parents[3] / "tests/data/lila/lila_tiny_model.safetensors"
"""The whole model, stored with the tests of the core, which need the encoder too."""
IMAGE = "56x84."
"""The one of its images whose tokens are stored here."""
TINY = PixelDecoder.Config(taps=(0, 1, 2, 3), features=16, out_channels=(8, 12, 16, 20))
GRID, SIZE = Grid(1, 4, 6), (56, 84)
OFFICIAL = {
    "s": (384, 12, PixelDecoder.Config(), 13_501_280),
    "b": (768, 12, PixelDecoder.Config(features=384, out_channels=(96, 192, 384, 768)), 34_552_704),
    "l": (1024, 24, PixelDecoder.Config((4, 11, 17, 23), 512, (256, 512, 1024, 1024)), 68_042_496),
    "g": (1536, 40, PixelDecoder.Config((9, 19, 29, 39), 768, (1536,) * 4), 211_774_848),
}


def vit(dim: int, depth: int, frames: int = 1) -> BackboneSpec:
    return BackboneSpec((TapSpec(dim, (frames, 14, 14)),) * depth, (1, 14, 14), (0.5,) * 3, (0.25,) * 3)


def pyramid(dims: Sequence[int] = (6, 8, 10, 12)) -> BackboneSpec:
    taps = tuple(TapSpec(dim, (1, 4 * 2**n, 4 * 2**n)) for n, dim in enumerate(dims))
    return BackboneSpec(taps, (1, 32, 32), (0.5,) * 3, (0.25,) * 3)


def random_tokens(spec: BackboneSpec, b: int, t: int, h: int, w: int) -> Tokens:
    generator = torch.Generator().manual_seed(3)
    grids = [Grid(t, -(-h // tap.stride[1]), -(-w // tap.stride[2])) for tap in spec.taps]
    return Tokens(
        {
            n: TokenMap(torch.randn(b, g.t * g.h * g.w, tap.dim, generator=generator), g)
            for n, (tap, g) in enumerate(zip(spec.taps, grids, strict=True))
        }
    )


def error(answer: Tensor, expected: Tensor) -> float:
    assert answer.shape == expected.shape
    return float((answer - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    numbers = {key.removeprefix(IMAGE): value for key, value in load_file(WHOLE).items()}
    return numbers | load_file(DATA / "pixel_decoder_tokens.safetensors")


@pytest.fixture
def tiny(stored: dict[str, Tensor], tmp_path: Path) -> PixelDecoder:
    """The stored decoder, loaded the way a user loads LILA's file: with encoder and teachers in it."""
    state = {key.removeprefix("sd."): value.clone() for key, value in stored.items() if key.startswith("sd.")}
    assert "pretrained.cls_token" in state
    state |= {"flow.model.x": torch.zeros(1), "depth_net.y": torch.zeros(1)}
    state |= {"pamr.0._orig_mod.gather_9.kernel": torch.zeros(1)}
    save_file(state, tmp_path / "lila.safetensors")
    head = PixelDecoder(attrs.evolve(TINY, weights=str(tmp_path / "lila.safetensors")), vit(32, 4))
    head.load_pretrained()
    return head


def thinned(answer: Tensor) -> Tensor:
    """At the pixels that are stored."""
    return answer[..., 1::3, 1::3]


def stored_tokens(stored: dict[str, Tensor]) -> Tokens:
    return Tokens({n: TokenMap(stored[f"tokens.{n}"], GRID) for n in range(4)})


@torch.no_grad()
def test_the_references_numbers(tiny: PixelDecoder, stored: dict[str, Tensor]) -> None:
    seen: dict[str, Tensor] = {}
    for n in (2, 3, 4):
        block = tiny.latent_head.scratch[f"refinenet{n}"]
        block.register_forward_hook(lambda _m, _i, out, n=n: seen.__setitem__(f"path_{n}", out))
    tokens = stored_tokens(stored)
    raw = tiny.latent_head([tokens[n].as_maps()[:, 0] for n in range(4)], SIZE)
    assert error(thinned(raw), stored["dec_raw"]) < 1e-5
    for name, answer in seen.items():
        assert error(answer, stored[name]) < 1e-5
    assert len(seen) == 3

    prediction = tiny(tokens, Clip(torch.zeros(1, 1, 3, *SIZE)))
    assert error(thinned(prediction.values[:, 0]), stored["dec"]) < 1e-5
    assert prediction.values.shape == (1, 1, tiny.channels, *SIZE)


@torch.no_grad()
def test_time_is_folded_into_the_batch(tiny: PixelDecoder, stored: dict[str, Tensor]) -> None:
    alone = stored_tokens(stored)
    maps = {n: layer.as_maps() for n, layer in alone.layers.items()}
    six = Tokens(
        {n: TokenMap.from_maps(torch.stack([m, -m, 2 * m], 2)[:, 0].repeat(2, 1, 1, 1, 1)) for n, m in maps.items()}
    )
    answer = tiny(six, Clip(torch.zeros(2, 3, 3, *SIZE))).values
    assert answer.shape == (2, 3, 8, *SIZE)
    assert error(thinned(answer[1, 0]), stored["dec"][0]) < 1e-5
    assert error(answer[0, 2], answer[1, 2]) < 1e-5
    assert not torch.allclose(answer[0, 0], answer[0, 1], atol=0.1)


@pytest.mark.parametrize("size", OFFICIAL)
def test_official_names_shapes_and_counts(size: str) -> None:
    dim, depth, config, count = OFFICIAL[size]
    with torch.device("meta"):
        head = PixelDecoder(config, vit(dim, depth))
    shapes = {key: list(value.shape) for key, value in head.state_dict().items()}
    assert shapes == json.loads((DATA / "official_keys.json").read_text())[size]
    assert sum(p.numel() for p in head.parameters()) == count
    assert head.channels == config.features // 2


def test_everything_used_is_trained_and_nothing_else() -> None:
    head = PixelDecoder(PixelDecoder.example(), vit(32, 12))
    prediction = head(random_tokens(vit(32, 12), 1, 1, 28, 42), Clip(torch.zeros(1, 1, 3, 28, 42))).values
    (prediction * torch.randn(prediction.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    frozen = {name for name, p in head.named_parameters() if not p.requires_grad}
    unused = "latent_head.scratch.refinenet4.resConfUnit1."
    assert {name for name in frozen if not name.startswith(unused)} == {"fnorm.weight", "fnorm.bias"}
    assert len(frozen) == 6
    assert torch.equal(head.fnorm.weight, torch.ones(8))
    assert torch.equal(head.fnorm.bias, torch.zeros(8))
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("h", "w"), [(64, 96), (50, 70)])
def test_a_pyramid_backbone_of_any_size(h: int, w: int) -> None:
    config = PixelDecoder.Config((0, 1, -2, -1), 16, (8, 8, 8, 8), reassemble=(1, 1, 1, 1))
    head = PixelDecoder(config, pyramid())
    assert head.taps == (0, 1, 2, 3)
    assert not list(head.latent_head.resize_layers.parameters())
    values = head(random_tokens(pyramid(), 2, 2, h, w), Clip(torch.zeros(2, 2, 3, h, w))).values
    assert values.shape == (2, 2, 8, h, w)
    assert values.mean(2).abs().max() < 1e-5
    assert (values.var(2, unbiased=False) - 1).abs().max() < 0.05


def test_the_convolution_before_the_resize_gives_what_it_gives_behind() -> None:
    torch.manual_seed(0)
    block = FeatureFusion(8).double()
    level, coarser = torch.randn(2, 2, 8, 5, 7, dtype=torch.float64)
    behind = block.out_conv(resized(block.resConfUnit2(coarser + block.resConfUnit1(level)), (11, 13)))
    torch.testing.assert_close(block(level, coarser, (11, 13)), behind, rtol=1e-12, atol=1e-12)


def test_the_residual_unit_leaves_its_input_alone() -> None:
    torch.manual_seed(0)
    unit = FeatureFusion(4).resConfUnit1
    x = torch.randn(1, 4, 5, 5)
    before = x.clone()
    expected = x + F.conv2d(F.relu(unit.conv1(F.relu(x))), unit.conv2.weight, unit.conv2.bias, padding=1)
    assert torch.equal(unit(x), expected)
    assert torch.equal(x, before)


def test_channels_stay_innermost_in_memory() -> None:
    spec = pyramid()
    head = PixelDecoder(PixelDecoder.Config((0, 1, 2, 3), 16, (8, 8, 8, 8), reassemble=(1, 1, 1, 1)), spec)
    values = head(random_tokens(spec, 2, 1, 64, 64), Clip(torch.zeros(2, 1, 3, 64, 64))).values
    assert values[:, 0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("unchecked")
def test_one_graph_for_the_compiler(tiny: PixelDecoder, stored: dict[str, Tensor]) -> None:
    maps = [stored[f"tokens.{n}"].unflatten(1, GRID[1:]).permute(0, 3, 1, 2) for n in range(4)]
    compiled = torch.compile(tiny.latent_head, backend="eager", fullgraph=True)
    assert torch.equal(compiled(maps, SIZE), tiny.latent_head(maps, SIZE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 15}, "features must be a positive even number"),
        ({"taps": (0, 1, 2)}, "taps must have 4 entries, got 3"),
        ({"out_channels": (8, 8, 8, 0)}, "out_channels must be positive"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelDecoder.Config(**changes)


def test_wrong_for_the_backbone() -> None:
    with pytest.raises(ValueError, match="tap 5 does not exist: this backbone has taps 0 to 3"):
        PixelDecoder(PixelDecoder.Config(), vit(32, 4))
    with pytest.raises(ValueError, match="tap 0 has one per 2 frames"):
        PixelDecoder(TINY, vit(32, 4, frames=2))
    for factor in (1.5, 0.25, 0):
        with pytest.raises(ValueError, match=rf"by whole numbers, or halves by 0\.5 and 1, got {factor}$"):
            reassembly(8, factor)


def test_another_decoders_file(tiny: PixelDecoder) -> None:
    head = PixelDecoder(attrs.evolve(tiny.config, features=32), vit(32, 4))
    with pytest.raises(WeightsError, match=r"features = 16, out_channels = \[8, 12, 16, 20\]: set these"):
        head.load_pretrained()
    assert head.pretrained() is not None
    assert PixelDecoder(TINY, vit(32, 4)).pretrained() is None
