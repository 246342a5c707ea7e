"""Crops, confidence and cue maps: stored numbers, and geometry that can be checked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import attrs
import pytest
import torch
from fourd_lila.crops import Crop, base_frames, cut_maps, random_crop
from fourd_lila.cues import PairCue, agreement, cut_cue, depth_from_disparity, pair_cue, stack_cues
from fourd_lila.in_context import solve_readout
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import CueMaps
from fourd_core.geometry.flow import flow_disagreement, sample_along

DATA = Path(__file__).parent / "data"


def assert_stored(mine: Tensor, stored: Tensor) -> None:
    torch.testing.assert_close(mine.to(stored), stored, rtol=1e-5, atol=1e-6)


def in_pixels(flow: Tensor) -> Tensor:
    """Flow that is stored in half frame widths and heights."""
    height, width = flow.shape[-2:]
    return flow * torch.tensor([width / 2, height / 2])[:, None, None]


def test_double_precision_stays_and_half_precision_becomes_single() -> None:
    theta = torch.stack([Crop(0, 0, 8).theta(10), Crop(1, 2, 8).theta(10)])[None]
    for given, wanted in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        flow, features = torch.rand(1, 2, 2, 8, 8, dtype=given), torch.rand(1, 3, 8, 8, dtype=given)
        known = CueMaps(flow, "flow", disagreement=torch.rand(1, 2, 1, 8, 8, dtype=given))
        cue = cut_cue(pair_cue(known), theta, 8)
        assert {cue.values.dtype, cue.valid.dtype, cue.known.dtype} == {wanted}
        assert solve_readout(features, cue.values[:, 1], cue.valid[:, 1], 4).dtype == wanted


def test_crops_equal_the_stored_ones() -> None:
    stored = load_file(DATA / "crop_theta.safetensors")
    with safe_open(DATA / "crop_theta.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    for i, (top, left, side, _, flip) in enumerate(meta["params"]):
        theta = Crop(top, left, side, bool(flip)).theta(meta["base"])
        assert_stored(theta, stored[f"theta{i}"])
        # a map that holds the frame's own coordinates shows where each pixel of the view lies
        grid = torch.nn.functional.affine_grid(theta[None], [1, 1, meta["out"], meta["out"]], align_corners=False)[0]
        assert_stored(grid[::37, ::37], stored[f"grid{i}"])


def test_a_known_point_of_the_frame_is_found_in_the_view() -> None:
    # 20 frame pixels from row 10, column 30 on, mirrored, at half their size: x = 50 - 2 (view x), y = 10 + 2 (view y)
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    view = cut_maps(torch.stack([x, y])[None], Crop(top=10, left=30, side=20, flip=True).theta(60)[None], 10)[0]
    torch.testing.assert_close(view[:, 3, 7], torch.tensor([30 + 20 - 2 * 7.5, 10 + 2 * 3.5]))


def test_picture_and_maps_are_cut_alike() -> None:
    frame = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for flip in (False, True):
        crop = Crop(5, 12, 16, flip)
        maps = cut_maps(frame[None].float(), crop.theta(40)[None], 16)[0]
        torch.testing.assert_close(maps, crop.cut(frame, 16).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_are_cut_in_single_precision(dtype: torch.dtype) -> None:
    maps = torch.rand(2, 2, 224, 224, generator=torch.Generator().manual_seed(0)).to(dtype)
    theta = torch.stack([Crop(37, 10, 300, flip=True).theta(480), Crop(1, 100, 263).theta(480)])
    exact = cut_maps(maps.float(), theta, 224)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cut_maps(maps, theta, 224), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [((45, 80), (2, 3, 32, 32)), ((81, 33), (2, 3, 32, 32))])
def test_base_frames_are_the_middle_of_the_frame(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    ramp = torch.linspace(0, 255, max(size)).round().to(torch.uint8)
    ramp = ramp.expand(2, 3, *size) if size[1] > size[0] else ramp[:, None].expand(2, 3, *size)
    frames = base_frames(ramp, 32)
    assert frames.shape == expected
    assert abs(frames.float().mean() - 127.5) < 2


def test_crop_areas_fill_their_range_and_depend_on_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = [random_crop(480, (0.3, 1.0), generator) for _ in range(300)]
    shares = torch.tensor([c.side**2 / 480**2 for c in crops])
    assert shares.min() > 0.29 and shares.max() <= 1 and abs(shares.mean() - 0.65) < 0.04
    assert all(0 <= c.top <= 480 - c.side and 0 <= c.left <= 480 - c.side for c in crops)
    assert random_crop(480, (0.3, 1.0), torch.Generator().manual_seed(0)) == crops[0]
    assert random_crop(480, (0.8, 0.8), generator).side == round(480 * math.sqrt(0.8))


def test_confidence_equals_the_stored_one() -> None:
    stored = load_file(DATA / "confidence.safetensors")
    f01, f10 = in_pixels(stored["flow01"]), in_pixels(stored["flow10"])
    assert_stored(sample_along(stored["flow10"], f01), stored["flow10_warped"])
    agree = agreement(flow_disagreement(torch.stack([f01, f10], 1)), 0.05).float()
    for frame, name in enumerate(("conf01", "conf10")):
        assert torch.equal(agree[:, frame].expand(-1, 2, -1, -1), stored[name][:, :2])
    cue = pair_cue(CueMaps(torch.stack([f01, f10], 1), "flow"), 0.05)
    assert torch.equal(cue.valid[:, :, 0], torch.stack([stored["conf01"][:, 0], stored["conf10"][:, 0]], 1))


def test_depth_from_disparity_equals_the_stored_one() -> None:
    stored = load_file(DATA / "disp2depth.safetensors")
    depth, valid = depth_from_disparity(stored["disp"])
    assert_stored(depth, stored["depth"])
    assert torch.equal(valid.to(stored["valid"]), stored["valid"])


def test_maps_that_are_not_square_are_sampled_in_their_own_pixels() -> None:
    stored = load_file(DATA / "flow_sample_nonsquare.safetensors")
    assert_stored(sample_along(stored["target"], in_pixels(stored["flow"]), assume_square=True), stored["out"])
    flow = torch.tensor([5.0, 2.0])[None, :, None, None].expand(1, 2, 24, 16)
    target = stored["target"][:1]
    torch.testing.assert_close(sample_along(target, flow)[..., :-2, :-5], target[..., 2:, 5:], rtol=0, atol=1e-5)


def test_stacked_cues_equal_the_stored_ones() -> None:
    stored = load_file(DATA / "cue_stack.safetensors")

    def pair(query: Tensor, context: Tensor) -> PairCue:
        values = torch.stack([query, context], 1)
        everywhere = torch.ones_like(values[:, :, :1])
        return PairCue(values, everywhere, everywhere)

    cues = [pair(stored["flow_q"], -stored["flow_ctx_raw"]), pair(stored["depth_q"], stored["depth_ctx"])]
    stacked = stack_cues(cues, torch.stack([stored["z"], stored["z"]], 1))
    assert_stored(stacked[:, 0], stored["g_query"])
    assert_stored(stacked[:, 1], stored["g_context"])


def moving_pair(shift: tuple[int, int]) -> tuple[Tensor, CueMaps]:
    """Frames whose content moves by `shift` pixels, and the flow of the query and of the context."""
    texture = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    texture = torch.nn.functional.interpolate(texture, (96, 96), mode="bicubic").clamp(0, 1)
    frames = torch.cat([texture, texture.roll((shift[1], shift[0]), (2, 3))])[:, :, 16:80, 16:80]
    flow = torch.tensor([shift, (-shift[0], -shift[1])])[None, :, :, None, None].expand(1, 2, 2, 64, 64).float()
    return (frames * 255).round().to(torch.uint8), CueMaps(flow, "flow")


@pytest.mark.parametrize("flip", [False, True])
def test_corrected_flow_leads_from_one_view_to_the_other(flip: bool) -> None:
    frames, flow = moving_pair((4, -2))
    crop = Crop(top=12, left=8, side=40, flip=flip)
    theta = crop.theta(64).expand(1, 2, 2, 3)
    query, context = (crop.cut(frame, 80).float()[None] for frame in frames)
    cue = cut_cue(pair_cue(flow), theta, 80, correct_flow=True)
    assert cue.valid.min() == 1
    inner = (..., slice(16, 64), slice(16, 64))
    followed = sample_along(context, in_pixels(cue.values[:, 0]))[inner]
    assert (followed - query[inner]).abs().mean() < 1.5
    assert (sample_along(context, in_pixels(-cue.values[:, 0]))[inner] - query[inner]).abs().mean() > 15
    back = sample_along(query, in_pixels(-cue.values[:, 1]))[inner]  # the context's flow is stored negated
    assert (back - context[inner]).abs().mean() < 1.5


def test_reference_flow_stays_in_half_frames_whatever_the_view() -> None:
    _, flow = moving_pair((4, -2))
    crops = [Crop(12, 8, 40, flip=True).theta(64), Crop(0, 0, 64).theta(64)]
    cue = cut_cue(pair_cue(flow), torch.stack(crops)[None], 32)
    expected = torch.tensor([4 * 2 / 64, -2 * 2 / 64])[None, None, :, None, None].expand_as(cue.values)
    torch.testing.assert_close(cue.values, expected)


def test_flows_that_disagree_are_not_trusted() -> None:
    _, flow = moving_pair((4, -2))
    values = flow.values.clone()
    values[:, 1, 0, :, 40:] += 2  # 2 pixels of 64 are 0.0625 half frames, above 0.05 ln 2
    valid = pair_cue(attrs.evolve(flow, values=values)).valid
    assert valid[0, 0, 0, :, :35].min() == 1 and valid[0, 0, 0, :, 37:].max() == 0  # the query's points arrive at x + 4
    assert valid[0, 1, 0, :, :40].min() == 1 and valid[0, 1, 0, :, 40:].max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_may_answer_in_half_precision(dtype: torch.dtype) -> None:
    stored = load_file(DATA / "confidence.safetensors")
    flow = torch.stack([stored["flow01"], stored["flow10"]], 1) * 12
    coarse = pair_cue(CueMaps(flow.to(dtype), "flow"))
    exact = pair_cue(CueMaps(flow.to(dtype).float(), "flow"))
    assert torch.equal(coarse.valid, exact.valid)
    assert torch.equal(coarse.values, exact.values)


def test_unknown_places_are_not_mixed_into_their_neighbours() -> None:
    known = torch.ones(1, 2, 1, 32, 32, dtype=torch.bool)
    known[..., 9:14, 9:20] = False
    disparity = torch.where(known, 100.0, float("nan"))
    theta = torch.stack([Crop(5, 4, 17, flip=True).theta(32), Crop(3, 2, 23).theta(32)])[None]
    cue = cut_cue(pair_cue(CueMaps(disparity, "disparity", known)), theta, 32)
    counted = cue.valid > 0
    assert ((cue.valid > 0.01) & (cue.valid < 0.99)).sum() > 50  # views whose pixels lie between the teacher's
    depth = depth_from_disparity(torch.tensor(100.0))[0]
    torch.testing.assert_close(cue.values[counted], depth.expand(int(counted.sum())))
    assert 50 < (~counted).sum() < 500


def test_a_teacher_that_knows_all_and_says_so_is_one_that_says_nothing() -> None:
    disparity = 300 * torch.rand(1, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    theta = Crop(0, 4, 17).theta(32).expand(1, 2, 2, 3)  # at the frame's border zeros are mixed in: the reference's way
    silent = cut_cue(pair_cue(CueMaps(disparity, "disparity")), theta, 40)
    spoken = cut_cue(pair_cue(CueMaps(disparity, "disparity", disparity >= 0)), theta, 40)
    assert torch.equal(silent.values, spoken.values)
    assert torch.equal(silent.values[:, 0], cut_maps(depth_from_disparity(disparity)[0][:, 0], theta[:, 0], 40))


def test_what_a_teacher_leaves_out_may_be_nan() -> None:
    values = torch.rand(1, 2, 1, 16, 16)
    known = torch.ones(1, 2, 1, 16, 16, dtype=torch.bool)
    known[..., :8] = False
    values[~known] = float("nan")
    cue = pair_cue(CueMaps(values * 1000, "disparity", known))
    assert stack_cues([cue]).isfinite().all()
    assert cue.valid[..., :8].max() == 0 and cue.valid[..., 8:].float().mean() > 0.9
