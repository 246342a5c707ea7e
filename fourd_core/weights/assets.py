"""The checkpoints that plugins know: where each is published, under which licence, and how it is translated.

A plugin describes one by an entry point in the group `fourd.weights` that names a `WeightsAsset`; the entry point has
the asset's name. Its module is imported to list it, so it should import nothing heavy.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import attrs

from fourd_core import registry
from fourd_core.errors import WeightsError

GROUP = "fourd.weights"


def is_file_name(text: str) -> bool:
    """Whether a text names a file inside a folder, and can name nothing outside of it."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+@ -]{0,199}", text) is not None


def _matches(pattern: str, expected: str) -> Any:
    """A validator for texts that may be None."""

    def check(_instance: object, field: attrs.Attribute[str | None], value: str | None) -> None:
        if value is not None and not re.fullmatch(pattern, value):
            raise ValueError(f'{field.name}: found "{value}", expected {expected}')

    return check


def _check_file_name(_instance: object, _field: object, value: str) -> None:
    if not is_file_name(value) or value.endswith((".json", ".part")):
        raise ValueError(f'file_name: found "{value}", expected the plain name of a file, without a folder')


@attrs.frozen(kw_only=True)
class WeightsAsset:
    """A published checkpoint, described without reading it; importing this needs no torch.

    Raises:
        ValueError: a name, file name, hash or converter that cannot be one.
    """

    name: str = attrs.field(validator=_matches(r"[a-z0-9][a-z0-9_.-]*", "lower-case letters, digits, '_', '.', '-'"))
    """What `fourd weights pull` and `weights:NAME` call it; also the entry point's name."""
    summary: str
    """One line: which network, trained on what."""
    licence: str
    """Of the weights: an SPDX identifier, or words."""
    source: str
    """Who published them: a paper or a project's page."""
    file_name: str = attrs.field(validator=_check_file_name)
    """What the published file is called."""
    noncommercial: bool = False
    """Whether the licence rules commercial use out; fetching then asks for consent."""
    licence_note: str = ""
    """What else somebody who uses the weights should know, in a sentence."""
    url: str | None = None
    """Where it can be fetched without a login: http(s), hf:// or whatever fsspec opens."""
    sha256: str | None = attrs.field(default=None, validator=_matches(r"[0-9a-f]{64}", "64 hexadecimal digits"))
    """Of the published file."""
    size: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    """Bytes of the published file."""
    convert: str | None = attrs.field(default=None, validator=_matches(r"[\w.]+:[\w.]+", "module:function"))
    """ "module:function": from the published state dict to the one that the plugin loads; None: they are the same."""
    signature: tuple[str, ...] = ()
    """Beginnings of keys that together tell a checkpoint of this kind from others, below any common prefix."""

    @property
    def terms(self) -> str:
        """The licence as it is shown."""
        return f"{self.licence} (non-commercial use only)" if self.noncommercial else self.licence


@attrs.frozen
class Known:
    """An asset and the distribution that brings it."""

    asset: WeightsAsset
    distribution: str

    @property
    def full_name(self) -> str:
        """The `dist:name` that is never ambiguous."""
        return f"{self.short_distribution}:{self.asset.name}"

    @property
    def short_distribution(self) -> str:
        """The distribution without the prefix that ours have."""
        return self.distribution.removeprefix(registry.PREFIX)


@attrs.frozen
class Broken:
    """An entry point that gives no asset."""

    name: str
    distribution: str
    problem: str


def all_assets() -> tuple[list[Known], list[Broken]]:
    """The assets of every installed plugin by name, and the entry points that give none."""
    known, broken = [], []
    for distribution in registry.plugin_distributions():
        name = registry.normalised(distribution.metadata["Name"])
        points = [point for point in distribution.entry_points if point.group == GROUP]
        for point in points if registry.is_selected(name) else []:
            found = registry.Found("weights", point.name, name, point, distribution)
            asset = _load(found)
            if isinstance(asset, str):
                broken.append(Broken(point.name, name, asset))
            else:
                known.append(Known(asset, name))
    return sorted(known, key=lambda k: (k.asset.name, k.distribution)), sorted(broken, key=lambda b: b.name)


def _load(found: registry.Found) -> WeightsAsset | str:
    """The asset, or why there is none and what to do."""
    if problem := registry.api_problem(found):
        return problem
    try:
        asset = found.entry_point.load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        return f"cannot be imported: {reason}; update or uninstall {found.distribution}"
    if not isinstance(asset, WeightsAsset):
        return f"{found.entry_point.value} is no fourd_core.weights.WeightsAsset; its author must repair it"
    if asset.name != found.name:
        return f'its entry point is called "{found.name}" and its asset "{asset.name}"; its author must repair it'
    return asset


def find(name: str) -> Known:
    """The asset of that name, or of that `dist:name`.

    Raises:
        WeightsError: unknown (with the nearest names), broken (with the reason) or ambiguous (with both full names).
    """
    known, broken = all_assets()
    distribution, _, bare = name.rpartition(":")
    matches = [
        item for item in known
        if item.asset.name == bare and distribution in ("", item.distribution, item.short_distribution)
    ]  # fmt: skip
    if len(matches) == 1:
        return matches[0]
    if matches:
        spellings = " or ".join(f'"{item.full_name}"' for item in matches)
        raise WeightsError(
            f'the weights "{name}" are ambiguous, more than one distribution has them; write {spellings}'
        )
    if reasons := [item.problem for item in broken if item.name == bare]:
        raise WeightsError(f'the weights "{name}" cannot be used: {reasons[0]}')
    names = [item.asset.name for item in known]
    near = difflib.get_close_matches(bare, names, n=3)
    if near:
        advice = f"did you mean {' or '.join(near)}?"
    else:
        advice = f"there are: {', '.join(names)}" if names else "no installed plugin knows any"
    raise WeightsError(f'no plugin knows weights called "{name}"; {advice}')
