"""Windows cover every frame once, for every length; overlaps, memories, both directions, and going on after a stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clock import SIZE, Clock, Counting, Follower, Number, Walking, clock_system
from hypothesis import given
from hypothesis import strategies as st

from fourd_core.data import Clip, Predictions, Queries
from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Head
from fourd_core.media.views import exact
from fourd_core.sinks import MemorySink
from fourd_core.stitching import AllButFirst, Overwrite, Stitch
from fourd_core.streaming import (
    Position,
    Reversed,
    StreamConfig,
    mirrored,
    stream,
    window_count,
    windows,
    windows_done,
)  # fmt: skip
from fourd_core.system import System

VIEW = exact(SIZE, SIZE)


def predict(system: System, frames: int, queries: Queries | None = None, **config: Any) -> Predictions:
    sink = MemorySink(VIEW, "video", frames, 2**20)
    for part in stream(system, Clock(frames), VIEW, StreamConfig(**config), queries):
        sink.put(part)
    return Predictions(sink.whole)


def points(*frames: int) -> Queries:
    """Points named in these frames; their y tells them apart."""
    return Queries(torch.tensor([frames]), torch.tensor([[[1.0, 0.5 + i] for i in range(len(frames))]]))


@given(st.integers(1, 60), st.integers(1, 16), st.data())
def test_windows_finish_every_frame_once(frame_count: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    done = [place.start + i for place in windows(frame_count, window, stride) for i in range(place.final)]
    assert done == list(range(frame_count))
    assert all(place.frames <= window for place in windows(frame_count, window, stride))


def test_windows_go_on_where_they_were() -> None:
    whole = list(windows(50, 16, 8))
    assert list(windows(50, 16, 8, first=24)) == whole[3:]


def test_behind_the_end_the_video_goes_back_and_forth() -> None:
    assert [mirrored(i, 4) for i in range(12)] == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1]
    assert [mirrored(i, 2) for i in range(5)] == [0, 1, 0, 1, 0]
    assert [mirrored(i, 1) for i in range(4)] == [0] * 4


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 16, 17])
@pytest.mark.parametrize("config", [{}, {"window": 4}, {"window": 5, "stride": 3}, {"window": 16, "stride": 8}])
def test_every_frame_gets_its_own_answer(frames: int, config: dict[str, int]) -> None:
    got = predict(clock_system({"number": Number()}), frames, **config)
    torch.testing.assert_close(got.number[0, :, 0, 0, 0], torch.arange(frames).float(), atol=1e-4, rtol=0)


def test_the_last_window_shows_the_mirror_image() -> None:
    seen: list[Clip] = []

    class Noting(Number):
        def forward(self, tokens: Any, clip: Clip) -> Any:
            seen.append(clip)
            return super().forward(tokens, clip)

    predict(clock_system({"number": Noting()}), 5)
    numbers = [[round(float(x) * 255) for x in clip.frames[0, :, 0, 0, 0]] for clip in seen]
    assert numbers == [[0, 1, 2, 3], [2, 3, 4, 3]]


def test_where_windows_overlap_the_later_one_counts() -> None:
    got = predict(clock_system({"number": Number(offset=100.0)}), 8)
    extra = (got.number[0, :, 0, 0, 0] - torch.arange(8)).round().tolist()
    assert extra == [0, 0, 100, 100, 200, 200, 200, 200]


def test_a_window_that_knows_nothing_of_its_first_frame() -> None:
    got = predict(clock_system({"number": Number(AllButFirst(), offset=100.0)}), 8).number[0, :, 0, 0, 0]
    assert got[0].isnan()
    assert (got[1:] - torch.arange(1, 8)).round().tolist() == [0, 0, 100, 100, 200, 200, 200]


class Asked(Number):
    """Notes about how many frames it is asked, and says nothing of the others."""

    def __init__(self, stitch: Stitch) -> None:
        super().__init__(stitch)
        self.asked: list[int | None] = []

    def forward(self, tokens: Any, clip: Clip) -> Any:
        self.asked.append(clip.wanted)
        answer = super().forward(tokens, clip)
        if clip.wanted is not None:
            answer.values[:, clip.wanted :] = torch.nan
        return answer


class Together(Stitch):
    """Decides for the head `partner` too."""

    partners = ("partner",)


def test_heads_are_asked_about_the_frames_that_are_read() -> None:
    """In windows of 4 every 2 frames; of the last, and by rules that read the whole window, about all."""
    rules = {"later": Overwrite(), "flow": AllButFirst(), "any": Stitch(), "partner": Overwrite(), "two": Together()}
    heads = {name: Asked(rule) for name, rule in rules.items()}
    got = predict(clock_system(dict(heads)), 7)
    whole = predict(clock_system({name: Number(rule) for name, rule in rules.items()}), 7)
    asked = {name: head.asked for name, head in heads.items()}
    assert asked == {"later": [2, 2, None], "flow": [3, 3, None]} | {
        name: [4, 4, None] for name in ("any", "partner", "two")
    }
    for name in rules:
        torch.testing.assert_close(got[name].values, whole[name].values, equal_nan=True, rtol=0, atol=0)


def test_heads_are_asked_about_all_frames_with_a_gradient_or_a_memory() -> None:
    head, remembered = Asked(Overwrite()), Asked(Overwrite())
    system = clock_system({"number": head, "remembered": remembered}, {"remembered": Counting()})
    clip = Clip(torch.rand(1, 4, 3, *SIZE), queries=points(0))
    system.step(clip, {}, shift=2)
    with torch.no_grad():
        system.step(clip, {}, shift=2)
        system(clip)
    assert head.asked == [None, 2, None]
    assert remembered.asked == [None, None, None]


def test_no_head_is_asked_about_nothing() -> None:
    with pytest.raises(ValueError, match="wanted must be at least 1"):
        Clip(torch.rand(1, 4, 3, *SIZE), wanted=0)


def test_memories_are_told_when_windows_follow() -> None:
    memory = Counting()
    predict(clock_system({"points": Follower()}, {"points": memory}), 9, points(0))
    assert memory.shifts == [2, 2, 2]  # four windows; none follows the last


@pytest.mark.parametrize(
    ("direction", "first", "last"), [("forward", 3, 9), ("backward", 0, 3), ("both", 0, 9)], ids=lambda x: str(x)
)
def test_tracks_go_the_way_they_are_asked_to(direction: str, first: int, last: int) -> None:
    heads: dict[str, Head] = {"points": Follower(direction), "number": Number()}
    got = predict(clock_system(heads, {"points": Counting()}), 10, points(3, 9, 0))
    tracks = got.tracks
    live = tracks.live[0, :, 0]
    assert live.nonzero().flatten().tolist() == list(range(first, last + 1))
    x = tracks.xy[0, :, 0, 0]
    torch.testing.assert_close(x[live], torch.arange(first, last + 1) / 10, atol=1e-4, rtol=0)
    assert x[~live].isnan().all()
    assert tracks.visibility[0, :, 0].tolist() == pytest.approx([0.9 if alive else 0.0 for alive in live])
    assert bool(tracks.live[0, 9, 1])  # named in the last frame
    assert bool(tracks.live[0, 0, 2])  # and in the first


def test_backward_on_the_reversed_video_is_forward_on_the_video() -> None:
    class Backwards(Clock):
        def read(self, indices: Any) -> Any:
            return super().read([self.frame_count - 1 - i for i in indices])

    def run(video: Clock, direction: str, frame: int) -> torch.Tensor:
        sink = MemorySink(VIEW, "video", 11, 2**20)
        system = clock_system({"points": Follower(direction)}, {"points": Counting()})
        for part in stream(system, video, VIEW, StreamConfig(), points(frame)):
            sink.put(part)
        xy: torch.Tensor = Predictions(sink.whole).tracks.xy
        return xy

    forward, backward = run(Clock(11), "forward", 2), run(Backwards(11), "backward", 8)
    torch.testing.assert_close(forward, backward.flip(1), rtol=0, atol=0, equal_nan=True)


def test_points_go_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourd_core.tracking.free_memory", lambda device: 4000)
    head = Follower(bytes_each=300)  # a quarter of 4000 holds three
    got = predict(clock_system({"points": head}, {"points": Counting()}), 6, points(*[0] * 8))
    assert set(head.groups) == {2, 3}
    assert sum(head.groups) == 2 * 8
    assert got.tracks.xy[0, 0, :, 1].tolist() == [0.5 + i for i in range(8)]


def test_tracks_take_the_unit_of_the_depth_maps_and_stand_in_the_world() -> None:
    heads: dict[str, Head] = {"depth": Number(kind="depth"), "cameras": Walking(), "points": Follower("both")}
    got = predict(clock_system(heads, {"points": Counting()}), 9, points(4))
    frame = torch.arange(1, 9).float()  # the depth of frame 0 is 0: not a depth
    tracks = got.tracks
    torch.testing.assert_close(tracks.depth[0, 1:, 0], frame, atol=1e-4, rtol=0)
    # x = n / 10 and y = 0.5, seen with f = 10 and the principal point (6, 4) at depth n, by a camera at z = n.
    wanted = torch.stack([(frame / 10 - 6) / 10 * frame, -0.35 * frame, 2 * frame], -1)
    torch.testing.assert_close(tracks.xyz[0, 1:, 0], wanted, atol=1e-4, rtol=1e-5)
    wanted[:, 2] -= frame
    torch.testing.assert_close(tracks.xyz_camera[0, 1:, 0], wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("stop", range(1, 9))
def test_going_on_gives_what_one_run_gives(stop: int) -> None:
    heads: dict[str, Head] = {"number": Number(AllButFirst()), "points": Follower("both")}
    system = clock_system(heads, {"points": Counting()})
    whole = list(stream(system, Clock(9), VIEW, StreamConfig(), points(4)))
    assert len(whole) == window_count(system, 9, StreamConfig()) == 8
    position = whole[stop - 1].position
    if stop == 8:
        assert position is None
        return
    assert position is not None
    assert windows_done(system, 9, StreamConfig(), position) == stop
    rest = list(stream(system, Clock(9), VIEW, StreamConfig(), points(4), position))
    assert [part.first for part in rest] == [part.first for part in whole[stop:]]
    for again, before in zip(rest, whole[stop:], strict=True):
        for name, item in before.predictions.items():
            for field, tensor in item.tensors().items():
                torch.testing.assert_close(again.predictions[name].tensors()[field], tensor, equal_nan=True)


def test_too_much_for_the_memory_says_what_to_do() -> None:
    sink = MemorySink(VIEW, "video", 10**9, 2**20)
    with pytest.raises(RunError, match="fourd run"):
        sink.put(next(iter(stream(clock_system({"number": Number()}), Clock(9), VIEW, StreamConfig()))))


def test_a_tracker_without_points_says_where_to_name_them() -> None:
    with pytest.raises(RecipeError, match=r"heads\.points.*\[queries\]"):
        predict(clock_system({"points": Follower()}), 4)


def test_a_stride_beyond_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="left out"):
        StreamConfig(window=4, stride=5)
    with pytest.raises(RecipeError, match="set window too"):
        StreamConfig(stride=5).steps(clock_system({}).backbone.spec)


def test_the_beginning_is_a_position() -> None:
    system = clock_system({"number": Number()})
    assert windows_done(system, 9, StreamConfig(), Position()) == 0


@pytest.mark.usefixtures("unchecked")
def test_clip_refuses_frames_without_time() -> None:
    with pytest.raises(ValueError, match="b t c h w"):
        Clip(torch.zeros(1, 3, 8, 8))


class Wandering(Follower):
    """Seen in the frames 0 to 3 alone."""

    def forward(self, tokens: Any, clip: Clip) -> Any:
        tracks = super().forward(tokens, clip)
        numbers = tokens[0].values.reshape(*clip.frames.shape[:2], -1)[..., :1]
        seen = (numbers < 3.5).float().expand_as(tracks.visibility) * 0.9
        return tracks.with_tensors({"visibility": seen})


def test_where_nothing_is_seen_the_unit_stays_what_it_was() -> None:
    heads: dict[str, Head] = {"depth": Number(kind="depth"), "points": Wandering("both")}
    sink = MemorySink(VIEW, "video", 12, 2**20)
    for part in stream(clock_system(heads, {"points": Counting()}), Clock(12), VIEW, StreamConfig(), points(0, 8)):
        sink.put(part)
        other = MemorySink(VIEW, "video", 12, 2**20)  # as after a stop
        other.restore(sink.state)
        other.whole = sink.whole
        sink = other
    depth = Predictions(sink.whole).tracks.depth[0]
    torch.testing.assert_close(depth[1:, 0], torch.arange(1, 12).float(), atol=1e-4, rtol=0)
    # The second pass meets nothing visible from frame 8 down to 4, and so knows no unit there.
    assert depth[4:8, 1].isnan().all()
    torch.testing.assert_close(depth[1:4, 1], torch.arange(1, 4).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_frames_that_windows_share_are_decoded_once(direction: str) -> None:
    class Counted(Clock):
        asked: list[int] = []  # noqa: RUF012 - of this test alone

        def read(self, indices: Any) -> Any:
            self.asked.extend(indices)
            return super().read(indices)

    video = Counted(21)
    video.asked = []
    list(stream(clock_system({"points": Follower(direction)}), video, VIEW, StreamConfig(), points(0)))
    assert sorted(video.asked) == list(range(21))


def test_backward_a_video_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reversed, "BLOCK_BYTES", 5 * 3 * SIZE[0] * SIZE[1])
    reads: list[list[int]] = []

    class Noting(Clock):
        def read(self, indices: Any) -> Any:
            reads.append(list(indices))
            return super().read(indices)

    video = Reversed(Noting(12))
    for start in range(0, 12, 2):
        frames = video.read([start, start + 1])
        assert frames[:, 0, 0, 0].tolist() == [11 - start, 10 - start]
    assert reads == [[7, 8, 9, 10, 11], [2, 3, 4, 5, 6], [0, 1]]
