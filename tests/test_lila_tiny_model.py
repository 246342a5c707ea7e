"""LILA end to end: DINOv2 and the pixel decoder, loaded from one file, against the reference's stored numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fourd_dinov2.backbone import DinoV2, Size
from fourd_dpt3d.pixel_decoder import PixelDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourd_core.data import Clip
from fourd_core.system import System

STORED = Path(__file__).parent / "data" / "lila" / "lila_tiny_model.safetensors"
SIZES = ("56x84", "70x70")


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(STORED)


@pytest.fixture
def files(stored: dict[str, Tensor], tmp_path: Path) -> tuple[str, str]:
    """DINOv2's own file, and a LILA file that holds the encoder too."""
    lila = {key.removeprefix("sd."): value for key, value in stored.items() if key.startswith("sd.")}
    prefix = "pretrained."
    save_file(
        {k.removeprefix(prefix): v for k, v in lila.items() if k.startswith(prefix)}, tmp_path / "dinov2.safetensors"
    )
    save_file(lila, tmp_path / "lila.safetensors")
    return str(tmp_path / "dinov2.safetensors"), str(tmp_path / "lila.safetensors")


def model(files: tuple[str, str], norm: bool) -> System:
    tiny = Size(embed_dim=32, depth=4, heads=2, image_size=70)
    backbone = DinoV2(DinoV2.Config(size=tiny, weights=files[0], norm=norm))
    config = PixelDecoder.Config((0, 1, 2, 3), 16, (8, 12, 16, 20), weights=files[1])
    head = PixelDecoder(config, backbone.spec)
    backbone.load_pretrained()
    head.load_pretrained()
    return System(backbone, {"features": head})


def clip_of(normalised: Tensor, system: System) -> Clip:
    spec = system.backbone.spec
    mean, std = (normalised.new_tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    return Clip((normalised * std + mean)[:, None])


def thinned(answer: Tensor) -> Tensor:
    """At the pixels that are stored."""
    return answer[..., 1::3, 1::3]


def error(answer: Tensor, expected: Tensor) -> float:
    assert answer.shape == expected.shape
    return float((answer - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_and_all_that_leads_to_them(stored: dict[str, Tensor], files: tuple[str, str], size: str) -> None:
    system = model(files, norm=True)
    decoder: torch.nn.Module = system.heads["features"].latent_head
    seen: dict[str, Tensor] = {}
    last = decoder.scratch["output_conv2"][2]
    last.register_forward_hook(lambda _m, _i, out: seen.__setitem__("dec_raw", thinned(out)))
    for n in (2, 3, 4):
        block = decoder.scratch[f"refinenet{n}"]
        block.register_forward_hook(lambda _m, _i, out, n=n: seen.__setitem__(f"path_{n}", out))
    clip = clip_of(stored[f"{size}.x"], system)
    seen["dec"] = thinned(system(clip).features[:, 0])
    seen["enc"] = system.encode(clip.frames)[3].as_maps()[:, 0]
    for name in ("enc", "path_4", "path_3", "path_2", "dec_raw", "dec"):
        assert error(seen[name], stored[f"{size}.{name}"]) < 1e-5, name


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_without_the_encoders_last_norm(stored: dict[str, Tensor], files: tuple[str, str], size: str) -> None:
    system = model(files, norm=False)
    tokens = system.encode(clip_of(stored[f"{size}.x"], system).frames)
    assert error(tokens[2].as_maps()[:, 0], stored[f"{size}.enc_layer-2_nonorm"]) < 1e-5
    if size == "56x84":
        maps = [tokens[n].as_maps()[:, 0] for n in range(4)]
        raw = system.heads["features"].latent_head(maps, (56, 84))
        assert error(thinned(raw), stored["56x84.dec_nonorm_fed_nonorm"]) < 1e-5
