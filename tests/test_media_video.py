"""Frames carry their own number as ten black or white bars, so that a wrong frame is a wrong number."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import random
import struct
import threading
import tracemalloc
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numbered_media import BUNNY, check_any_order, encode, numbers, write_pictures

from fourd_core.interfaces import Video
from fourd_core.media.decoder import Decoder
from fourd_core.media.index import build_index
from fourd_core.media.video import mean_frame_rate, open_video

X264 = {
    "no b-frames": {"bf": "0", "g": "10"},
    "b-frames": {"bf": "3", "g": "12", "b_strategy": "0"},
    "open gop": {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-adapt=0:scenecut=0:keyint=12"},
    "intra refresh": {"x264-params": "intra-refresh=1:keyint=10:bframes=0"},
    "all keyframes": {"g": "1"},
    "one keyframe": {"g": "250", "bf": "2"},
}


@pytest.mark.parametrize("options", X264.values(), ids=X264.keys())
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_any_frame_in_any_order(tmp_path: Path, options: dict[str, str], suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    encode(str(path), options=options)
    check_any_order(open_video(str(path)))


CODECS = {
    "mpeg4 avi, b-frames without times": ("avi", "mpeg4", "yuv420p", {"bf": "2", "g": "12"}),
    "mpeg2 ts, open gop": ("ts", "mpeg2video", "yuv420p", {"bf": "2", "g": "12"}),
    "h264 without container": ("h264", "libx264", "yuv420p", {"bf": "3", "g": "12"}),
    "h265": ("mp4", "libx265", "yuv420p", {"x265-params": "log-level=none:keyint=12:bframes=3"}),
    "vp8": ("webm", "libvpx", "yuv420p", {"g": "20"}),
    "vp9": ("webm", "libvpx-vp9", "yuv420p", {"g": "12", "cpu-used": "8", "deadline": "realtime"}),
    "10 bit": ("mp4", "libx264", "yuv420p10le", {"g": "12"}),
    "grey": ("mkv", "ffv1", "gray", {}),
    "alpha": ("mov", "qtrle", "argb", {}),
    "palette": ("gif", "gif", "rgb8", {}),
    "motion jpeg": ("avi", "mjpeg", "yuvj420p", {}),
}


@pytest.mark.parametrize(("suffix", "codec", "pixels", "options"), CODECS.values(), ids=CODECS.keys())
def test_any_codec(tmp_path: Path, suffix: str, codec: str, pixels: str, options: dict[str, str]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = tmp_path / f"clip.{suffix}"
    encode(str(path), codec=codec, pixels=pixels, options=options)
    check_any_order(open_video(str(path)))


def test_hidden_vp8_frames_are_not_counted(tmp_path: Path) -> None:
    """Alternate reference frames are packets that show nothing; here frame 7 and 21 are made such by their header."""
    encode(str(tmp_path / "whole.webm"), codec="libvpx", options={"g": "20"})
    with av.open(str(tmp_path / "whole.webm")) as source, av.open(str(tmp_path / "clip.webm"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xEF if number in (7, 21) else 0xFF
                changed = av.Packet(bytes(data))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                target.mux(changed)
    video = open_video(str(tmp_path / "clip.webm"))
    shown = [number for number in range(40) if number not in (7, 21)]
    assert numbers(video.read(range(38))) == shown
    assert [numbers(video.read([index]))[0] for index in (37, 20, 7, 30)] == [shown[index] for index in (37, 20, 7, 30)]


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = np.cumsum([0, *random.Random(1).choices([10, 33, 40, 500], k=39)]).tolist()
    path = tmp_path / "clip.mkv"
    encode(str(path), times=times, options={"bf": "2", "g": "12"})
    video = open_video(str(path))
    check_any_order(video)
    assert video.times(range(40)).dtype == torch.float64
    torch.testing.assert_close(video.times(range(40)), torch.tensor(times, dtype=torch.float64) / 1000)
    assert mean_frame_rate(video) == pytest.approx(39 / (times[-1] / 1000))


def test_times_start_at_zero(tmp_path: Path) -> None:
    times = [40 * number + 700 for number in range(40)]
    path = tmp_path / "clip.mkv"
    encode(str(path), times=times, options={"bf": "0"})
    torch.testing.assert_close(open_video(str(path)).times([0, 10]), torch.tensor([0.0, 0.4], dtype=torch.float64))


def test_frames_outside_the_edit_list_are_not_shown(tmp_path: Path) -> None:
    """Copying from a keyframe before time zero makes an mp4 whose edit list hides the frames with negative times."""
    encode(str(tmp_path / "whole.mp4"), options={"bf": "2", "g": "10", "b_strategy": "0"})
    path = tmp_path / "cut.mp4"
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        shift = int(Fraction(14, 25) / source.streams.video[0].time_base)
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = stream
                target.mux(packet)
    with av.open(str(path)) as container:
        shown = [int(numbers(torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1)[None])[0])
                 for f in container.decode(video=0)]  # fmt: skip
    video = open_video(str(path))
    assert shown[0] == 14
    assert numbers(video.read(range(video.frame_count))) == shown
    assert numbers(video.read([3, 20, 1])) == [17, 34, 15]


@pytest.mark.parametrize("size", [(32, 81), (33, 80), (33, 81)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "clip.mkv"
    encode(str(path), size=size, codec="ffv1", pixels="yuv420p", frames=3)
    video = open_video(str(path))
    assert video.size == size
    white = video.read([1])[0, :, :, -1].float()
    assert (white > 250).all(), "the last column belongs to the last bar, which is white"


CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
"""red green / blue white"""


@pytest.mark.parametrize(("degrees", "hflip"), [(90, False), (180, False), (-90, False), (0, True), (90, True)])
def test_rotation_and_mirroring_are_applied(tmp_path: Path, degrees: int, hflip: bool) -> None:
    path = tmp_path / "clip.mp4"
    stored = CORNERS.repeat(24, axis=0).repeat(40, axis=1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        stream.set_display_rotation(degrees, hflip=hflip)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        output.mux(stream.encode(None))
    expected = np.rot90(CORNERS, degrees // 90)  # counter-clockwise, as the metadata is
    expected = expected[:, ::-1] if hflip else expected
    video = open_video(str(path))
    assert video.size == ((80, 48) if degrees % 180 else (48, 80))
    frame = video.read([0])[0].permute(1, 2, 0)
    height, width = video.size
    seen = frame[height // 4 :: height // 2, width // 4 :: width // 2].numpy()
    assert np.abs(seen.astype(int) - expected).max() < 30


@pytest.mark.parametrize(("full_range", "grey"), [(False, 98), (True, 100)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_colour_range(tmp_path: Path, pixels: str, full_range: bool, grey: int) -> None:
    """Luma 100 is grey (100 - 16) * 255 / 219 = 97.8 in the limited range of video and 100 in the full range."""
    path = tmp_path / "clip.mp4"
    frame = av.VideoFrame(32, 32, pixels)
    for plane, value in zip(frame.planes, (100, 128, 128), strict=True):
        deep = "10" in pixels
        plane.update(np.full(plane.buffer_size >> deep, value << 2 * deep, np.uint16 if deep else np.uint8).tobytes())
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, pixels
        stream.codec_context.color_range = 2 if full_range else 1
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert (open_video(str(path)).read([0]).float() - grey).abs().max() <= 2


def test_transparent_pictures_lose_their_alpha(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[..., 0], picture[..., 3] = 200, 90
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as output:
        stream = output.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 8, 8, "rgba"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        output.mux(stream.encode(None))
    frame = open_video(str(tmp_path / "a.png")).read([0])
    assert frame[0, :, 4, 4].tolist() == [200, 0, 0]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_the_orientation_of_a_photo(tmp_path: Path, orientation: int, turns: int) -> None:
    """EXIF orientation 6: the stored picture must be turned by 90 degrees clockwise (JEITA CP-3451, 4.6.4)."""
    with av.open(str(tmp_path / "plain.jpg"), "w", format="image2") as output:
        stream = output.add_stream("mjpeg", rate=1, options={"qmin": "1", "q": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuvj444p"
        stored = CORNERS.repeat(24, axis=0).repeat(40, axis=1)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        output.mux(stream.encode(None))
    plain = (tmp_path / "plain.jpg").read_bytes()
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\x00\x2a" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    segment = b"Exif\x00\x00" + tiff
    photo = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    (tmp_path / "photo.jpg").write_bytes(photo)
    video = open_video(str(tmp_path / "photo.jpg"))
    height, width = video.size
    assert (height, width) == ((80, 48) if turns % 2 else (48, 80))
    seen = video.read([0])[0].permute(1, 2, 0)[height // 4 :: height // 2, width // 4 :: width // 2].numpy()
    assert np.abs(seen.astype(int) - np.rot90(CORNERS, turns)).max() < 60


def test_the_bundled_clip() -> None:
    video = open_video(str(BUNNY))
    assert (video.frame_count, video.size) == (132, (720, 1280))
    assert mean_frame_rate(video) == pytest.approx(25)
    assert video.times([131]).item() == pytest.approx(131 / 25)
    with av.open(str(BUNNY)) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for _, frame in zip(range(3), container.decode(video=0), strict=False)
        ]
    read = video.read([2, 0, 2, 1])
    for frame, number in zip(read, [2, 0, 2, 1], strict=True):
        assert torch.equal(frame, torch.from_numpy(frames[number]).permute(2, 0, 1))


def test_sequential_reads_do_not_seek_and_random_ones_start_at_a_keyframe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    encode(str(path), frames=200, options={"g": "20", "bf": "2"})
    video = open_video(str(path))
    seeks, decoded = [], []
    seek, pull = Decoder.seek, Decoder._pull
    monkeypatch.setattr(Decoder, "seek", lambda self, start: seeks.append(start.frame) or seek(self, start))
    monkeypatch.setattr(Decoder, "_pull", lambda self: decoded.append(1) or pull(self))
    for first in range(0, 100, 5):
        video.read(range(first, first + 5))
    assert len(seeks) <= 1, "the first read may go back to the start"
    assert len(decoded) == 100
    decoded.clear()
    video.read([193])
    assert seeks[-1] == 180
    assert len(decoded) == 14, "frames 180 to 193"


def test_the_cache_is_bounded_and_saves_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    encode(str(path), options={"g": "250"})
    frame_bytes = 3 * 32 * 80
    video = open_video(str(path), cache_bytes=10 * frame_bytes)
    cache = video._cache  # type: ignore[attr-defined]
    assert numbers(video.read([20, 21])) == [20, 21]
    assert cache.used == 10 * frame_bytes
    monkeypatch.setattr(Decoder, "_pull", lambda self: pytest.fail("decoded a frame that is in the cache"))
    assert numbers(video.read([21, 20])) == [21, 20]
    monkeypatch.undo()
    check_any_order(video)
    assert cache.used <= 10 * frame_bytes


def test_no_cache_keeps_nothing(tmp_path: Path) -> None:
    encode(str(tmp_path / "clip.mp4"))
    video = open_video(str(tmp_path / "clip.mp4"))
    video.read(range(40))
    assert video._cache.used == 0  # type: ignore[attr-defined]


def test_decoded_frames_do_not_pile_up(tmp_path: Path) -> None:
    """Without Python's garbage collector, which comes seldom, no more than a few frames are alive after many reads."""
    write_pictures(tmp_path / "frames", [f"{number}.png" for number in range(40)])
    for location in (tmp_path / "frames", BUNNY):
        video = open_video(str(location))
        gc.collect()
        gc.disable()
        try:
            for index in range(40):
                video.read([index])
            alive = sum(type(item) is av.VideoFrame for item in gc.get_objects())
        finally:
            gc.enable()
        assert alive <= 20


def _numbers_in_child(video: Video, indices: list[int], queue: Any) -> None:
    queue.put(numbers(video.read(indices)))


@pytest.mark.parametrize(("method", "place"), [("fork", ""), ("spawn", ""), ("fork", "web"), ("fork", "zip")])
def test_a_video_goes_to_another_process(tmp_path: Path, web: str, method: str, place: str) -> None:
    encode(str(tmp_path / "clip.mp4"), options={"g": "10", "bf": "2"})
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.write(tmp_path / "clip.mp4", "clip.mp4")
    places = {"": f"{tmp_path}/clip.mp4", "web": f"{web}/clip.mp4", "zip": f"zip://clip.mp4::{web}/f.zip"}
    video = open_video(places[place], cache_bytes=10**6)
    video.read([17])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_numbers_in_child, args=(video, [30, 3, 18], queue), daemon=True)
    child.start()
    assert queue.get(timeout=60) == [30, 3, 18]
    child.join(30)
    assert child.exitcode == 0
    assert numbers(video.read([18, 31])) == [18, 31]


def _collect_and_read(video: Video, queue: Any) -> None:
    gc.collect()
    queue.put(numbers(video.read([30])))


def test_a_fork_after_threads_that_read(tmp_path: Path) -> None:
    """FFmpeg's threads of a decoder stay behind: freeing one that another thread left would wait for them for ever."""
    encode(str(tmp_path / "clip.mp4"), options={"g": "10", "bf": "2"})
    video = open_video(str(tmp_path / "clip.mp4"))
    gc.disable()
    try:
        thread = threading.Thread(target=video.read, args=([5],))
        thread.start()
        thread.join()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_collect_and_read, args=(video, queue), daemon=True)
        child.start()
    finally:
        gc.enable()
    try:
        assert queue.get(timeout=30) == [30]
    finally:
        child.kill()


def test_a_fork_beside_threads_that_read(tmp_path: Path) -> None:
    """The same of threads that still live: in the child they are gone, and what they had open with them."""
    encode(str(tmp_path / "clip.mp4"), options={"g": "10", "bf": "2"})
    video = open_video(str(tmp_path / "clip.mp4"))
    has_read, may_end = threading.Event(), threading.Event()

    def read() -> None:
        video.read([5])
        has_read.set()
        may_end.wait(60)

    thread = threading.Thread(target=read)
    thread.start()
    assert has_read.wait(60)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_collect_and_read, args=(video, queue), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=30) == [30]
    finally:
        child.kill()
        may_end.set()
        thread.join()
    assert numbers(video.read([31])) == [31]


def test_pickles_without_decoder_and_frames(tmp_path: Path) -> None:
    encode(str(tmp_path / "clip.mp4"))
    video = open_video(str(tmp_path / "clip.mp4"), cache_bytes=10**7)
    video.read(range(40))
    data = pickle.dumps(video)
    assert len(data) < 10_000
    assert numbers(pickle.loads(data).read([7])) == [7]


def test_more_videos_than_decoders_stay_open(tmp_path: Path) -> None:
    for name in range(12):
        encode(str(tmp_path / f"{name}.mp4"), frames=12 + name)
    videos = [open_video(str(tmp_path / f"{name}.mp4")) for name in range(12)]
    for index in range(10):
        assert [numbers(video.read([index]))[0] for video in videos] == [index] * 12


def test_the_index_of_a_long_video_is_small(tmp_path: Path) -> None:
    """20 000 keyframes; an object for each would take hundreds of bytes a frame, and hours have a million frames."""
    encode(str(tmp_path / "one.mov"), frames=1, codec="mjpeg", pixels="yuvj420p")
    with av.open(str(tmp_path / "one.mov")) as source, av.open(str(tmp_path / "long.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        data = bytes(next(source.demux(video=0)))
        for number in range(20_000):
            packet = av.Packet(data)
            packet.pts = packet.dts = 40 * number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 1000), True, stream
            target.mux(packet)
    with av.open(str(tmp_path / "long.mkv")) as container:
        tracemalloc.start()
        try:
            index = build_index(container, container.streams.video[0], "long.mkv")
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (len(index), index.start_before(12_345)) == (20_000, 12_345)
    assert index.start(12_345) == (12_345, 12_345 * 40, 12_345 * 40)
    assert kept < 20_000 * 40, "a time and a start, of 8 and 24 bytes"
    assert peak < 20_000 * 110
