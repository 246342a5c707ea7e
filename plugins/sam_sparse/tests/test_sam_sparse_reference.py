"""Prompts and read-outs against stored numbers of L4P's inference release; its files' names and counts.

The whole tracker, with its memory through three windows, is compared with the release by the plugin `l4p`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import TrackMemory
from fourd_sam_sparse.prompts import PromptEncoder
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import Grid
from fourd_core.errors import WeightsError
from fourd_core.interfaces import BackboneSpec, TapSpec
from fourd_core.kernels.map_readout import enlarged_mean, expected_position
from fourd_core.recipe import Location

DATA = Path(__file__).parent / "data"
PREFIX = "l4p_model.task_heads.track_2d."
GRID, SIZE = Grid(8, 4, 4), (16, 56, 56)


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(DATA / "prompts_and_readout.safetensors")


@pytest.fixture(scope="module")
def prompt_encoder(stored: dict[str, Tensor]) -> PromptEncoder:
    encoder = PromptEncoder(96)
    prefix = "sd/prompt_encoder."
    encoder.load_state_dict({key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)})
    return encoder


@torch.no_grad()
def test_where_the_videos_tokens_stand(prompt_encoder: PromptEncoder, stored: dict[str, Tensor]) -> None:
    positions = prompt_encoder.positions(GRID, torch.device("cpu"))
    torch.testing.assert_close(positions[:, ::4], stored["dbg/dense_pe"][0].flatten(1).T, atol=1e-6, rtol=0)


@torch.no_grad()
def test_points_with_all_labels(prompt_encoder: PromptEncoder, stored: dict[str, Tensor]) -> None:
    """Six points with the labels 0, 1 and 2, with and without a feature."""
    t, height, width = SIZE
    places = stored["in/queries_bn3"][0] / torch.tensor([t, width, height])
    labels, handed = stored["in/single_labels_bn"][0].long(), stored["in/single_promptlabels_bn"][0].bool()
    assert set(labels.tolist()) == {0, 1, 2}
    assert 0 < handed.sum() < len(handed)
    tokens = prompt_encoder(places, labels, stored["in/single_promptfeatures_bnc"][0], handed)
    torch.testing.assert_close(tokens, stored["dbg/sparse_embeddings"], atol=1e-6, rtol=0)


def test_what_is_read_from_maps(stored: dict[str, Tensor]) -> None:
    maps = stored["heat/in/low_masks"]
    xy = expected_position(maps[:, 0], SIZE[1:])
    torch.testing.assert_close(xy, stored["heat/out/low_xy"][0], atol=1e-4, rtol=0)
    logit, log_depth = enlarged_mean(maps[:, 1:], SIZE[1:]).unbind(1)
    for answer, wanted in ((logit, "low_vis_mean"), (log_depth.exp(), "low_depth_exp")):
        theirs = stored[f"heat/out/{wanted}"]
        torch.testing.assert_close(answer, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_names_shapes_and_count_of_the_released_head() -> None:
    patterns = json.loads((DATA / "official_keys_track_2d.json").read_text())
    published = {
        key.replace(".N.", f".{i}."): shape
        for key, shape in patterns.items()
        for i in range(3 if "mlps.N." in key else 2)
    }
    spec = BackboneSpec((TapSpec(1408, (2, 14, 14)),), (2, 14, 14), (0.5,) * 3, (0.25,) * 3)
    with torch.device("meta"):
        head, memory = SamTrack(SamTrack.Config(), spec), TrackMemory(TrackMemory.Config(), spec)
    own = {key: list(value.shape) for key, value in (head.state_dict() | memory.state_dict()).items()}
    assert own == published
    assert len(published) == 120
    assert sum(p.numel() for part in (head, memory) for p in part.parameters()) == 68_124_192
    counts = [sum(p.numel() for p in part.parameters()) for part in
              (head.mask_decoder.transformer, head.mask_decoder.output_hypernetworks_mlps,
               head.mask_decoder.output_upscaling)]  # fmt: skip
    assert counts == [47_279_808, 12_647_184, 4_213_968]


# ---- files of weights


def file_of(case: Any, path: Path, prefix: str = PREFIX) -> Location:
    """A Lightning checkpoint of L4P with a seeded tracker, and parts of other networks where it has a prefix."""
    tracker = case.head().state_dict() | case.memory().state_dict()
    state = {prefix + key: value.float() for key, value in tracker.items()}
    if prefix == PREFIX:
        state["l4p_model.video_encoder.patch_embed.proj.bias"] = torch.zeros(96)
        state["l4p_model.task_heads.depth.task_head.dpt.head1.0.bias"] = torch.zeros(8)
    torch.save({"state_dict": state, "epoch": 3}, path)
    return Location(str(path))


def fresh(case: Any, location: Location, mlp: int | None = None) -> tuple[SamTrack, TrackMemory]:
    """A head and a memory that have not read their weights yet."""
    torch.manual_seed(5)
    config = SamTrack.Config(heads=case.heads, mlp=mlp or case.hidden, weights=location)
    return SamTrack(config, case.spec), TrackMemory(TrackMemory.Config(weights=location), case.spec)


@pytest.mark.parametrize("prefix", ["", PREFIX, "track_2d."])
def test_weights_behind_any_prefix(case: Any, tmp_path: Path, prefix: str) -> None:
    wanted = case.head().state_dict() | case.memory().state_dict()
    for part in fresh(case, file_of(case, tmp_path / "head.pth", prefix)):
        part.load_pretrained()
        assert all(torch.equal(value, wanted[key].float()) for key, value in part.state_dict().items())


def test_weights_that_do_not_fit(case: Any, tmp_path: Path) -> None:
    wrong, _ = fresh(case, file_of(case, tmp_path / "l4p.ckpt"), mlp=64)
    with pytest.raises(WeightsError, match=r"lin1.bias is 24 in the file and 64 here"):
        wrong.load_pretrained()
    torch.save({"video_encoder.norm.bias": torch.zeros(3)}, tmp_path / "other.pth")
    for part in fresh(case, Location(str(tmp_path / "other.pth"))):
        with pytest.raises(WeightsError, match=r"other.pth does not fit this network .* missing"):
            part.load_pretrained()


def test_whose_weights_they_are(case: Any) -> None:
    for part in fresh(case, Location("l4p.ckpt")):
        named = part.pretrained()
        assert named is not None
        assert (named.location, named.source) == ("l4p.ckpt", "L4P")
        assert "NC" in named.licence
    assert case.head().pretrained() is None
