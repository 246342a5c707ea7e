"""Draws that are known before training, clips as numbers, units that wait to be computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from cue_parts import Counted, Pairs, write_videos

from fourd_core.cues.backlog import make_backlog
from fourd_core.cues.index import codes_of, items_of
from fourd_core.cues.plan import Listing, Plan, hash_of, make_plan, sample_generator
from fourd_core.cues.provenance import difference
from fourd_core.cues.store import UNUSED, CueStore, StoredCue
from fourd_core.data import Clip
from fourd_core.errors import PluginError, RunError
from fourd_core.jobs import batches
from fourd_core.media.dataset import VideoFiles
from fourd_core.recipe import Location


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """Four videos of five frames."""
    write_videos(tmp_path / "videos", count=4, frames=5)
    return Listing(VideoFiles(VideoFiles.Config(root=Location(str(tmp_path / "videos")), held_out=0.0)))


@pytest.fixture
def stored(tmp_path: Path) -> StoredCue:
    """Room for pairs, two a file."""
    return CueStore.create(str(tmp_path / "kept.zarr"), {}).add_cue("flow", 2, 3, {})


def test_the_generator_is_that_of_training() -> None:
    ours, theirs = sample_generator(5, "train", 7, 3), batches.sample_generator(5, "train", 7, 3)
    assert ours.initial_seed() == theirs.initial_seed()
    others = [sample_generator(*changed) for changed in ((6, "train", 7, 3), (5, "t", 7, 3), (5, "train", 3, 7))]
    assert ours.initial_seed() not in {other.initial_seed() for other in others}


def test_each_draw_once_in_the_order_of_the_data(listing: Listing) -> None:
    plan = make_plan(listing, Pairs(Pairs.Config(), None), 0, "train", 30, 2)
    rows = plan.rows.tolist()
    assert rows == sorted(rows) and len({tuple(row) for row in rows}) == len(rows)
    assert all(0 <= video < 4 and 0 <= first < last <= min(first + 3, 4) for video, first, last in rows)
    fewer = make_plan(listing, Pairs(Pairs.Config(), None), 0, "train", 10, 2).rows.tolist()
    assert 0 < len(fewer) < len(rows) and set(map(tuple, fewer)) < set(map(tuple, rows))
    assert plan.of(Counted(Counted.Config())).tolist() == rows
    alone = plan.of(Counted(Counted.Config(kind="map", alone=True))).tolist()
    assert alone == [list(single) for single in sorted({(row[0], frame) for row in rows for frame in row[1:]})]


def test_a_video_is_opened_once_and_let_go(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    videos = listing.data.videos("train")
    take = type(videos).__getitem__
    monkeypatch.setattr(type(videos), "__getitem__", lambda self, number: seen.append(number) or take(self, number))
    make_plan(listing, Pairs(Pairs.Config(), None), 0, "train", 20, 2)
    assert sorted(seen) == [0, 1, 2, 3]


def test_a_draw_decodes_nothing(listing: Listing) -> None:
    class Reader(Pairs):
        """Looks at frames in `draw`."""

        def draw(self, data: Listing, split: str, generator: torch.Generator) -> None:  # type: ignore[override]
            data.videos("train")[0].read([0])

    with pytest.raises(PluginError, match=r"reads frames of .*v0 in its `draw`"):
        make_plan(listing, Reader(Pairs.Config(), None), 0, "train", 1, 1)


def test_clips_as_numbers() -> None:
    rows = np.array([[1, 0, 2], [0, 3, 4], [1, 0, 2]])
    items = items_of(rows, ["b", "a"])
    assert items.tolist() == [[hash_of("a"), 0, 2], [hash_of("b"), 3, 4], [hash_of("a"), 0, 2]]
    assert (codes_of(items) == codes_of(items[:1])).tolist() == [True, False, True]
    assert 0 < hash_of("a") < 2**63 and hash_of("a") != hash_of("b")


def write(stored: StoredCue, number: int, rows: int = 2) -> None:
    flow = Counted(Counted.Config())(Clip(torch.rand(rows, 2, 3, 4, 4))).values
    stored.write(number, np.concatenate([flow.numpy(), np.zeros((rows, 2, 1, 4, 4), np.float32)], 2))


def test_what_waits_is_planned_once(stored: StoredCue) -> None:
    """Units that a killed job left are taken up as they were; what is new comes behind; what is done is left alone."""
    keys = ["a", "b"]
    rows = np.array([[0, 0, 1], [0, 1, 2], [1, 0, 1], [1, 1, 2], [1, 2, 3]])
    first = make_backlog(stored, rows, keys)
    assert [number for number, _ in first.units] == [0, 1, 2] and stored.items().shape == (6, 3)
    assert stored.items()[5].tolist() == [UNUSED] * 3
    assert [unit.videos.tolist() for unit in first] == [[0, 0], [1, 1], [1]]
    write(stored, 1)
    more = np.concatenate([rows, [[1, 3, 4], [0, 2, 3]]])
    second = make_backlog(stored, more, keys)
    assert [(unit.number, unit.items[:, 1:].tolist()) for unit in second] == [
        (0, [[0, 1], [1, 2]]),
        (2, [[2, 3]]),
        (3, [[3, 4], [2, 3]]),
    ]
    assert [unit.videos.tolist() for unit in second] == [[0, 0], [1], [1, 0]]
    fewer = make_backlog(stored, rows[1:], keys)  # the first unit is not wanted whole any more
    assert [(unit.number, unit.items[:, 1:].tolist()) for unit in fewer] == [(2, [[2, 3]]), (4, [[1, 2]])]
    again = make_backlog(
        stored, rows, keys
    )  # the clip (0, 1, 2) stands in the units 0 and 4 now, and is asked for once
    assert [unit.number for unit in again] == [0, 2]
    items, places = stored.counting_rows()
    assert places.tolist() == [2, 3] and items[:, 1:].tolist() == [[0, 1], [1, 2]]


def test_a_row_counts_when_its_file_is_there(stored: StoredCue) -> None:
    make_backlog(stored, np.array([[0, 0, 1], [0, 1, 2], [0, 2, 3]]), ["a"])
    assert stored.counting_rows()[1].tolist() == [] and not stored.is_done(1)
    write(stored, 1, 1)
    assert stored.counting_rows()[1].tolist() == [2] and stored.is_done(1) and set(stored.done()) == {1}
    assert np.isnan(stored.read(3)).all() and not np.isnan(stored.read(2)).any()
    with pytest.raises(RunError, match=r"2 x 1 x 4 x 4 and those of others 2 x 3 x 4 x 4"):
        stored.write(0, np.zeros((2, 2, 1, 4, 4), np.float32))
    with pytest.raises(RunError, match="keeps clips of 2 frames for the cue flow, and training draws 1"):
        make_backlog(stored, np.array([[0, 0]]), ["a"])


def test_a_kill_while_room_is_made_leaves_no_unit_without_a_place(
    stored: StoredCue, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([[0, 0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]])
    make_backlog(stored, rows[:2], ["a"])
    write(stored, 0, 2)
    resize, calls = zarr.Array.resize, []

    def killed(array: zarr.Array, shape: tuple[int, ...]) -> None:
        calls.append(shape)
        if len(calls) == 2:
            raise KeyboardInterrupt
        resize(array, shape)

    monkeypatch.setattr(zarr.Array, "resize", killed)
    with pytest.raises(KeyboardInterrupt):
        make_backlog(stored, rows, ["a"])
    monkeypatch.undo()
    (unit,) = make_backlog(stored, rows, ["a"])
    write(stored, unit.number, 2)
    assert stored.counting_rows()[0][:, 1:].tolist() == rows[:, 1:].tolist()


def test_another_number_of_frames_is_another_plan() -> None:
    plan = Plan(np.array([[0, 1], [0, 2]]), ["a"], {})
    assert plan.of(Counted(Counted.Config(alone=True))).tolist() == [[0, 1], [0, 2]]


def test_what_differs_is_said_and_nothing_else() -> None:
    there = {"network": {"use": "raft", "update": {"steps": 12, "width": 128}}, "weights": {"sha256": "ab"}}
    now = {"network": {"use": "raft", "update": {"steps": 20, "width": 128}}, "weights": None}
    assert difference(there, there) == ""
    assert difference(there, now) == "another network (update.steps = 12 there, 20 now)"
    assert difference(there, {**there, "weights": None}) == "other weights (sha256 = ab there, nothing now)"
