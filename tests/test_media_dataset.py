"""The data set of plain videos: what it opens, and that its splits never share a frame."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path

import pytest
import torch
from dataset_miniatures import jpeg, kinetics, mp4, put
from numbered_media import numbers
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fourd_core.errors import MediaError
from fourd_core.media import dataset
from fourd_core.media.dataset import VideoFiles, VideoSlice
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


def test_several_videos_are_opened_as_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one is said when it is taken, by its name, and harms no other."""
    root = put({f"v{number}.mp4": mp4(5) for number in (1, 2, 10)} | {"v5.mp4": b"damaged"}, "disk", tmp_path)
    taken: list[str] = []
    open_source = dataset.open_source
    monkeypatch.setattr(
        dataset, "open_source", lambda source, *rest: taken.append(Path(source.name).name) or open_source(source, *rest)
    )
    for config in (VideoFiles.Config(root=Location(root), held_out=0.4), VideoFiles.Config(video=Location(root))):
        taken.clear()
        data = VideoFiles(config)
        videos = data.videos("all")
        assert (len(videos), list(videos.keys)) == (4, ["v1.mp4", "v2.mp4", "v5.mp4", "v10.mp4"])
        assert len(data.videos("train")) == (2 if config.root else 4)
        assert taken == []
        assert numbers(videos[-1].read([4, 0])) == [4, 0]
        assert videos[1].frame_count == videos[1].frame_count == 5
        assert taken == ["v10.mp4", "v2.mp4"]
        with pytest.raises(MediaError, match=r"/v5\.mp4 is not a video that FFmpeg can read"):
            videos[2]
        assert [video.key for video in videos[:2]] == ["v1.mp4", "v2.mp4"]
        with pytest.raises(IndexError):
            videos[4]


def test_only_so_many_videos_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "OPEN_VIDEOS", 3)
    root = put({f"v{number}.mp4": mp4(2) for number in range(6)}, "disk", tmp_path)
    videos = VideoFiles(VideoFiles.Config(root=Location(root))).videos("all")
    kept = videos[0]
    for number in (1, 2, 0, 3):
        videos[number].read([0])
    assert videos[0] is kept, "it was taken again in between"
    assert list(videos._opened._videos) == ["v2.mp4", "v3.mp4", "v0.mp4"]
    assert [video.frame_count for video in videos] == [2] * 6
    assert len(videos._opened._videos) == 3


@pytest.mark.parametrize("place", ["video", "root"])
def test_keys_name_a_video_wherever_its_data_lies(tmp_path: Path, place: str) -> None:
    for base in ("here", "there"):
        folder = tmp_path / base
        put({"a/frames/0.jpg": jpeg(0), "b/frames/0.jpg": jpeg(1), "b/frames/1.jpg": jpeg(2)}, "disk", folder)
        pattern = Location(f"{folder}/set/*/frames")
        config = (
            VideoFiles.Config(video=pattern) if place == "video" else VideoFiles.Config(root=Location(f"{folder}/set"))
        )
        videos = VideoFiles(config).videos("all")
        assert list(videos.keys) == [video.key for video in videos] == ["a/frames", "b/frames"]


def test_keys_of_the_parts_of_a_video(tmp_path: Path) -> None:
    """Frame n of a training part is frame n of the whole video; what is held out depends on the share."""
    location = folder_of_frames(tmp_path / "f", 20)
    for share, key in ((0.25, "f[-0.25:]"), (0.5, "f[-0.5:]")):
        data = VideoFiles(VideoFiles.Config(video=location, held_out=share))
        assert {split: list(data.videos(split).keys) for split in ("all", "train", "held_out")} == {
            "all": ["f"], "train": ["f"], "held_out": [key],
        }  # fmt: skip
        for split in ("all", "train", "held_out"):
            assert data.videos(split)[0].key == data.videos(split).keys[0]
    assert VideoSlice(data.videos("all")[0], 2, 4).key == ""


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["/x/a.mp4", "/y/b.mp4"], ["a.mp4", "b.mp4"]),
        (["/x/1/a.mp4", "/x/2/a.mp4"], ["1/a.mp4", "2/a.mp4"]),
        (["/x/a.mp4", "/x/a.mp4"], ["a.mp4", "a.mp4"]),
        (["https://h/v/a.mp4?key=1&at=/b", "s3://bucket/c d.mp4"], ["a.mp4", "c d.mp4"]),
        (["zip://in/a.mp4::/x/1.zip", "zip://in/a.mp4::s3://x/2.zip"], ["1.zip/in/a.mp4", "2.zip/in/a.mp4"]),
        (["memory://a.mp4", "/a.mp4"], ["memory://a.mp4", "/a.mp4"]),
        ([], []),
    ],
)
def test_keys_of_places(names: list[str], keys: list[str]) -> None:
    assert dataset._keys(names) == keys


def test_a_video_named_twice_counts_twice(tmp_path: Path) -> None:
    location = folder_of_frames(tmp_path / "f", 4)
    assert len(VideoFiles(VideoFiles.Config(video=location, more=(location,))).videos("train")) == 2


def test_threads_share_videos_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few videos stay open and few frames are kept, so that threads take them from each other."""
    monkeypatch.setattr(dataset, "OPEN_VIDEOS", 2)
    root = put({f"v{number}.mp4": mp4(12) for number in range(4)}, "disk", tmp_path)
    data = VideoFiles(VideoFiles.Config(root=Location(root), cache_mb=1))
    data._cache.limit = 5 * 3 * 32 * 80
    videos, wrong = data.videos("all"), []

    def read(shift: int) -> None:
        try:
            for step in range(60):
                index = (step * 7 + shift) % 12
                found = numbers(videos[(step + shift) % 4].read([index, (index + 1) % 12]))
                if found != [index, (index + 1) % 12]:
                    wrong.append(found)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert data._cache.used == sum(frame.nbytes for frame in data._cache._frames.values()) <= data._cache.limit


class _Read(TorchDataset[Tensor]):
    """Frame `index % 3` of video `index // 3`, as a training loop's workers read."""

    def __init__(self, data: VideoFiles) -> None:
        self.data = data

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Tensor:
        return self.data.videos("train")[index // 3].read([index % 3])[0]


@pytest.mark.parametrize(("method", "place"), [("fork", "disk"), ("fork", "zip"), ("fork", "web"), ("spawn", "zip")])
def test_workers_read_videos_of_a_root(tmp_path: Path, web: str, method: str, place: str) -> None:
    root = put(kinetics("train", "val"), place, tmp_path)
    data = VideoFiles(VideoFiles.Config(root=Location(f"{web}/set" if place == "web" else root)))
    data.videos("train")[0].read([0])
    loader = DataLoader(
        _Read(data), batch_size=3, num_workers=1, multiprocessing_context=multiprocessing.get_context(method)
    )
    assert [numbers(batch) for batch in loader] == [[0, 1, 2]] * 3
    copy = pickle.loads(pickle.dumps(data))
    assert (len(copy.videos("train")), copy._cache.used, len(copy._opened._videos)) == (3, 0, 0)


def test_intrinsics_reach_the_videos_of_a_root(tmp_path: Path) -> None:
    root = Location(put(kinetics("train"), "disk", tmp_path))
    video = VideoFiles(VideoFiles.Config(root=root, intrinsics=(50.0, 60.0, 40.0, 16.0))).videos("all")[0]
    assert video.intrinsics is not None
    assert video.intrinsics.tolist() == [[50, 0, 40], [0, 60, 16], [0, 0, 1]]
