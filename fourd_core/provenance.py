"""What a run was made with: versions, weights and their licences, the state of the repository around it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import attrs

import fourd_core
from fourd_core import registry
from fourd_core.interfaces import Component, PretrainedWeights
from fourd_core.recipe import ComponentConfig, Recipe
from fourd_core.system import System
from fourd_core.weights import sha256_of
from fourd_core.weights.cache import shown
from fourd_core.weights.convert import licence_of


def new_record(recipe: Recipe, command: Sequence[str], system: System) -> dict[str, Any]:
    """The first content of a run's `run.json`."""
    return {
        "fourd": fourd_core.__version__,
        "name": recipe.name,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(command),
        "seed": recipe.seed,
        "device": recipe.device,
        "precision": recipe.precision,
        "threads": recipe.threads,
        "python": sys.version.split()[0],
        "versions": versions(),
        "git": git_state(),
        "weights": weights_in_use(system, recipe),
        "stages": {},
    }


def versions() -> dict[str, str]:
    """The version of the core, of every plugin that is in use, and of what these require."""
    found: dict[str, str] = {}
    for plugin in registry.plugin_distributions():
        packages = {point.module for point in plugin.entry_points if point.group == "fourd.plugin"}
        if registry.normalised(plugin.name) != registry.CORE and not sys.modules.keys() & packages:
            continue
        found[registry.normalised(plugin.name)] = plugin.version
        # A requirement with a marker (an extra, another platform) may be absent.
        names = [re.match(r"[\w.-]+", line) for line in plugin.requires or () if "extra ==" not in line]
        for name in (match[0] for match in names if match):
            with suppress(importlib.metadata.PackageNotFoundError):
                found[registry.normalised(name)] = importlib.metadata.version(name)
    return dict(sorted(found.items()))


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the repository we stand in, or None outside of one."""

    def git(*words: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10, env=environment
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def named_weights(system: System) -> list[tuple[str, PretrainedWeights]]:
    """The published weights that a system's components read, by the component's section."""
    components: dict[str, Component] = {"backbone": system.backbone}
    for group in ("heads", "memories", "cues"):
        components |= {f"{group}.{name}": part for name, part in getattr(system, group).items()}
    used = [(where, part.pretrained()) for where, part in components.items()]
    return [(where, weights) for where, weights in used if weights is not None]


def weights_in_use(system: System, recipe: Recipe) -> list[dict[str, Any]]:
    """The weights that a system has read, with their licences; not those of teachers that were not asked so far."""
    unread = {f"cues.{name}" for name in system.unread_cues}
    rows = [
        {"component": where, **attrs.asdict(weights), "location": shown(weights.location)}
        for where, weights in named_weights(system)
        if where not in unread
    ]
    named = {} if system.starts_fresh else {"weights": recipe.weights, "trained": recipe.trained}
    return rows + [
        {"component": key, "location": shown(location), "licence": licence_of(location), "sha256": sha256_of(location)}
        for key, location in named.items()
        if location is not None
    ]


def component_sections(recipe: Recipe) -> dict[str, ComponentConfig]:
    """Every component section of a recipe by its dotted path."""
    sections = {"backbone": recipe.backbone, "data": recipe.data}
    for group in ("heads", "memories", "cues"):
        sections |= {f"{group}.{name}": section for name, section in getattr(recipe, group).items()}
    for name, stage in recipe.stages.items():
        for key, value in attrs.asdict(stage.config, recurse=False).items():
            inner = value if isinstance(value, dict) else {"": value}
            sections |= {
                ".".join(filter(None, ("stages", name, key, k))): v
                for k, v in inner.items()
                if isinstance(v, ComponentConfig)
            }
    return sections
