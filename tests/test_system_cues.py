"""Teachers' weights are read when a teacher is first asked: predicting needs none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fourd_depth_anything.cue import DepthAnything
from helpers import write_video
from safetensors.torch import save_file

from fourd_core.build import build_system
from fourd_core.data import Clip
from fourd_core.errors import RecipeError, WeightsError
from fourd_core.recipe import parse
from fourd_core.run import run_recipe
from fourd_core.system import System

RECIPE = """
[data]
video = "clip.mp4"
[backbone]
use = "effnet"
[heads.features]
use = "pixel_decoder"
taps = [1, 2, 3, 4]
features = 8
out_channels = [4, 4, 4, 4]
reassemble = [1, 1, 1, 1]
[cues.depth]
use = "depth_anything"
weights = "{weights}"
[cues.depth.size]
taps = [0, 1, 2, 3]
features = 16
out_channels = [8, 12, 16, 20]
encoder = {{ embed_dim = 32, depth = 4, heads = 2, image_size = 70 }}
"""
FRAMES = torch.rand(1, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def system_with(weights: Path) -> System:
    return build_system(parse(RECIPE.format(weights=weights)))


def test_a_system_predicts_without_its_teachers_weights(tmp_path: Path) -> None:
    system = system_with(tmp_path / "absent.safetensors")
    assert system(Clip(torch.rand(1, 1, 3, 32, 32))).features.shape == (1, 1, 4, 32, 32)
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        system.load_cues()


def test_asking_a_teacher_reads_its_weights_once(tmp_path: Path) -> None:
    path = tmp_path / "depth.safetensors"
    system = system_with(path)
    torch.manual_seed(5)
    size = system.cues["depth"].size
    published = DepthAnything(DepthAnything.Config(size=size))
    names = {name.replace("pretrained_encoder.", "pretrained."): t for name, t in published.state_dict().items()}
    save_file(names, path)
    expected = published.eval()(Clip(FRAMES)).values
    assert torch.equal(system.cues["depth"](Clip(FRAMES)).values, expected)
    path.unlink()  # a second reading would fail
    assert torch.equal(system.cues["depth"](Clip(FRAMES)).values, expected)
    system.load_cues()


def test_answers_that_depend_on_the_rest_of_the_batch_are_not_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 3)
    text = RECIPE.partition("[cues.depth]")[0] + (
        '[cues.flow]\nuse = "sea_raft"\nbatch_statistics = true\n'
        "[cues.flow.size]\nstem = 8\nstages = [8, 8, 8]\nblocks = [1, 1, 1]\ndim = 8\nrefinements = 1\n"
        'levels = 2\nradius = 2\n[stages.cues]\njob = "cues"\n[stages.train]\njob = "train"\nsteps = 1\n'
        '[stages.train.objective]\nuse = "lila"\nbase_size = 96\nview_size = 64\npamr = "none"\n'
    )
    recipe = parse(f'cue_cache = "{tmp_path / "kept"}"\n{text}', base=tmp_path)
    with pytest.raises(RecipeError, match=r"\[cues.flow\] as it is set answers about a clip by the clips beside it"):
        run_recipe(recipe, tmp_path / "run", ["cues"])
    assert not (tmp_path / "kept").exists()
