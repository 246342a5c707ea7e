"""What a predict stage leaves besides its arrays: queries, exports, pictures; and what it refuses before it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from helpers import Fourd
from known_heads import SCENE, install

from fourd_core import load
from fourd_core.media.formats.flow import read_flo
from fourd_core.media.formats.points import read_ply
from fourd_core.media.video import VideoFile, open_video


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


def setting(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def test_exports_show_the_scene(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    chosen = setting('stages.predict.exports=["flo", "ply", "tum"]')
    fourd("run", recipe, *chosen, "--out", "run", check=0)
    folder = tmp_path / "run/predict"
    exported = folder / "exports/scene"
    assert sorted(path.name for path in exported.iterdir()) == ["flo", "ply", "trajectory.txt"]
    assert [path.name for path in exported.parent.iterdir()] == ["scene"]
    flow = read_flo(exported / "flo/flow/000003_to_000002.flo")
    torch.testing.assert_close(flow, SCENE.flow()[3])
    # A point for every pixel, in the world, which is the first camera's frame.
    cloud = read_ply(exported / "ply/000004.ply")
    pose = torch.linalg.inv(SCENE.world_from_cam[0])
    expected = SCENE.points[4].reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    assert (cloud.xyz - expected).abs().max() < 1e-4
    # A run that was stopped after them leaves finished exports as they are, and begins unfinished ones anew.
    record = tmp_path / "run/run.json"
    record.write_text(record.read_text().replace('"state": "done"', '"state": "interrupted"'))
    (exported.parent / "scene.unfinished").mkdir()
    before = (exported / "trajectory.txt").stat().st_mtime_ns
    fourd("run", recipe, *chosen, "--out", "run", check=0)
    assert (exported / "trajectory.txt").stat().st_mtime_ns == before


def test_what_is_measured_is_not_halved(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "--out", "run", check=0)
    store = zarr.open_group(tmp_path / "run/predict/scene.zarr", mode="r")
    names = ["depth", "flow", "camera.world_from_cam", "camera.intrinsics", "track.xy", "track.visibility", "track.xyz"]
    for name in names:
        assert store[name].dtype == np.float32
    assert np.array_equal(store["camera.intrinsics"][2], SCENE.camera)
    assert store.attrs["pixels"] == "video"


def test_the_points_that_were_followed_can_be_read_back(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "--out", "run", check=0)
    listed = tmp_path / "run/predict/scene_queries.csv"
    lines = listed.read_text().splitlines()
    assert (lines[0], len(lines)) == ("frame,x,y", 65)
    assert [float(word) for word in lines[-1].split(",")] == [0, 90, 67.5]
    text = recipe.read_text().replace("grid = 8", f'file = "{listed}"')
    recipe.write_text(text)
    fourd("run", recipe, "--out", "again", check=0)
    first, again = (
        zarr.open_group(tmp_path / run / "predict/scene.zarr", mode="r")["track.xy"][:] for run in ("run", "again")
    )
    assert np.array_equal(first, again)


def test_all_tasks_in_one_movie(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, *setting("stages.predict.movie=true"), "--out", "run", check=0)
    movie = open_video(str(tmp_path / "run/predict/scene.mp4"))
    assert (movie.frame_count, movie.size) == (6, (92, 4 * 100 - 4))  # video, depth, flow, tracks
    pictures = sorted(path.name for path in (tmp_path / "run/predict/pictures").iterdir())
    assert pictures == ["scene_00000.png", "scene_00005.png"]
    assert (tmp_path / "run/report.html").read_text().count('<figure class="wide">') == 2


def test_pictures_predicted_in_python_have_the_recipe_s_frame_rate(recipe: Path) -> None:
    """The heads tell the frame by its time at 25 frames a second: at 50 they stand at every frame for two."""
    frames = {25: list(range(6)), 50: [0, 0, 1, 2, 2, 2]}
    for rate, expected in frames.items():
        predictions = load(recipe, [f"data.frame_rate={rate}"]).predict(recipe.parent / "scene")
        assert torch.equal(predictions.depth[0, :, 0], SCENE.depth[expected])


def test_every_frame_is_decoded_once(toy_recipe: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though windows overlap."""
    system = load(toy_recipe, ["stages.predict.window=4", "stages.predict.stride=2"])
    decoded: list[int] = []
    decode = VideoFile._decode
    monkeypatch.setattr(VideoFile, "_decode", lambda video, index: decoded.append(index) or decode(video, index))
    system.predict(clip)
    assert decoded == [0, *range(24)], "the first one also to see the size"


def refusal(fourd: Fourd, recipe: Path, tmp_path: Path, *pairs: str) -> str:
    said = fourd("run", recipe, *setting(*pairs), "--out", "refused", check=2).stderr
    assert not (tmp_path / "refused").exists(), "it was found too late"
    return said


def test_exports_that_lack_something_are_refused_before_the_run(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace('[heads.camera]\nuse = "known_camera"\n', ""))
    said = refusal(fourd, recipe, tmp_path, 'stages.predict.exports=["colmap", "depth_png"]')
    assert '"colmap" needs camera poses and intrinsics, which no head of the recipe predicts' in said
    assert "depth_png" not in said
    assert "stages.predict.exports" in refusal(fourd, recipe, tmp_path, 'stages.predict.exports=["obj"]')


def test_a_head_that_does_not_announce_its_kind_is_believed(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("known_depth", "known_silent"))
    fourd("run", recipe, *setting('stages.predict.exports=["depth_png"]'), "--out", "run", check=0)
    assert len(list((tmp_path / "run/predict/exports/scene/depth_png/depth").glob("*.png"))) == 6


def test_exports_of_a_part_of_the_frame_are_refused(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    cut = ("data.view=center", "data.pixels=64", "stages.predict.pixels=view", 'stages.predict.exports=["flo"]')
    assert 'set pixels = "video"' in refusal(fourd, recipe, tmp_path, *cut)
