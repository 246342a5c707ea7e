"""PAMR against the stored numbers of both public implementations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fourd_pamr import ORIGINAL, PAMR, Stage
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

STORED = Path(__file__).parent / "data" / "pamr.safetensors"


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(STORED)


def refined(maps: Tensor, guide: Tensor, *stages: Stage, eps: float = 1e-5, sigma: float = 0.05, d=(1, 3, 5)) -> Tensor:
    return PAMR(PAMR.Config(stages=stages, dilations=d, sigma=sigma, eps=eps))(maps, guide)


def assert_equals(answer: Tensor, expected: Tensor) -> None:
    """Large maps are stored at every third pixel."""
    if answer.shape != expected.shape:
        answer = answer[..., ::3, ::3]
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lila_in_stages(stored: dict[str, Tensor], count: int) -> None:
    with safe_open(STORED, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    stages = [Stage(iterations, size and tuple(size)) for iterations, size in meta["stages"]]
    answer = refined(stored["fmap"], stored["guide"], *stages[:count], sigma=meta["sigma"], d=tuple(meta["dilations"]))
    assert_equals(answer, stored[f"stage{count - 1}"])


def test_lila_on_a_flat_guide(stored: dict[str, Tensor]) -> None:
    assert_equals(refined(stored["flat_fmap"], stored["flat_guide"], Stage(2), d=(1, 3)), stored["flat_out"])


@pytest.mark.parametrize(("name", "eps"), [("single_1iter_d1_s0.1", 1e-5), ("original_1iter_d1", 1e-8)])
def test_one_round_of_either_variant(stored: dict[str, Tensor], name: str, eps: float) -> None:
    enlarged = F.interpolate(stored["fmap"], size=stored["guide"].shape[-2:])
    assert_equals(refined(enlarged, stored["guide"], Stage(1), eps=eps, sigma=0.1, d=(1,)), stored[name])


def test_the_original_with_its_own_resize(stored: dict[str, Tensor]) -> None:
    answer = refined(stored["fmap"], stored["guide"], Stage(5), eps=ORIGINAL.eps, sigma=ORIGINAL.sigma, d=(1, 2, 4))
    assert_equals(answer, stored["original_5iter_d1_2_4"])


def test_an_edge_of_the_guide_becomes_the_maps_edge() -> None:
    """A coarse step, blurred over several pixels by the resize, ends where the guide's step is."""
    guide = torch.full((1, 3, 64, 64), 0.2)
    guide[..., 27:] = 0.8
    coarse = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]).expand(1, 1, 4, 4)
    blurred = F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=True)
    fine = refined(coarse, guide, Stage(10))
    assert (blurred[..., 27] - blurred[..., 26]).max() < 0.06
    assert (fine[..., 27] - fine[..., 26]).min() > 0.15


def test_the_maps_dtype_is_kept_and_no_gradient_is_given() -> None:
    maps, guide = torch.rand(2, 3, 4, 4).bfloat16(), torch.rand(2, 3, 20, 24).requires_grad_()
    answer = PAMR(ORIGINAL)(maps, guide)
    assert answer.shape == (2, 3, 20, 24)
    assert answer.dtype == torch.bfloat16
    assert not answer.requires_grad


@pytest.mark.usefixtures("unchecked")
def test_wrong_configurations() -> None:
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        Stage(0)
    with pytest.raises(ValueError, match="size must be"):
        Stage(1, (0, 5))
    with pytest.raises(ValueError, match="stages must name"):
        PAMR.Config(stages=())
    with pytest.raises(ValueError, match="dilations must be"):
        PAMR.Config(dilations=(1, 0))
    with pytest.raises(ValueError, match="sigma must be greater than 0"):
        PAMR.Config(sigma=0.0)
    with pytest.raises(ValueError, match="one guide belongs to each map"):
        PAMR(PAMR.Config())(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 8, 8))
