"""The data set of plain videos: what it opens, and that its splits never share a frame."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fourd_core.errors import MediaError
from fourd_core.media.dataset import VideoFiles
from fourd_core.media.writers import VideoWriter, write_png
from fourd_core.recipe import Location

BUNNY = Location(str(Path(__file__).parent.parent / "examples" / "bigbuckbunny.mp4"))


def folder_of_frames(folder: Path, count: int) -> Location:
    folder.mkdir()
    for number in range(count):
        write_png(folder / f"{number}.png", torch.full((3, 8, 8), number, dtype=torch.uint8))
    return Location(str(folder))


def shades(data: VideoFiles, split: str) -> list[int]:
    (video,) = data.videos(split)  # type: ignore[arg-type]
    return video.read(range(video.frame_count))[:, 0, 0, 0].tolist()


def test_splits_of_a_video(tmp_path: Path) -> None:
    data = VideoFiles(VideoFiles.Config(video=folder_of_frames(tmp_path / "f", 20), held_out=0.25, gap=3))
    assert shades(data, "all") == list(range(20))
    assert shades(data, "train") == list(range(12))
    assert shades(data, "held_out") == [15, 16, 17, 18, 19]
    (held_out,) = data.videos("held_out")
    assert held_out.times([0, 2]).tolist() == [15 / 25, 17 / 25]
    with pytest.raises(IndexError, match="has frames 0 to 4, not 5"):
        held_out.read([5])


def test_nothing_held_out(tmp_path: Path) -> None:
    data = VideoFiles(VideoFiles.Config(video=folder_of_frames(tmp_path / "f", 5), held_out=0.0, gap=2))
    assert shades(data, "train") == list(range(5))
    assert list(data.videos("held_out")) == []


def test_the_bundled_clip() -> None:
    data = VideoFiles(VideoFiles.Config(video=BUNNY))
    train, held_out = data.videos("train")[0], data.videos("held_out")[0]
    assert (train.frame_count, held_out.frame_count) == (106, 26)
    assert torch.equal(held_out.read([1]), data.videos("all")[0].read([107]))


def test_folders_patterns_and_more(tmp_path: Path) -> None:
    for name, frames in (("b10", 4), ("b9", 3), ("a", 2)):
        with VideoWriter(tmp_path / f"{name}.mp4", 25.0) as writer:
            writer.write(torch.zeros(frames, 3, 32, 32, dtype=torch.uint8))
    frames = folder_of_frames(tmp_path / "frames", 6)
    for location in (str(tmp_path), str(tmp_path / "*.mp4")):
        data = VideoFiles(VideoFiles.Config(video=Location(location), more=(frames,)))
        assert [video.frame_count for video in data.videos("all")] == [2, 3, 4, 6]


def opened(location: object) -> list[tuple[str, list[int]]]:
    """The name of each video's file or folder, and the shades of its frames."""
    videos = VideoFiles(VideoFiles.Config(video=Location(str(location)))).videos("all")
    return [(Path(v.name).name, v.read(range(v.frame_count))[:, 0, 0, 0].tolist()) for v in videos]


def test_pictures_of_several_folders_are_several_videos(tmp_path: Path) -> None:
    """`folders/*/*.png`, and `folders/*`, where the matches are the folders themselves."""
    for name, count in (("b10", 2), ("b9", 3), ("a", 11)):
        folder_of_frames(tmp_path / name, count)
    expected = [("a", list(range(11))), ("b9", [0, 1, 2]), ("b10", [0, 1])]
    for pattern in ("*/*.png", "*", "[ab]*", "**/*.png"):
        assert opened(tmp_path / pattern) == expected, pattern
    assert opened(tmp_path / "b*") == expected[1:]
    assert opened(tmp_path / "*" / "0.png") == [(name, [0]) for name in ("a", "b9", "b10")]


def test_a_pattern_that_finds_files_and_folders(tmp_path: Path) -> None:
    folder_of_frames(tmp_path / "frames", 2)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "clips").mkdir()
    for path in (tmp_path / "clips" / "b.mp4", tmp_path / "a.mp4"):
        with VideoWriter(path, 25.0) as writer:
            writer.write(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
    found = opened(tmp_path / "*")
    assert [(name, len(frames)) for name, frames in found] == [("a.mp4", 3), ("b.mp4", 3), ("frames", 2)]
    (tmp_path / "a.mp4").rename(tmp_path / "a.odd")
    assert [(name, len(frames)) for name, frames in opened(tmp_path / "*.odd")] == [("a.odd", 3)]


def test_the_cache_is_shared_by_all_videos(tmp_path: Path) -> None:
    locations = [folder_of_frames(tmp_path / name, 10) for name in "ab"]
    data = VideoFiles(VideoFiles.Config(video=locations[0], more=(locations[1],), cache_mb=1))
    data._cache.limit = 15 * 3 * 8 * 8
    for video in data.videos("all"):
        video.read(range(10))
    assert data._cache.used == 15 * 3 * 8 * 8


def test_pickles_with_one_shared_empty_cache(tmp_path: Path) -> None:
    data = VideoFiles(VideoFiles.Config(video=folder_of_frames(tmp_path / "f", 10)))
    shades(data, "train")
    copy = pickle.loads(pickle.dumps(data))
    assert copy._cache.used == 0
    assert shades(copy, "train") == list(range(8))
    assert copy._cache.used == 8 * 3 * 8 * 8


def test_opening_is_lazy() -> None:
    data = VideoFiles(VideoFiles.Config(video=Location("no/such/file.mp4")))
    with pytest.raises(MediaError, match=r"no/such/file\.mp4 does not exist"):
        data.videos("train")


def test_too_short(tmp_path: Path) -> None:
    location = folder_of_frames(tmp_path / "f", 2)
    with pytest.raises(MediaError, match=r"has 2 frames, too few to hold out 0\.2"):
        VideoFiles(VideoFiles.Config(video=location)).videos("held_out")
    with pytest.raises(MediaError, match="with a gap of 5; use a longer video or change"):
        VideoFiles(VideoFiles.Config(video=location, held_out=0.5, gap=5)).videos("train")


def test_bad_shares() -> None:
    with pytest.raises(ValueError, match="held_out is a share of the video"):
        VideoFiles.Config(video=BUNNY, held_out=1.0)


def test_the_example_works() -> None:
    data = VideoFiles(VideoFiles.example())
    (video,) = data.videos("train")
    assert (video.frame_count, video.size) == (8, (48, 64))
