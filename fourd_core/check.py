"""`fourd check`: the composition a recipe describes, built on the meta device: no memory, no weights, no output."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from fourd_core import registry
from fourd_core.build import build_dataset, build_system, data_of, pick_device
from fourd_core.data import Clip, Queries
from fourd_core.errors import FourdError, NotFetchedError, RecipeError, WeightsError
from fourd_core.interfaces import Dataset, PretrainedWeights
from fourd_core.media.views import View
from fourd_core.provenance import component_sections, named_weights
from fourd_core.recipe import Recipe
from fourd_core.streaming import stream_config, view_of
from fourd_core.system import System
from fourd_core.tables import console_for
from fourd_core.weights import cache
from fourd_core.weights.convert import for_recipe


def check_recipe(recipe: Recipe) -> None:
    """Print what a recipe would build, read and run; everything wrong with it is raised.

    Published weights that were not fetched yet are no mistake of the recipe: what can be seen without them is.

    Raises:
        FourdError: what is wrong and what to do.
    """
    pick_device(recipe.device)
    with torch.device("meta"):
        system = build_system(recipe)
    data = build_dataset(recipe)
    videos = data.videos("all")
    if not videos:
        raise RecipeError("[data] holds no video")
    missing = _prepare(recipe, system, data)
    not_ready = _by_name(recipe, system, data)
    first = videos[0]
    view = view_of(data.view, first.size, system.backbone.spec)
    found = getattr(data, "layout", None)
    layout = f' in the layout "{found}"' if found else ""
    components, shapes = _components(recipe), _shapes(system, view, recipe)
    console = console_for(components, shapes)
    console.print(components)
    console.print(
        f"data: {len(videos)} video(s){layout}; {first.name}: {first.frame_count} frames of "
        f"{first.size[1]}x{first.size[0]}"
    )
    console.print(shapes)
    for where, weights in named_weights(system):
        console.print(
            f"weights of {where}: {cache.shown(weights.location)} [{weights.licence}], {_presence(weights)}",
            highlight=False,
        )
    for name, stage in recipe.stages.items():
        by_name = ", run by name only" if getattr(stage.config, "by_name", False) else ""
        problem = f"; not ready here: {not_ready[name]}" if name in not_ready else ""
        console.print(f"stage {name}: {stage.job}{by_name}{problem}", markup=False, highlight=False, soft_wrap=True)
    console.print("the recipe is whole" + (", except for these weights:" if missing else ""))
    for sentence in missing:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _prepare(recipe: Recipe, system: System, data: Dataset) -> list[str]:
    """Let stages and the recipe's weights say what is wrong; returns what is said of weights that are not here yet."""
    missing: dict[str, None] = {}
    stages = [
        stage.config.create(name, stage.config, system, data_of(recipe, name, data), recipe)
        for name, stage in recipe.stages.items()
        if not getattr(stage.config, "by_name", False)
    ]
    steps = [stage.prepare for stage in stages]
    steps += [partial(_fit, system, location) for location in (recipe.weights, recipe.trained) if location is not None]
    steps.append(partial(cache.require, [weights.location for _, weights in named_weights(system)]))
    for step in steps:
        try:
            step()
        except NotFetchedError as error:
            missing |= dict.fromkeys(str(error).splitlines())
    return list(missing)


def _fit(system: System, location: str) -> None:
    """See whether weights have the names and shapes of the recipe's parts."""
    system.load_parts(for_recipe(location), location)


def _by_name(recipe: Recipe, system: System, data: Dataset) -> dict[str, str]:
    """What stages that nobody may ever name complain about: their data, say, is not on this machine."""
    problems = {}
    for name, stage in recipe.stages.items():
        if getattr(stage.config, "by_name", False):
            try:
                stage.config.create(name, stage.config, system, data_of(recipe, name, data), recipe).prepare()
            except NotFetchedError:
                continue  # said once, for all stages
            except FourdError as error:
                problems[name] = str(error)
    system.learn_backbone(0)
    return problems


def _components(recipe: Recipe) -> Table:
    table = Table("section", "component", "distribution", "version")
    for where, section in component_sections(recipe).items():
        record = registry.find(section.kind, section.use)
        table.add_row(where, record.name, record.distribution, record.version)
    return table


def _one_point() -> Queries:
    return Queries(torch.zeros(1, 1, dtype=torch.long, device="meta"), torch.zeros(1, 1, 2, device="meta"))


def _shapes(system: System, view: View, recipe: Recipe) -> Table:
    """One window through the network on the meta device: shapes for real, numbers for none."""
    window, _ = stream_config(recipe).steps(system.backbone.spec)
    clip = Clip(torch.empty(1, window, 3, *view.network_size, device="meta"), queries=_one_point())
    with torch.no_grad():
        tokens = system.encode(clip.frames)
        predictions = system(clip)
    table = Table("part", "parameters", "output for one window of the data")
    grids = "\n".join(f"tap {tap}: {tuple(tokens[tap].values.shape)}" for tap in system.taps)
    table.add_row("backbone", _count(system.backbone), grids)
    for name, head in system.heads.items():
        item = predictions[name]
        shapes = [f"{field}: {tuple(x.shape)} [{item.unit_of(field)}]" for field, x in item.tensors().items()]
        table.add_row(f"heads.{name}", _count(head), escape("\n".join(shapes).removeprefix("values: ")))
    for name, memory in system.memories.items():
        table.add_row(f"memories.{name}", _count(memory), "")
    for stage, objective in system.objectives.items():
        table.add_row(f"stages.{stage}.objective", _count(objective), "")
    return table


def _count(module: nn.Module) -> str:
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"{total:,} ({trained:,} trained)"


def _presence(weights: PretrainedWeights) -> str:
    """Whether the weights are here, in an installed package, or to be downloaded."""
    location = weights.location
    if location.startswith("package:"):
        package = location.removeprefix("package:").partition("/")[0]
        return "in an installed package" if importlib.util.find_spec(package) else f"package {package} is missing"
    if location.startswith("weights:"):
        try:
            cache.resolve(location.removeprefix("weights:"))
        except WeightsError:
            return "not fetched yet"
        return "here"
    if "://" in location:
        return "would be read from there"
    return "here" if Path(location).exists() else "missing"
