"""L4P in miniature as a user meets it: any length and shape of video, both directions, and mistakes explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import ROOT, Fourd, write_video

import fourd_core as fourd
from fourd_core.data import Predictions
from fourd_core.errors import RecipeError
from fourd_core.media.video import open_video
from fourd_core.media.writers import encode_png
from fourd_core.system import System

RECIPE = ROOT / "recipes/l4p_tiny.toml"
SMALL = "data.pixels=56"


def load(*overrides: str) -> System:
    return fourd.load(RECIPE, [SMALL, *overrides])


@pytest.fixture(scope="module")
def both() -> System:
    return load("heads.track.direction=both")


def check(got: Predictions, frames: int, size: tuple[int, int], points: int) -> None:
    h, w = size
    assert got.depth.shape == (1, frames, 1, h, w)
    assert got.flow.shape == (1, frames, 2, h, w)
    assert got.motion.shape == (1, frames, 1, h, w)
    assert got.cameras.world_from_cam.shape == (1, frames, 4, 4)
    assert got.cameras.intrinsics.shape == (1, frames, 3, 3)
    assert got.tracks.xyz.shape == (1, frames, points, 3)
    assert got["flow"].values[:, 0].isnan().all()
    for name, item in got.items():
        for field, tensor in item.tensors().items():
            if name == "track" and field in ("depth", "xyz", "xyz_camera") and not (got.tracks.visibility > 0.5).any():
                continue  # a tracker that is not trained sees nothing here, and so its unit is not known
            assert tensor[:, 1 if name == "flow" else 0 :].isfinite().all(), (name, field)


@pytest.mark.parametrize(
    ("frames", "size"),
    [(1, (64, 96)), (2, (64, 96)), (15, (64, 96)), (17, (64, 96)), (18, (132, 50)), (3, (16, 16))],
    ids=lambda x: str(x),
)
def test_any_length_and_any_shape(both: System, tmp_path: Path, frames: int, size: tuple[int, int]) -> None:
    video = write_video(tmp_path / "clip.mp4", frames, size)
    got = both.predict(video, queries=[(frames - 1, 5.5, 6.5), (0, 1.0, 1.0)])
    check(got, frames, size, 2)
    assert got.tracks.live.all()


def test_odd_sizes(both: System, tmp_path: Path) -> None:
    for i in range(4):
        picture = torch.randint(0, 256, (3, 37, 51), generator=torch.Generator().manual_seed(i)).byte()
        (tmp_path / f"{i}.png").write_bytes(encode_png(picture))
    check(both.predict(tmp_path, queries=1), 4, (37, 51), 1)


def test_backward_on_the_reversed_clip_is_forward_on_the_clip(tmp_path: Path) -> None:
    video = open_video(str(write_video(tmp_path / "clip.mp4", 19)))
    for i, picture in enumerate(video.read(range(19))):
        for folder, number in (("there", i), ("back", 18 - i)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number:03d}.png").write_bytes(encode_png(picture))
    forward = load().predict(tmp_path / "there", queries=[(0, 20.0, 30.0), (11, 50.0, 10.0)])
    backward = load("heads.track.direction=backward").predict(
        tmp_path / "back", queries=[(18, 20.0, 30.0), (7, 50.0, 10.0)]
    )
    for field in ("xy", "visibility", "live"):
        there, back = (got.tracks.tensors()[field] for got in (forward, backward))
        torch.testing.assert_close(there, back.flip(1), equal_nan=True)
    assert forward.tracks.live[0, :, 0].all()  # through two window borders


@pytest.mark.parametrize(
    ("memory", "alive"), [("track_memory", 20), ("chain", 20), ("none", 16)], ids=["memory", "chain", "none"]
)
def test_the_memory_is_a_line_of_the_recipe(tmp_path: Path, memory: str, alive: int) -> None:
    video = write_video(tmp_path / "clip.mp4", 20)
    tracks = load(f"memories.track.use={memory}").predict(video, queries=1).tracks
    assert int(tracks.live.sum()) == alive


def test_the_depth_of_tracks_is_the_depth_of_the_maps(tmp_path: Path) -> None:
    """One point alone takes the map's depth where it is; its place in the world is what the camera sees there."""
    got = load().predict(write_video(tmp_path / "clip.mp4", 7), queries=[(0, 40.0, 30.0)])
    tracks, cameras = got.tracks, got.cameras
    projected = (cameras.intrinsics[0] @ tracks.xyz_camera[0, :, 0, :, None])[..., 0]
    torch.testing.assert_close(projected[:, :2] / projected[:, 2:], tracks.xy[0, :, 0], rtol=1e-4, atol=1e-3)
    column, row = tracks.xy[0, :, 0].long().unbind(-1)
    ratio = tracks.depth[0, :, 0] / got.depth[0, range(7), 0, row, column]
    assert float(ratio.median()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["queries.points=[[0, 700, 20]]"], ["[queries]", "x 700", "96 wide and 72 high"]),
        (["queries.points=[[99, 7, 20]]"], ["[queries]", "frame 99", "0 to 23"]),
        (["data.intrinsics=[nan, 50, 48, 36]"], ["data.intrinsics"]),
        (["data.intrinsics=[0, 50, 48, 36]"], ["data.intrinsics"]),
        (["heads.depth.taps=[2, 4, 6, 70]"], ["heads.depth", "tap 70 does not exist"]),
        (["heads.depth.taps=[2, 4, 6]"], ["heads.depth.taps"]),
        (["heads.track.heads=7"], ["heads.track", "128"]),
        (["data.pixels=3"], ["data"]),
        (["data.height=30", "data.width=28"], ["data", "8 x 8"]),
        (["stages.predict.window=5"], ["window = 5", "2 frames"]),
        (["stages.predict.window=16", "stages.predict.stride=16"], ["[heads.depth]", "smaller stride"]),
        (["stages.predict.window=16", "stages.predict.stride=7"], ["[memories.track]", "stride", "multiple of 2"]),
        (["heads.cameras.depth=depht"], ["[heads.cameras]", "depht"]),
        (["heads.cameras.depth=flow"], ["[heads.cameras]", "flow"]),
        (["heads.cameras.intrinsics=known"], ["[heads.cameras]", "data.intrinsics"]),
        (["heads.track.direction=sideways"], ["heads.track.direction", '"backward"']),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else None,
)
def test_mistakes_are_explained(
    fourd: Fourd, clip: Path, tmp_path: Path, overrides: list[str], says: list[str]
) -> None:
    words = [word for item in (SMALL, f"data.video={clip}", *overrides) for word in ("--set", item)]
    answer = fourd("run", RECIPE, *words, "--out", "a", check=2)
    for text in says:
        assert text in answer.stderr, answer.stderr
    assert not (tmp_path / "a").exists()
    assert "Traceback" not in answer.stderr


def test_points_in_python_are_checked_too(both: System, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", 2)
    with pytest.raises(RecipeError, match="outside"):
        both.predict(video, queries=[(0, 97.0, 3.0)])
    with pytest.raises(RecipeError, match="three numbers"):
        both.predict(video, queries=[(0, 97.0)])
