"""`fourd weights list | show | pull | verify | convert`; torch is imported only where a checkpoint is opened."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from fourd_core.errors import WeightsError
from fourd_core.weights import cache
from fourd_core.weights.assets import Known, WeightsAsset, all_assets, find
from fourd_core.weights.pull import expected_hash, is_here, problem_of, pull

MOST_ROWS = 60
"""How many families of keys `show` lists."""


def run_weights(options: argparse.Namespace) -> int:
    """Do what `options.weights_action` names; returns the exit code."""
    return _ACTIONS[options.weights_action](options)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _list(_options: argparse.Namespace) -> int:
    known, broken = all_assets()
    times = Counter(item.asset.name for item in known)
    rows = [("name", "licence", "state", "size")]
    for item in known:
        name = item.asset.name if times[item.asset.name] == 1 else item.full_name
        size = "unknown" if item.asset.size is None else readable(item.asset.size)
        rows.append((name, item.asset.terms, _state(item), size))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if known:
        _say(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    else:
        _say("no installed plugin knows published weights")
    _say(*(f"BROKEN: {item.name} of {item.distribution}: {item.problem}" for item in broken))
    _say(f"kept in {cache.weights_folder()} (FOURD_WEIGHTS moves it); sources and more: fourd weights show NAME")
    return 0


def _state(known: Known) -> str:
    path = cache.path_of(known)
    if path.is_file():
        return "DAMAGED" if cache.problem_of(known) else "here"
    part = cache.part_path(path)
    return f"{readable(part.stat().st_size)} fetched" if part.is_file() else "not here"


def _pull(options: argparse.Namespace) -> int:
    known = find(options.name)
    expected_hash(known, options.sha256)
    if options.location is None and is_here(known, options.sha256) and problem_of(known) is None:
        _say(f"{known.asset.name} is here already: {cache.path_of(known)}")
        return 0
    _show_licence(known.asset)
    if known.asset.noncommercial and not options.yes and (options.location or known.asset.url):
        _ask(known.asset)
    path = pull(known, options.location, options.sha256)
    manifest = cache.read_manifest(path)
    assert manifest is not None, "pull writes one"
    compared = {
        "published": "as published", "given": "as given",
        "nothing": "not compared: none is published, and none was given with --sha256",
    }  # fmt: skip
    _say(f"SHA-256: {manifest.sha256} ({compared[manifest.checked]})", f"fetched: {path}")
    return 0


def _show_licence(asset: WeightsAsset) -> None:
    note = [f"note: {asset.licence_note}"] if asset.licence_note else []
    _say(f"{asset.name}: {asset.summary}", f"licence: {asset.terms}", *note, f"source: {asset.source}")


def _ask(asset: WeightsAsset) -> None:
    """Let only those go on who agree.

    Raises:
        WeightsError: no consent, or nobody to ask.
    """
    if not sys.stdin.isatty():
        raise WeightsError(
            f"the licence of {asset.name} ({asset.licence}) rules commercial use out; nothing was fetched, add --yes "
            "if your use agrees with it"
        )
    sys.stderr.write("This licence rules commercial use out. Does your use agree with it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise WeightsError(f"{asset.name} was not fetched: its licence was not agreed to")


def _verify(options: argparse.Namespace) -> int:
    chosen = [find(options.name)] if options.name else all_assets()[0]
    here = [item for item in chosen if cache.path_of(item).is_file()]
    if options.name and not here:
        raise WeightsError(f"{options.name} is not here; fetch it with: {cache.how_to_fetch(chosen[0], options.name)}")
    bad = []
    for item in here:
        problem = problem_of(item)
        _say(f"{item.asset.name}: {problem or 'as it was fetched'}")
        bad += [item.asset.name] if problem else []
    if not here:
        _say("no weights are here")
    if bad:
        raise WeightsError(f"damaged: {', '.join(bad)}; fetch them again with: fourd weights pull NAME")
    return 0


def _convert(options: argparse.Namespace) -> int:
    known = find(options.name)
    _show_licence(known.asset)
    from fourd_core.weights.convert import convert

    _say(f"written: {convert(known, options.file, options.folder)}")
    return 0


def _show(options: argparse.Namespace) -> int:
    what: str = options.what
    is_location = Path(what).expanduser().exists() or "/" in what or what.startswith(("weights:", "package:"))
    if is_location:
        _say(*_about_file(what))
        return 0
    try:
        known = find(what)
    except WeightsError as error:
        raise WeightsError(f"{error}; and there is no file {what}") from error
    _say(*_about_asset(known))
    return 0


def _about_asset(known: Known) -> Iterator[str]:
    yield f"{'plugin':16}{known.distribution}"
    for field in attrs.fields(WeightsAsset):
        value = getattr(known.asset, field.name)
        if value not in (None, "", ()):
            yield f"{field.name:16}{', '.join(value) if isinstance(value, tuple) else value}"
    path = cache.path_of(known)
    yield f"{'state':16}{_state(known)}"
    yield f"{'file':16}{path}"
    manifest = cache.read_manifest(path)
    if manifest is not None:
        yield f"{'manifest':16}{json.dumps(attrs.asdict(manifest))}"


def _about_file(location: str) -> Iterator[str]:
    from fourd_core.weights.describe import families, key_tree, look_into
    from fourd_core.weights.locations import local_file

    with local_file(location) as path:
        contents = look_into(path, cache.shown(location))
        size, beside = path.stat().st_size, [cache.manifest_path(path), path.with_name("manifest.json")]
    looks = families(contents.tensors)
    yield f"{'file':16}{cache.shown(location)}"
    yield f"{'format':13}{contents.format}, {readable(size)}"
    yield f"{'tensors':13}{len(contents.tensors):,} with {contents.parameters:,} numbers"
    yield f"{'types':13}{', '.join(f'{name} ({count})' for name, count in contents.dtypes.items())}"
    yield f"{'looks like':13}{' or '.join(looks) if looks else 'nothing that an installed plugin knows'}"
    for key, text in contents.metadata.items():
        yield f"{'metadata':13}{key}: {textwrap.shorten(text, 300, placeholder=' ...')}"
    for manifest in beside:
        if manifest.is_file():
            yield f"{'manifest':16}{manifest}"
    yield "keys"
    rows = key_tree(contents.tensors)
    width = max(len(label) for label, _, _ in rows)
    yield from (f"  {label:{width}}  {count:6,} tensors  {numbers:15,}" for label, count, numbers in rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        yield f"  and {len(rows) - MOST_ROWS} families more"


def readable(size: int) -> str:
    """A number of bytes as people say it."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} B"


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list, "show": _show, "pull": _pull, "verify": _verify, "convert": _convert,
}  # fmt: skip
