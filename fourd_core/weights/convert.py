"""Translate a published checkpoint once: safetensors with the names that the plugin loads, and a manifest."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from fourd_core import __version__
from fourd_core.checkpoint import save_tensors
from fourd_core.errors import FourdError, WeightsError
from fourd_core.files import write_json
from fourd_core.weights.assets import Known, WeightsAsset, all_assets
from fourd_core.weights.cache import shown
from fourd_core.weights.describe import describe_checkpoint, has_signature, look_into
from fourd_core.weights.locations import local_file, sha256_of
from fourd_core.weights.reading import check_finite, read_state_dict, read_tensors

PARTS = ("backbone.", "heads.", "memories.", "objectives.")
"""How the names of a recipe's parts begin."""
MANIFEST = "manifest.json"


def convert(known: Known, location: str, folder: Path) -> Path:
    """Write `NAME.safetensors` and `manifest.json` into a folder; returns the former's path.

    Args:
        location: the published checkpoint; where it is fetched already, `weights:NAME`.
    Raises:
        WeightsError: unsafe, damaged, or of another kind than the asset (says what it looks like), or the folder
            holds the manifest of something else.
        RunError: the folder cannot be written.
    """
    asset = known.asset
    target = folder / f"{asset.name}.safetensors"
    _refuse_other_contents(folder, asset)
    with local_file(location) as path:
        location = shown(location)
        state = read_tensors(path, location)
        file_name = path.name if location.startswith("weights:") else location.rpartition("/")[2]
        file_hash = sha256_of(str(path))
    check_finite(state, location)
    tensors = separated(_translated(asset, state, location))
    facts = {
        "name": asset.name,
        "plugin": known.distribution,
        "fourd": __version__,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "made_from": file_name,
        "made_from_sha256": file_hash,
        "licence": asset.terms,
        "source": asset.source,
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot make the folder {folder}: {error.strerror}; choose another one") from error
    save_tensors(target, tensors, {"format": "pt", "fourd": json.dumps(facts)})
    write_json(folder / MANIFEST, {**facts, "file": target.name, "sha256": sha256_of(str(target))})
    return target


def for_recipe(location: str) -> dict[str, Tensor]:
    """Tensors by the names of a recipe's parts; a published checkpoint that a plugin can translate is translated.

    Raises:
        WeightsError: as `read_state_dict`, or it cannot be translated.
    """
    state = read_state_dict(location)
    if all(name.startswith(PARTS) for name in state):  # what a training of ours left; names of others may end alike
        return state
    for known in all_assets()[0]:
        asset = known.asset
        if asset.convert is not None and asset.signature and has_signature(asset, state):
            return _translated(asset, state, shown(location))
    return state


def licence_of(location: str) -> str:
    """Under which licence a recipe's weights are, as far as the file or its keys tell."""
    with local_file(location) as path:
        contents = look_into(path, shown(location))
    known = [item.asset.terms for item in all_assets()[0] if has_signature(item.asset, contents.tensors)]
    return _stated_licence(contents.metadata) or next(iter(known), "as the run that trained it says")


def _stated_licence(metadata: Mapping[str, str]) -> str:
    """What `convert` wrote into a file; empty where the metadata are somebody else's."""
    try:
        facts: Any = json.loads(metadata.get("fourd", "{}"))
    except ValueError:
        return ""
    return str(facts.get("licence") or "") if isinstance(facts, dict) else ""


def separated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which shares memory with another: safetensors cannot hold shared ones."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return own


def _refuse_other_contents(folder: Path, asset: WeightsAsset) -> None:
    path = folder / MANIFEST
    if not path.exists():
        return
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != asset.name:
        raise WeightsError(f"{path} belongs to something else ({found or 'not to weights'}); choose another folder")


def _translated(asset: WeightsAsset, state: dict[str, Tensor], location: str) -> dict[str, Tensor]:
    if asset.signature and not has_signature(asset, state):
        raise WeightsError(
            f"{location} is not {asset.name} ({asset.summary}): {describe_checkpoint(state)}; take the "
            f"file {asset.file_name}"
        )
    if asset.convert is None:
        return state
    try:
        tensors: dict[str, Tensor] = pkgutil.resolve_name(asset.convert)(state)
    except FourdError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise WeightsError(
            f"{location} cannot be translated by {asset.convert} ({reason}): {describe_checkpoint(state)}; take "
            f"the file {asset.file_name}, or report it to the plugin's author"
        ) from error
    return tensors
