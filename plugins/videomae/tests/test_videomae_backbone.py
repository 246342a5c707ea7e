"""VideoMAE behind the Backbone contract: normalisation, grids, taps, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fourd_videomae.backbone import VideoMAE
from fourd_videomae.checkpoints import to_official
from fourd_videomae.sizes import Size
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourd_core.errors import RunError, WeightsError
from fourd_core.kernels.attention import why_not_xformers
from fourd_core.recipe import Location
from fourd_core.testing import check_component

DATA = Path(__file__).parent / "data"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def backbone(weights: Path | None = None, **changes: Any) -> VideoMAE:
    location = None if weights is None else Location(str(weights))
    model = VideoMAE(attrs.evolve(VideoMAE.example(), weights=location, **changes)).eval()
    model.load_pretrained()
    return model


def l4p_file(path: Path, state: dict[str, Tensor]) -> Path:
    """A Lightning checkpoint of L4P with this encoder, and a head."""
    keys = {f"l4p_model.video_encoder.{key}": value for key, value in state.items()}
    keys["l4p_model.task_heads.depth.task_head.dpt.head1.0.bias"] = torch.zeros(128)
    torch.save({"state_dict": keys, "epoch": 3, "pytorch-lightning_version": "2.5"}, path)
    return path


def test_contract() -> None:
    check_component("backbones", VideoMAE)


def test_frames_in_stored_tokens_out(tmp_path: Path) -> None:
    stored = load_file(DATA / "transformers_tiny.safetensors")
    state = to_official({key.removeprefix("hub/"): value for key, value in stored.items() if key.startswith("hub/")})
    size = Size(16, 2, 2, patch=(2, 4, 4), mlp_ratio=2.5)
    model = backbone(l4p_file(tmp_path / "l4p.ckpt", state), size=size)
    frames = stored["x"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    with torch.no_grad():
        tokens = model(frames, [1, 2])
    assert sorted(tokens.layers) == [1, 2]
    for tap, name in ((1, "hidden_state_1"), (2, "last_hidden_state")):
        assert tuple(tokens[tap].grid) == (3, 3, 3)
        torch.testing.assert_close(tokens[tap].values, stored[name], rtol=1e-5, atol=1e-5)


def test_the_whole_clip_is_seen_at_once() -> None:
    model, frames = backbone(), torch.rand(1, 4, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    changed = frames.clone()
    changed[:, 3] = 0.5
    with torch.no_grad():
        before, after = model(frames, [0, 3]), model(changed, [0, 3])
    moved = [(before[tap].as_maps() - after[tap].as_maps()).abs().amax((0, 2, 3, 4)) for tap in (0, 3)]
    assert before[0].as_maps().shape == (1, 2, 32, 3, 2)
    assert (moved[0] > 1e-4).tolist() == [False, True]
    assert (moved[1] > 1e-4).tolist() == [True, True]


def test_spec() -> None:
    with torch.device("meta"):
        spec = VideoMAE(VideoMAE.Config(variant="g")).spec
        base = VideoMAE(VideoMAE.Config(variant="b")).spec
    assert len(spec.taps) == 41
    assert spec.tap(-1) == 40
    assert (spec.taps[0].dim, spec.taps[0].stride) == (1408, (2, 14, 14))
    assert spec.multiple == (2, 14, 14)
    assert (spec.mean, spec.std) == (MEAN, STD)
    assert spec.window == (16, 8)
    assert (len(base.taps), base.multiple, base.taps[12].dim) == (13, (2, 16, 16), 768)


def test_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = VideoMAE(VideoMAE.Config(variant="g"))
    tokens = model(torch.empty(1, 16, 3, 224, 224, device="meta"), [14, 21, 28, 36, 40])
    assert all(tokens[tap].values.shape == (1, 8 * 16 * 16, 1408) for tap in (14, 21, 28, 36, 40))
    assert tokens[40].values.is_meta


def test_checkpointing_is_a_setting() -> None:
    assert backbone(checkpointing=True).network.checkpointing
    assert not backbone().network.checkpointing


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 9, 8), (2, 8, 4)])
def test_clips_that_do_not_fit(shape: tuple[int, int, int]) -> None:
    t, h, w = shape
    with pytest.raises(ValueError, match=f"{t} frames of {h} x {w} are not divisible by the backbone's 2 x 8 x 8"):
        backbone()(torch.zeros(1, t, 3, h, w), [0])


def test_sizes_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="divisible by heads"):
        Size(embed_dim=32, depth=4, heads=3)
    with pytest.raises(ValueError, match="three positive numbers"):
        Size(embed_dim=32, depth=4, heads=2, patch=(2, 0, 14))
    with pytest.raises(ValueError, match="at least one channel"):
        Size(embed_dim=32, depth=4, heads=2, mlp_ratio=0)


def test_where_the_weights_come_from(tmp_path: Path) -> None:
    assert backbone().pretrained() is None
    path = l4p_file(tmp_path / "l4p.ckpt", backbone().network.state_dict())
    named = backbone(path).pretrained()
    assert named is not None
    assert named.location == str(path)
    assert "non-commercial" in named.licence


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_the_official_files_are_wrapped(tmp_path: Path, wrapper: str) -> None:
    wanted = {key: torch.randn_like(value) for key, value in backbone().network.state_dict().items()}
    encoder = {f"encoder.{key}": value for key, value in wanted.items()}
    torch.save({wrapper: encoder | {"mask_token": torch.zeros(1, 1, 8)}, "epoch": 1199}, tmp_path / "official.pth")
    loaded = backbone(tmp_path / "official.pth").network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in wanted.items())


def test_another_size_is_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = VideoMAE(VideoMAE.Config(variant="tiny")).network.state_dict()
    save_file({f"encoder.{k}": torch.zeros(v.shape) for k, v in shapes.items()}, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError) as caught:
        backbone(tmp_path / "tiny.safetensors")
    message = str(caught.value)
    assert "tiny.safetensors does not fit this network" in message
    assert 'It looks like variant = "tiny": correct variant or size, or take another file' in message
    assert len(message) < 700


def test_what_is_left_unread_is_said(tmp_path: Path) -> None:
    state = backbone().network.state_dict()
    lacking = {key: value for key, value in state.items() if key != "blocks.1.attn.v_bias"}
    for given, what in (
        (lacking, "1 missing (blocks.1.attn.v_bias)"),
        (state | {"cls": torch.ones(1)}, "1 unexpected (cls)"),
    ):
        save_file(given, tmp_path / "weights.safetensors")
        with pytest.raises(WeightsError, match="does not fit") as caught:
            backbone(tmp_path / "weights.safetensors")
        assert what in str(caught.value)


@pytest.mark.skipif(not why_not_xformers(), reason="xformers works here")
def test_the_recipe_says_who_computes_attention() -> None:
    with pytest.raises(ValueError, match='attention = "xformers" cannot be used here: there is no CUDA device'):
        VideoMAE(attrs.evolve(VideoMAE.example(), attention="xformers"))
    model = VideoMAE(attrs.evolve(VideoMAE.example(), attention="sdpa"))
    for module in model.modules():  # as on a machine where it can be used
        if hasattr(module, "backend"):
            assert module.backend == "sdpa"
            module.backend = "xformers"
    with pytest.raises(RunError, match="xformers"):
        model(torch.rand(1, 2, 3, 16, 16), [1])
