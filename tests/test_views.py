"""Views on coordinates worked out by hand, and on pictures whose values are their own coordinates."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Fourd
from hypothesis import given, settings
from hypothesis import strategies as st
from live_memory import peak_bytes
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.geometry import from_integer_centres
from fourd_core.media.views import Resampling, Rule, TiledView, View, ViewConfig, center, exact, original, short_side
from fourd_core.media.writers import write_png
from fourd_core.streaming import mirrored

RULES: tuple[Rule, ...] = get_args(Rule)


def points(*xy: tuple[float, float]) -> Tensor:
    return torch.tensor(xy, dtype=torch.float64)


def coordinates(height: int, width: int) -> Tensor:
    """A map `2 h w` that holds the (x, y) of every pixel centre."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])


def test_short_side_by_hand() -> None:
    """720x1280 to a short side of 224 in steps of 14: 224 x 398.2, rounded to 224 x 392."""
    view = short_side((720, 1280), 224, (14, 14))
    assert view == View((720, 1280), resized=(224, 392), size=(224, 392))
    assert view.scale == (392 / 1280, 224 / 720)
    torch.testing.assert_close(view.to_view(points((640, 360), (1280, 720))), points((196, 112), (392, 224)))
    torch.testing.assert_close(view.to_video(points((0, 0), (196, 112))), points((0, 0), (640, 360)))


def test_center_by_hand() -> None:
    """720x1280 to 224: the frame becomes 224 x 398, its middle starts at column (398 - 224) / 2 = 87."""
    view = center((720, 1280), 224)
    assert view == View((720, 1280), resized=(224, 398), size=(224, 224), corner=(0, 87))
    torch.testing.assert_close(view.to_view(points((640, 360))), points((199 - 87, 112)))
    torch.testing.assert_close(view.to_video(points((0, 0))), points((87 * 1280 / 398, 0)))


def test_center_of_an_upright_video() -> None:
    view = center((100, 50), 32, (16, 16))
    assert (view.resized, view.size, view.corner) == ((64, 32), (32, 32), (16, 0))


def test_original_pads_right_and_below() -> None:
    view = original((30, 45), (16, 16))
    assert (view.resized, view.size, view.scale) == ((30, 45), (32, 48), (1, 1))
    frames = torch.rand(2, 3, 30, 45)
    seen = view.apply(frames)
    assert torch.equal(seen[..., :30, :45], frames)
    assert torch.equal(seen[..., 30:, :45], frames[..., 29:30, :].expand(-1, -1, 2, -1))
    assert torch.equal(seen[..., :30, 45:], frames[..., 44:45].expand(-1, -1, -1, 3))
    torch.testing.assert_close(view.restore(seen), frames, rtol=0, atol=1e-4)


def test_exact_does_not_keep_proportions() -> None:
    assert exact((10, 20), (30, 30)).scale == (1.5, 3)


def test_apply_divides_8_bit_frames() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    seen = original((4, 4)).apply(frames)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([0, 0.2, 1]))


def test_apply_averages_when_it_shrinks() -> None:
    """Every fourth column is white, the picture shrinks to a quarter: all is 0.25, where sampling would miss them."""
    stripes = (torch.arange(32) % 4 == 0).float().expand(1, 3, 32, 32)
    assert (exact((32, 32), (8, 8)).apply(stripes)[..., 1:-1] - 0.25).abs().max() < 0.05


@pytest.mark.parametrize(
    "view",
    [
        short_side((60, 100), 32, (8, 8)),
        center((60, 100), 32),
        exact((60, 100), (128, 96)),
        original((60, 100), (32, 32)),
    ],
)
def test_the_picture_lies_where_the_coordinates_say(view: View) -> None:
    """Resizing a linear picture gives a linear one: its value at a view pixel is that pixel's place in the video.

    Up to 0.08 pixels: the antialiasing filter's weights are sampled at whole pixels.
    """
    place = coordinates(60, 100) / 128
    seen = view.apply(place[None])[0] * 128
    expected = view.to_video(coordinates(*view.size).permute(1, 2, 0)).permute(2, 0, 1)
    inside = (expected[0] > 4) & (expected[0] < 96) & (expected[1] > 4) & (expected[1] < 56)  # edges are averaged
    assert inside.float().mean() > 0.3
    assert (seen - expected)[:, inside].abs().max() < 0.08


@pytest.mark.parametrize("view", [short_side((60, 100), 32), center((60, 100), 32), exact((60, 100), (128, 96))])
def test_restore_lies_where_the_coordinates_say(view: View) -> None:
    restored = view.restore(coordinates(*view.size)[None])[0]
    expected = view.to_view(coordinates(60, 100).permute(1, 2, 0)).permute(2, 0, 1)
    height, width = view.size
    inside = (expected[0] > 0.5) & (expected[0] < width - 0.5) & (expected[1] > 0.5) & (expected[1] < height - 0.5)
    assert (restored - expected)[:, inside].abs().max() < 1e-3


def test_restore_fills_what_a_crop_does_not_show() -> None:
    """A 40 x 80 video, its middle 40 columns: columns 20 to 59 come back, the others hold nothing."""
    restored = center((40, 80), 40).restore(torch.ones(1, 1, 40, 40))
    assert torch.equal(restored[0, 0, 0].isnan(), torch.tensor([x < 20 or x >= 60 for x in range(80)]))
    assert center((40, 80), 40).restore(torch.ones(1, 1, 40, 40), fill=7.0)[0, 0, 3, 0] == 7


def test_flow_to_video() -> None:
    """Twice as wide and half as high in the view: flow shrinks to half along x and doubles along y."""
    flow = torch.tensor([4.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 20, 80)
    assert exact((40, 40), (20, 80)).flow_to_video(flow)[0, :, 0, 0].tolist() == [2, 6]


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(16, 500), st.integers(16, 500)),
    st.integers(1, 300),
    st.sampled_from([(1, 1), (14, 14), (16, 8)]),
    st.sampled_from(["short_side", "center", "original"]),
)
def test_every_rule_gives_multiples_and_inverts(
    video: tuple[int, int], pixels: int, multiple: tuple[int, int], rule: Rule
) -> None:
    view = ViewConfig(view=rule, pixels=pixels).view_of(video, multiple)
    assert view.size[0] % multiple[0] == 0 < view.size[0]
    assert view.size[1] % multiple[1] == 0 < view.size[1]
    if rule == "center":
        assert view.resized[0] >= view.corner[0] + view.size[0]
        assert view.resized[1] >= view.corner[1] + view.size[1]
    xy = points((0, 0), (video[1], video[0]), (3.25, 7.5))
    torch.testing.assert_close(view.to_video(view.to_view(xy)), xy)


def test_config() -> None:
    assert ViewConfig().view_of((720, 1280), (14, 14)).size == (224, 392)
    resize = ViewConfig(view="resize", height=28, width=42).view_of((50, 50), (14, 14))
    assert (resize.size, resize.network_size) == ((28, 42), (28, 42))
    assert ViewConfig(view="resize", height=28).view_of((50, 50)).size == (28, 224)
    assert ViewConfig(view="resize", resampling="bilinear").view_of((50, 50)).resampling == "bilinear"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"view": "short_side", "height": 28}, 'height and width belong .* not "short_side"'),
        ({"view": "center", "tile_side": 300}, 'tile_side .* belong to the view "tiles", not to "center"'),
        ({"view": "tiles", "tile_side": 224}, "tile_side = 224 is no more than the network sees: 224 x 224"),
        ({"view": "tiles", "tile_overlap": 0.0}, "tile_overlap is a share"),
        ({"view": "resize", "width": 0}, "must be above 0"),
    ],
)
def test_keys_that_contradict(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ViewConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "video", "says"),
    [
        ({"view": "resize", "height": 30, "width": 42}, (50, 50), "30 x 42 is not, 28 x 42 is"),
        ({"view": "tiles", "pixels": 30}, (50, 50), "30 x 30 is not, 28 x 28 is"),
        ({"view": "center", "pixels": 56, "height": 50}, (50, 50), "56 pixels does not fit into frames of 50 x 56"),
        *(({"view": view}, (1, 400), "frames of 1 x 400 .* are smaller than one patch") for view in RULES),
        *(({"view": view}, (20, 13), r"20 x 13 .* 14 x 14; name a larger data\.video") for view in RULES),
    ],
)
def test_what_does_not_fit_the_backbone(keys: dict[str, Any], video: tuple[int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ViewConfig(**keys).view_of(video, (14, 14))


def test_intrinsics_go_with_the_pixels() -> None:
    """Where a camera's pixel lands is where its moved pinhole puts the ray."""
    intrinsics = torch.tensor([[50.0, 0.3, 41], [0, 60, 22], [0, 0, 1]])
    view = View((48, 80), resized=(64, 90), size=(56, 56), corner=(4, 17))
    ray = torch.tensor([0.2, -0.1, 1])
    pixel, seen = intrinsics @ ray, view.intrinsics_to_view(intrinsics) @ ray
    torch.testing.assert_close(view.to_view(pixel[:2]), seen[:2])
    torch.testing.assert_close(view.intrinsics_to_video(view.intrinsics_to_view(intrinsics)), intrinsics)


REFERENCE = {
    "none": ({"view": "resize", "pixels": 56}, (0, 12, 15)),
    "t24": ({"view": "center", "pixels": 56, "height": 56, "width": 75}, (0, 12, 21)),
    "wide": ({"view": "center", "pixels": 56, "height": 64, "width": 90}, (0, 12, 15)),
}
"""How L4P's readers were set when they wrote the stored numbers, as a recipe says it, and the frames that are kept."""


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "data" / "l4p_preprocess.safetensors")


@pytest.mark.parametrize("name", REFERENCE)
def test_l4p_preprocessing(name: str, reference: dict[str, Tensor]) -> None:
    """Frames (mirrored in time where the clip is too short), pinholes and the grid of queries, as L4P's readers."""
    keys, kept = REFERENCE[name]
    frames = dict(zip(reference["in/frames"].tolist(), reference["in/rgb"].unbind(1), strict=True))
    view = ViewConfig(**keys, resampling="bilinear").view_of((48, 80), (14, 14))
    shown = torch.stack([frames[mirrored(t, 11)] for t in kept])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = (view.apply(shown) - mean) / std
    torch.testing.assert_close(
        seen.transpose(0, 1)[..., 1::3, 1::3], reference[f"out/{name}/rgb"], rtol=1e-5, atol=1e-5
    )
    before, after = (from_integer_centres(reference[key][:3, :3, 0]) for key in ("in/K", f"out/{name}/K"))
    torch.testing.assert_close(view.intrinsics_to_view(before), after, rtol=1e-6, atol=1e-5)


def pillow_round_trip(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """L4P's reader of videos: shrunk and enlarged again by Pillow, in 8 bits."""
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(frame.permute(1, 2, 0).numpy())
    small = picture.resize(size[::-1], image.Resampling.BILINEAR)
    back = small.resize(picture.size, image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(back)).permute(2, 0, 1)


@pytest.mark.parametrize("video", [(360, 640), (101, 57), (30, 45)])
def test_round_trip_is_that_of_pillow(video: tuple[int, int]) -> None:
    """Apart from the last of 256 levels in some pixels, where torch and Pillow round differently."""
    frame = torch.randint(0, 256, (3, *video), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = ViewConfig(view="resize", pixels=112, resampling="round_trip").view_of(video).apply(frame[None])[0]
    round_trip = pillow_round_trip(frame, (112, 112)).float() / 255
    theirs = F.interpolate(round_trip[None], (112, 112), mode="bilinear", align_corners=False)[0]
    assert (ours - theirs).abs().max() < 2.01 / 255
    assert (ours - theirs).abs().mean() < 0.1 / 255
    direct = ViewConfig(view="resize", pixels=112, resampling="bilinear").view_of(video).apply(frame[None])[0]
    assert (direct - theirs).abs().mean() > 10 / 255  # it does matter


@pytest.mark.parametrize("video", [(224, 398), (398, 224), (101, 57), (57, 640), (233, 235), (720, 1280)])
@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5])
def test_tiles_cover_the_frame_and_overlap(video: tuple[int, int], overlap: float) -> None:
    view = ViewConfig(view="tiles", pixels=56, tile_overlap=overlap).view_of(video, (14, 14))
    assert isinstance(view, TiledView)
    assert min(view.size) == min(112, max(56, min(video)))
    assert view.network_size == (56, 56) == view.whole.size
    for starts, side in zip(view.starts, view.size, strict=True):
        assert starts[0] == 0
        assert starts[-1] + 56 == max(side, 56)
        gaps = [b - a for a, b in pairwise(starts)]
        assert all(0 < gap <= 56 * (1 - overlap) for gap in gaps)
        fewer = len(starts) - 1
        assert not fewer or 56 + (fewer - 1) * int(56 * (1 - overlap)) < side, "one tile less would do"
    frame = view.apply(torch.rand(1, 3, *video))
    for tile in view.tiles:
        (top, left), (height, width) = tile.corner, tile.size
        assert torch.equal(tile.apply(frame), frame[..., top : top + height, left : left + width])


def test_a_video_no_larger_than_a_tile_is_shown_as_a_whole() -> None:
    view = ViewConfig(view="tiles", pixels=56).view_of((40, 56), (14, 14))
    assert view == exact((40, 56), (56, 56))
    assert not isinstance(view, TiledView)


def test_tiles_of_a_stated_size_by_hand() -> None:
    """1000 x 2000 with its shorter side at 400; tiles of 200 x 300 that share a quarter: 3 rows of 3 (step 225)."""
    config = ViewConfig(view="tiles", height=200, width=300, tile_side=400)
    view = config.view_of((1000, 2000))
    assert isinstance(view, TiledView)
    assert view.size == (400, 800)
    assert view.starts == ([0, 100, 200], [0, 166, 333, 500])
    assert view.whole == exact((1000, 2000), (200, 300))
    assert [view.tiles[i].corner for i in (0, 5, 11)] == [(0, 0), (100, 166), (200, 500)]


@pytest.mark.parametrize("resampling", get_args(Resampling))
@pytest.mark.parametrize("view", [exact((60, 100), (30, 40)), center((60, 100), 32), original((60, 100), (32, 32))])
def test_a_window_is_seen_frame_by_frame(view: View, resampling: Resampling) -> None:
    """Bit for bit what each frame gives alone, with no more than a few copies of one frame beside the answer."""
    view = attrs.evolve(view, resampling=resampling)
    frames = torch.randint(0, 256, (16, 3, 60, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = view.apply(frames)
    assert torch.equal(seen, torch.cat([view.apply(frame[None]) for frame in frames]))
    assert torch.equal(view.apply(frames.view(2, 8, 3, 60, 100)), seen.view(2, 8, *seen.shape[1:]))
    assert peak_bytes(lambda: view.apply(frames)) < seen.nbytes + 4 * 4 * frames[0].nbytes


def test_wrong_sizes_are_refused() -> None:
    view = short_side((60, 100), 32)
    with pytest.raises(ValueError, match=r"made for frames of \(60, 100\), got \(60, 99\)"):
        view.apply(torch.zeros(1, 3, 60, 99))
    with pytest.raises(ValueError, match=r"gives maps of \(32, 53\), got \(60, 100\)"):
        view.restore(torch.zeros(1, 3, 60, 100))


@pytest.mark.parametrize("size", [(1, 300), (300, 4)])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_refuses_a_video_smaller_than_a_patch(
    size: tuple[int, int], rule: Rule, fourd: Fourd, toy_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "strip").mkdir()
    write_png(tmp_path / "strip" / "0.png", torch.zeros(3, *size, dtype=torch.uint8))
    words = ("--set", "data.video=strip", "--set", f"data.view={rule}")
    answer = fourd("run", toy_recipe, "predict", "--out", "out", *words, check=2)
    says = f"[data] view: frames of {size[0]} x {size[1]} (height x width) are smaller than one patch"
    assert says in " ".join(answer.stderr.split())
    assert "name a larger data.video" in " ".join(answer.stderr.split())
    assert not (tmp_path / "out").exists()
