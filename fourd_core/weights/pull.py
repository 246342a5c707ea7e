"""Fetch the weights that a plugin knows into the cache, and see whether they are still what was fetched."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from pathlib import Path

from fourd_core.errors import WeightsError
from fourd_core.weights import cache
from fourd_core.weights.assets import Known
from fourd_core.weights.cache import Manifest
from fourd_core.weights.fetch import Receipt, fetch


def pull(known: Known, location: str | None = None, sha256: str | None = None) -> Path:
    """Fetch the file of an asset and write its manifest; returns where it is.

    Args:
        location: from there instead of from the published address.
        sha256: what the file must have; needed only where none is published.
    Raises:
        WeightsError: no address is known, or what `fetch` refuses.
    """
    asset, path = known.asset, cache.path_of(known)
    origin = location or asset.url
    if origin is None:
        raise WeightsError(
            f"no public address of {asset.name} is known; get {asset.file_name} as {asset.source} says, then: "
            f"fourd weights pull {asset.name} --from PATH_OR_URL"
        )

    def note(receipt: Receipt) -> None:
        checked = "published" if asset.sha256 else "given" if sha256 else "nothing"
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        source, licence = cache.shown(origin), asset.terms
        facts = Manifest(
            asset.name, known.distribution, source, receipt.sha256, checked, receipt.size, licence, fetched=now
        )
        cache.write_manifest(path, facts)

    fetch(origin, path, note, sha256=expected_hash(known, sha256), size=asset.size)
    if asset.signature and asset.sha256 is None:  # nothing else tells this file from any other
        _refuse_another_kind(known, path)
    return path


def _refuse_another_kind(known: Known, path: Path) -> None:
    from fourd_core.weights.describe import describe_checkpoint, has_signature, look_into

    try:
        keys = look_into(path, str(path)).tensors
        problem = None if has_signature(known.asset, keys) else describe_checkpoint(keys)
    except WeightsError as error:
        problem = str(error)
    if problem is not None:
        cache.forget(path)
        raise WeightsError(
            f"what was fetched is not {known.asset.name} ({known.asset.summary}), and is not kept: {problem}"
        )


def expected_hash(known: Known, given: str | None) -> str | None:
    """The SHA-256 that the file must have, if anybody knows it.

    Raises:
        WeightsError: `given` is none, or contradicts the published one.
    """
    published = known.asset.sha256
    if given is None:
        return published
    given = given.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", given):
        raise WeightsError(f"--sha256: found {given}, expected 64 hexadecimal digits")
    if published not in (None, given):
        raise WeightsError(f"--sha256 {given} contradicts the published SHA-256 of {known.asset.name}, {published}")
    return given


def is_here(known: Known, sha256: str | None = None) -> bool:
    """Whether the file of an asset was fetched, by its manifest and size."""
    path = cache.path_of(known)
    manifest = cache.read_manifest(path)
    if manifest is None or not path.is_file() or cache.problem_of(known):
        return False
    return expected_hash(known, sha256) in (None, manifest.sha256)


def problem_of(known: Known) -> str | None:
    """Read a fetched file again: why it is not (any more) what was published and fetched, or None."""
    path = cache.path_of(known)
    manifest = cache.read_manifest(path)
    if (problem := cache.problem_of(known)) or manifest is None:
        return problem
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != manifest.sha256:
        return f"has the SHA-256 {found}, not the {manifest.sha256} that was fetched"
    return None
