"""What goes wrong with a video is said in one sentence."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numbered_media import BUNNY, complaint, encode, numbers, write_pictures

from fourd_core.media.video import open_video
from fourd_core.media.writers import encode_png


def test_missing_file(tmp_path: Path) -> None:
    assert complaint(tmp_path / "no.mp4") == f"the video {tmp_path}/no.mp4 does not exist"


def test_text_named_mp4(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 50)
    assert f"{tmp_path}/text.mp4 is not a video that FFmpeg can read" in complaint(tmp_path / "text.mp4")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "is not a video that FFmpeg can read" in complaint(tmp_path / "empty.mp4")


def test_zero_frames_behind_a_valid_header(tmp_path: Path) -> None:
    """An mp4 whose header is whole and whose video track has no sample."""
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w", options={"movflags": "empty_moov"}) as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width = 32, 80
        output.start_encoding()
    assert complaint(path) == f"{path} has no frames"


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    assert complaint(path) == f"{path} has no video stream"


def test_truncated_file_names_the_frame(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    with (
        av.open(str(BUNNY)) as source,
        av.open(str(tmp_path / "whole.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    whole = (tmp_path / "whole.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    text = complaint(path)
    with av.open(str(path)) as container:
        intact = sum(1 for packet in container.demux(video=0) if packet.size and not packet.is_corrupt)
    assert 20 < intact < 120
    assert f"{path} is truncated: it promises 132 frames, but its data end after frame {intact}" in text


def test_truncated_before_its_index(tmp_path: Path) -> None:
    encode(str(tmp_path / "whole.mp4"))
    data = (tmp_path / "whole.mp4").read_bytes()
    assert data.find(b"moov") > len(data) // 2, "this file keeps its index at the end"
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert "is an MP4 file without its index: it is cut off" in complaint(tmp_path / "cut.mp4")


def test_a_damaged_frame_is_named_and_the_rest_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    encode(str(path), codec="png", pixels="rgb24")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        target = bytes(packets[17])
    data = path.read_bytes()
    place = data.find(target)
    path.write_bytes(data[:place] + b"\x00" * len(target) + data[place + len(target) :])
    assert complaint(path, [17]).startswith(f"frame 17 of {path} cannot be decoded")
    video = open_video(str(path))
    assert numbers(video.read([16, 18, 39])) == [16, 18, 39]


def test_unknown_protocol_and_missing_package() -> None:
    assert complaint("nonsense://x.mp4") == "cannot open nonsense://x.mp4: Protocol not known: nonsense"
    if importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is installed")
    why = "its protocol needs a package that is not installed (No module named 'pyarrow'); pip install 'fsspec[hdfs]'"
    assert complaint("hdfs://host/x.mp4") == f"cannot open hdfs://host/x.mp4: {why}"
    assert complaint("zip://x.mp4::hdfs://host/x.zip") == f"cannot open zip://x.mp4::hdfs://host/x.zip: {why}"


def test_empty_folder_and_pattern(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"the folder {tmp_path} holds no pictures (png, jpg) and no videos"
    text = f"the pattern {tmp_path}/*.png matches no file, and no folder of pictures or videos"
    assert complaint(tmp_path / "*.png") == text


def test_pictures_beside_videos_are_refused(tmp_path: Path) -> None:
    """Neither a frame nor a video is to be lost silently: a cover beside videos, or a preview beside frames."""
    write_pictures(tmp_path, ["cover.png"])
    encode(str(tmp_path / "a.mp4"), frames=2)
    encode(str(tmp_path / "b.mp4"), frames=2)
    for location in (tmp_path, tmp_path / "*"):
        assert complaint(location) == (
            f"the folder {tmp_path} has both pictures (1, such as cover.png) and videos (2, such as a.mp4): name those "
            "that are meant by a pattern, such as *.mp4"
        )


def test_several_videos(tmp_path: Path) -> None:
    for name in "ab":
        encode(str(tmp_path / f"{name}.mp4"), frames=2)
    assert complaint(tmp_path) == f"{tmp_path} holds 2 videos; name one of them"


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "frames", ["1.png", "2.png"], [(20, 50), (20, 60)])
    text = complaint(tmp_path / "frames", [0, 1])
    assert "2.png, frame 1 of" in text
    assert "is 60x20, the first one 50x20" in text


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "frames", ["1.png", "2.png"])
    (tmp_path / "frames" / "2.png").write_bytes(b"nonsense")
    assert "2.png" in complaint(tmp_path / "frames", [0, 1])


def test_frames_that_the_video_does_not_have() -> None:
    with pytest.raises(IndexError, match="has frames 0 to 131, not 132"):
        open_video(str(BUNNY)).read([0, 132])


def test_a_png_with_a_named_colour_profile(tmp_path: Path) -> None:
    """Looking at such a picture's side data would free the profile's name twice and end the process."""
    profile = b"a name\x00\x00" + zlib.compress(b"no real profile, but a chunk of the right form")
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    plain = encode_png(torch.full((3, 16, 16), 7, dtype=torch.uint8))
    (tmp_path / "profile.png").write_bytes(plain[:33] + chunk + plain[33:])
    script = (
        f"from fourd_core.media.video import open_video\nfor _ in range(20): open_video({str(tmp_path)!r}).read([0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
