"""Views on coordinates worked out by hand, and on pictures whose values are their own coordinates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourd_core.media.views import View, ViewConfig, center, exact, original, short_side


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
    st.tuples(st.integers(8, 500), st.integers(8, 500)),
    st.integers(1, 300),
    st.sampled_from([(1, 1), (14, 14), (16, 8)]),
    st.sampled_from(["short_side", "center", "original"]),
)
def test_every_rule_gives_multiples_and_inverts(
    video: tuple[int, int], pixels: int, multiple: tuple[int, int], rule: str
) -> None:
    view = ViewConfig(rule=rule, pixels=pixels).view(video, multiple)  # type: ignore[arg-type]
    assert view.size[0] % multiple[0] == 0 < view.size[0]
    assert view.size[1] % multiple[1] == 0 < view.size[1]
    if rule == "center":
        assert view.resized[0] >= view.corner[0] + view.size[0]
        assert view.resized[1] >= view.corner[1] + view.size[1]
    xy = points((0, 0), (video[1], video[0]), (3.25, 7.5))
    torch.testing.assert_close(view.to_video(view.to_view(xy)), xy)


def test_config() -> None:
    assert ViewConfig().view((720, 1280), (14, 14)).size == (224, 392)
    assert ViewConfig(rule="exact", height=28, width=42).view((50, 50), (14, 14)).size == (28, 42)
    with pytest.raises(ValueError, match="needs height and width"):
        ViewConfig(rule="exact", height=28)
    with pytest.raises(ValueError, match='belong to the rule "exact", not to "center"'):
        ViewConfig(rule="center", height=28)
    with pytest.raises(ValueError, match=r"\(30, 42\) is not, \(28, 42\) would be"):
        ViewConfig(rule="exact", height=30, width=42).view((50, 50), (14, 14))


def test_wrong_sizes_are_refused() -> None:
    view = short_side((60, 100), 32)
    with pytest.raises(ValueError, match=r"made for frames of \(60, 100\), got \(60, 99\)"):
        view.apply(torch.zeros(1, 3, 60, 99))
    with pytest.raises(ValueError, match=r"gives maps of \(32, 53\), got \(60, 100\)"):
        view.restore(torch.zeros(1, 3, 60, 100))
