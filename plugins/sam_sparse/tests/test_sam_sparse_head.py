"""The head by itself: equal to the straightforward form, point by point and sample by sample, and it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from fourd_sam_sparse import mask_decoder
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import TrackMemory
from fourd_sam_sparse.two_way import Attention
from fourd_sam_sparse.upscaling import Upscaling
from fourd_sam_sparse.written import LOW_RANK
from torch import Tensor

from fourd_core.data import Clip, Grid, Queries, Tracks
from fourd_core.interfaces import BackboneSpec, TapSpec
from fourd_core.kernels.map_readout import enlarged_mean, expected_position
from fourd_core.testing import check_component

Build = Callable[[Any, SamTrack, TrackMemory], Any]


def differences(a: Tracks, b: Tracks) -> float:
    """The largest, over all numbers."""
    assert a.tensors().keys() == b.tensors().keys()
    assert torch.equal(a.live, b.live)
    return max(float((a.tensors()[name] - b.tensors()[name]).abs().max()) for name in ("xy", "visibility", "depth"))


def some(queries: Queries, *points: int) -> Queries:
    return queries.map(lambda tensor: tensor[:, list(points)])


def test_contract() -> None:
    check_component("heads", SamTrack)


@pytest.mark.parametrize(
    "change",
    [{}, {"grid": (1, 1, 1)}, {"grid": (3, 1, 7), "patch": (2, 8, 5)}, {"patch": (1, 16, 16)}, {"dim": 32, "heads": 4}],
)
@torch.no_grad()
def test_equals_the_straightforward_form(case: Any, straightforward: Build, change: dict[str, Any]) -> None:
    case = attrs.evolve(case, **change)
    head = case.head()
    if case.patch[0] != 2:  # the straightforward form knows tokens of two frames only
        assert head(case.tokens(), case.clip(case.queries(0))).xy.shape == (1, case.size[0], 1, 2)
        return
    tracker = straightforward(case, head, case.memory())
    queries = case.queries(*range(case.size[0]), 30)
    tracks = head(case.tokens(), case.clip(queries))
    points = torch.cat([queries.frame[0, :, None] + 0.5, queries.xy[0]], 1)
    count = len(points)
    blank = points.new_zeros(count, case.dim)
    wanted = tracker(
        case.tokens()[0].values[0], None, points, torch.ones(count).long(), blank, torch.zeros(count).bool()
    )
    assert float((tracks.xy[0].transpose(0, 1) - wanted.xy).abs().max()) < 1e-10
    assert float((tracks.visibility[0].T - wanted.logit.sigmoid()).abs().max()) < 1e-12
    assert float((tracks.depth[0].T / wanted.depth - 1).abs().max()) < 1e-10
    assert float(wanted.xy[:, :, 0].std()) > 0.02 * case.size[2] or case.grid == (1, 1, 1)  # no two alike


@torch.no_grad()
def test_history_and_feature_count(case: Any) -> None:
    head = case.head()
    queries = case.queries(0, 3)
    plain = head(case.tokens(), case.clip(queries))
    area, c = case.grid.h * case.grid.w, case.dim
    shapes = {"feature": (c,), "scale": (1, area), "columns": (3, area), "rows": (3, c), "base": (area, c)}
    blank = {name: torch.zeros(1, 2, *shape).double() for name, shape in shapes.items()}
    blank |= {"handed": torch.zeros(1, 2).bool(), "columns": torch.ones(1, 2, 3, area).double()}
    blank["base"] = blank["base"] + 1
    same = head(case.tokens(), case.clip(attrs.evolve(queries, recalled=blank)))
    assert differences(plain, same) < 1e-10
    for name in ("feature", "handed", "scale", "rows"):
        changed = blank | {name: torch.ones_like(blank[name])}
        moved = head(case.tokens(), case.clip(attrs.evolve(queries, recalled=changed)))
        assert differences(plain, moved) > 1e-3
    found = head(case.tokens(), case.clip(attrs.evolve(queries, given=torch.tensor([[True, False]]))))
    apart = (found.xy - plain.xy).abs().amax((0, 1, 3))
    assert apart[0] < 1e-10
    assert apart[1] > 1e-3


@torch.no_grad()
def test_points_do_not_see_each_other(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = case.queries(0, 2, 5, 7, 1)
    whole = case.head()(case.tokens(), case.clip(queries))
    for chunk in (1, 2, 5, 100):
        assert differences(whole, case.head(chunk=chunk)(case.tokens(), case.clip(queries))) < 1e-10
    for point in range(5):
        alone = case.head()(case.tokens(), case.clip(some(queries, point)))
        assert differences(alone, whole.map(lambda x, point=point: x[:, :, point : point + 1])) < 1e-10
    for each in (1, 40_000, 200_000):  # bytes: a step in time, a few steps, a few points at a time
        monkeypatch.setattr(mask_decoder, "WORKING", {"cpu": each})
        assert differences(whole, case.head()(case.tokens(), case.clip(queries))) < 1e-10


@torch.no_grad()
def test_a_batch_is_its_samples(case: Any) -> None:
    head, memory = case.head(), case.memory()
    tokens, queries = case.tokens(batch=2), case.queries(0, 6, 2, batch=2)

    def two_windows(part: slice) -> Tracks:
        of_part = queries.map(lambda tensor: tensor[part])
        values = attrs.evolve(tokens[0], values=tokens[0].values[part])
        given = attrs.evolve(tokens, layers={0: values})
        clip = case.clip(of_part)
        state = memory.initial(given, clip)
        tracks = head(*memory.read(state, given, clip))
        state = memory.update(state, given, clip, tracks, 4)
        later = case.clip(Queries(of_part.frame - 4, of_part.xy))
        tracks = head(*memory.read(state, given, later))
        assert isinstance(tracks, Tracks)
        return tracks

    both = two_windows(slice(0, 2))
    for i in range(2):
        alone = two_windows(slice(i, i + 1))
        assert differences(both.map(lambda x, i=i: x[i : i + 1]), alone) < 1e-10
        for name, tensor in alone.remembered.items():
            assert float((both.remembered[name][i : i + 1] - tensor).abs().max()) < 1e-9


def test_where_it_speaks(case: Any) -> None:
    tracks = case.head()(case.tokens(), case.clip(case.queries(0, 3, 7, 8, 20, -1)))
    live = tracks.live[0].T.long()
    assert live.sum(1).tolist() == [8, 5, 1, 0, 0, 0]
    assert [int(row.argmax()) for row in live[:3]] == [0, 3, 7]
    assert all(tensor.isfinite().all() for tensor in tracks.tensors().values())


@torch.no_grad()
def test_positions_are_pixels_of_the_clip(case: Any) -> None:
    tracks = case.head()(case.tokens(), case.clip(case.queries(*range(8))))
    _, h, w = case.size
    assert tracks.xy[..., 0].min() > 0.5
    assert tracks.xy[..., 0].max() < w - 0.5
    assert tracks.xy[..., 1].max() < h - 0.5
    assert tracks.xy[..., 0].max() > h  # x goes along the longer side
    assert (tracks.depth > 0).all()
    assert ((tracks.visibility > 0) & (tracks.visibility < 1)).all()


@pytest.mark.parametrize(("small", "size"), [((4, 4), (14, 14)), ((3, 5), (7, 11)), ((6, 2), (6, 9)), ((8, 8), (5, 3))])
def test_mean_of_the_enlarged_map(small: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 2, *small, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(maps, (2, *size), mode="trilinear", align_corners=False)
    torch.testing.assert_close(enlarged_mean(maps, size), enlarged.mean((-2, -1)), rtol=1e-12, atol=1e-12)


def test_expected_position_by_hand() -> None:
    heat = torch.full((1, 2, 4, 6), -1e4)
    heat[0, 0, 3, 1] = 0.0
    heat[0, 1, 0, 4:] = 0.0
    xy = expected_position(heat, (4, 6))
    torch.testing.assert_close(xy, torch.tensor([[[1.5, 3.5], [5.0, 0.5]]]))


def test_folded_attention_is_attention(case: Any) -> None:
    """Both directions against the projections of all of the video's tokens."""
    torch.manual_seed(0)
    attention = Attention(16, 8, 2).double()
    tokens, values = torch.randn(2, 3, 6, 16, dtype=torch.float64)
    video, positions = torch.randn(2, 3, 40, 16, dtype=torch.float64)
    read = attention.asks(tokens) @ (video + positions).mT
    answered = attention.answered(read.softmax(-1) @ video)
    torch.testing.assert_close(answered, attention(tokens, video + positions, video), rtol=1e-10, atol=1e-12)
    directions, constant, written = attention.offers(tokens, values)
    scores = directions @ (video + positions).mT + constant
    mixing = scores.unflatten(1, (2, 6)).softmax(2).flatten(1, 2)
    torch.testing.assert_close(
        mixing.mT @ written, attention(video + positions, tokens, values), rtol=1e-10, atol=1e-12
    )


def test_every_parameter_learns_but_those_that_no_pass_uses(case: Any) -> None:
    head = case.head().train()
    queries = attrs.evolve(case.queries(0, 4), given=torch.tensor([[True, False]]))
    recalled = {"feature": torch.ones(1, 2, case.dim).double(), "handed": torch.tensor([[True, False]])}
    tracks = head(case.tokens(), case.clip(attrs.evolve(queries, recalled=recalled)))
    (tracks.xy.square().mean() + tracks.visibility.sum() + tracks.depth.log().square().sum()).backward()
    still = {name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Biases of keys shift all scores of a query alike; label 0 is never given.
    keys = {name for name in still if name.endswith(("token_to_image.k_proj.bias", "self_attn.k_proj.bias"))}
    unused = {"mask_decoder.iou_token.weight", "prompt_encoder.no_mask_embed.weight"}
    assert still - keys == unused | {"prompt_encoder.point_embeddings.0.weight"}
    assert {name for name, p in head.named_parameters() if not p.requires_grad} == unused


def gradients(case: Any, tracker: Any, answer: Callable[[], Tensor]) -> dict[str, Tensor]:
    tracker.zero_grad()
    answer().backward()
    return {name: p.grad.clone() for name, p in tracker.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_straightforward_form(case: Any, straightforward: Build) -> None:
    head = case.head(chunk=2)
    tracker = straightforward(case, head, case.memory())
    queries, tokens = case.queries(0, 3, 5), case.tokens()
    points = torch.cat([queries.frame[0, :, None] + 0.5, queries.xy[0]], 1)

    def ours() -> Tensor:
        tracks = head(tokens, case.clip(queries))
        return tracks.xy.pow(2).mean() + tracks.remembered["logit"].sum() + tracks.depth.sum()

    def theirs() -> Tensor:
        blank, none = points.new_zeros(3, case.dim), torch.zeros(3).bool()
        answer = tracker(tokens[0].values[0], None, points, torch.ones(3).long(), blank, none)
        total: Tensor = answer.xy.pow(2).mean() + answer.logit.sum() + answer.depth.sum()
        return total

    wanted = gradients(case, tracker, theirs)
    for mode in (False, True):
        head.config = attrs.evolve(head.config, checkpointing=mode)
        got = gradients(case, head, ours)
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-9)


def test_chunks_are_as_large_as_asked_for(case: Any) -> None:
    head, sizes = case.head(chunk=3), []
    head.prompt_encoder.register_forward_hook(lambda *_: sizes.append(len(_[1][0])))
    head(case.tokens(), case.clip(case.queries(0, 1, 2, 3, 4, 5, 6)))
    assert sizes == [3, 3, 1]


def test_checkpointing_computes_twice(case: Any) -> None:
    runs = []
    for mode in (False, True):
        head, ran = case.head(checkpointing=mode), []
        head.prompt_encoder.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        head(case.tokens(), case.clip(case.queries(0))).xy.sum().backward()
        runs.append(len(ran))
    assert runs == [1, 2]


def test_trains_after_it_has_predicted(case: Any) -> None:
    head, clip = case.head(), case.clip(case.queries(0, 2))
    with torch.inference_mode():
        predicted = head(case.tokens(), clip).xy.clone()
    trained = head(case.tokens(), clip).xy
    trained.sum().backward()
    torch.testing.assert_close(trained.detach(), predicted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_precisions(case: Any) -> None:
    exact = case.head()(case.tokens(), case.clip(case.queries(0, 3, 7)))
    small = attrs.evolve(case, dtype=torch.float32)
    head, clip = small.head(), small.clip(small.queries(0, 3, 7))
    single = head(small.tokens(), clip)
    assert single.xy.dtype == torch.float32
    assert float((single.xy - exact.xy).abs().max()) < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        half = head(small.tokens(), clip)
    assert half.xy.dtype == half.visibility.dtype == half.depth.dtype == torch.float32
    assert float((half.visibility - exact.visibility).abs().mean()) < 0.02
    assert float((half.xy - exact.xy).abs().mean()) < 0.05 * case.size[2]
    rough = attrs.evolve(case, dtype=torch.bfloat16)
    rounded = rough.head()(rough.tokens(), rough.clip(rough.queries(0, 3, 7)))
    assert rounded.xy.dtype == torch.float32
    assert float((rounded.visibility - exact.visibility).abs().mean()) < 0.05


def test_places_are_not_rounded_under_autocast(case: Any) -> None:
    head = attrs.evolve(case, dtype=torch.float32).head()
    places = torch.rand(5, 3)
    exact = head.prompt_encoder.pe_layer(places)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.prompt_encoder.pe_layer(places), exact)


@torch.no_grad()
def test_the_product_that_maps_come_from_is_not_rounded_under_autocast() -> None:
    upscaling, weights, grid = Upscaling(32, 2), torch.randn(1, 4, 3), Grid(1, 2, 3)
    tokens = torch.randn(1, 6, 64)
    with torch.autocast("cpu", torch.bfloat16):
        channels = upscaling.maps(tokens, torch.eye(4)[None], grid)  # each as a map of its own: nothing is added
        maps = upscaling.maps(tokens, weights, grid)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, torch.einsum("netyx,nem->nmtyx", channels, weights), rtol=1e-6, atol=1e-6)


def test_runs_on_the_meta_device(case: Any) -> None:
    with torch.device("meta"):
        head = SamTrack(SamTrack.Config(heads=2, mlp=8), case.spec)
    frames = torch.empty(1, 8, 3, 42, 70, device="meta")
    queries = Queries(torch.zeros(1, 3, dtype=torch.long, device="meta"), torch.empty(1, 3, 2, device="meta"))
    tokens = attrs.evolve(
        case.tokens(), layers={0: attrs.evolve(case.tokens()[0], values=torch.empty(1, 60, 16, device="meta"))}
    )
    tracks = head(tokens, Clip(frames, queries=queries))
    assert tracks.xy.shape == (1, 8, 3, 2)
    assert tracks.xy.is_meta


def test_memory_for_a_query_is_what_it_takes(case: Any) -> None:
    """What a point brings and leaves behind: the estimate is not far below it, nor twice as much."""
    head, memory = case.head(), case.memory()
    clip = case.clip(case.queries(0, 3))
    state = memory.initial(case.tokens(), clip)
    with torch.no_grad():
        tracks = head(*memory.read(state, case.tokens(), clip))
        state = memory.update(state, case.tokens(), clip, tracks, 2)
    left = [tracks.remembered[name].nbytes for name in ("mixing", "values", "moments", "feature")]
    brought = [state["history"][name].nbytes for name in LOW_RANK]
    taken = (sum(left) + sum(brought)) / 2
    assert 0.9 * taken <= head.query_bytes(clip) <= 2 * taken


def test_configurations_that_make_no_sense(case: Any) -> None:
    for dim, heads in ((20, 2), (16, 3)):
        spec = BackboneSpec((TapSpec(dim, (2, 14, 14)),), (2, 14, 14), (0.5,) * 3, (0.25,) * 3)
        with pytest.raises(ValueError, match=f"tap -1 has {dim} channels, and they must be divisible by 8 and by 2 x"):
            SamTrack(SamTrack.Config(heads=heads), spec)
    with pytest.raises(ValueError, match="tap 3 does not exist"):
        SamTrack(SamTrack.Config(tap=3), case.spec)
    for key in ("heads", "mlp", "chunk"):
        with pytest.raises(ValueError, match=key):
            SamTrack.Config(**{key: 0})
