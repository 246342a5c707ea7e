"""The metric `lila_cue_error` on a small moving picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from fourd_lila.cue_error import LILACueError, encoder_features
from fourd_lila.objective import LILA
from torch.utils._python_dispatch import TorchDispatchMode

from fourd_core.data import Clip, CueMaps
from fourd_core.errors import RunError
from fourd_core.interfaces import CueProvider
from fourd_core.kernels.linear_matching import apply_readout
from fourd_core.randomness import generator_for
from fourd_core.system import System

Build = Callable[[dict[str, CueProvider]], System]


@pytest.fixture
def system(build: Build, cues: dict[str, CueProvider], config: LILA.Config) -> System:
    system = build(cues)
    system.objectives["learn"] = LILA(config, system)
    for parameter in system.heads.parameters():  # as if trained
        torch.nn.init.uniform_(parameter, -0.3, 0.3, generator=torch.Generator().manual_seed(1))
    return system


def test_rows_and_their_numbers(system: System, moving) -> None:
    result = LILACueError(LILACueError.Config(stage="learn", pairs=3, batch_size=3)).measure(system, moving())
    assert [row["features"] for row in result.rows] == [
        "trained in context", "at initialisation", "encoder features, bilinear",
    ]  # fmt: skip
    assert result.score == pytest.approx(-result.rows[0]["L1"], abs=2e-5)
    assert list(result.rows[0]) == ["features", "L1", "flow", "colours", "self-distillation", "against the start"]
    objective = system.objectives["learn"]
    samples = [objective.sample(moving(), "held_out", generator_for(0, "cue error pair", n)) for n in range(3)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    pairs = objective.prepare(system, batch, generator_for(0, "cue error channels", 0))

    def l1(features: torch.Tensor, groups: slice = slice(None)) -> float:
        prediction = apply_readout(features[:, 0], objective.solved_readout(features[:, 1], pairs))
        return (prediction - pairs.cues[:, 0]).abs()[:, groups][pairs.valid[:, 0][:, groups]].mean().item()

    trained, start, encoder = (
        objective.features(system, pairs),
        objective.features(system.untrained(), pairs),
        encoder_features(pairs, (0, 1)),
    )  # fmt: skip
    for row, features in zip(result.rows, (trained, start, encoder), strict=True):
        assert row["L1"] == pytest.approx(l1(features), abs=2e-5)
        assert row["flow"] == pytest.approx(l1(features, slice(0, 2)), abs=2e-5)
        assert row["self-distillation"] == pytest.approx(l1(features, slice(5, 9)), abs=2e-5)
    change = 100 * (result.rows[0]["L1"] / result.rows[1]["L1"] - 1)
    assert float(result.rows[0]["against the start"].removesuffix(" %")) == pytest.approx(change, abs=0.1)


class NoFloat64(TorchDispatchMode):
    """A device that lacks float64, as Apple's do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        assert getattr(answer, "dtype", None) != torch.float64, f"{func} needs float64"
        return answer


def test_float64_is_not_needed(system: System, moving) -> None:
    with NoFloat64():
        LILACueError(LILACueError.Config(stage="learn", pairs=1)).measure(system, moving())


def test_encoder_features_are_normalised_per_pixel(system: System, moving) -> None:
    objective = system.objectives["learn"]
    sample = objective.sample(moving(), "train", torch.Generator().manual_seed(0))
    pairs = objective.prepare(system, {k: v[None] for k, v in sample.items()}, torch.Generator().manual_seed(0))
    features = encoder_features(pairs, (0, 1))
    assert features.shape == (1, 2, 16, 32, 32)
    maps = [torch.nn.functional.interpolate(pairs.tokens[t].as_maps()[:, 0], (32, 32), mode="bilinear") for t in (0, 1)]
    expected = torch.nn.functional.layer_norm(torch.cat(maps, 1).movedim(1, -1), (16,)).movedim(-1, 1)
    torch.testing.assert_close(features[0], expected)


def test_the_same_seed_gives_the_same_table_and_another_one_another(system: System, moving) -> None:
    tables = [
        LILACueError(LILACueError.Config(stage="learn", pairs=2, seed=seed)).measure(system, moving()).rows
        for seed in (0, 0, 1)
    ]
    assert tables[0] == tables[1] != tables[2]


def test_erm_adds_its_own_read_out_under_the_same_protocol(
    build: Build, cues: dict[str, CueProvider], config: LILA.Config, system: System, moving
) -> None:
    metric = LILACueError(LILACueError.Config(stage="learn", pairs=2))
    other = build(cues)
    other.objectives["learn"] = LILA(attrs.evolve(config, mode="erm"), other)
    in_context, erm = metric.measure(system, moving()), metric.measure(other, moving())
    assert [row["features"] for row in erm.rows][:2] == [
        "trained by ERM, solved in context", "trained by ERM, own read-out",
    ]  # fmt: skip
    assert erm.rows[0]["L1"] != erm.rows[1]["L1"]
    assert erm.rows[2:] == in_context.rows[1:]  # the start and the encoder are what they were
    assert (erm.title, erm.protocol) == (in_context.title, in_context.protocol)
    assert json.loads(json.dumps(erm.protocol)) == erm.protocol


def test_a_system_without_the_objective_needs_one_in_the_recipe(system: System, config: LILA.Config, moving) -> None:
    expected = LILACueError(LILACueError.Config(stage="learn", pairs=2)).measure(system, moving())
    del system.objectives["learn"]
    with pytest.raises(RunError, match='no training stage "learn"'):
        LILACueError(LILACueError.Config(stage="learn", pairs=2)).measure(system, moving())
    given = LILACueError(LILACueError.Config(stage="learn", pairs=2, objective=config)).measure(system, moving())
    assert given == expected


def test_places_where_a_teacher_is_not_trusted_are_not_counted(
    build: Build, cues: dict[str, CueProvider], untrusted: CueProvider, config: LILA.Config, moving
) -> None:
    class HalfTrusted(type(untrusted)):
        """The picture, but nothing is known about the left half of its frames."""

        def __call__(self, clip: Clip) -> CueMaps:
            left = torch.arange(clip.size[1]) < clip.size[1] // 2
            values = torch.where(left, 0, clip.frames)
            return CueMaps(values, "map", (~left).expand_as(values)[:, :, :1])

    system = build({"flow": cues["flow"], "half": HalfTrusted()})
    objective = system.objectives["learn"] = LILA(attrs.evolve(config, flip=0.0), system)
    row = LILACueError(LILACueError.Config(stage="learn", pairs=1)).measure(system, moving()).rows[0]
    sample = objective.sample(moving(), "held_out", generator_for(0, "cue error pair", 0))
    pairs = objective.prepare(
        system, {k: v[None] for k, v in sample.items()}, generator_for(0, "cue error channels", 0)
    )
    features = objective.features(system, pairs)
    error = (apply_readout(features[:, 0], objective.solved_readout(features[:, 1], pairs)) - pairs.cues[:, 0]).abs()[
        :, 2:5
    ]
    valid = pairs.valid[:, 0, 2:5]
    assert 0.1 < valid.float().mean() < 0.9
    assert (
        row["half"]
        == pytest.approx(error[valid].mean().item(), abs=2e-5)
        != pytest.approx(error.mean().item(), abs=2e-5)
    )
