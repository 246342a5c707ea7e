"""What every component promises, and the tools of the other checks."""

from __future__ import annotations

import ast
import inspect
import itertools
import random
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from fourd_core.data import Clip
from fourd_core.errors import FourdError
from fourd_core.interfaces import Component
from fourd_core.recipe import ComponentConfig, Recipe, dumps, parse
from fourd_core.recipe.structure import Installed

TOLERANCE = 1e-5
"""Relative, in fp32: how far the same numbers computed in another batch may differ."""

M = TypeVar("M", bound=nn.Module)


def expect(condition: object, sentence: str) -> None:
    """An assertion that survives `python -O`."""
    if not condition:
        raise AssertionError(sentence)


def check_form(cls: type[Component]) -> None:
    """Docstring, and a Config that is frozen, documented, and can be said in a recipe."""
    name = cls.__name__
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    expect(not missing, f"{name} does not implement {', '.join(missing)}")
    expect((cls.__doc__ or "").strip(), f"{name} needs a docstring: `fourd list` shows its first line")
    config = getattr(cls, "Config", None)
    expect(isinstance(config, type) and attrs.has(config), f"{name}.Config must be a nested attrs class")
    _check_config(name, cls.Config)
    example = cls.example()
    expect(isinstance(example, cls.Config), f"{name}.example() must return a {name}.Config, not {example!r}")
    expect(_is_frozen(example), f"{name}.Config must be frozen: decorate it with @attrs.frozen")
    again = _through_a_recipe(cls, example)
    expect(again == example, f"{name}.Config does not survive being written to a recipe: {example} became {again}")


class _Only:
    """A resolver that knows one component as "example", and those that are installed, which its Config may name."""

    def __init__(self, cls: type[Component]) -> None:
        self.cls = cls

    def component(self, kind: str, name: str) -> type[Any]:
        return self.cls if name == "example" else Installed().component(kind, name)

    def job(self, name: str) -> type[Any]:
        raise NotImplementedError


def _through_a_recipe(cls: type[Component], config: Any) -> Any:
    """What a recipe makes of a Config that was written into it."""
    section = ComponentConfig("backbones", "example", config)
    try:
        text = dumps(Recipe(backbone=section, data=attrs.evolve(section, kind="datasets")))
        return parse(text, resolver=_Only(cls)).backbone.config
    except (FourdError, TypeError) as error:
        raise AssertionError(f"{cls.__name__}.Config cannot be written in a recipe: {error}") from error


def _is_frozen(instance: Any) -> bool:
    try:
        instance.any_name = 0
    except attrs.exceptions.FrozenInstanceError:
        return True
    except AttributeError:  # slots alone
        pass
    return False


def _check_config(where: str, config: type[Any]) -> None:
    documented = {name for base in config.__mro__ if attrs.has(base) for name in _documented_fields(base)}
    for field in attrs.fields(config):
        expect(field.name in documented, f"the key {field.name} of {where}.Config needs a docstring below it")


def _documented_fields(config: type[Any]) -> Iterator[str]:
    """Names of the annotated fields that are followed by a string."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, below in itertools.pairwise(body):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            yield field.target.id


def build(cls: type[M], *arguments: Any) -> M:
    """Built on the meta device, twice alike from one seed, with a state that can be saved and given back."""
    name = cls.__name__
    with torch.device("meta"):
        empty = cls(*arguments)
    placed = [key for key, value in empty.state_dict().items() if not value.is_meta]
    expect(not placed, f"{name} ignores the default device when it builds {', '.join(placed)}: no weights, no .to()")
    first, second, other = (seeded(cls, seed, *arguments) for seed in (0, 0, 1))
    state = first.state_dict()
    for key, value in second.state_dict().items():
        expect(torch.equal(value, state[key]), f"{name} built twice from one seed differs in {key}")
        expect(value.isfinite().all(), f"{name} starts with numbers in {key} that are not finite")
    other.load_state_dict({key: value.clone() for key, value in state.items()})
    for key, value in other.state_dict().items():
        expect(torch.equal(value, state[key]), f"{name}: the state {key} is not what was loaded")
    return other.eval()


def seeded(cls: type[M], seed: int, *arguments: Any) -> M:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return cls(*arguments)


@contextmanager
def no_global_randomness(what: str) -> Iterator[None]:
    """Random choices come from the generators that are handed in."""

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    yield
    expect(states() == before, f"{what} draws from a global random generator")


def same(actual: Tensor, wanted: Tensor, sentence: str) -> None:
    expect(actual.shape == wanted.shape, f"{sentence}: shape {tuple(actual.shape)}, not {tuple(wanted.shape)}")
    scale = max(float(wanted.double().abs().max()), 1e-6) if wanted.numel() else 1.0
    error = float((actual.double() - wanted.double()).abs().max()) / scale if wanted.numel() else 0.0
    expect(error <= TOLERANCE, f"{sentence}: they differ by {error:.1e} of the largest number")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example_clip(batch: int, frames: int, height: int, width: int, seed: int = 0) -> Clip:
    """Textured pictures that move by whole pixels from frame to frame, another one for each sample."""
    coarse = torch.rand(batch, 3, -(-height // 4), -(-width // 4), generator=generator(seed))
    pictures = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    moved = [torch.roll(pictures, (-t, 2 * t), (-2, -1)) for t in range(frames)]
    return Clip(torch.stack(moved, 1), times=torch.arange(frames).expand(batch, -1) / 25)


def check_gradients(name: str, trainable: Mapping[str, Tensor]) -> None:
    gradients = {key: p.grad for key, p in trainable.items() if p.grad is not None}
    for key, gradient in gradients.items():
        expect(gradient.isfinite().all(), f"{name}: the gradient of {key} is not finite")
    reached = any(bool(gradient.any()) for gradient in gradients.values())
    expect(reached, f"{name}: no gradient reaches any of its {len(trainable)} trainable parameters")
