"""Checkpoints: the known ones, fetching them, reading them; nothing in one is ever run.

A location of weights is a local path, an fsspec URL (`s3://...`, `https://...`, `hf://...`), `package:NAME/FILE` (a
file that the installed package with the import name NAME carries) or `weights:NAME` (what `fourd weights pull NAME`
fetched). Files are told apart by their first bytes, not by name.

Of the modules here, `reading`, `loading`, `describe` and `convert` need torch, the others do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourd_core.weights.assets import WeightsAsset
    from fourd_core.weights.describe import describe_checkpoint
    from fourd_core.weights.loading import load_weights
    from fourd_core.weights.locations import sha256_of
    from fourd_core.weights.reading import read_state_dict

__all__ = ["WeightsAsset", "describe_checkpoint", "load_weights", "read_state_dict", "sha256_of"]

_HOMES = {
    "WeightsAsset": "assets",
    "describe_checkpoint": "describe",
    "load_weights": "loading",
    "read_state_dict": "reading",
    "sha256_of": "locations",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `fourd weights list` and the plugins' records of weights must not pay for it.
    if name in _HOMES:
        return getattr(importlib.import_module(f"fourd_core.weights.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fourd_core.weights' has no attribute '{name}'")
