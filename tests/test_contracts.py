"""Every registered component keeps its contract; and each check notices when one does not."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fourd_core import registry
from fourd_core.data import Clip, CueMaps, Maps, Prediction, Tokens
from fourd_core.interfaces import Memory, Metric, Objective, Result
from fourd_core.testing import check_component, miniature

CALLS = itertools.count()
GROWING = itertools.count(1)
COMPONENTS = [record for record in registry.records() if record.kind != registry.HOOKS]


@pytest.mark.parametrize("record", COMPONENTS, ids=lambda r: f"{r.kind}/{r.full_name}")
def test_contract(record: registry.Record) -> None:
    assert record.problem is None, record.problem
    check_component(record.kind, registry.load(record.kind, record.full_name))


def test_something_was_tested() -> None:
    """An environment without plugins must not look like success: the video data set is the core's own."""
    assert any(record.full_name == "fourd-core:video" for record in COMPONENTS)


# ---- components that keep their contract, and the ways to break it


class Average(Memory):
    """Tokens beside the mean of what came before."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config, backbone: Any) -> None:
        super().__init__()

    def initial(self, tokens: Tokens, clip: Clip) -> Any:
        return {tap: item.values.mean(1) for tap, item in tokens.layers.items()}

    def read(self, state: Any, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        return tokens, clip

    def update(self, state: Any, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> Any:
        return self.initial(tokens, clip)


class Copy(Objective):
    """Features that resemble the colours."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config, system: Any) -> None:
        super().__init__()

    def sample(self, data: Any, split: Any, generator: torch.Generator) -> Any:
        video = data.videos(split)[0]
        return {"frames": video.read([int(torch.randint(video.frame_count, (), generator=generator))])}

    def forward(self, system: Any, batch: Any, generator: torch.Generator) -> Any:
        clip = miniature.Clip(batch["frames"] / 255)
        cue = system.cues["colours"](clip).values.mean(2)
        return {"loss": (system(clip)["features"].values.mean(2) - cue).square().mean()}


class Brightness(Metric):
    """Mean of the features."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config) -> None:
        pass

    def measure(self, system: Any, data: Any) -> Result:
        frames = data.videos("held_out")[0].read([0])[None] / 255
        value = float(system(miniature.Clip(frames))["features"].values.detach().mean())
        return Result("features", ({"what": "mean", "value": value},), {"frames": 1})


GOOD = {
    "backbones": miniature.Patches,
    "heads": miniature.Pixels,
    "cues": miniature.Colours,
    "datasets": miniature.Textures,
    "memories": Average,
    "objectives": Copy,
    "metrics": Brightness,
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_component_that_keeps_its_contract_passes(kind: str) -> None:
    check_component(kind, GOOD[kind])


class Undocumented:
    @attrs.frozen
    class Config:
        """Keys."""

        size: int = 3


class Thawed:
    @attrs.define
    class Config:
        """Keys."""

        size: int = 3
        """A number."""


class Unspeakable:
    @attrs.frozen
    class Config:
        """Keys."""

        thing: complex = 1j
        """A number that TOML does not have."""


def changed(method: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The method with its result changed."""

    def call(original: Any) -> Any:
        return lambda self, *arguments: change(original(self, *arguments))

    return {method: call}


def noisy(original: Any) -> Any:
    def call(self: Any, *arguments: Any) -> Any:
        random.random()
        torch.rand(1)
        return original(self, *arguments)

    return call


def with_scale(scale: Callable[[], Any]) -> Callable[[Any], Any]:
    """An `__init__` that also makes a parameter."""

    def wrap(original: Any) -> Any:
        def init(self: Any, *arguments: Any) -> None:
            original(self, *arguments)
            self.scale = scale()

        return init

    return wrap


def keep_system(original: Any) -> Any:
    def init(self: Any, config: Any, system: Any) -> None:
        original(self, config, system)
        self.system = system

    return init


def misplaced() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, device="cpu"))


def unseeded() -> nn.Parameter:
    return nn.Parameter(torch.empty(1) if torch.empty(0).is_meta else torch.tensor([random.random()]))


def rows(*values: Any) -> Callable[[Result], Result]:
    return lambda result: attrs.evolve(result, rows=tuple({"what": "mean", "value": value} for value in values))


def another_each_time(result: Result) -> Result:
    return rows(time.perf_counter())(result)


def mixed(tokens: Tokens) -> Tokens:
    return Tokens({t: attrs.evolve(m, values=m.values - m.values.mean(0)) for t, m in tokens.layers.items()})


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("backbones", {"__doc__": ""}, "needs a docstring"),
    ("backbones", {"Config": Undocumented.Config}, "the key size of .* needs a docstring"),
    ("backbones", {"Config": Thawed.Config}, "must be frozen"),
    ("backbones", {"Config": Unspeakable.Config}, "cannot be written in a recipe"),
    ("backbones", {"example": classmethod(lambda cls: 3)}, r"example\(\) must return"),
    ("backbones", changed("forward", lambda t: Tokens({**t.layers, 5: next(iter(t.layers.values()))})), "returned .*5"),
    ("backbones", changed("forward", mixed), "batch of two"),
    ("backbones", {"spec": attrs.evolve(miniature.Patches.spec, multiple=(1, 4, 8))}, "refuses a size"),
    ("backbones", {"__init__": with_scale(misplaced)}, "default device"),
    ("backbones", {"__init__": with_scale(unseeded)}, "one seed differs"),
    ("heads", {"channels": property(lambda self: 5, lambda self, value: None)}, "not .*5"),
    ("heads", {"unit": "px", **changed("forward", lambda p: Maps(p.values))}, "announces the unit 'px'"),
    ("heads", changed("forward", lambda p: Maps(p.values - p.values.mean(0))), "batch of two"),
    ("heads", changed("forward", lambda p: Maps(p.values * float("nan"))), "not finite"),
    ("heads", changed("forward", lambda p: Maps(p.values[..., ::2])), "returns"),
    ("heads", changed("forward", lambda p: Maps(p.values * 0)), "no gradient reaches"),
    ("cues", {"kind": "disparity"}, "kind is 'disparity'"),
    ("cues", {"channels": 2}, "channels is 2 and its maps have 3"),
    ("cues", {"__call__": noisy}, "global random"),
    ("cues", changed("__call__", lambda m: CueMaps(m.values[..., 1:], "map")), "returns maps"),
    ("cues", changed("__call__", lambda m: CueMaps(m.values + next(CALLS), "map")), "asked again"),
    ("cues", changed("__call__", lambda m: CueMaps(m.values.requires_grad_(), "map")), "gradient"),
    ("cues", changed("__call__", lambda m: CueMaps(m.values - m.values.mean(0), "map")), "batch of two"),
    ("cues", changed("__call__", lambda m: CueMaps(m.values / 0, "map")), "not finite"),
    ("datasets", {"videos": lambda original: lambda self, split: []}, "has no video"),
    ("datasets", {"videos": lambda original: lambda self, split: original(self, "all")}, "in both train and held_out"),
    ("memories", changed("initial", lambda state: {}), "returns no tensors"),
    ("memories", changed("read", lambda seen: (Tokens({0: seen[0][0]}), seen[1])), "changes the taps"),
    (
        "memories",
        changed("update", lambda s: {t: v[:, : next(GROWING)] for t, v in s.items()}),
        "changes the state's form",
    ),
    ("objectives", {"sample": noisy}, "global random"),
    ("objectives", {"forward": noisy}, "global random"),
    ("objectives", {"__init__": keep_system}, "keeps the system"),
    ("objectives", changed("forward", lambda losses: {"l1": losses["loss"]}), 'no "loss"'),
    ("objectives", changed("forward", lambda losses: {"loss": losses["loss"].detach()}), "no gradient"),
    ("objectives", changed("forward", lambda losses: {"loss": losses["loss"] / 0}), "finite"),
    ("metrics", changed("measure", rows()), "without title or rows"),
    ("metrics", changed("measure", another_each_time), "second time"),
    ("metrics", changed("measure", rows(float("nan"))), "finite number"),
    ("metrics", changed("measure", lambda r: attrs.evolve(r, protocol={"data": object()})), "plain JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "reason"), BROKEN)
def test_a_broken_promise_is_noticed(kind: str, changes: dict[str, Any], reason: str) -> None:
    """Each contract is broken in one place by a subclass of a component that keeps it."""
    base: Any = GOOD[kind]
    members = {"__doc__": base.__doc__}
    for name, value in changes.items():
        wraps = callable(value) and not isinstance(value, type) and name not in ("Config", "example")
        members[name] = value(getattr(base, name)) if wraps else value
    broken = type("Broken", (base,), members)
    with pytest.raises((AssertionError, TypeError), match=f"(?s){reason}"):
        check_component(kind, broken)


def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(AssertionError, match="does not derive from Head"):
        check_component("heads", miniature.Patches)
