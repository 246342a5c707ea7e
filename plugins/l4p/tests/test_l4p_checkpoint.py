"""The full-size model: counts, and every name of the published checkpoint, neither missing nor unexpected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fourd_l4p.checkpoints import to_recipe

from fourd_core.build import build_system
from fourd_core.errors import WeightsError
from fourd_core.recipe import load_recipe
from fourd_core.system import System
from fourd_core.weights.assets import find
from fourd_core.weights.describe import has_signature

RECIPES = Path(__file__).parents[3] / "recipes"
SHAPES = json.loads((Path(__file__).parent / "data/full_state_dict_shapes.json").read_text())


@pytest.fixture(scope="module")
def full() -> System:
    with torch.device("meta"):
        return build_system(load_recipe(RECIPES / "l4p_full.toml"))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_full_model(full: System) -> None:
    assert count(full) == 1_419_580_330
    assert count(full.backbone) == 1_011_610_752
    heads = {name: count(head) for name, head in full.heads.items()}
    assert heads["flow"] == 85_846_018
    assert heads["depth"] == heads["motion"] == 85_845_889
    assert heads["cameras"] == 82_307_590
    assert heads["track"] + count(full.memories["track"]) == 68_124_192


def test_every_published_name_has_its_place(full: System) -> None:
    published = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    assert len(published) == 916
    assert has_signature(find("l4p").asset, published)
    given = {name: tuple(tensor.shape) for name, tensor in to_recipe(published).items()}
    own = {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}
    assert given == own


def test_a_part_that_l4p_lacks_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"normals\.weight"):
        to_recipe({"l4p_model.task_heads.normals.weight": torch.zeros(1)})
