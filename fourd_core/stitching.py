"""How the answers of two windows about the frames they share become one.

A head names its `Stitch`. Windows come in order of time; each is joined to what stands already, so that only the frames
which the next window will see too have to be remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fourd_core.data import Prediction, Predictions, Tracks


class Stitch:
    """The later window counts; other rules override `join`.

    Attributes:
        partners: names of other heads that are joined by this rule together with its own, which replaces theirs.
        needs_overlap: whether windows must share frames to be joined at all.
    """

    partners: tuple[str, ...] = ()
    needs_overlap: bool = False

    def begin(self, name: str, window: Mapping[str, Prediction]) -> dict[str, Prediction]:
        """The first window of a video, as it shall stand."""
        return dict(window)

    def join(
        self, name: str, window: Mapping[str, Prediction], before: Mapping[str, Prediction]
    ) -> dict[str, Prediction]:
        """A window as it shall stand, its first frames included.

        Args:
            name: of the head whose rule this is.
            window: predictions of that head and its partners.
            before: what stands already for the window's first frames (fewer frames than the window has).
        """
        return dict(window)

    def wanted(self, frames: int, shift: int) -> int:
        """How many of a window's first frames are read, by `join` or as a part of the answer; others may be NaN.

        Args:
            frames: of the window.
            shift: how many frames later the next window starts.
        """
        return frames


class Overwrite(Stitch):
    """The later window counts."""

    def wanted(self, frames: int, shift: int) -> int:
        """Those that the next window does not have."""
        return min(shift, frames)


class AllButFirst(Stitch):
    """The later window counts, except for its first frame, about which it knows nothing: flow to a frame before it."""

    needs_overlap = True

    def begin(self, name: str, window: Mapping[str, Prediction]) -> dict[str, Prediction]:
        """The video's first frame has no answer."""
        return {key: item.map(_without_first) for key, item in window.items()}

    def join(
        self, name: str, window: Mapping[str, Prediction], before: Mapping[str, Prediction]
    ) -> dict[str, Prediction]:
        """The window with its first frame as it stood."""
        return {name: _first_frames(window[name], before[name].frames(0, 1))}

    def wanted(self, frames: int, shift: int) -> int:
        """One more than the next window does not have: its first."""
        return min(shift + 1, frames)


class WhereLive(Stitch):
    """Tracks: the later window counts where its tracker speaks, the earlier one elsewhere."""

    needs_overlap = True

    def join(
        self, name: str, window: Mapping[str, Prediction], before: Mapping[str, Prediction]
    ) -> dict[str, Prediction]:
        """The window, and what stood where it is silent."""
        new, old = cast(Tracks, window[name]), cast(Tracks, before[name])
        return {name: _first_frames(new, where_live(new.frames(0, old.frame_count), old))}


def where_live(new: Tracks, old: Tracks) -> Tracks:
    """`new` where it is live, else `old`; both about the same frames."""
    chosen = new.live

    def pick(name: str, tensor: Tensor) -> Tensor:
        other = old.tensors()[name]
        return torch.where(chosen.reshape(chosen.shape + (1,) * (tensor.ndim - 3)), tensor, other)

    tensors = {name: pick(name, tensor) for name, tensor in new.tensors().items() if name != "live"}
    return new.with_tensors({**tensors, "live": new.live | old.live})


def _without_first(tensor: Tensor) -> Tensor:
    return torch.cat([torch.full_like(tensor[:, :1], float("nan")), tensor[:, 1:]], 1)


def _first_frames(window: Prediction, first: Prediction) -> Prediction:
    """The window with its first frames replaced by `first`."""
    new, count = first.tensors(), first.frame_count
    return window.with_tensors({name: torch.cat([new[name], x[:, count:]], 1) for name, x in window.tensors().items()})


def deciding(rules: Mapping[str, Stitch]) -> dict[str, Stitch]:
    """The rules by head name without those of partners, for which another head's rule decides."""
    moved = {partner for rule in rules.values() for partner in rule.partners}
    return {name: rule for name, rule in rules.items() if name not in moved}


def wanted_frames(rules: Mapping[str, Stitch], frames: int, shift: int) -> dict[str, int]:
    """How many of a window's first frames are read of each head's answer, by head name; of partners all are.

    Args:
        rules, frames, shift: as `Stitcher` and `Stitch.wanted` have them.
    """
    wanted = {name: rule.wanted(frames, shift) for name, rule in deciding(rules).items()}
    return {name: wanted.get(name, frames) for name in rules}


class Stitcher:
    """Joins window after window, remembering the frames that the next one will see too.

    Args:
        rules: the stitch of each head by name.
    """

    def __init__(self, rules: Mapping[str, Stitch]) -> None:
        self._rules = deciding(rules)
        self._kept: dict[str, dict[str, Tensor]] = {}

    @property
    def state(self) -> dict[str, Any]:
        """What must be kept to go on later: tensors in dicts."""
        return dict(self._kept)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._kept = dict(state)

    def add(self, window: Predictions, shift: int) -> Predictions:
        """The window as it shall stand.

        Args:
            shift: how many frames later the next window starts.
        """
        joined: dict[str, Prediction] = {}
        for name, rule in self._rules.items():
            group = {key: window[key] for key in (name, *rule.partners) if key in window}
            if self._kept:
                before = {key: item.with_tensors(self._kept[key]) for key, item in group.items()}
                joined.update(rule.join(name, group, before))
            else:
                joined.update(rule.begin(name, group))
        ordered = Predictions({name: joined[name] for name in window})
        overlap = any(item.frame_count > shift for item in ordered.values())
        self._kept = {name: item.frames(shift, item.frame_count).tensors() for name, item in ordered.items() if overlap}
        return ordered
