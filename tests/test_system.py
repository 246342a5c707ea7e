"""Composition: seeds by place, frozen backbone, memories, trained state, the Python entry points."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Fourd, with_lines
from safetensors.torch import save_file
from weights_parts import FileServer

import fourd_core as fourd
from fourd_core.build import build_system
from fourd_core.data import Clip
from fourd_core.errors import RecipeError, RunError, WeightsError
from fourd_core.provenance import new_record
from fourd_core.recipe import load_recipe
from fourd_core.system import System


def random_clip(frames: int = 2) -> Clip:
    return Clip(torch.rand(1, frames, 3, 16, 24, generator=torch.Generator().manual_seed(0)))


def test_a_second_head_does_not_change_the_first(toy_recipe: Path) -> None:
    alone = build_system(load_recipe(toy_recipe))
    both = build_system(load_recipe(with_lines(toy_recipe, '\n[heads.another]\nuse = "toy_linear"\ntap = 1\n')))
    assert torch.equal(alone(random_clip()).value, both(random_clip()).value)
    assert both.taps == (0, 1)
    assert not torch.equal(both.heads["value"].linear.weight, both.heads["another"].linear.weight)


def test_seeds_make_the_start(toy_recipe: Path) -> None:
    first, again = (build_system(load_recipe(toy_recipe)) for _ in range(2))
    other = build_system(load_recipe(toy_recipe, ["seed=1"]))
    assert torch.equal(first(random_clip()).value, again(random_clip()).value)
    assert not torch.equal(first(random_clip()).value, other(random_clip()).value)


def test_building_leaves_the_global_generator_alone(toy_recipe: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build_system(load_recipe(toy_recipe))
    assert torch.equal(torch.rand(3), expected)


def test_untrained_is_the_start_again(toy_recipe: Path) -> None:
    system = build_system(load_recipe(toy_recipe))
    before = system(random_clip()).value.detach()
    with torch.no_grad():
        system.heads["value"].linear.weight += 1
    assert torch.equal(system.untrained()(random_clip()).value, before)
    assert not torch.equal(system(random_clip()).value, before)


def test_the_backbone_gets_no_gradient_and_stays_in_evaluation_mode(toy_recipe: Path) -> None:
    system = build_system(load_recipe(toy_recipe)).train()
    assert system.heads["value"].training
    assert not system.backbone.training
    assert not system.encode(random_clip().frames)[0].values.requires_grad
    assert system(random_clip()).value.requires_grad


def test_memory_is_handed_from_window_to_window(toy_recipe: Path) -> None:
    recipe = with_lines(toy_recipe, '\n[memories.value]\nuse = "toy_average"\n')
    system = build_system(load_recipe(recipe))
    bright, dark = Clip(torch.ones(1, 2, 3, 8, 8)), Clip(torch.zeros(1, 2, 3, 8, 8))
    _, states = system.step(bright, {}, shift=2)
    after_bright, _ = system.step(dark, states, shift=2)
    head = system.heads["value"].linear
    # Tokens of white are +1, of black -1; the memory holds +1 and weighs a half: the head sees 0.
    torch.testing.assert_close(after_bright.value, head.bias.expand_as(after_bright.value))
    torch.testing.assert_close(system(dark).value, (head.bias - head.weight.sum()).expand_as(after_bright.value))


def test_a_memory_without_head_is_refused(toy_recipe: Path) -> None:
    with pytest.raises(RecipeError, match="nobody"):
        build_system(load_recipe(with_lines(toy_recipe, '\n[memories.nobody]\nuse = "toy_average"\n')))


def test_trained_state_goes_round_and_refuses_others(toy_recipe: Path) -> None:
    system, other = (build_system(load_recipe(toy_recipe, [f"seed={n}"])) for n in (0, 1))
    other.load_trained_state(system.trained_state(), "memory")
    assert torch.equal(system(random_clip()).value, other(random_clip()).value)
    with pytest.raises(WeightsError, match=r"value\.linear"):
        other.load_trained_state({"heads.depth.weight": torch.zeros(1)}, "memory")


def test_a_tap_that_does_not_exist_names_the_section(toy_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"heads\.value.*tap 5 does not exist"):
        build_system(load_recipe(toy_recipe, ["heads.value.tap=5"]))


def test_a_device_that_is_not_here(toy_recipe: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device whose absence is tested")
    with pytest.raises(RunError, match="0 CUDA devices"):
        fourd.load(toy_recipe, ["device=cuda"])


def test_load_and_predict_in_python(toy_recipe: Path, clip: Path) -> None:
    system = fourd.load(toy_recipe)
    assert isinstance(system, System)
    predictions = system.predict(clip)
    # 96x72 pixels with the shorter side at 64, rounded to the patch of 8.
    assert predictions.value.shape == (1, 24, 1, 64, 88)
    assert list(predictions) == ["value"]
    with pytest.raises(AttributeError, match="there are: value"):
        predictions.depth  # noqa: B018
    with pytest.raises(RunError, match="predict stage"):
        system.predict(clip, limit_gb=1e-6)
    with pytest.raises(RecipeError, match=r"no head of this recipe tracks points \(it has: value\); leave queries out"):
        system.predict(clip, queries=3)


def test_a_run_folder_loads_with_its_trained_weights(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    from fourd_core import load

    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    trained, start = load(tmp_path / "a"), load(toy_recipe)
    assert not torch.equal(trained.heads["value"].linear.weight, start.heads["value"].linear.weight)
    by_weights = load(toy_recipe, [f"weights={tmp_path}/a/train/weights.safetensors"])
    assert torch.equal(by_weights.untrained().heads["value"].linear.weight, trained.heads["value"].linear.weight)
    assert torch.equal(trained.heads["value"].linear.weight, by_weights.heads["value"].linear.weight)


def test_weights_behind_a_url_are_fetched_once(toy_recipe: Path, tmp_path: Path, capsys: Any) -> None:
    state = build_system(load_recipe(toy_recipe)).trained_state()
    save_file({key: value + 1 for key, value in state.items()}, tmp_path / "mine.safetensors")
    content = (tmp_path / "mine.safetensors").read_bytes()
    with FileServer(mine__safetensors=content) as server:
        server.files["/mine.safetensors?token=hidden"] = content
        recipe = load_recipe(toy_recipe, [f"weights={server.url}/mine.safetensors?token=hidden"])
        system = build_system(recipe)
        times = len(server.requests)
        again, record = system.untrained(), new_record(recipe, [], system)
        assert len(server.requests) == times
    for key, value in state.items():
        assert torch.equal(system.trained_state()[key], value + 1) and torch.equal(
            again.trained_state()[key], value + 1
        )
    assert record["weights"] == [{
        "component": "weights", "location": f"{server.url}/mine.safetensors",
        "licence": "as the run that trained it says", "sha256": hashlib.sha256(content).hexdigest(),
    }]  # fmt: skip
    assert capsys.readouterr().err.count("note: fetching http") == 1


def test_weights_are_given_part_by_part(toy_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = with_lines(toy_recipe, '\n[heads.other]\nuse = "toy_linear"\n')
    given = {f"heads.value.{k}": v + 1 for k, v in build_system(load_recipe(two)).heads["value"].state_dict().items()}
    save_file({**given, "heads.absent.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    system = build_system(load_recipe(two, [f"weights={tmp_path / 'part.safetensors'}"]))
    assert torch.equal(system.heads["value"].linear.weight, given["heads.value.linear.weight"])
    assert "has nothing for heads.other, which starts untrained" in capsys.readouterr().err
    save_file({"heads.value.linear.weight": torch.zeros(1, 1)}, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match=r"linear\.bias"):
        build_system(load_recipe(two, [f"weights={tmp_path / 'half.safetensors'}"]))
    save_file({"encoder.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="named after the recipe's parts"):
        build_system(load_recipe(two, [f"weights={tmp_path / 'foreign.safetensors'}"]))
