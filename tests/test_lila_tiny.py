"""The tiny recipe on the bundled clip: real weights, real video, few steps; the whole way from TOML to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SMALL_LILA, Fourd, write_video

RECIPE = ROOT / "recipes/lila_tiny.toml"
ERM = ROOT / "recipes/ablations/lila_tiny_erm.toml"
SMALL = [word for override in SMALL_LILA for word in ("--set", override)]


def test_tiny_recipe_runs_from_video_to_report(fourd: Fourd, tmp_path: Path) -> None:
    import zarr

    result = fourd("run", RECIPE, "--out", "a", *SMALL, check=0)
    for row in ("trained in context", "at initialisation", "encoder features, bilinear"):
        assert row in result.stdout
    features = zarr.open_group(tmp_path / "a/predict/bigbuckbunny.zarr", mode="r")["features"]
    assert features.shape == (132, 32, 64, 128)
    assert torch.from_numpy(features[5].astype("float32")).std() > 0.1
    page = (tmp_path / "a/report.html").read_text()
    assert "data:image/png;base64" in page
    assert "encoder features, bilinear" in page
    weights = json.loads((tmp_path / "a/run.json").read_text())["weights"]
    assert weights[0]["licence"] == "Apache-2.0"


def test_tiny_recipe_repeats_bit_for_bit(fourd: Fourd, tmp_path: Path) -> None:
    fourd("run", RECIPE, "train", "--out", "a", *SMALL, check=0)
    fourd("rerun", "a", "train", "--out", "b", check=0)
    name = "train/weights.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_erm_trains_a_readout(fourd: Fourd, tmp_path: Path) -> None:
    result = fourd("run", ERM, "train", "evaluate", "--out", "a", *SMALL, check=0)
    assert "trained by ERM, own read-out" in result.stdout


@pytest.mark.parametrize("frames", [1, 4])
def test_a_video_too_short_for_pairs(fourd: Fourd, tmp_path: Path, frames: int) -> None:
    write_video(tmp_path / "short.mp4", frames=frames)
    answer = fourd("run", RECIPE, "--out", "a", "--set", "data.video=short.mp4", check=2)
    assert "short.mp4" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_check_says_what_the_recipe_is(fourd: Fourd) -> None:
    answer = fourd("check", RECIPE, check=0)
    for text in ("effnet", "fourd-plugin-dpt3d", "(1, 4, 32, 192, 352)", "Apache-2.0", "132 frames of 1280x720"):
        assert text in answer.stdout
