"""The folder of fetched weights: `<folder>/<plugin>/<name>/<file>`, beside each file `<file>.json`, its manifest.

The folder is `FOURD_WEIGHTS`, by default `weights` in fourd's cache folder. A file under its own name is whole, and has
been compared with the SHA-256 where one is known; what is still being fetched is called `<file>.part`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from fourd_core.errors import NotFetchedError, WeightsError
from fourd_core.files import write_json
from fourd_core.probe import cache_folder
from fourd_core.weights.assets import Known, find, is_file_name


@attrs.frozen
class Manifest:
    """What is known of a fetched file."""

    name: str
    plugin: str
    source: str
    """Where it was fetched from, as `shown`."""
    sha256: str
    checked: str
    """What the SHA-256 was compared with: "published", "given" (--sha256) or "nothing"."""
    size: int
    licence: str
    fetched: str
    """Date and time."""


def weights_folder() -> Path:
    """Where fetched weights are kept."""
    chosen = os.environ.get("FOURD_WEIGHTS")
    return Path(chosen).expanduser() if chosen else cache_folder() / "weights"


def path_of(known: Known) -> Path:
    """Where the file of an asset is, or would be."""
    return weights_folder() / known.short_distribution / known.asset.name / known.asset.file_name


def manifest_path(path: Path) -> Path:
    """The manifest of a fetched file."""
    return path.with_name(f"{path.name}.json")


def part_path(path: Path) -> Path:
    """What a file is called while it is being fetched."""
    return path.with_name(f"{path.name}.part")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the file at `path`."""
    write_json(manifest_path(path), attrs.asdict(manifest))


def forget(path: Path) -> None:
    """Take the file at `path` and its manifest away."""
    for file in (path, manifest_path(path)):
        file.unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the file at `path`; None where it is missing or not one."""
    try:
        return Manifest(**json.loads(manifest_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def problem_of(known: Known) -> str | None:
    """Why the file of an asset is not the published one, as far as a glance tells; `fourd weights verify` reads it."""
    path, published = path_of(known), known.asset.sha256
    manifest, size = read_manifest(path), path.stat().st_size
    if manifest is None:
        return "has no manifest"
    if size != manifest.size:
        return f"has {size} bytes, not the {manifest.size} that were fetched"
    if published not in (None, manifest.sha256):
        return f"has the SHA-256 {manifest.sha256}, not the published {published}"
    return None


def how_to_fetch(known: Known, name: str) -> str:
    """The command that brings an asset here; `name`: as the user calls it."""
    return f"fourd weights pull {name}" + ("" if known.asset.url else " --from PATH_OR_URL")


def resolve(reference: str) -> Path:
    """The file that `weights:NAME` or `weights:NAME/FILE` stands for.

    Args:
        reference: what stands behind `weights:`.
    Raises:
        NotFetchedError: not fetched yet (with licence and command).
        WeightsError: unknown weights, or not the file that was fetched.
    """
    name, slash, file = reference.partition("/")
    if slash and not is_file_name(file):
        raise WeightsError(f"'weights:{reference}' names no file of fetched weights: write weights:NAME or NAME/FILE")
    known = find(name)
    path = path_of(known)
    if file and file != path.name:
        path = path.with_name(file)
        if not path.is_file():
            raise WeightsError(
                f"there is no file {file} among the fetched weights {name}; write weights:{name} for "
                f"{known.asset.file_name}"
            )
        return path
    if not path.is_file():
        asset = known.asset
        first = "fetch them with" if asset.url else f"get {asset.file_name} as {asset.source} says, then"
        raise NotFetchedError(
            f"the weights {name} ({asset.summary}; licence: {asset.terms}) are not here; {first}: "
            f"{how_to_fetch(known, name)}"
        )
    if problem := problem_of(known):
        raise WeightsError(f"{path} {problem}; fetch it again with: {how_to_fetch(known, name)}")
    return path


def require(locations: Iterable[str | None]) -> None:
    """See whether all published weights among some locations are here, before any of them is read.

    Raises:
        NotFetchedError: what is missing, all of it, with the commands that fetch it.
        WeightsError: as `resolve`.
    """
    missing = []
    for location in dict.fromkeys(locations):
        if location is not None and location.startswith("weights:"):
            try:
                resolve(location.removeprefix("weights:"))
            except NotFetchedError as error:
                missing.append(str(error))
    if missing:
        raise NotFetchedError("\n".join(missing))


def shown(location: str) -> str:
    """A location as it may be shown and kept: a URL without password, query and fragment, which may hold keys."""
    return re.sub(r"(://[^?#]*)[?#].*", r"\1", re.sub(r"(?<=://)[^/]*@", "", location))


def without_secrets(text: str) -> str:
    """A message of somebody else, with every URL in it as `shown`."""
    return re.sub(r"\w+://[^\s'\"]+", lambda found: shown(found[0]), text)
