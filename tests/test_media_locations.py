"""Where videos may lie: file systems, archives, folders of pictures, patterns."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import fsspec
import pytest
from numbered_media import check_any_order, complaint, encode, numbers, write_pictures

from fourd_core.media.locations import natural_key
from fourd_core.media.video import open_video


def test_memory_and_zip_urls(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    encode(buffer, container="mp4", options={"bf": "2", "g": "10"})
    fsspec.filesystem("memory").pipe_file("/numbered/clip.mp4", buffer.getvalue())
    check_any_order(open_video("memory://numbered/clip.mp4"))
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("inside/a.mp4", buffer.getvalue())
    check_any_order(open_video(f"zip://inside/a.mp4::{tmp_path / 'clips.zip'}"))


def test_folders_and_patterns_in_natural_order(tmp_path: Path) -> None:
    write_pictures(tmp_path / "frames", [f"f{number}.png" for number in range(12)])
    (tmp_path / "frames" / "notes.txt").write_text("not a picture")
    for location in (str(tmp_path / "frames"), str(tmp_path / "frames" / "*.png"), f"file://{tmp_path}/frames"):
        video = open_video(location, frame_rate=10.0)
        assert video.frame_count == 12
        assert numbers(video.read([11, 0, 2, 10])) == [11, 0, 2, 10]
        assert video.times([5]).item() == pytest.approx(0.5)


def test_http_urls(tmp_path: Path, web: str) -> None:
    encode(str(tmp_path / "clip.mp4"), options={"bf": "2", "g": "10"})
    video = open_video(f"{web}/clip.mp4?signature=abc")
    assert numbers(video.read([33, 0, 12])) == [33, 0, 12]
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 50)
    assert "text.mp4 is not a video that FFmpeg can read" in complaint(f"{web}/text.mp4")
    assert complaint(f"{web}/no.mp4") == f"the video {web}/no.mp4 does not exist"
    assert complaint(f"{web}/broken.mp4").startswith(f"cannot read {web}/broken.mp4: 500")


def test_a_folder_inside_a_zip(tmp_path: Path) -> None:
    write_pictures(tmp_path / "frames", ["a.png", "b.png"])
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.write(tmp_path / "frames" / name, f"x/{name}")
    assert numbers(open_video(f"zip://x::{tmp_path / 'f.zip'}").read([1, 0])) == [1, 0]


def test_natural_order() -> None:
    names = ["f10.png", "f9.png", "f09b.png", "a/f1.png", "12.png", "f.png"]
    assert sorted(names, key=natural_key) == ["12.png", "a/f1.png", "f9.png", "f09b.png", "f10.png", "f.png"]


def test_odd_names_are_not_patterns_or_protocols(tmp_path: Path) -> None:
    path = tmp_path / "clip[1]: 50%03d.mp4"
    encode(str(tmp_path / "plain.mp4"), frames=3)
    (tmp_path / "plain.mp4").rename(path)
    assert open_video(str(path)).frame_count == 3
