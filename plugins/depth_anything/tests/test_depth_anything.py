"""Depth Anything V2 against the reference's stored numbers, the official files' names, and odd input."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
import torch.nn.functional as F
from fourd_depth_anything.cue import IMAGENET_MEAN, IMAGENET_STD, SIZES, DepthAnything, fitted, to_own_names
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourd_core.data import Clip
from fourd_core.errors import WeightsError

DATA = Path(__file__).parent / "data"
TINY = attrs.evolve(DepthAnything.example(), input_side=None)


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(DATA / "depth_anything_v2_tiny.safetensors")


def state_of(stored: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + k.removeprefix("sd."): v.clone() for k, v in stored.items() if k.startswith("sd.")}


def loaded(path: Path, state: dict[str, Tensor], config: DepthAnything.Config = TINY) -> DepthAnything:
    save_file(state, path)
    cue = DepthAnything(attrs.evolve(config, weights=str(path)))
    cue.load_pretrained()
    return cue.eval()


def frames_of(stored: dict[str, Tensor]) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return stored["x"] * std + mean


@pytest.mark.parametrize("prefix", ["", "depth_net."])
def test_the_references_numbers(stored: dict[str, Tensor], tmp_path: Path, prefix: str) -> None:
    state = state_of(stored, prefix)
    if prefix:  # what else LILA's training saves
        state |= {
            "latent_head.x": torch.zeros(1),
            "flow.model.y": torch.zeros(1),
            "pretrained.cls_token": torch.ones(1),
        }
    cue = loaded(tmp_path / "depth.safetensors", state)
    maps = cue(Clip(frames_of(stored)[None]))
    assert maps.kind == "disparity" and maps.values.shape == (1, 1, 1, 70, 98)
    expected = stored["disparity"]
    assert float((maps.values[0, :, 0, ::2, ::2] - expected).abs().max() / expected.abs().max()) < 1e-5


def test_each_frame_is_seen_by_itself(stored: dict[str, Tensor], tmp_path: Path) -> None:
    cue = loaded(tmp_path / "depth.safetensors", state_of(stored))
    frames = torch.rand(9, 2, 3, 42, 28, generator=torch.Generator().manual_seed(0))  # more than go through together
    together = cue(Clip(frames)).values
    assert together.shape == (9, 2, 1, 42, 28) and not together.requires_grad
    alone = cue(Clip(frames[8:, 1:])).values
    torch.testing.assert_close(together[8:, 1:], alone, rtol=1e-4, atol=1e-6)
    assert cue.each_frame_alone and (together >= 0).all()


@pytest.mark.parametrize("variant", ["s", "l"])
def test_the_official_names_and_shapes(variant: str) -> None:
    published = json.loads((DATA / "official_keys.json").read_text())[variant]
    with torch.device("meta"):
        network = DepthAnything(DepthAnything.Config(variant=variant))
    named = to_own_names({name: torch.empty(shape, device="meta") for name, shape in published.items()})
    own = network.state_dict()
    assert own.keys() == named.keys()
    assert {name: tuple(t.shape) for name, t in own.items()} == {name: tuple(t.shape) for name, t in named.items()}


@pytest.mark.parametrize(("variant", "millions"), [("s", 24.8), ("b", 97.5), ("l", 335.3)])
def test_the_sizes_have_as_many_parameters_as_published(variant: str, millions: float) -> None:
    with torch.device("meta"):
        network = DepthAnything(DepthAnything.Config(variant=variant))
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_frames_are_enlarged_as_the_authors_do() -> None:
    assert fitted((480, 854), 518) == (518, 924)  # 921.7 columns, the nearest multiple of 14
    assert fitted((1080, 1920), 518) == (518, 924)
    assert fitted((640, 480), 518) == (686, 518)  # 690.7 rows
    assert fitted((300, 300), 518) == (518, 518)


def test_an_enlarged_frame_is_answered_at_its_own_size(stored: dict[str, Tensor], tmp_path: Path) -> None:
    cue = loaded(tmp_path / "depth.safetensors", state_of(stored), attrs.evolve(TINY, input_side=56))
    frames = torch.rand(1, 1, 3, 50, 61, generator=torch.Generator().manual_seed(0))
    inner = F.interpolate(frames[0], (56, 70), mode="bicubic")
    direct = loaded(tmp_path / "same.safetensors", state_of(stored))(Clip(inner[None])).values[0]
    expected = F.interpolate(direct, (50, 61), mode="bilinear", align_corners=True)
    torch.testing.assert_close(cue(Clip(frames)).values[0], expected, rtol=1e-5, atol=1e-6)


def test_sides_that_are_no_multiple_of_14_are_explained() -> None:
    with pytest.raises(ValueError, match="sides divisible by 14, and the frames have 60x42 pixels; set input_side"):
        DepthAnything(TINY)(Clip(torch.rand(1, 1, 3, 42, 60)))


def test_another_size_is_recognised(stored: dict[str, Tensor], tmp_path: Path) -> None:
    state = state_of(stored) | {"pretrained.cls_token": torch.zeros(1, 1, 1024)}
    with pytest.raises(WeightsError, match='looks like Depth Anything V2 with variant = "l"'):
        loaded(tmp_path / "depth.safetensors", state)


def test_the_licence_follows_the_size() -> None:
    for variant, free in (("s", True), ("b", False), ("l", False), ("g", False)):
        weights = DepthAnything(attrs.evolve(TINY, variant=variant, weights="/x.pth")).pretrained()
        assert weights is not None and ("non-commercial" not in weights.licence) is free
    assert set(SIZES) == {"s", "b", "l", "g"}
