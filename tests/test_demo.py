"""`make demo` and the weights that come with the project: they load whole, say how they were made, and predict."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
import zarr
from helpers import ROOT, Fourd, write_video
from safetensors import safe_open

from fourd_core.build import build_system
from fourd_core.recipe import load_recipe

FILES = sorted((ROOT / "plugins/weights_tiny/fourd_weights_tiny").glob("*.safetensors"))
RECIPES = {"l4p_tiny": "l4p_tiny.toml", "lila_tiny": "lila_tiny_features.toml"}
ADDED = {"l4p_tiny": "", "lila_tiny": "backbone."}
"""What a recipe has beside its file: LILA's encoder comes from a package of its own."""


def test_these_weights_come_along() -> None:
    assert {path.stem for path in FILES} == set(RECIPES)
    card = (ROOT / "plugins/weights_tiny/README.md").read_text()
    assert all(f"`{path.name}` | `recipes/{RECIPES[path.stem]}`" in card for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_are_whole_small_and_say_how_they_were_made(path: Path) -> None:
    assert path.stat().st_size <= 16 * 2**20
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["fourd"])
        assert facts["recipe"] == path.stem and facts["licence"] == "Apache-2.0"
        assert len(facts["how"]) >= len("in training")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    assert all(value.isfinite().all() for value in tensors.values())
    assert all(value.dtype == torch.float16 for value in tensors.values() if value.is_floating_point())
    recipe = load_recipe(ROOT / "recipes" / RECIPES[path.stem])
    assert str(recipe.weights).endswith(f"fourd_weights_tiny/{path.name}")
    system = build_system(recipe).state_dict()
    own = {key: value for key, value in system.items() if not ADDED[path.stem] or not key.startswith(ADDED[path.stem])}
    assert own.keys() == tensors.keys(), "the file is the recipe's, and the recipe is the file's"
    assert all(torch.equal(own[key], tensors[key].to(own[key].dtype)) for key in own)


def test_the_demo_in_small(fourd: Fourd, tmp_path: Path) -> None:
    """The recipe of `make demo` on a short video: numbers everywhere, one page with the pictures of both networks."""
    video = write_video(tmp_path / "clip.mp4", frames=18, size=(72, 128))
    words = ["--set", f"data.video={video}", "--set", "queries.grid=2"]
    fourd("run", ROOT / "recipes/demo.toml", *words, "--out", "demo", check=0)
    l4p, lila = (zarr.open_group(tmp_path / "demo" / stage / "clip.zarr", mode="r") for stage in ("l4p", "lila"))
    for name in (
        "depth",
        "flow",
        "motion",
        "cameras.world_from_cam",
        "cameras.intrinsics",
        "track.xy",
        "track.visibility",
    ):
        values = torch.from_numpy(l4p[name][:])
        assert len(values) == 18
        assert values[1 if name == "flow" else 0 :].isfinite().all(), name
        assert float(values[1:].std()) > 0, name
    assert l4p["depth"].shape[-2:] == (64, 112), "the proportions of a film"
    assert torch.from_numpy(lila["features"][:]).isfinite().all()
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4 and page.count("data:video/mp4;base64,") == 2


def test_make_demo_runs_this_recipe_and_the_readme_begins_with_it() -> None:
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    # Below another make it also says which folder it enters and leaves.
    assert any(line.endswith("fourd run recipes/demo.toml --out runs/demo") for line in done.stdout.splitlines())
    recipe = load_recipe(ROOT / "recipes/demo.toml")
    assert [stage.job for stage in recipe.stages.values()] == ["predict", "predict"]
    assert not any(getattr(stage.config, "by_name", False) for stage in recipe.stages.values())
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make demo") < readme.index("## Commands")
