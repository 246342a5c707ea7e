"""Public data sets on disks, in archives and buckets: what is a video, what is held out, what is refused."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from dataset_miniatures import Files, davis, frames, jpeg, kinetics, mp4, put, youtube_vos
from fsspec.implementations.memory import MemoryFileSystem
from numbered_media import numbers

from fourd_core.errors import MediaError
from fourd_core.media.dataset import VideoFiles
from fourd_core.media.layouts import LAYOUTS
from fourd_core.recipe import Location, dumps, load_recipe, parse

PLACES = ("disk", "memory", "zip")
VOS = ("00f88c4f0a", "0043f083b5", "003234408d")
"""In natural order: 0, 43, 3234408."""


def opened(root: str, **keys: Any) -> VideoFiles:
    location = {"list": Location(keys.pop("list"))} if "list" in keys else {}
    return VideoFiles(VideoFiles.Config(root=Location(root), **location, **keys))


def keys(data: VideoFiles, split: str) -> list[str]:
    return list(data.videos(split).keys)  # type: ignore[arg-type]


def refusal(root: object, split: str = "all", **settings: Any) -> str:
    with pytest.raises(MediaError) as caught:
        opened(str(root), **settings).videos(split)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["auto", "davis"])
@pytest.mark.parametrize("place", PLACES)
def test_davis(tmp_path: Path, place: str, layout: str) -> None:
    data = opened(put(davis(), place, tmp_path), layout=layout)
    assert keys(data, "train") == ["JPEGImages/480p/bear", "JPEGImages/480p/bmx-bumps"]
    assert keys(data, "held_out") == ["JPEGImages/480p/blackswan"]
    assert [name.rpartition("/")[2] for name in keys(data, "all")] == ["aerobatics", "bear", "blackswan", "bmx-bumps"]
    assert data.layout == "davis"
    video = data.videos("train")[1]
    assert (video.key, video.frame_count, video.size) == ("JPEGImages/480p/bmx-bumps", 4, (32, 80))
    assert numbers(video.read([3, 0, 2])) == [3, 0, 2]


def test_davis_in_full_resolution_and_with_one_list(tmp_path: Path) -> None:
    files = davis("Full-Resolution")
    del files["ImageSets/2017/train.txt"]
    data = opened(put(files, "disk", tmp_path))
    assert keys(data, "held_out") == ["JPEGImages/Full-Resolution/blackswan"]
    assert [name.rpartition("/")[2] for name in keys(data, "train")] == ["aerobatics", "bear", "bmx-bumps"]
    both = opened(put(davis("Full-Resolution") | davis(), "disk", tmp_path))
    assert keys(both, "held_out") == ["JPEGImages/480p/blackswan"]


def test_davis_whose_list_names_what_is_not_there(tmp_path: Path) -> None:
    files = davis() | {"ImageSets/2017/train.txt": "\n".join(["bear", *(f"v{n}" for n in range(7))]).encode()}
    root = put(files, "disk", tmp_path)
    assert refusal(root, "train") == (
        f"{root}/ImageSets/2017/train.txt names 7 video(s) that are not below {root}: v0, v1, v2, v3, v4 and 2 more; "
        "copy them there, or leave them out (data.list names a list of your own)"
    )
    assert keys(opened(root), "held_out") == ["JPEGImages/480p/blackswan"]


def test_davis_with_a_missing_frame(tmp_path: Path) -> None:
    files = davis()
    del files["JPEGImages/480p/bmx-bumps/00001.jpg"]
    root = put(files, "disk", tmp_path)
    videos = opened(root).videos("train")
    assert videos[0].frame_count == 2
    with pytest.raises(MediaError, match=r"frame 1 of .*/bmx-bumps is missing: its 3 pictures should be numbered from"):
        videos[1]
    as_they_are = opened(root, layout="videos").videos("all")
    assert [video.frame_count for video in as_they_are] == [5, 2, 3, 3]


@pytest.mark.parametrize("place", PLACES)
def test_youtube_vos(tmp_path: Path, place: str) -> None:
    root = put(youtube_vos("train", "train_all_frames", "valid", "valid_all_frames"), place, tmp_path)
    data = opened(root)
    train = [f"train_all_frames/JPEGImages/{name}" for name in VOS]
    assert keys(data, "train") == train
    assert keys(data, "held_out") == ["valid_all_frames/JPEGImages/00ad5016a4"]
    assert keys(data, "all") == [*train, "valid_all_frames/JPEGImages/00ad5016a4"]
    assert numbers(data.videos("train")[0].read(range(3))) == [0, 1, 2]


def test_youtube_vos_in_parts(tmp_path: Path) -> None:
    sparse = opened(put(youtube_vos("train", "valid"), "disk", tmp_path / "a"))
    assert keys(sparse, "held_out") == ["valid/JPEGImages/00ad5016a4"]
    assert numbers(sparse.videos("train")[2].read(range(3))) == [0, 5, 10]
    alone = opened(put(youtube_vos("train_all_frames"), "disk", tmp_path / "b"), held_out=0.3)
    assert keys(alone, "train") == [f"train_all_frames/JPEGImages/{name}" for name in VOS[:2]]
    assert keys(alone, "held_out") == ["train_all_frames/JPEGImages/003234408d"]
    inside = opened(f"{tmp_path}/b/set/train_all_frames", layout="youtube_vos")
    assert keys(inside, "all") == [f"JPEGImages/{name}" for name in VOS]


@pytest.mark.parametrize("layout", ["auto", "kinetics"])
@pytest.mark.parametrize("place", PLACES)
def test_kinetics(tmp_path: Path, place: str, layout: str) -> None:
    data = opened(put(kinetics("train", "val", "test"), place, tmp_path), layout=layout)
    names = ["abseiling/-0OjRFpHXkE_000012_000022.mp4", "abseiling/_a9w2x_x8Qs_000003_000013.mp4",
             "dunking basketball/4tx1l2K9y_8_000120_000130.mp4"]  # fmt: skip
    assert keys(data, "train") == [f"train/{name}" for name in names]
    assert keys(data, "held_out") == [f"val/{name}" for name in names]
    assert sorted(keys(data, "all")) == sorted(f"{part}/{name}" for part in ("train", "val", "test") for name in names)
    video = data.videos("train")[2]
    assert (video.key, video.frame_count) == ("train/dunking basketball/4tx1l2K9y_8_000120_000130.mp4", 3)
    assert numbers(video.read([2, 0])) == [2, 0]


def test_kinetics_in_parts(tmp_path: Path) -> None:
    tested = opened(put(kinetics("train", "test"), "disk", tmp_path / "a"))
    assert {name.partition("/")[0] for name in keys(tested, "held_out")} == {"test"}
    alone = opened(put(kinetics("train"), "disk", tmp_path / "b"))
    assert (len(keys(alone, "train")), len(keys(alone, "held_out")), len(keys(alone, "all"))) == (2, 1, 3)


def tree() -> Files:
    """Videos and folders of frames at several depths, beside what is neither."""
    clip = mp4(2)
    return {
        "b10.mp4": clip, "b9.mp4": clip, "cover.jpg": jpeg(1), "notes.txt": b"notes", ".hidden.mp4": clip,
        "day 2/raw/cam[1].mkv": clip, ".cache/c.mp4": clip, **frames("day 2/left", range(2)),
        **frames("day 10/left", range(3)), **frames("day 2/Annotations/left", range(2)),
    }  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_any_tree_of_videos(tmp_path: Path, place: str) -> None:
    data = opened(put(tree(), place, tmp_path), held_out=0.35)
    assert data.layout is None, "not looked at yet"
    assert keys(data, "all") == ["b9.mp4", "b10.mp4", "day 2/left", "day 2/raw/cam[1].mkv", "day 10/left"]
    assert keys(data, "train") == keys(data, "all")[:3]
    assert keys(data, "held_out") == keys(data, "all")[3:]
    assert data.layout == "videos"
    assert [video.frame_count for video in data.videos("all")] == [2, 2, 2, 2, 3]
    assert numbers(data.videos("all")[4].read([2, 1])) == [2, 1]


def test_a_root_on_a_web_server(tmp_path: Path, web: str) -> None:
    put(youtube_vos("train_all_frames") | kinetics("val"), "disk", tmp_path)
    frames_of = opened(f"{web}/set").videos("train")
    assert list(frames_of.keys) == [f"train_all_frames/JPEGImages/{name}" for name in VOS[:2]]
    assert numbers(frames_of[1].read([2, 0])) == [2, 0]
    clips = opened(f"{web}/set", layout="kinetics").videos("train")
    assert clips.keys[0] == "val/abseiling/-0OjRFpHXkE_000012_000022.mp4"
    assert numbers(clips[0].read([2, 0])) == [2, 0]


def test_a_tree_with_pictures_beside_videos_is_refused(tmp_path: Path) -> None:
    root = put(tree() | {"day 2/left/preview.mp4": b"", "day 2/left/x.mp4": b""}, "disk", tmp_path)
    assert f"the folder {root}/day 2/left has both pictures (2, such as 00000.jpg) and videos (2, such" in refusal(root)


def test_links_are_followed_once(tmp_path: Path) -> None:
    files = Path(put(kinetics("train"), "disk", tmp_path / "files"))
    (tmp_path / "set" / "val").mkdir(parents=True)
    (tmp_path / "set" / "train").symlink_to(files / "train")
    (tmp_path / "set" / "train" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "val" / "x").mkdir()
    (tmp_path / "set" / "val" / "x" / "a_000001_000011.mp4").symlink_to(files / "replacement/abc_000001_000011.mp4")
    data = opened(str(tmp_path / "set"))
    assert (len(keys(data, "train")), keys(data, "held_out")) == (3, ["val/x/a_000001_000011.mp4"])
    assert data.videos("held_out")[0].frame_count == 3
    sequences = Path(put(davis(), "disk", tmp_path / "davis")) / "JPEGImages/480p"
    (sequences / "bear").rename(tmp_path / "bear")
    (sequences / "bear").symlink_to(tmp_path / "bear")
    assert "JPEGImages/480p/bear" in keys(opened(str(tmp_path / "davis/set")), "train")


def test_a_list_of_videos(tmp_path: Path) -> None:
    """LILA's own list begins each line with the folder that holds the root."""
    root = put(youtube_vos("train_all_frames", "valid"), "memory", tmp_path)
    (tmp_path / "list.txt").write_bytes(
        b"ytvos/train_all_frames/JPEGImages/00f88c4f0a\r\n\r\n  003234408d/ \n"
        b"ytvos/train_all_frames/JPEGImages/003234408d"
    )
    chosen = opened(root, list=f"{tmp_path}/list.txt")
    train = [f"train_all_frames/JPEGImages/{name}" for name in (VOS[0], VOS[2])]
    assert keys(chosen, "train") == train
    assert keys(chosen, "held_out") == ["valid/JPEGImages/00ad5016a4"]
    assert keys(chosen, "all") == [*train, "valid/JPEGImages/00ad5016a4"]
    (tmp_path / "list.txt").write_text("00ad5016a4\n003234408d\n")
    mixed = opened(root, list=f"{tmp_path}/list.txt")
    assert keys(mixed, "held_out") == [], "what is trained on is not held out"
    assert len(keys(mixed, "train")) == 2
    tree_root = put(tree(), "disk", tmp_path / "tree")
    (tmp_path / "list.txt").write_text("day 10/left\nb9.mp4\nday 2/raw/cam[1].mkv")
    of_tree = opened(tree_root, list=f"{tmp_path}/list.txt")
    assert keys(of_tree, "train") == ["b9.mp4", "day 2/raw/cam[1].mkv"]
    assert keys(of_tree, "held_out") == ["day 10/left"]


def test_bad_lists(tmp_path: Path) -> None:
    root, path = put(tree(), "disk", tmp_path), tmp_path / "list.txt"

    def said(text: bytes) -> str:
        path.write_bytes(text)
        return refusal(root, list=str(path))

    missing = "names 1 video(s) that are not below"
    assert said(b"b9.mp4\nday 3/left\n") == (
        f"{path} {missing} {root}: day 3/left; copy them there, or leave them out (data.list names a list of your own)"
    )
    assert said(b"left") == f"{path}: left may be day 2/left, day 10/left; write more of its path"
    assert said(b" \n\n") == f"the list {path} names no video"
    assert said(b"\xff\xfe\x00") == f"{path} is no text file"
    path.unlink()
    assert refusal(root, list=str(path)) == f"the file {path} does not exist"


def test_roots_that_are_none(tmp_path: Path) -> None:
    looked_for = "; ".join(f"{name} ({telltale})" for name, (telltale, _) in LAYOUTS.items())
    advice = "name the right folder in data.root, or single videos in data.video"
    sentence = f"{tmp_path}/set is no data set that can be read: looked for {looked_for}; found {{}}; {advice}"
    assert "davis (JPEGImages/480p or JPEGImages/Full-Resolution)" in sentence
    (tmp_path / "set").mkdir()
    assert refusal(tmp_path / "set") == sentence.format("nothing")
    put({f"folder{n}/notes.txt": b"" for n in range(11)}, "disk", tmp_path)
    found = "folder0, folder1, folder2, folder3, folder4 and 6 more"
    assert refusal(tmp_path / "set") == sentence.format(found)
    put({"00000.jpg": jpeg(0)}, "disk", tmp_path)
    assert "found 00000.jpg, folder0" in refusal(tmp_path / "set"), "pictures of the root itself are one video"
    assert refusal(tmp_path / "set", layout="davis") == (
        f"{tmp_path}/set is no data set that can be read: looked for davis (JPEGImages/480p or JPEGImages/"
        "Full-Resolution); found 00000.jpg, folder0, folder1, folder2, folder3 and 7 more; name the right folder in "
        "data.root, or leave data.layout out"
    )
    for layout in ("youtube_vos", "kinetics"):
        assert f"looked for {layout} (" in refusal(put(davis(), "disk", tmp_path / layout), layout=layout)
    assert refusal(tmp_path / "no") == f"the folder {tmp_path}/no does not exist"
    assert refusal("memory://nowhere") == "the folder memory://nowhere does not exist"
    assert refusal(tmp_path / "set/00000.jpg").startswith(f"{tmp_path}/set/00000.jpg is a file, and the root of a data")
    (tmp_path / "empty" / "JPEGImages" / "480p").mkdir(parents=True)
    assert refusal(tmp_path / "empty").endswith("has the folders of its layout, and no video in them")


def test_folders_without_permission() -> None:
    """Also below the root: what may not be listed is not left out silently."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        root = put({"a/x.mp4": b"", "b/x.mp4": b""}, "disk", Path(folder))
        Path(folder).chmod(0o755)
        (Path(root) / "b").chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)  # to the superuser everything is readable
            assert refusal(root) == f"no permission to read {root}"
        finally:
            os.seteuid(user)
            (Path(root) / "b").chmod(0o755)


def test_shares_are_whole_videos(tmp_path: Path) -> None:
    root = put({f"v{number}.mp4": b"" for number in range(12)}, "disk", tmp_path)
    for share, count in ((0.25, 3), (0.01, 1), (0.0, 0), (0.9, 11)):
        data = opened(root, held_out=share, gap=7)
        names = [f"v{number}.mp4" for number in range(12)]
        assert keys(data, "train") == names[: 12 - count]
        assert keys(data, "held_out") == names[12 - count :]
    one = put({"only.mp4": b""}, "disk", tmp_path / "one")
    assert keys(opened(one), "all") == ["only.mp4"]
    assert refusal(one, "train").startswith(f"{one} holds 1 video(s), too few to hold out whole ones; set data.held")


class Counted(MemoryFileSystem):
    """A file system in memory that counts what is asked of it, and lists a folder in itself, as buckets may."""

    protocol = "counted"
    asked: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counted://", "memory://")))

    def ls(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.asked["ls"] += 1
        found = super().ls(path, *arguments, **options)
        itself = {"name": path, "type": "directory", "size": 0}
        return [itself, *found] if options.get("detail") else found

    def info(self, path: str, **options: Any) -> Any:
        self.asked["info"] += 1
        return super().info(path, **options)

    def isdir(self, path: str) -> bool:
        self.asked["info"] += 1
        return bool(super().isdir(path))

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.asked["open"] += 1
        return super()._open(path, *arguments, **options)

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.asked["find"] += 1
        before = self.asked.copy()
        found = super().find(path, *arguments, **options)
        self.asked.clear()  # its own way through the tree is one request to a bucket
        self.asked.update(before)
        return found


def test_a_listing_takes_few_requests_and_opens_nothing(tmp_path: Path) -> None:
    """However many videos there are."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    place = str(tmp_path).strip("/")
    for build, opens in ((davis_of, 2), (vos_of, 0), (kinetics_of, 0)):
        asked = []
        for count in (3, 30):
            files = build(count)
            memory = fsspec.filesystem("memory")
            for name, content in files.items():
                memory.pipe_file(f"/{place}/{build.__name__}{count}/{name}", content)
            Counted.asked.clear()
            data = opened(f"counted://{place}/{build.__name__}{count}")
            assert [len(data.videos(split)) for split in ("train", "held_out", "all")] == [count, 1, count + 1]
            asked.append(dict(Counted.asked))
        assert asked[0] == asked[1], build.__name__
        assert asked[0].get("open", 0) == opens
        assert sum(asked[0].values()) < 25


def davis_of(count: int) -> Files:
    names = [f"sequence{number}" for number in range(count)]
    lists = {"ImageSets/2017/train.txt": "\n".join(names).encode(), "ImageSets/2017/val.txt": b"v"}
    return lists | {f"JPEGImages/480p/{name}/00000.jpg": b"" for name in [*names, "v"]}


def vos_of(count: int) -> Files:
    train = {f"train_all_frames/JPEGImages/{number:010x}/00000.jpg": b"" for number in range(count)}
    return train | {"valid_all_frames/JPEGImages/a/00000.jpg": b""}


def kinetics_of(count: int) -> Files:
    train = {f"train/label {number}/id_{number:06d}_000010.mp4": b"" for number in range(count)}
    return train | {"val/label 0/id_000000_000010.mp4": b""}


def test_in_a_recipe(tmp_path: Path, toy_recipe: Path) -> None:
    """A demo's video may stay where a root is set; paths are relative to the recipe; nothing is lost on the way."""
    put(youtube_vos("train"), "disk", tmp_path)
    recipe = load_recipe(toy_recipe, [f"data.root={tmp_path}/set", "data.layout=youtube_vos"])
    assert recipe.data.config.video == f"{tmp_path}/clip.mp4"
    assert VideoFiles(recipe.data.config).videos("train").keys == [f"train/JPEGImages/{name}" for name in VOS[:2]]
    text = toy_recipe.read_text().replace('video = "clip.mp4"', 'root = "set"\nlist = "some.txt"')
    data = parse(text, base=tmp_path).data.config
    assert (data.video, data.root, data.list) == (None, f"{tmp_path}/set", f"{tmp_path}/some.txt")
    assert parse(dumps(parse(text, base=tmp_path))).data.config == data


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "no video is named: set video (files or patterns) or root (the folder of a data set)"),
        ({"video": "a.mp4", "layout": "davis"}, "list and layout are about the folder of a data set: set root too"),
        ({"video": "a.mp4", "list": "b.txt"}, "list and layout are about the folder of a data set: set root too"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        VideoFiles.Config(**settings)
    assert str(caught.value) == says
