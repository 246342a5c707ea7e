"""The benchmark of LILA on a film: its cuts, the exactness of its generated masks, and the way to a score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fourd_evals.knn import KNNConfig
from helpers import ROOT

import fourd_core
from benchmarks import film_shots
from benchmarks.film_scores import Score, carried, encoder_features, head_features, score_generated
from benchmarks.film_sequences import Motion, Piece, mask_at, picture_at, pixel_centres, random_sequence, render
from benchmarks.lila_film import CLIP, CLIP_MASKS, Known, drawn_masks
from fourd_core.media.video import open_video
from fourd_core.media.writers import VideoWriter

SIZE = 48, 64
STILL = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def textured(frames: int, colour: tuple[int, int, int], steps: list[int] | int, seed: int) -> np.ndarray:
    """Frames of a coloured texture that moves to the side by so many pixels each frame."""
    coarse = torch.rand(1, 3, 3, 30, generator=torch.Generator().manual_seed(seed))
    shade = torch.nn.functional.interpolate(coarse, (54, 960), mode="bilinear")[0].permute(1, 2, 0).numpy()
    moves = np.cumsum([steps] * frames if isinstance(steps, int) else steps)
    return np.stack([(np.array(colour) * shade[:, m : m + 96]).astype(np.uint8) for m in moves])


def test_cuts_are_found_and_fast_motion_is_none() -> None:
    fast = [1] * 8 + [40] * 5 + [1] * 7
    film = np.concatenate(
        [textured(20, (250, 180, 60), fast, 1), textured(13, (40, 90, 240), 2, 2), textured(15, (90, 230, 90), 1, 3)]
    )
    assert film_shots.find_cuts(film) == [0, 20, 33]


def test_unwanted_frames_are_left_out_of_shots() -> None:
    parts = film_shots.wanted_parts([0, 285, 378, 553, 11724], 11800)
    assert parts == {0: (60, 285), 285: (285, 378), 378: (378, 494), 553: (720, 11724)}


def test_shots_become_files_of_their_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = (250, 180, 60), (40, 90, 240), (90, 230, 90), (230, 60, 200)
    with VideoWriter(tmp_path / "film.mp4", 24, quality=4) as writer:
        for n, colour in enumerate(colours):
            writer.write(torch.from_numpy(textured(14, colour, 2, n)).permute(0, 3, 1, 2))
    monkeypatch.setattr(film_shots, "UNWANTED", ((54, 56),))
    for name, value in (("BUNDLED", 0), ("VALIDATION", (28,)), ("TEST", (42,)), ("SHOT_SIZE", (32, 56))):
        monkeypatch.setattr(film_shots, name, value)
    film_shots.write_shots(tmp_path / "film.mp4", tmp_path / "shots")
    written = sorted(str(path.relative_to(tmp_path / "shots")) for path in tmp_path.glob("shots/*/*.mp4"))
    assert written == [
        "bundled/00000_00013.mp4", "test/00042_00053.mp4", "train/00014_00027.mp4", "validation/00028_00041.mp4",
    ]  # fmt: skip
    shot = open_video(str(tmp_path / "shots/train/00014_00027.mp4"))
    assert (shot.frame_count, shot.size) == (14, (32, 56))
    assert shot.read([0])[0].float().mean((1, 2)).argmax() == 2  # the blue one

    film_shots.write_stills(tmp_path / "film.mp4", tmp_path / "shots", tmp_path / "stills")
    stills = sorted(path.name for path in tmp_path.glob("stills/test/*.png"))
    assert stills == ["00043.png", "00047.png", "00051.png"]


def disc(x: float, y: float, radius: float) -> torch.Tensor:
    """Which pixels have their centre in a circle."""
    centres = pixel_centres(SIZE)
    return (centres[..., 0] - x) ** 2 + (centres[..., 1] - y) ** 2 < radius**2


def test_masks_follow_the_motion_exactly() -> None:
    ground = Piece(STILL, (60, 40), Motion((32, 24)))
    far = Piece(STILL, (30, 30), Motion((20.3, 20.1), velocity=(2.0, -0.5), growth=0.3, period=8.0), 9.0)
    near = Piece(STILL, (80, 40), Motion((34.2, 21.7), velocity=(-1.5, 0.25), swing=(3.0, 2.0), period=12.0), 6.0)
    for t in (0.0, 2.0, 3.5, 7.0):
        wave = math.sin(2 * math.pi * t / 12)
        first = disc(20.3 + 2 * t, 20.1 - 0.5 * t, 9 * math.exp(0.3 * math.sin(2 * math.pi * t / 8)))
        second = disc(34.2 - 1.5 * t + 3 * wave, 21.7 + 0.25 * t + 2 * wave, 6.0)
        expected = torch.where(second, 2, first.int()).to(torch.uint8)
        assert torch.equal(mask_at([ground, far, near], SIZE, t), expected)
        assert (expected == 1).any()


def test_outlines_and_pictures_turn_together() -> None:
    waves = torch.tensor([[0.3, 0.1], [0.0, 0.2]])
    motion = Motion((24.0, 24.0), spin=math.pi / 8)
    pieces = [Piece(STILL, (60, 40), Motion((24, 24))), Piece(STILL, (50, 40), motion, 12.0, waves)]
    start, turned = (mask_at(pieces, (48, 48), t) for t in (0, 4))  # a quarter turn, from x to y
    x, y = (pixel_centres((48, 48)) - 24).unbind(-1)
    angle = torch.atan2(y, x)
    outline = 12 * (1 + 0.3 * torch.cos(2 * angle) + 0.1 * torch.sin(2 * angle) + 0.2 * torch.sin(3 * angle))
    assert torch.equal(start, (torch.hypot(x, y) < outline).to(torch.uint8))
    assert torch.equal(turned, start.rot90(-1))
    assert not torch.equal(turned, start)
    inside = torch.nn.functional.max_pool2d(1 - turned[None].float(), 3, 1, 1)[0] == 0
    before, after = (picture_at(pieces, (48, 48), t) for t in (0, 4))
    torch.testing.assert_close(after[:, inside], before.rot90(-1, (1, 2))[:, inside], atol=2e-4, rtol=0)


def test_pictures_are_sharp_where_nothing_moves_and_blurred_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.film_sequences.NOISE", 0.0)
    resting = [Piece(STILL, (60, 40), Motion((32, 24)))]
    moving = [Piece(STILL, (60, 40), Motion((32, 24), velocity=(4.0, 0.0)))]
    still, blurred = (render(p, SIZE, 1, torch.Generator()).frames[0].float() for p in (resting, moving))
    torch.testing.assert_close(still / 255, picture_at(resting, SIZE, 0), atol=1e-2, rtol=0)
    # Four bilinear samples a pixel, a quarter of a pixel off its centre, weigh the still's pixels by 1 : 6 : 1.
    kernel = torch.tensor([1.0, 6.0, 1.0]) / 8
    smooth = torch.nn.functional.conv2d(STILL[:, None].float(), (kernel[:, None] * kernel)[None, None])[:, 0]
    torch.testing.assert_close(still, smooth[:, 15 : 15 + 48, 27 : 27 + 64], atol=1.0, rtol=0)
    assert blurred.diff(dim=-1).abs().mean() < 0.8 * still.diff(dim=-1).abs().mean()


def test_a_seed_says_everything() -> None:
    first, again, other = (random_sequence([STILL], seed, SIZE, 3) for seed in (5, 5, 6))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.frames, other.frames)
    assert set(first.masks[0].unique().tolist()) == set(range(int(first.masks.max()) + 1))


def test_features_that_know_the_objects_carry_them() -> None:
    ground = Piece(torch.zeros(3, 80, 120, dtype=torch.uint8), (60, 40), Motion((32, 24)))
    white = Piece(torch.full((3, 80, 120), 255, dtype=torch.uint8), (60, 40), Motion((20, 24), (2.0, 0.0)), 12.0)
    sequence = render([ground, white], SIZE, 6, torch.Generator().manual_seed(0))
    grid = KNNConfig(side=24, radius=4)
    score = Score.of_sequences(score_generated(lambda frame: frame - 0.5, [sequence], grid))
    assert score.j > 93
    assert score.f > 99
    constant = Score.of_sequences(score_generated(torch.ones_like, [sequence], grid))
    assert constant.jf < score.jf - 20


def test_score_of_one_frame_is_the_mean_over_its_objects() -> None:
    truth = torch.zeros(40, 40, dtype=torch.uint8)
    truth[2:12, 2:12], truth[20:30, 20:30] = 1, 2
    half = truth.clone()
    half[25:30, 20:30] = 0
    assert Score.of_masks(truth, truth) == Score(100.0, 100.0)
    assert Score.of_masks(truth, half).j == pytest.approx(75.0)


def test_evaluation_of_random_weights_from_frames_to_scores() -> None:
    overrides = ["backbone.pretrained=false", 'data.video="nothing.mp4"', "heads.features.features=8"]
    system = fourd_core.load(ROOT / "recipes/lila_tiny_film.toml", overrides)
    grid = KNNConfig(side=8, radius=2)
    sequence = random_sequence([STILL], 3, (32, 64), 4)
    encoder = encoder_features(system, grid)
    frame = sequence.frames[0].float() / 255
    channels = {name: len(extract(frame)) for name, extract in encoder.items()}
    assert channels == {
        "encoder, stride 4": 24, "encoder, stride 8": 40, "encoder, stride 16": 112, "encoder, stride 32": 320,
        "encoder, all strides": 496, "encoder, all strides, each of length 1": 496,
    }  # fmt: skip
    pixels = head_features(system)
    assert pixels(frame).shape == (4, 32, 64)
    for extract in (pixels, encoder["encoder, stride 8"]):
        masks = carried(extract, sequence.frames, sequence.masks[0], grid)
        assert torch.equal(masks[0], sequence.masks[0])
        assert 0 <= Score.of_sequences(score_generated(extract, [sequence], grid)).jf <= 100


def test_known_scores_are_not_computed_again(tmp_path: Path) -> None:
    known = Known(tmp_path / "scores.json")
    assert known("a", lambda: Score(50.0, 70.0)).jf == 60.0
    assert known("a", lambda: Score(0.0, 0.0)).jf == 60.0
    assert json.loads((tmp_path / "scores.json").read_text()) == {"a": {"j": 50.0, "f": 70.0}}


def test_drawn_masks_belong_to_the_clip() -> None:
    frames = open_video(str(CLIP)).read(list(CLIP_MASKS))
    for frame, mask in zip(frames, drawn_masks(), strict=True):
        assert mask.shape == frame.shape[1:] == (720, 1280)
        assert mask.unique().tolist() == [0, 1, 2]
        rabbit, rest = frame[:, mask == 1].float().mean(1), frame[:, mask == 0].float().mean(1)
        assert rabbit[2] / rabbit[1] > rest[2] / rest[1] + 0.2  # grey fur, and not the green around it
