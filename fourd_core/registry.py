"""Components by kind and name, found through entry points; nothing of a plugin is imported before `load`.

A component is an entry point in the group of its kind (`fourd.backbones`, `fourd.cues` ...); hook implementations are
found the same way in `fourd.hooks`. What cannot work is a `Record` with a `problem`, never an exception of the listing.

`FOURD_PLUGINS` in the environment limits what is found: `FOURD_PLUGINS=""` leaves the core's own components,
`FOURD_PLUGINS=effnet,acme-fourd` those of these distributions besides.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

import attrs

from fourd_core import inspection
from fourd_core.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint
else:  # where somebody has imported the backport (dask does), `distributions` yields objects of its classes
    Distribution = EntryPoint = Any

API_VERSION = 1
"""The version of the contracts in `fourd_core.interfaces`."""

INTERFACES = {
    "backbones": "Backbone",
    "cues": "CueProvider",
    "heads": "Head",
    "objectives": "Objective",
    "memories": "Memory",
    "datasets": "Dataset",
    "metrics": "Metric",
}
"""What a component of each kind derives from, by the class's name in `fourd_core.interfaces`."""

HOOKS = "hooks"
"""Implementations of `fourd_core.hooks`: registered like components, but used by every run, not named in recipes."""

KINDS = (*INTERFACES, HOOKS)
CORE = "fourd-core"
PREFIX = "fourd-plugin-"

KNOWN = {
    "ade20k": "evals",
    "bonn": "evals",
    "camera_poses": "evals",
    "camera_rays": "dpt3d",
    "chain": "sam-sparse",
    "coco_stuff": "evals",
    "davis_knn": "evals",
    "davis_probe": "evals",
    "davis_quick_probe": "evals",
    "depth3d": "dpt3d",
    "depth_anything": "depth-anything",
    "depth_probe": "evals",
    "dinov2": "dinov2",
    "dis": "dis",
    "dynamic_replica": "evals",
    "effnet": "effnet",
    "flow3d": "dpt3d",
    "flow_probe": "evals",
    "kitti_depth": "evals",
    "kitti_flow": "evals",
    "kubric": "evals",
    "l4p": "l4p",
    "lila": "lila",
    "lila_cue_error": "lila",
    "mixture": "evals",
    "motion3d": "dpt3d",
    "motion_mask": "l4p",
    "motion_masks": "evals",
    "nyu_depth": "evals",
    "nyu_normals": "evals",
    "pixel_decoder": "dpt3d",
    "point_odyssey": "evals",
    "point_tracks": "evals",
    "raft": "raft",
    "sam_track": "sam-sparse",
    "scannet": "evals",
    "sea_raft": "raft",
    "shared_intrinsics": "dpt3d",
    "sintel": "evals",
    "spring": "evals",
    "synth": "synth",
    "tapvid": "evals",
    "tapvid3d": "evals",
    "tartanair": "evals",
    "tensorboard": "tensorboard",
    "track_memory": "sam-sparse",
    "tum": "evals",
    "video_depth": "evals",
    "video_flow": "evals",
    "videomae": "videomae",
    "vkitti2": "evals",
    "zero_shot": "evals",
}
"""Which of our plugins brings which component, for the sentence that says what to install."""


@attrs.frozen
class Record:
    """What is known of a component without importing it."""

    kind: str
    name: str
    distribution: str
    version: str
    summary: str
    """The first line of the class's docstring, or the distribution's own summary."""
    entry_point: EntryPoint
    problem: str | None = None
    """Why it will not work, and what to do; None when nothing is known to be wrong."""

    @property
    def full_name(self) -> str:
        """The `dist:name` that is never ambiguous."""
        return f"{self.distribution.removeprefix(PREFIX)}:{self.name}"


@attrs.frozen
class Found:
    """An entry point before anybody looks into its source."""

    kind: str
    name: str
    distribution: str
    entry_point: EntryPoint
    metadata: Distribution

    @property
    def full_name(self) -> str:
        return f"{self.distribution.removeprefix(PREFIX)}:{self.name}"


def normalised(distribution: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_selected(distribution: str) -> bool:
    """Whether `FOURD_PLUGINS` lets a distribution in."""
    chosen, distribution = os.environ.get("FOURD_PLUGINS"), normalised(distribution)
    if chosen is None or distribution == CORE:
        return True
    names = {normalised(name.strip()) for name in chosen.split(",")}
    return distribution in names or distribution.removeprefix(PREFIX) in names


def plugin_distributions() -> tuple[Distribution, ...]:
    """Every distribution with an entry point of ours, each once, `FOURD_PLUGINS` not considered."""
    return _distributions(tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _distributions(_path: tuple[str, ...]) -> tuple[Distribution, ...]:
    """One pass over the installed distributions.

    An editable install with its source folder on the path is there twice: as an installed `.dist-info` and as an
    `.egg-info` that a build left behind. The installed one counts; among equals the first on the path, as in an import.
    """
    found: dict[str, Distribution] = {}
    for item in distributions():
        try:
            ours = any(point.group.startswith("fourd.") for point in item.entry_points)
            name = normalised(item.metadata["Name"]) if ours else ""
        except Exception:  # a damaged entry of the environment is not ours to report
            continue
        if name and (name not in found or (_is_leftover(found[name]) and not _is_leftover(item))):
            found[name] = item
    return tuple(found[name] for name in sorted(found, key=lambda name: (name != CORE, name)))


def _is_leftover(distribution: Distribution) -> bool:
    return str(getattr(distribution, "_path", "")).endswith(".egg-info")


def _find_all() -> Iterator[Found]:
    groups = {f"fourd.{kind}": kind for kind in KINDS}
    for item in plugin_distributions():
        for point in item.entry_points:
            if point.group in groups:
                yield Found(groups[point.group], point.name, normalised(item.metadata["Name"]), point, item)


def records(kind: str | None = None) -> list[Record]:
    """Every component (of one kind), working or not, ordered by kind, name and distribution."""
    found = [item for item in _find_all() if kind in (None, item.kind) and is_selected(item.distribution)]
    found.sort(key=lambda item: (KINDS.index(item.kind), item.name, item.distribution))
    return [_describe(item) for item in found]


def _describe(found: Found) -> Record:
    look = inspection.look_at(found.entry_point.value)
    problem = api_problem(found) or look.problem or _missing_requirement(found)
    summary = look.summary or str(found.metadata.metadata["Summary"] or "")
    return Record(
        found.kind, found.name, found.distribution, found.metadata.version, summary, found.entry_point, problem
    )


def api_problem(found: Found) -> str | None:
    """A sentence when a plugin was written for other contracts than these."""
    if found.distribution == CORE:
        return None
    declared = [point.name for point in found.metadata.entry_points if point.group == "fourd.plugin"]
    versions = [int(match[1]) for name in declared if (match := re.fullmatch(r"api\.(\d+)", name))]
    if API_VERSION in versions:
        return None
    if not versions:
        return (
            f"{found.distribution} does not say which version of fourd's interfaces it was written for; "
            f'its author must add an entry point "api.{API_VERSION}" in the group "fourd.plugin"'
        )
    newer = min(versions) > API_VERSION
    return (
        f"{found.distribution} {found.metadata.version} was written for version {versions[0]} of fourd's interfaces, "
        f"this is version {API_VERSION}; update {'fourd-core' if newer else 'the plugin'}"
    )


def _missing_requirement(found: Found) -> str | None:
    """A sentence when a distribution that the plugin always needs is not installed."""
    for requirement in found.metadata.requires or ():
        match = re.match(r"[\w.-]+", requirement)
        # With a marker (an extra, a platform) it may not be needed here; the import will tell.
        if match is None or ";" in requirement or normalised(match[0]) == CORE:
            continue
        if not any(True for _ in distributions(name=match[0])):
            return f"{found.distribution} needs {match[0]}, which is not installed; pip install '{requirement}'"
    return None


def find(kind: str, name: str) -> Record:
    """The component that a recipe means by `name`, or by `dist:name` where two distributions share a name.

    Raises:
        PluginError: unknown (with the nearest names and what to install) or ambiguous (with both full names).
    """
    return _describe(pick(kind, name))


def pick(kind: str, name: str) -> Found:
    """`find` without looking into the source."""
    matches = [item for item in _find_all() if item.kind == kind and _answers_to(item, name)]
    allowed = [item for item in matches if is_selected(item.distribution)]
    if len(allowed) == 1:
        return allowed[0]
    if allowed:
        spellings = " or ".join(f'"{item.full_name}"' for item in allowed)
        raise PluginError(f'"{name}" in {kind} is ambiguous, more than one distribution has it; write {spellings}')
    if matches:
        raise PluginError(
            f'"{name}" in {kind} belongs to {matches[0].distribution}, which the environment variable '
            f'FOURD_PLUGINS="{os.environ["FOURD_PLUGINS"]}" switches off; add it there or unset the variable'
        )
    raise PluginError(_unknown(kind, name))


def _answers_to(item: Found, name: str) -> bool:
    distribution, _, bare = name.rpartition(":")
    if item.name != bare:
        return False
    return not distribution or normalised(distribution) in (item.distribution, item.distribution.removeprefix(PREFIX))


def _unknown(kind: str, name: str) -> str:
    """Why there is no such component: a slip of the pen, another kind, a plugin that is not installed."""
    items = [item for item in _find_all() if is_selected(item.distribution)]
    bare = name.rpartition(":")[2]
    here = sorted({item.name for item in items if item.kind == kind})
    elsewhere = sorted(
        {f"{item.full_name} in {item.kind}" for item in items if item.name == bare and item.kind != kind}
    )
    near = difflib.get_close_matches(bare, here, n=3)
    same = [item.full_name for item in items if item.kind == kind and item.name == bare]
    if same:
        advice = f"there is {' and '.join(same)}"
    elif near:
        advice = f"did you mean {' or '.join(near)}?"
    elif bare in KNOWN and not elsewhere:
        advice = f"it comes with a plugin: pip install {PREFIX}{KNOWN[bare]}"
    elif elsewhere:
        advice = f"there is {', '.join(elsewhere)}"
    else:
        advice = f"there are: {', '.join(here)}" if here else "none are installed; `fourd list` shows what is"
    return f'unknown name "{name}" in {kind}; {advice}'


def load(kind: str, name: str) -> type[Any]:
    """Import a component's class (of `hooks`: whatever the entry point names).

    Raises:
        PluginError: unknown, ambiguous, made for other interfaces, raising at import, or not what its kind asks for.
    """
    found = pick(kind, name)
    try:
        return import_found(found)
    except PluginError as error:
        who = f'"{name}" in {kind} ({found.distribution} {found.metadata.version})'
        raise PluginError(f"{who} {error}") from error.__cause__


def import_found(found: Found) -> type[Any]:
    """Import what was found; the message of the PluginError is a sentence that lacks its subject."""
    if problem := api_problem(found):
        raise PluginError(f"cannot be used: {problem}")
    try:
        component = found.entry_point.load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise PluginError(f"cannot be imported: {reason}; {_remedy(found, error)}") from error
    if problem := _contract_problem(found.kind, component):
        raise PluginError(f"cannot be used: {problem}; its author must repair it")
    return component  # type: ignore[no-any-return]


def _remedy(found: Found, error: BaseException) -> str:
    if missing := _missing_requirement(found):
        return missing
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install what brings the module {error.name.partition('.')[0]}, or reinstall {found.distribution}"
    return f"update or uninstall {found.distribution}"


def _contract_problem(kind: str, component: object) -> str | None:
    if kind == HOOKS:
        return None
    interface = getattr(importlib.import_module("fourd_core.interfaces"), INTERFACES[kind])
    if not isinstance(component, type) or not issubclass(component, interface):
        return f"{component!r} does not derive from fourd_core.interfaces.{INTERFACES[kind]}"
    if missing := sorted(getattr(component, "__abstractmethods__", ())):
        return f"{component.__name__} lacks {', '.join(missing)}"
    if not attrs.has(getattr(component, "Config", object)):
        return f"{component.__name__} has no nested attrs class Config"
    return None
