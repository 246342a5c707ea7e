"""DINOv2 behind the Backbone contract: normalisation, time, taps, weights."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from fourd_dinov2.backbone import DinoV2, Size
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourd_core.errors import RunError, WeightsError
from fourd_core.kernels.attention import why_not_xformers
from fourd_core.recipe import Location

DATA = Path(__file__).parent / "data"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Location:
    """A file with the official names alone, as it would be downloaded."""
    stored = load_file(DATA / "dinov2_tiny_plain.safetensors")
    state = {key.removeprefix("sd."): value for key, value in stored.items() if key.startswith("sd.")}
    torch.save(state, tmp_path / "dinov2_tiny_pretrain.pth")
    return Location(str(tmp_path / "dinov2_tiny_pretrain.pth"))


def backbone(weights: Location | None = None, norm: bool = True) -> DinoV2:
    model = DinoV2(attrs.evolve(DinoV2.example(), weights=weights, norm=norm)).eval()
    model.load_pretrained()
    return model


def frames_of(x: Tensor) -> Tensor:
    """Frames whose normalisation gives the stored images."""
    return (x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])[None]


def test_frames_in_stored_tokens_out(checkpoint: Location) -> None:
    stored = load_file(DATA / "dinov2_tiny_plain.safetensors")
    with torch.no_grad():
        tokens = backbone(checkpoint)(frames_of(stored["56x42.x"]), [0, 3])
        raw = backbone(checkpoint, norm=False)(frames_of(stored["56x42.x"]), [3])
    assert sorted(tokens.layers) == [0, 3]
    assert tuple(tokens[3].grid) == (2, 4, 3)
    expected = stored["56x42.layer2.tokens"].flatten(0, 1)[None]
    torch.testing.assert_close(tokens[3].values, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(raw[3].values, stored["56x42.layer2.raw"].flatten(0, 1)[None], rtol=1e-5, atol=2e-5)


def test_tokens_lie_in_time_row_column_order() -> None:
    model, frames = backbone(), torch.rand(2, 3, 3, 28, 42)
    with torch.no_grad():
        maps = model(frames, [2])[2].as_maps()
        alone = model(frames[1:, :1], [2])[2].as_maps()
        patch = model.network.patch_embed(model.normalise(frames[1, 2])[None, :, 14:28, 28:42])
        row_major = model.network.patch_embed(model.normalise(frames[1, 2])[None])
    assert maps.shape == (2, 3, 32, 2, 3)
    torch.testing.assert_close(maps[1, 0], alone[0, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(row_major[0, 5], patch[0, 0], rtol=1e-5, atol=1e-6)


def test_spec() -> None:
    with torch.device("meta"):
        spec = DinoV2(DinoV2.Config(variant="l")).spec
    assert len(spec.taps) == 24
    assert spec.taps[0].dim == 1024
    assert spec.taps[0].stride == (1, 14, 14)
    assert spec.multiple == (1, 14, 14)
    assert (spec.mean, spec.std) == (MEAN, STD)
    assert spec.tap(-1) == 23


def test_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = DinoV2(DinoV2.Config(variant="g", registers=True))
    tokens = model(torch.empty(1, 2, 3, 224, 448, device="meta"), [9, 39])
    assert tokens[39].values.shape == (1, 2 * 16 * 32, 1536)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="28 x 30 are not divisible by the backbone's 1 x 14 x 14"):
        backbone()(torch.zeros(1, 1, 3, 28, 30), [0])
    with pytest.raises(ValueError, match="divisible by heads"):
        Size(embed_dim=32, depth=4, heads=3)
    with pytest.raises(ValueError, match="multiple of 14"):
        Size(embed_dim=32, depth=4, heads=2, image_size=512)


def test_where_the_weights_come_from(checkpoint: Location) -> None:
    assert backbone().pretrained() is None
    named = backbone(checkpoint).pretrained()
    assert named is not None
    assert named.location == checkpoint
    assert named.licence == "Apache-2.0"


def test_another_size_is_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = DinoV2(DinoV2.Config(variant="s", registers=True)).network.state_dict()
    save_file({key: torch.zeros(value.shape) for key, value in shapes.items()}, tmp_path / "s.safetensors")
    with pytest.raises(WeightsError) as caught:
        backbone(Location(str(tmp_path / "s.safetensors")))
    message = str(caught.value)
    assert "s.safetensors does not fit this network" in message
    assert 'It looks like DINOv2 with variant = "s", registers = true' in message
    assert len(message) < 700


@pytest.mark.skipif(not why_not_xformers(), reason="xformers works here")
def test_the_recipe_says_who_computes_attention() -> None:
    with pytest.raises(ValueError, match='attention = "xformers" cannot be used here: there is no CUDA device'):
        DinoV2(attrs.evolve(DinoV2.example(), attention="xformers"))
    model = DinoV2(attrs.evolve(DinoV2.example(), attention="sdpa"))
    for module in model.modules():  # as on a machine where it can be used
        if hasattr(module, "backend"):
            assert module.backend == "sdpa"
            module.backend = "xformers"
    with pytest.raises(RunError, match="xformers"):
        model(torch.rand(1, 2, 3, 28, 28), [1])
