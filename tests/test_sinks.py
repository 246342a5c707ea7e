"""Arrays of a second pass survive a kill at any moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clock import SIZE, Clock, Counting, Follower, Number, clock_system

from fourd_core.data import Queries
from fourd_core.interfaces import Head
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.views import exact
from fourd_core.sinks import ArraySink, read_prediction
from fourd_core.streaming import StreamConfig, stream

VIEW = exact(SIZE, SIZE)
QUERIES = Queries(torch.tensor([[6]]), torch.tensor([[[1.0, 0.5]]]))


class KilledError(Exception):
    """Stands for a kill."""


def predict(store: ArrayStore, only: str | None = None, patches: int = 10**9) -> None:
    """All frames into a store; a kill comes after so many patches of arrays."""
    heads: dict[str, Head] = {"depth": Number(kind="depth"), "points": Follower("both")}
    heads = {name: head for name, head in heads.items() if only in (None, name)}
    if only:
        heads = {"points": Follower("backward")}
    system = clock_system(heads, {"points": Counting()})
    patch, left = store.patch, [patches]

    def counted(*arguments: object, **keys: object) -> None:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        patch(*arguments, **keys)  # type: ignore[arg-type]

    store.patch = counted  # type: ignore[method-assign]
    sink = ArraySink(store, VIEW, "video")
    for part in stream(system, Clock(8), VIEW, StreamConfig(), QUERIES):
        sink.put(part)
        store.commit()
    store.finish()


@pytest.mark.parametrize("patches", range(1, 9))
def test_a_kill_between_two_arrays_of_the_second_pass(tmp_path: Path, patches: int) -> None:
    whole = ArrayStore(tmp_path / "whole", attributes={"frames": 8})
    predict(whole)
    with pytest.raises(KilledError):
        predict(ArrayStore(tmp_path / "killed", attributes={"frames": 8}), patches=patches)
    # The first pass was finished; the second begins anew on what the killed one left.
    store = ArrayStore(tmp_path / "killed", attributes={"frames": 8})
    heads: dict[str, Head] = {"depth": Number(kind="depth"), "points": Follower("both")}
    system = clock_system(heads, {"points": Counting()})
    first = [part.position for part in stream(system, Clock(8), VIEW, StreamConfig(), QUERIES) if part.position]
    start = next(position for position in first if position.reverse)
    sink = ArraySink(store, VIEW, "video")
    for part in stream(system, Clock(8), VIEW, StreamConfig(), QUERIES, start):
        sink.put(part)
    for name in whole:
        assert torch.equal(
            torch.from_numpy(whole[name][:]).nan_to_num(-1), torch.from_numpy(store[name][:]).nan_to_num(-1)
        ), name


def test_a_tracker_that_only_goes_backward_starts_again(tmp_path: Path) -> None:
    """Killed before any place was saved: the arrays are there, and empty."""
    with pytest.raises(KilledError):
        predict(ArrayStore(tmp_path / "a", attributes={"frames": 8}), only="points", patches=5)
    store = ArrayStore(tmp_path / "a", attributes={"frames": 8})
    store.truncate(0)
    predict(store, only="points")
    tracks = read_prediction(store, "points", 0, 8)
    assert tracks is not None
    assert tracks.tensors()["live"][0, :, 0].tolist() == [True] * 7 + [False]
