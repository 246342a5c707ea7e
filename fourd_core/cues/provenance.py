"""What kept maps depend on, as plain values that can be compared: a network, its weights, what it was shown."""

from __future__ import annotations

from typing import Any, get_args

import attrs

from fourd_core import registry
from fourd_core.interfaces import CueProvider, Objective
from fourd_core.recipe import ComponentConfig, Location, Recipe
from fourd_core.recipe.structure import fields_of
from fourd_core.recipe.values import plain
from fourd_core.weights import sha256_of

WHAT = {"network": "another network", "weights": "other weights", "frames": "another resolution or view of the frames"}
"""The parts of a provenance, for messages."""


def provenance_of(recipe: Recipe, cue: str, provider: CueProvider, stage: str, objective: Objective) -> dict[str, Any]:
    """Of one cue: network and settings, SHA-256 of its weights, and how frames were brought before it.

    Where a file lies is left out: the same weights elsewhere are the same weights.

    Raises:
        WeightsError: the weights cannot be read.
    """
    section = recipe.cues[cue]
    view = {"objective": _name(recipe.stages[stage].config.objective), **objective.cue_view()}
    return {
        "network": {"use": _name(section), **plain(_without_places(section.config))},
        "weights": _weights(provider),
        "frames": plain(view),
    }


def difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What of two provenances differs, in words; empty where nothing does."""
    for part, words in WHAT.items():
        old, new = _flat(there.get(part) or {}), _flat(now.get(part) or {})
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if keys:
            shown = ", ".join(f"{key} = {old.get(key, 'nothing')} there, {new.get(key, 'nothing')} now" for key in keys)
            return f"{words} ({shown})"
    return ""


def _flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A table within tables as one, by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _name(section: ComponentConfig) -> str:
    return registry.pick(section.kind, section.use).full_name


def _weights(provider: CueProvider) -> dict[str, Any] | None:
    weights = provider.pretrained()
    if weights is None:
        return None
    return {"sha256": weights.sha256 or sha256_of(weights.location), "licence": weights.licence}


def _without_places(config: Any) -> dict[str, Any]:
    """A Config as a table, without the fields that name files."""
    table: dict[str, Any] = {}
    for field in fields_of(type(config)):
        value = getattr(config, field.name)
        if field.init and not _names_files(field.type):
            table[field.name] = _without_places(value) if attrs.has(type(value)) else value
    return table


def _names_files(t: Any) -> bool:
    return t is Location or any(map(_names_files, get_args(t)))
