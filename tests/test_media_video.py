"""Frames carry their own number as ten black or white bars, so that a wrong frame is a wrong number."""

from __future__ import annotations

import gc
import importlib.util
import io
import multiprocessing
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.interfaces import Video
from fourd_core.media.decoder import Decoder
from fourd_core.media.index import build_index
from fourd_core.media.locations import natural_key
from fourd_core.media.video import mean_frame_rate, open_video

ROOT = Path(__file__).parent.parent
BUNNY = ROOT / "examples" / "bigbuckbunny.mp4"
BITS = 10


def numbered(number: int, size: tuple[int, int]) -> np.ndarray:
    """A picture of bars, most significant bit first from left to right."""
    height, width = size
    bits = [(number >> (BITS - 1 - bit)) & 1 for bit in range(BITS)]
    columns = np.minimum(np.arange(width) * BITS // width, BITS - 1)
    row = np.array(bits, np.uint8)[columns] * 255
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(frames: Tensor) -> list[int]:
    """What the bars of frames `t 3 h w` say, from the middle row and the middle of every bar."""
    width = frames.shape[-1]
    middles = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    bits = frames[:, 1, frames.shape[-2] // 2, middles] > 127
    return [sum(int(bit) << (BITS - 1 - place) for place, bit in enumerate(row)) for row in bits.tolist()]


def encode(
    target: Any,
    frames: int = 40,
    size: tuple[int, int] = (32, 80),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    **stream_options: Any,
) -> None:
    """A video of numbered frames; `times` in milliseconds."""
    fixed = {"sc_threshold": "0"} if codec == "libx264" else {}  # keyframes only where the test puts them
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options=fixed | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        for name, value in stream_options.items():
            getattr(stream, name)(value) if callable(getattr(stream, name)) else setattr(stream, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def check_any_order(video: Video, count: int = 40) -> None:
    """Every frame, forwards, backwards and at random, is the right one."""
    assert video.frame_count == count
    forwards = list(range(count))
    assert numbers(video.read(forwards)) == forwards
    for index in reversed(forwards):
        assert numbers(video.read([index])) == [index]
    picks = random.Random(0).choices(forwards, k=30)
    assert numbers(video.read(picks)) == picks
    assert [numbers(video.read([pick]))[0] for pick in picks] == picks


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


# --- file systems, folders, patterns ---------------------------------------------------------------------------------


def test_memory_and_zip_urls(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    encode(buffer, container="mp4", options={"bf": "2", "g": "10"})
    fsspec.filesystem("memory").pipe_file("/numbered/clip.mp4", buffer.getvalue())
    check_any_order(open_video("memory://numbered/clip.mp4"))
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("inside/a.mp4", buffer.getvalue())
    check_any_order(open_video(f"zip://inside/a.mp4::{tmp_path / 'clips.zip'}"))


def write_pictures(folder: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]] | None = None) -> None:
    from fourd_core.media.writers import write_png

    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        size = sizes[number] if sizes else (20, 50)
        write_png(folder / name, torch.from_numpy(numbered(number, size)).permute(2, 0, 1))


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


# --- what goes wrong is said in one sentence ------------------------------------------------------------------------


def complaint(location: object, read: Sequence[int] = ()) -> str:
    with pytest.raises(MediaError) as caught:
        open_video(str(location)).read(read)
    text = str(caught.value)
    assert "\n" not in text
    return text


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
