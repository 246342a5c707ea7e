"""Where a killed prediction goes on in a video, beside the arrays that were finished until there."""

from __future__ import annotations

import time
from typing import Any

import attrs
import torch
from torch import Tensor

from fourd_core.files import atomic
from fourd_core.media.arrays import ArrayStore
from fourd_core.sinks import Sink
from fourd_core.states import each
from fourd_core.streaming import Position

SAVE_SECONDS, SMALL = 60.0, 2**20
"""A place to go on from is saved this often, or after every window where it takes fewer bytes than `SMALL`."""


class Place:
    """The place in one video, in a file beside its arrays while they are not finished."""

    def __init__(self, store: ArrayStore, sink: Sink) -> None:
        self._store, self._sink = store, sink
        self._path = store.folder.with_suffix(".position.pt")
        self._saved = time.monotonic()

    def load(self, device: torch.device) -> Position:
        """The saved position, or the beginning; store and sink go back to it."""
        if not self._path.exists():
            self._store.truncate(0)
            return Position()
        kept = torch.load(self._path, map_location=device, weights_only=True)
        self._sink.restore(kept.pop("sink"))
        self._store.truncate(self._store.done if kept["reverse"] else kept["start"])
        return Position(**kept)

    def save(self, position: Position | None, at_once: bool = False) -> None:
        """Keep the position, unless it is large and one was saved a moment ago (`at_once`: even then)."""
        if position is None:
            return
        kept = {field.name: getattr(position, field.name) for field in attrs.fields(Position)}
        kept["sink"] = self._sink.state
        now = time.monotonic()
        if not at_once and size_of(kept) > SMALL and now - self._saved < SAVE_SECONDS:
            return
        self._store.commit()
        with atomic(self._path) as temporary:
            torch.save(each(kept, _alone), temporary)
        self._saved = now

    def forget(self) -> None:
        """The video is finished."""
        self._path.unlink(missing_ok=True)


def size_of(state: Any) -> int:
    """Bytes that all tensors in nested dicts, lists and tuples take in a file, expanded ones as what they repeat."""
    sizes: list[int] = []
    each(state, lambda tensor: sizes.append(min(tensor.nbytes, tensor.untyped_storage().nbytes())))
    return sum(sizes)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of a larger one that it is a part of: torch would save that too."""
    return tensor.clone() if tensor.nbytes < tensor.untyped_storage().nbytes() else tensor
