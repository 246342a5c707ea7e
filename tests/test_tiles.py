"""Tiles sharpen what the whole gives: a system whose right answer can be computed from every frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import torch
import torch.nn.functional as F
from helpers import Fourd
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import Cameras, Clip, Maps, Prediction, Predictions, Queries, TokenMap, Tokens, Tracks
from fourd_core.geometry import directions, pixel_centres
from fourd_core.interfaces import Backbone, BackboneSpec, Head, Memory, State, TapSpec, Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.views import TiledView, View, ViewConfig
from fourd_core.sinks import MemorySink
from fourd_core.stitching import AllButFirst, WhereLive
from fourd_core.streaming import Position, StreamConfig, stream
from fourd_core.system import System
from fourd_core.tiles import _Trails, feather, inside

PATCH, FOCAL = 8, 100.0
SPEC = BackboneSpec((TapSpec(3 * PATCH * PATCH, (1, PATCH, PATCH)),), (1, PATCH, PATCH), (0.0,) * 3, (1.0,) * 3, (8, 4))


class Scene(Video):
    """Red and green tell a point's place, and move by `motion` pixels a frame; blue is the disparity, finely textured.

    Its pinhole has a focal length of 100 pixels, so that a head can see how much a clip was enlarged.
    """

    def __init__(self, size: tuple[int, int], motion: tuple[float, float] = (2.0, -1.0), frames: int = 18) -> None:
        self.name, self.size, self.frame_count, self.motion = "scene", size, frames, motion
        self.intrinsics = torch.tensor([[FOCAL, 0, size[1] / 2], [0, FOCAL, size[0] / 2], [0, 0, 1]])

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in self.size), indexing="ij")
        frames = []
        for t in indices:
            u, v = x - t * self.motion[0] - 0.5, y - t * self.motion[1] - 0.5
            disparity = 128 + 50 * torch.sin(u / 2.5) * torch.cos(v / 2.5) + 40 * torch.sin(u / 30) * torch.cos(v / 40)
            frames.append(torch.stack([(40 + u).clamp(0, 255), (40 + v).clamp(0, 255), disparity]))
        return torch.stack(frames).round().to(torch.uint8)

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        return torch.tensor(list(indices), dtype=torch.float64) / 25


def is_tile(clip: Clip) -> bool:
    """Whether the clip is larger than the whole frame of 96 x 128 at 32 x 32."""
    return bool(enlarged(clip)[0] > 0.3)


def enlarged(clip: Clip) -> Float[Tensor, "2"]:
    """Pixels of the clip per pixel of the video, along x and y."""
    assert clip.intrinsics is not None
    return clip.intrinsics[0, 0].diagonal()[:2] / FOCAL


class Patches(Backbone):
    """Tokens are the pixels of patches."""

    spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, frames: Float[Tensor, "b t 3 h w"], taps: Sequence[int]) -> Tokens:
        SPEC.check(frames)
        self.sizes.append((frames.shape[-2], frames.shape[-1]))
        return Tokens({tap: TokenMap.from_maps(F.pixel_unshuffle(frames, PATCH)) for tap in taps})


def picture(tokens: Tokens) -> Tensor:
    return F.pixel_shuffle(tokens[0].as_maps(), PATCH)


class ToyHead(Head):
    taps, channels = (0,), 1

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def random(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((), generator=self.generator)


class Colours(ToyHead):
    """The frame itself."""

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        assert torch.equal(picture(tokens), clip.frames)
        return Maps(clip.frames)


class Rays(ToyHead):
    """The directions in which pixels look, as the clip's pinhole says."""

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        assert clip.intrinsics is not None
        rays = directions(pixel_centres(clip.size), clip.intrinsics[0, 0])[..., :2]
        return Maps(rays.permute(2, 0, 1).expand(*clip.frames.shape[:2], 2, *clip.size))


class Moods(ToyHead):
    """Another number at each call, everywhere the same."""

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        return Maps(self.random(0, 1).expand(*clip.frames.shape[:2], 1, *clip.size), kind="mask")


class Depth(ToyHead):
    """Right up to a scale and shift of the disparity, which are others at each call.

    Args:
        sign: what the scale is multiplied by in tiles.
    """

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        scale, shift = self.random(0.5, 4), self.random(0, 1)
        disparity = scale * clip.frames[:, :, 2:]
        if is_tile(clip) and self.sign < 0:
            disparity = scale * 1.2 - disparity
        return Maps(1 / (disparity + shift), kind="depth", unit="m")


class Flow(ToyHead):
    """The scene's motion, backward in time; garbage where that leads out of what the head sees."""

    stitch = AllButFirst()

    def __init__(self, motion: tuple[float, float]) -> None:
        super().__init__()
        self.motion = motion

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        height, width = clip.size
        flow = -torch.tensor(self.motion) * enlarged(clip)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        lost = (x + flow[0] < 0) | (x + flow[0] > width) | (y + flow[1] < 0) | (y + flow[1] > height)
        values = torch.where(lost, 99.0, flow.view(2, 1, 1)).expand(*clip.frames.shape[:2], 2, height, width)
        return Maps(values, kind="flow", unit="px")


class Where(ToyHead):
    """Cameras: the pinhole of what it sees."""

    def forward(self, tokens: Tokens, clip: Clip) -> Cameras:
        assert clip.intrinsics is not None
        return Cameras(torch.eye(4).expand(*clip.intrinsics.shape[:2], 4, 4), clip.intrinsics)


class Nearest(ToyHead):
    """Tracks: the pixel whose colour is nearest to that of the query, from the query on.

    Args:
        lost: pixels by which it errs in tiles.
    """

    tracks, stitch = True, WhereLive()

    def __init__(self, lost: float = 0.0) -> None:
        super().__init__()
        self.lost = lost

    def forward(self, tokens: Tokens, clip: Clip) -> Tracks:
        assert clip.queries is not None
        _, t, _, height, width = clip.frames.shape
        colours = clip.frames[0, :, :2]
        frame, xy = clip.queries.frame[0], clip.queries.xy[0]
        at = (xy * xy.new_tensor([2 / width, 2 / height]) - 1)[:, None, None]
        own = F.grid_sample(colours[frame.clamp(max=t - 1)], at, padding_mode="border", align_corners=False)[:, :, 0, 0]
        best = torch.cdist(own, colours.flatten(2).transpose(1, 2)).argmin(-1)
        found = torch.stack([best % width + 0.5, best // width + 0.5], -1) + self.lost * is_tile(clip)
        live = torch.arange(t)[:, None] >= frame
        visibility = (0.6 + 0.4 * torch.arange(t) / t)[None, :, None].expand(1, t, len(xy))
        return Tracks(found[None], visibility, live[None])


class Chain(Memory):
    """Each window begins where the one before saw the point in the first frame that both share."""

    def initial(self, tokens: Tokens, clip: Clip) -> State:
        return clip.queries and {"frame": clip.queries.frame, "xy": clip.queries.xy}

    def read(self, state: State, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        return tokens, attrs.evolve(clip, queries=Queries(state["frame"], state["xy"]))

    def update(self, state: State, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> State:
        assert isinstance(prediction, Tracks)
        live = prediction.live[:, shift]
        frame = torch.where(live, 0, state["frame"] - shift)
        return {"frame": frame, "xy": torch.where(live[..., None], prediction.xy[:, shift], state["xy"])}


def system(**heads: Head) -> System:
    return System(Patches(), heads, {name: Chain() for name, head in heads.items() if head.tracks})


def view_of(scene: Scene, kind: str, side: int | None = None) -> View:
    keys = {"tile_side": side} if kind == "tiles" else {}
    return ViewConfig(view=kind, pixels=32, **keys).view_of(scene.size, (PATCH, PATCH))  # type: ignore[arg-type]


def predicted(system: System, scene: Scene, view: View, queries: Queries | None = None) -> Predictions:
    """The whole video at the view's pixels, flow and tracks measured in the video's."""
    config = StreamConfig(window=8, stride=4, pixels="view")
    sink = MemorySink(view, config.pixels, scene.frame_count, 2**30)
    for part in stream(system, scene, view, config, queries):
        sink.put(part)
    return Predictions(sink.whole)


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (101, 67), (40, 300), (33, 32)])
def test_what_tiles_agree_on_is_unchanged(size: tuple[int, int]) -> None:
    scene = Scene(size)
    view = view_of(scene, "tiles")
    assert isinstance(view, TiledView)
    toy = system(colours=Colours())
    expected = view.apply(scene.read(range(scene.frame_count)))
    torch.testing.assert_close(predicted(toy, scene, view).colours[0], expected, rtol=0, atol=1e-6)
    assert set(toy.backbone.sizes) == {(32, 32)}  # type: ignore[arg-type]
    assert len(toy.backbone.sizes) == 4 * (1 + len(view.tiles))  # type: ignore[arg-type]


def test_tiles_know_their_camera() -> None:
    scene = Scene((101, 67), frames=8)
    view = view_of(scene, "tiles")
    rays = predicted(system(rays=Rays()), scene, view).rays
    assert scene.intrinsics is not None
    expected = directions(pixel_centres(view.size), view.intrinsics_to_view(scene.intrinsics))[..., :2]
    torch.testing.assert_close(rays[0, 3].permute(1, 2, 0), expected, rtol=0, atol=1e-5)


def test_tiles_that_disagree_fade_into_each_other() -> None:
    """Tiles share at least 8 pixels, so that a step of one between them takes 8."""
    scene = Scene((96, 128), frames=8)
    mood = predicted(system(mood=Moods()), scene, view_of(scene, "tiles")).mood[0, 0, 0]
    assert mood.max() - mood.min() > 0.5
    for axis in (0, 1):
        assert mood.diff(dim=axis).abs().max() < 1 / 8


def test_a_small_video_is_seen_once() -> None:
    scene, toy = Scene((30, 32)), system(colours=Colours())
    predicted(toy, scene, view_of(scene, "tiles"))
    assert len(toy.backbone.sizes) == 4  # type: ignore[arg-type]


def blue(scene: Scene, view: View) -> Tensor:
    return view.apply(scene.read(range(8)))[:, 2]


def fitted(disparity: Tensor, truth: Tensor) -> Tensor:
    """The disparity after the affine map that brings it nearest to the truth, one for all frames."""
    design = torch.stack([disparity.flatten(), torch.ones(disparity.numel())], 1)
    return (design @ torch.linalg.lstsq(design, truth.flatten()[:, None]).solution).reshape(truth.shape)


def test_depth_is_sharper_and_of_one_scale() -> None:
    """One window. The error is that of scale and shift of the tiles; the whole lacks the texture."""
    scene = Scene((96, 128), frames=8)
    view, whole = view_of(scene, "tiles"), view_of(scene, "resize")
    truth = blue(scene, view)
    sharp = fitted(1 / predicted(system(depth=Depth()), scene, view).depth[0, :, 0], truth)
    coarse = 1 / predicted(system(depth=Depth()), scene, whole).depth[0]
    blurred = fitted(attrs.evolve(whole, video_size=view.size).restore(coarse)[:, 0], truth)
    assert (blurred - truth).abs().mean() > 0.02
    assert (sharp - truth).abs().mean() < 0.002
    assert (sharp - truth).abs().max() < 0.01


class Holed(Depth):
    """The whole knows no depth in a part of the frame."""

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        answer = super().forward(tokens, clip)
        if not is_tile(clip):
            answer.values[..., 4:12, 4:12] = 0
        return answer


def test_tiles_fill_what_the_whole_does_not_know() -> None:
    scene = Scene((96, 128), frames=8)
    view = view_of(scene, "tiles")
    truth = blue(scene, view)
    depth = predicted(system(depth=Holed()), scene, view).depth[0, :, 0]
    assert depth.isfinite().all()
    assert (fitted(1 / depth, truth) - truth).abs().max() < 0.01


def test_depth_has_no_seams() -> None:
    """Nowhere does a step between neighbours differ from the true one by more than a hundredth of the range."""
    scene = Scene((96, 128), frames=8)
    view = view_of(scene, "tiles")
    truth = blue(scene, view)
    error = fitted(1 / predicted(system(depth=Depth()), scene, view).depth[0, :, 0], truth) - truth
    for axis in (-1, -2):
        assert error.diff(dim=axis).abs().max() < 0.005


def test_tiles_that_contradict_the_whole_are_left_out() -> None:
    scene = Scene((96, 128), frames=8)
    view, whole = view_of(scene, "tiles"), view_of(scene, "resize")
    kept = predicted(system(depth=Depth(sign=-1)), scene, view).depth[0]
    coarse = predicted(system(depth=Depth()), scene, whole).depth[0]
    torch.testing.assert_close(kept, attrs.evolve(whole, video_size=view.size).restore(coarse), rtol=1e-5, atol=0)


@pytest.mark.parametrize("motion", [(2.0, -1.0), (-9.0, 6.0), (30.0, 24.0)])
def test_flow_that_leaves_a_tile(motion: tuple[float, float]) -> None:
    """Everywhere but where it leaves the frame, and within a pixel of the whole from there."""
    scene = Scene((96, 128), motion, frames=8)
    view = view_of(scene, "tiles")
    flow = predicted(system(flow=Flow(motion)), scene, view).flow[0]
    assert flow[0].isnan().all()
    height, width = view.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    to_x, to_y = x - motion[0] * view.scale[0], y - motion[1] * view.scale[1]
    stays = (to_x > 3) & (to_x < width - 3) & (to_y > 3) & (to_y < height - 3)
    assert stays.float().mean() > 0.2
    expected = -torch.tensor(motion).view(1, 2, 1, 1).expand(7, 2, height, width)
    torch.testing.assert_close(flow[1:][..., stays], expected[..., stays], rtol=0, atol=1e-3)


def test_cameras_are_the_whole_s() -> None:
    scene = Scene((96, 128))
    cameras = predicted(system(where=Where()), scene, view_of(scene, "tiles")).where
    assert scene.intrinsics is not None
    torch.testing.assert_close(cameras.intrinsics[0], scene.intrinsics.expand(scene.frame_count, 3, 3))


POINTS = torch.tensor([[40.0, 60.0], [64, 48], [30, 70], [71.3, 52.9], [50, 85], [85.2, 66.6]])


def queries(frame: int = 0) -> Queries:
    return Queries(torch.full((1, len(POINTS)), frame), POINTS[None])


def paths(scene: Scene, frame: int = 0) -> Tensor:
    steps = torch.arange(scene.frame_count)[:, None, None] - frame
    return POINTS + steps * torch.tensor(scene.motion)


def test_tracks_are_sharper_in_every_window() -> None:
    """Pixels of the whole are 3 by 4 pixels large; those of the tiles are the video's own."""
    scene = Scene((96, 128), (1.0, -1.0))
    truth = paths(scene)
    tiles = predicted(system(track=Nearest()), scene, view_of(scene, "tiles", 96), queries()).track
    whole = predicted(system(track=Nearest()), scene, view_of(scene, "resize"), queries()).track
    assert tiles.live.all()
    assert torch.equal(tiles.visibility, whole.visibility)
    coarse, sharp = ((tracks.xy[0] - truth).norm(dim=-1) for tracks in (whole, tiles))
    assert coarse.mean() > 1.2
    assert sharp.max() < 0.8


def test_fast_points_are_no_worse_than_the_whole() -> None:
    """They cross tiles of 32 pixels within a window, so that not every frame is refined."""
    scene = Scene((96, 128), (4.0, -2.0), frames=12)
    truth = paths(scene)
    tiles = predicted(system(track=Nearest()), scene, view_of(scene, "tiles", 96), queries()).track
    whole = predicted(system(track=Nearest()), scene, view_of(scene, "resize"), queries()).track
    coarse, sharp = ((tracks.xy[0] - truth).norm(dim=-1) for tracks in (whole, tiles))
    assert sharp.mean() < 0.8 * coarse.mean()
    assert sharp.max() <= coarse.max()


def test_a_query_later_in_the_video() -> None:
    scene = Scene((96, 128), (1.0, -1.0))
    truth = paths(scene, 6)
    tiles = predicted(system(track=Nearest()), scene, view_of(scene, "tiles", 96), queries(6)).track
    assert torch.equal(tiles.live[0].all(1), torch.arange(18) >= 6)
    assert tiles.xy[0, :6].isnan().all()
    assert (tiles.xy[0, 6:] - truth[6:]).norm(dim=-1).max() < 0.8


def test_backward_from_the_last_frame() -> None:
    scene = Scene((96, 128), (1.0, -1.0))
    head = Nearest()
    head.direction = "both"
    tracks = predicted(system(track=head), scene, view_of(scene, "tiles", 96), queries(17)).track
    assert tracks.live.all()
    stay = [0, 1, 3, 5]  # the others reach the frame's border
    assert (tracks.xy[0] - paths(scene, 17)).norm(dim=-1)[:, stay].max() < 0.8


def test_lost_points_stay_where_the_whole_saw_them() -> None:
    """A tracker that errs by 11 pixels in tiles, within them, changes nothing."""
    scene = Scene((96, 128), (1.0, -1.0))
    tiles = predicted(system(track=Nearest(lost=-11)), scene, view_of(scene, "tiles", 96), queries()).track
    whole = predicted(system(track=Nearest()), scene, view_of(scene, "resize"), queries()).track
    torch.testing.assert_close(tiles.xy, whole.xy, rtol=0, atol=1e-4)


def test_all_heads_together() -> None:
    scene = Scene((101, 67), frames=10)
    toy = system(depth=Depth(), flow=Flow(scene.motion), where=Where(), track=Nearest(), colours=Colours())
    view = view_of(scene, "tiles")
    together = predicted(toy, scene, view, Queries(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[[30.0, 60.0]]])))
    assert list(together) == ["depth", "flow", "where", "track", "colours"]
    assert together.depth.shape == (1, 10, 1, *view.size)
    assert together.depth.isfinite().all()
    alone = predicted(system(flow=Flow(scene.motion)), scene, view)
    torch.testing.assert_close(together.flow, alone.flow, rtol=0, atol=0, equal_nan=True)


def test_a_tile_s_say_by_hand() -> None:
    """A frame of 32 x 56 with tiles of 32: columns 0 and 24 share 8 columns, rows have no edge."""
    view = TiledView((64, 112), (32, 56), (32, 56), tile=(32, 32), overlap=0.25)
    left, right = view.tiles
    xy = torch.tensor([[0.0, 0], [24, 16], [26, 16], [32, 16], [33, 16], [56, 32]])
    inf = torch.inf
    assert inside(view, left, xy).tolist() == [[4, inf], [1, inf], [0.75, inf], [0, inf], [-0.125, inf], [-3, inf]]
    assert feather(view, left, xy).tolist() == [1, 1, 0.75, 0, 0, 0]
    assert feather(view, right, xy).tolist() == [0, 0, 0.25, 1, 1, 1]


def test_from_a_recipe(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    """A killed run goes on with tiles too: the second call finds what the first one left."""
    tiles = (
        "--set",
        "data.view=tiles",
        "--set",
        "data.pixels=32",
        "--set",
        "data.tile_side=48",
        "--set",
        "stages.predict.pixels=video",
    )
    fourd("run", toy_recipe, "predict", "--out", "run", *tiles, check=0)
    store = ArrayStore(tmp_path / "run/predict/clip.zarr")
    assert store["value"].shape == (24, 1, 72, 96)
    assert store.attributes["view"]["tile"] == [32, 32]
    assert store.attributes["view"]["size"] == [48, 64]


def test_paths_survive_a_stop() -> None:
    """From the position after the first windows, saved as a run saves it, the rest comes out the same."""
    scene = Scene((96, 128), (1.0, -1.0))
    view, config = view_of(scene, "tiles", 96), StreamConfig(window=8, stride=4)
    whole = list(stream(system(track=Nearest()), scene, view, config, queries()))
    kept = io.BytesIO()
    torch.save({field.name: getattr(whole[1].position, field.name) for field in attrs.fields(Position)}, kept)
    position = Position(**torch.load(io.BytesIO(kept.getvalue()), weights_only=True))
    rest = list(stream(system(track=Nearest()), scene, view, config, queries(), position))
    assert len(rest) == len(whole) - 2
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.predictions.track.xy, other.predictions.track.xy)


def test_a_point_starts_in_a_frame_that_the_video_has() -> None:
    """Behind the video's end a window goes back; a point that is seen best there still starts where it exists."""
    view = ViewConfig(view="tiles", pixels=32).view_of((128, 128), (1, 1))
    assert isinstance(view, TiledView)
    visibility = torch.linspace(0.6, 0.9, 8).view(1, 8, 1)
    xy = torch.full((1, 8, 1, 2), 20.0)
    coarse = Tracks(xy, visibility, torch.ones(1, 8, 1, dtype=torch.bool))
    queries = Queries(torch.tensor([[-5]]), torch.tensor([[[20.0, 20.0]]]))
    for real in (8, 3):
        trails = _Trails(view, coarse, queries, real, None)
        starts = [found.frame for n in range(len(view.tiles)) if (found := trails.queries(n)) is not None]
        assert [frame.tolist() for frame in starts] == [[[real - 1]]]
