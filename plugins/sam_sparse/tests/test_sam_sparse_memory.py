"""What is carried from window to window: against the straightforward form, for every stride, rule by rule, on disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import Chain, Nothing, TrackMemory
from fourd_sam_sparse.two_way import normalised
from fourd_sam_sparse.written import LOW_RANK, Written
from torch import Tensor, nn

from fourd_core.data import Clip, Maps, Queries, Tokens, Tracks
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Use
from fourd_core.testing import check_component, check_form

Build = Callable[[Any, SamTrack, TrackMemory], Any]
FRAMES = 8


def shifted(queries: Queries, frames: int) -> Queries:
    """The same points, counted from a window that starts later."""
    return Queries(queries.frame - frames, queries.xy)


def run(case: Any, head: SamTrack, memory: Any, queries: Queries, shift: int, count: int) -> list[dict[str, Any]]:
    """Window after window: what each was given and answered, and the state behind it."""
    state: Any = None
    windows = []
    for number in range(count):
        tokens, clip = case.tokens(number, len(queries.frame)), case.clip(shifted(queries, shift * number))
        state = memory.initial(tokens, clip) if state is None else state
        seen, shown = memory.read(state, tokens, clip)
        tracks = head(seen, shown)
        state = memory.update(state, tokens, clip, tracks, shift)
        windows.append({"seen": seen, "queries": shown.queries, "tracks": tracks, "state": state})
    return windows


def tracks_of(logits: Tensor, xy: Tensor, live: Tensor) -> Tracks:
    """An answer for a memory, all `n t ...`."""
    answer = Tracks(xy.transpose(0, 1)[None], logits.sigmoid().T[None], live.T[None])
    return attrs.evolve(answer, remembered={"logit": logits[None]})


@pytest.mark.parametrize("cls", [Nothing, Chain])
def test_contract(cls: type[Any]) -> None:
    check_component("memories", cls)


def test_the_form_of_the_track_memory(case: Any) -> None:
    """Tokens keep their taps and shapes; the state of one window has the form of the next one's."""
    check_form(TrackMemory)
    windows = run(case, case.head(), case.memory(), case.queries(0, 9), 4, 4)

    def form(state: Any) -> list[Any]:
        tensors = {**state, **(state["history"] or {})}
        return [(name, x.shape, x.dtype) for name, x in sorted(tensors.items()) if isinstance(x, Tensor)]

    assert all(form(window["state"]) == form(windows[0]["state"]) for window in windows)
    for window in windows:
        assert sorted(window["seen"].layers) == [0]
        assert window["seen"][0].values.shape == case.tokens()[0].values.shape


@pytest.mark.parametrize("shift", [2, 4, 6, 8])
@torch.no_grad()
def test_every_stride_equals_the_straightforward_form(case: Any, straightforward: Build, shift: int) -> None:
    """Overlaps by more than half a window, where tokens with a history are handed on, by less, and none."""
    head, memory = case.head(chunk=3), case.memory()
    tracker = straightforward(case, head, memory)
    queries = case.queries(0, 1, 3, 5, 7, 8, 13, 40)
    count, start = queries.count, shift // 2 * case.grid.h * case.grid.w
    history = tracker.first_history(count)
    feature, handed = torch.zeros(count, case.dim).double(), torch.zeros(count).bool()
    for number, window in enumerate(run(case, head, memory, queries, shift, 5)):
        q, tracks = window["queries"], window["tracks"]
        points = torch.cat([q.frame[0, :, None] + 0.5, q.xy[0]], 1)
        video = case.tokens(number)[0].values[0]
        wanted = tracker(video, history, points, torch.where(q.given[0], 1, 2), feature, handed)
        assert float((tracks.xy[0].transpose(0, 1) - wanted.xy).abs().max()) < 1e-10
        assert float((tracks.remembered["logit"][0] - wanted.logit).abs().max()) < 1e-10
        assert float((tracks.depth[0].T / wanted.depth - 1).abs().max()) < 1e-10
        live = tracks.live[0].any(0)
        feature, handed = torch.where(live[:, None], wanted.feature, feature), handed | live
        mask = memory.processed_video_mask_token.weight.expand(count, start, -1)
        history = torch.cat([wanted.history[:, start:], mask], 1)
    given = window["queries"].given[0].tolist()
    assert given[7]  # not yet reached: still where the user named it
    if shift <= 4:
        assert not any(given[:6])


def test_the_point_that_is_seen_best(case: Any) -> None:
    """Among the overlap's frames 4 to 7: the first of the best, if it is later than the query; else the query stays."""
    logits = torch.zeros(6, FRAMES)
    logits[0, [2, 6]] = torch.tensor([9.0, 3.0])  # better, but not in both windows
    logits[1, [5, 7]] = 2.0
    logits[2, 4] = 5.0
    logits[3] = torch.tensor([-20.0] * 7 + [-15.0])  # silent frames count as -10
    logits[4, 7] = 1.0
    query = torch.tensor([[0, 0, 5, 6, 7, 12]])
    live = torch.arange(FRAMES) >= query[0, :, None]
    xy = torch.rand(6, FRAMES, 2, generator=torch.Generator().manual_seed(0))
    named = torch.full((1, 6, 2), 3.0)
    clip = case.clip(Queries(query, named))
    memory = case.memory(Chain)
    state = memory.update(memory.initial(case.tokens(), clip), case.tokens(), clip, tracks_of(logits, xy, live), 4)
    # Of point 2 the best frame is silent, and the query's own is the first of the others; of point 3 a silent frame
    # beats those that speak, and is too early; point 4 is named in its best frame; point 5 behind the window.
    assert state["frame"].tolist() == [[2, 1, 1, 2, 3, 8]]
    wanted = torch.stack([xy[0, 6], xy[1, 5], named[0, 2], named[0, 3], named[0, 4], named[0, 5]])
    torch.testing.assert_close(state["xy"][0], wanted)


def test_saturated_visibility_still_tells_frames_apart(case: Any) -> None:
    logits = torch.full((1, FRAMES), 20.0)
    logits[0, 6] = 30.0  # the probabilities are all 1 in float32
    clip = case.clip(Queries(torch.tensor([[0]]), torch.zeros(1, 1, 2)))
    memory = case.memory(Chain)
    answer = tracks_of(logits, torch.zeros(1, FRAMES, 2), torch.ones(1, FRAMES).bool())
    assert answer.visibility.min() == 1
    assert memory.update(memory.initial(case.tokens(), clip), case.tokens(), clip, answer, 4)["frame"].item() == 2


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("any", [True, True, True, False]), ("all", [True, False, False, False]), ("always", None)],
)
def test_what_counts_as_named_by_the_user(case: Any, rule: str, wanted: list[bool] | None) -> None:
    user = Queries(torch.tensor([[3, 3, 3, 3]]), torch.tensor([[[1.0, 2.0]] * 4]))
    now = {
        "frame": torch.tensor([[3, 5, 3, 5]]),
        "xy": torch.tensor([[[1.0, 2.0], [9.0, 2.0], [9.0, 9.0], [9.0, 9.0]]]),
    }
    memory = case.memory(Chain, given=rule)
    _, shown = memory.read(now, attrs.evolve(case.tokens()), case.clip(user))
    assert shown.queries is not None
    given = shown.queries.given
    assert (given if given is None else given[0].tolist()) == wanted
    assert torch.equal(shown.queries.xy, now["xy"])


def test_the_mask_token_marks_what_has_no_history(case: Any) -> None:
    windows = run(case, case.head(), case.memory(), case.queries(0, 5), 2, 2)
    area = case.grid.h * case.grid.w
    memory = case.memory()
    for number, known in ((0, 0), (1, 3 * area)):
        added = windows[number]["seen"][0].values - case.tokens(number)[0].values
        assert not added[:, :known].any()
        mask = memory.processed_video_mask_token.weight.expand(len(added), case.grid.t * area - known, -1)
        torch.testing.assert_close(added[:, known:], mask)
        recalled = windows[number]["queries"].recalled
        assert (recalled["scale"].shape[-1] if "scale" in recalled else 0) == known


@torch.no_grad()
def test_nothing_is_the_head_alone_in_the_query_s_windows(case: Any) -> None:
    """Fresh memories add nothing to the video's tokens, so that the head sees what it was trained on."""
    head, queries = case.head(), case.queries(0, 5, 9)
    memory = Nothing(Nothing.Config(), case.spec).double()
    live = []
    for number, window in enumerate(run(case, head, memory, queries, 4, 3)):
        alone = head(case.tokens(number), case.clip(shifted(queries, 4 * number)))
        assert float((window["tracks"].xy - alone.xy).abs().max()) == 0
        assert torch.equal(window["tracks"].live, alone.live)
        live.append(alone.live[0].any(0).tolist())
    assert live == [[True, True, False], [False, True, True], [False, False, True]]


@torch.no_grad()
def test_chain_asks_again_as_a_user_would(case: Any) -> None:
    head, queries = case.head(), case.queries(0, 2)
    memory = Chain(Chain.Config(given="always"), case.spec).double()
    first, second = run(case, head, memory, queries, 4, 2)
    tracks = first["tracks"]
    best = 4 + tracks.remembered["logit"][0, :, 4:].argmax(-1)
    points = torch.stack([tracks.xy[0, frame, i] for i, frame in enumerate(best.tolist())])
    again = head(case.tokens(1), case.clip(Queries(best[None] - 4, points[None])))
    assert float((second["tracks"].xy - again.xy).abs().max()) == 0


def test_memories_differ(case: Any) -> None:
    """What each of them carries on makes a difference in the second window, and none in the first."""
    head, queries = case.head(), case.queries(0, 1)
    with torch.no_grad():
        both = [run(case, head, case.memory(cls), queries, 4, 2) for cls in (Nothing, Chain, TrackMemory)]
    weights = [case.memory(cls).processed_video_mask_token.weight for cls in (Nothing, Chain, TrackMemory)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(both[0][0]["tracks"].xy, both[1][0]["tracks"].xy)
    assert not both[0][1]["tracks"].live.any()
    assert both[1][1]["tracks"].live.any()
    assert float((both[1][1]["tracks"].xy - both[2][1]["tracks"].xy).abs().max()) > 0.1


def test_strides_that_divide_a_token(case: Any) -> None:
    with pytest.raises(RecipeError, match=r"each of 2 frames, and with stride = 3 .* stride to a multiple of 2"):
        run(case, case.head(), case.memory(), case.queries(0), 3, 1)
    run(case, case.head(), case.memory(Chain), case.queries(0), 3, 2)  # hands on no tokens


def test_the_head_s_layer(case: Any) -> None:
    spec = attrs.evolve(case.spec, taps=case.spec.taps * 2)
    memory = Nothing(Nothing.Config(), spec)  # the last of two, and the tokens are of the first
    with pytest.raises(RecipeError, match=r"no head reads tap 1; set tap in \[memories\]"):
        memory.initial(case.tokens(), case.clip(case.queries(0)))


@pytest.mark.parametrize("cls", [Nothing, Chain, TrackMemory])
def test_where_it_can_be_used(case: Any, cls: type[Any]) -> None:
    """Found before a run: another layer than the tracker's, though some other head may read it, or half a token."""
    spec = attrs.evolve(case.spec, taps=case.spec.taps * 2)
    heads = {"other": SamTrack(SamTrack.example(), case.spec), "track": SamTrack(SamTrack.Config(0, 2), spec)}
    heads["other"].tracks = False
    use = Use(heads, window=8, stride=4, long=True, intrinsics=False)
    cls(cls.Config(tap=0), spec).check_use(use)
    with pytest.raises(ValueError, match=r"reads tap 1, and there is none; set tap to that of the head"):
        cls(cls.Config(tap=1), spec).check_use(use)
    del heads["track"]
    with pytest.raises(ValueError, match="reads tap 0, and there is none"):
        cls(cls.Config(tap=0), spec).check_use(use)


def test_the_stride_is_checked_before_a_run(case: Any) -> None:
    use = Use({"track": case.head()}, window=8, stride=3, long=True, intrinsics=False)
    case.memory(Chain).check_use(use)
    case.memory().check_use(attrs.evolve(use, long=False))
    with pytest.raises(ValueError, match="set the predict stage's stride to a multiple of 2"):
        case.memory().check_use(use)


@pytest.mark.parametrize("cls", [Nothing, Chain, TrackMemory])
def test_a_head_that_follows_no_points(case: Any, cls: type[Any]) -> None:
    memory, tokens, clip = case.memory(cls), case.tokens(), case.clip(case.queries(0))
    with pytest.raises(RecipeError, match=r'serve a head that follows points, such as "sam_track", and this one does'):
        memory.update(memory.initial(tokens, clip), tokens, clip, Maps(clip.frames), 4)
    with pytest.raises(RecipeError, match="serve a head that follows points"):
        memory.initial(tokens, Clip(clip.frames))


def test_gradients_reach_through_windows(case: Any) -> None:
    """The last window's loss reaches the memory's layers and the first window's answer, but not its position."""
    head, memory = case.head(), case.memory()
    windows = run(case, head, memory, case.queries(0, 2, 9), 4, 3)
    first = windows[0]["tracks"]
    kept = [first.remembered["feature"], first.remembered["mixing"], first.remembered["moments"]]
    for tensor in (*kept, first.xy):
        tensor.retain_grad()
    loss = windows[2]["tracks"].xy.pow(2).mean() + windows[2]["tracks"].depth.log().pow(2).sum()
    loss.backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, name
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in kept)
    assert first.xy.grad is None


@pytest.mark.parametrize("shared", [True, False])
def test_written_tokens_behind_a_linear_layer(shared: bool) -> None:
    """Values and gradients of the few ranks against the tokens written out."""
    random = torch.Generator().manual_seed(3)
    n, p, r, c, d = 2, 7, 4, 6, 5
    shapes = [(1 if shared else n, p, c), (n, 2, r, p), (n, 2, r, c), (2, 2, c), (c, d), (d,)]
    inputs = [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]
    base, mixing, values, norms, weight, bias = inputs
    layers = [nn.LayerNorm(c).double() for _ in range(2)]
    video, moments = base.expand(n, p, c), []
    for i, layer in enumerate(layers):
        del layer.weight, layer.bias
        layer.weight, layer.bias = norms[i]
        video, moment = normalised(video + mixing[:, i].mT @ values[:, i], layer)
        moments.append(moment)
    plain = video @ weight + bias
    written = Written(mixing, values, torch.stack(moments, 1), norms)
    few = written.linear(weight, bias).on(base @ Written.through(weight, norms))
    torch.testing.assert_close(few, plain, rtol=1e-12, atol=1e-12)
    direction = torch.randn(n, p, d, generator=random, dtype=torch.float64)
    wanted = torch.autograd.grad((plain * direction).sum(), inputs, retain_graph=True)
    got = torch.autograd.grad((few * direction).sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_states_are_small_and_go_on_from_disk(case: Any) -> None:
    head, memory, queries = case.head(), case.memory(), case.queries(0, 3)
    whole = run(case, head, memory, queries, 4, 3)
    buffer = io.BytesIO()
    torch.save(whole[1]["state"], buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    tokens, clip = case.tokens(2), case.clip(shifted(queries, 8))
    tracks = head(*memory.read(state, tokens, clip))
    assert torch.equal(tracks.xy, whole[2]["tracks"].xy)
    history = whole[1]["state"]["history"]
    held = {name: tensor.untyped_storage().nbytes() for name, tensor in history.items()}
    assert held == {name: history[name].nbytes for name in (*LOW_RANK, "base")}  # no view of something larger
    # The base is held once for all points, and no view either: one would grow on its way to another device.
    assert history["base"].shape == (1, 1, case.tokens()[0].values.shape[1] // 2, case.dim)


@torch.no_grad()
def test_later_windows_see_the_earlier_ones_through_the_history(case: Any) -> None:
    """Another first window changes the second one's answer even where the point itself did not move."""
    head, memory = case.head(), case.memory()
    queries = case.queries(7)  # the last frame: nothing later is found

    def second(seed: int) -> Tracks:
        tokens, clip = case.tokens(seed), case.clip(queries)
        state = memory.initial(tokens, clip)
        state = memory.update(state, tokens, clip, head(*memory.read(state, tokens, clip)), 4)
        assert state["frame"].item() == 3
        later = Tokens({0: case.tokens(9)[0]})
        tracks: Tracks = head(*memory.read(state, later, case.clip(shifted(queries, 4))))
        return tracks

    assert float((second(0).xy - second(1).xy).abs().max()) > 0.1
