"""From a recipe to what it describes: a system with its weights, a data set, a device.

Every component is initialised from a seed of its own, so that adding a head changes no other head's start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch

from fourd_core import registry
from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Backbone, Component, Dataset, Head, Memory, Objective
from fourd_core.randomness import seeded
from fourd_core.system import System, load_pretrained
from fourd_core.weights import read_state_dict
from fourd_core.weights.cache import require, shown
from fourd_core.weights.convert import for_recipe

if TYPE_CHECKING:
    from fourd_core.recipe import ComponentConfig, Recipe


def build_component(section: ComponentConfig, seed: int, where: str, *arguments: Any) -> Any:
    """One component from its section of the recipe, initialised from the seed of its place in the recipe.

    Raises:
        RecipeError: the component refuses its configuration (names the section).
    """
    cls = registry.load(section.kind, section.use)
    with seeded(seed, where):
        try:
            return cls(section.config, *arguments)
        except ValueError as error:
            raise RecipeError(f'[{where}] use = "{section.use}": {error}') from error


def _build_backbone(recipe: Recipe) -> Backbone:
    backbone: Backbone = build_component(recipe.backbone, recipe.seed, "backbone")
    load_pretrained({"backbone": backbone})
    return backbone


def _build_heads(recipe: Recipe, backbone: Backbone) -> tuple[dict[str, Head], dict[str, Memory]]:
    seed, spec = recipe.seed, backbone.spec
    heads = {name: build_component(s, seed, f"heads.{name}", spec) for name, s in recipe.heads.items()}
    memories = {name: build_component(s, seed, f"memories.{name}", spec) for name, s in recipe.memories.items()}
    load_pretrained({f"heads.{k}": v for k, v in heads.items()} | {f"memories.{k}": v for k, v in memories.items()})
    return heads, memories


def build_system(recipe: Recipe, named_weights: bool = True) -> System:
    """The system that a recipe describes, on the current default device, with the weights it names.

    On the meta device (`with torch.device("meta")`) nothing is read and no memory is taken.

    Args:
        named_weights: False leaves the recipe's `weights` and `trained` alone, for a training that starts afresh.
    """
    seed = recipe.seed
    if named_weights and torch.get_default_device().type != "meta":
        require([recipe.weights, recipe.trained])  # before anything large is read
    backbone = _build_backbone(recipe)
    cues = {name: build_component(s, seed, f"cues.{name}") for name, s in recipe.cues.items()}
    heads, memories = _build_heads(recipe, backbone)
    system = System(backbone, heads, memories, cues, recipe)
    system.read_cues_when_called()
    for name, stage in recipe.stages.items():
        section = getattr(stage.config, "objective", None)
        if section is not None:
            objective: Objective = build_component(section, seed, f"stages.{name}.objective", system)
            system.objectives[name] = objective
    system.train(False)
    system.starts_fresh = not named_weights
    if named_weights:
        _load_named_weights(system, recipe)
    return system


def untrained(system: System, recipe: Recipe) -> System:
    """A system of the same composition, with all that learns as training found it (for users: `System.untrained`)."""
    # The backbone is shared, unless training changed it and perhaps goes on: then neither may see the other's.
    backbone = _build_backbone(recipe) if system.own_backbone else system.backbone
    heads, memories = _build_heads(recipe, backbone)
    fresh = System(backbone, heads, memories, system.cues, recipe)
    if not system.starts_fresh:
        _load_named_weights(fresh, recipe)
    return fresh.to(system.device)


def _load_named_weights(system: System, recipe: Recipe) -> None:
    """Give the system what the recipe's `weights` and `trained` name, unless it is only a shape."""
    locations = [location for location in (recipe.weights, recipe.trained) if location is not None]
    if not locations or system.device.type == "meta":
        return
    left = [set(system.load_parts(for_recipe(location), location)) for location in locations]
    fresh = set.intersection(*left)
    own = sorted(name for name in fresh if _component(system, name).pretrained() is None)
    if own:
        sys.stderr.write(
            f"note: {' and '.join(map(shown, locations))} has nothing for {', '.join(own)}, which starts untrained\n"
        )


def _component(system: System, name: str) -> Component:
    return cast(Component, system.get_submodule(name))


def build_dataset(recipe: Recipe, stage: str | None = None) -> Dataset:
    """The recipe's data; for a stage that has data of its own, that.

    Where a stage's data has a key `root` and does not set it, `data.root` is meant.
    """
    section, where = recipe.data, "data"
    own = getattr(recipe.stages[stage].config, "data", None) if stage is not None else None
    if own is not None:
        section, where = own, f"stages.{stage}.data"
        root = getattr(recipe.data.config, "root", None)
        if root is not None and getattr(own.config, "root", root) is None:
            section = attrs.evolve(own, config=attrs.evolve(own.config, root=root))
    dataset: Dataset = build_component(section, recipe.seed, where)
    return dataset


def data_of(recipe: Recipe, stage: str, shared: Dataset) -> Dataset:
    """What a stage works on: data of its own, or the recipe's, which all other stages share."""
    own = getattr(recipe.stages[stage].config, "data", None)
    return shared if own is None else build_dataset(recipe, stage)


def pick_device(name: str) -> torch.device:
    """The device that a recipe's `device` names; "auto" takes CUDA, else the CPU.

    Apple's GPU must be named: not every operation that plugins use exists there yet.

    Raises:
        RunError: a device that this machine or this build of torch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(
            f'device = "{name}": torch sees {torch.cuda.device_count()} CUDA devices here; use "auto" or "cpu"'
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RunError(f'device = "{name}": torch sees no Apple GPU here; use "auto" or "cpu"')
    return device


def load(source: str | Path, overrides: Sequence[str] = ()) -> System:
    """A system ready to predict, from a recipe's path or from a run folder (then with its trained weights).

    Args:
        source: `recipes/lila_tiny.toml`, or `runs/mine`.
        overrides: as `--set` on the command line, for example `["heads.features.features=64"]`.
    Raises:
        FourdError: what is wrong and what to do.
    """
    from fourd_core.recipe import load_recipe
    from fourd_core.run_folder import trained_weights

    source = Path(source)
    recipe = load_recipe(source / "recipe.toml" if source.is_dir() else source, overrides)
    system = build_system(recipe)
    if source.is_dir():
        weights = trained_weights(source, recipe)
        if weights is not None:
            system.load_trained_state(read_state_dict(str(weights)), str(weights))
    return system.to(pick_device(recipe.device))
