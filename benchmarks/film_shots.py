"""The film of benchmarks.lila_film: taken from its archive, cut into shots, titles and credits dropped.

The film is *Big Buck Bunny* (c) copyright 2008 Blender Foundation, www.bigbuckbunny.org, CC-BY 3.0, as moviepy's
source distribution carries it (14 315 frames of 1280 x 720). It is not part of this project:
`pip download --no-deps --no-binary moviepy moviepy==2.2.1`.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.files import atomic, write_json
from fourd_core.interfaces import Video
from fourd_core.media.video import mean_frame_rate, open_video
from fourd_core.media.writers import VideoWriter, write_png
from fourd_core.progress import track

ARCHIVE_MEMBER = "moviepy_10_minutes/moviepy_10_minutes.zip"
FILM_MEMBER = "resources/bbb.mp4"
SHOT_SIZE = 240, 426
"""Rows and columns of the shots: enough for training views of 128 pixels out of 30 % of a frame."""

UNWANTED = ((0, 60), (494, 553), (596, 720), (11724, 13942), (14314, 14315))
"""Frames that are faded, carry titles, or are the credits; found by eye."""
BUNDLED = 1145
"""First frame of the shot that examples/bigbuckbunny.mp4 shows (its frames 1143 to 1275)."""
VALIDATION = (1763, 2831, 4942, 6168, 8024, 9507)
"""First frames of the shots whose pictures the validation sequences are made of: never trained on."""
TEST = (1531, 1919, 4463, 5844, 7500, 9379, 10184, 13942)
"""First frames of the shots whose pictures the reported sequences are made of: never trained on."""
SHORTEST = 12
"""Shorter shots are dropped: they have few pairs."""
STILL_SIZE, STILLS = (360, 640), (0.1, 0.5, 0.9)
"""Rows and columns of the stills for generated sequences, and where in each held-out shot they are taken."""

THUMBNAIL = 96, 54
LEAST_CHANGE, LEAST_HISTOGRAM, PROMINENCE, NEAR = 10.0, 0.2, 2.0, 3


def unpack_film(archive: Path, film: Path) -> None:
    """Take the film out of moviepy's source distribution.

    Raises:
        SystemExit: the archive is not that distribution.
    """
    with tarfile.open(archive) as outer:
        member = next((m for m in outer if m.name.endswith(ARCHIVE_MEMBER)), None)
        inner = outer.extractfile(member) if member is not None else None
        if inner is None:
            raise SystemExit(f"{archive} holds no {ARCHIVE_MEMBER}; it must be moviepy 2.2.1's source distribution")
        with zipfile.ZipFile(io.BytesIO(inner.read())) as parts:
            name = next(n for n in parts.namelist() if n.endswith(FILM_MEMBER))
            with atomic(film) as temporary, parts.open(name) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)


def frames_of(
    video: Video, start: int = 0, stop: int | None = None, block: int = 16
) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """Frames in order, a few decoded at a time."""
    stop = video.frame_count if stop is None else stop
    for first in range(start, stop, block):
        yield from video.read(range(first, min(first + block, stop)))


def find_cuts(thumbnails: UInt8[np.ndarray, "t h w 3"]) -> list[int]:
    """First frames of the shots, the very first one included.

    A cut is a frame that differs from the one before it in its colours' histogram, and in its pixels at least twice as
    much as any two neighbouring frames close by: fast motion differs for several frames, a cut for one.
    """
    before, after = thumbnails[:-1], thumbnails[1:]
    change = np.abs(after.astype(np.int16) - before).mean((1, 2, 3))
    histograms = np.stack([_histogram(thumbnail) for thumbnail in thumbnails])
    colours = np.abs(histograms[1:] - histograms[:-1]).sum(1) / 2
    cuts = [0]
    for t in np.flatnonzero((change > LEAST_CHANGE) & (colours > LEAST_HISTOGRAM)).tolist():
        nearby = np.concatenate([change[max(t - NEAR, 0) : t], change[t + 1 : t + 1 + NEAR]])
        if change[t] > PROMINENCE * nearby.max(initial=0):
            cuts.append(t + 1)
    return cuts


def _histogram(thumbnail: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " 512"]:
    """Shares of 8 x 8 x 8 colours."""
    red, green, blue = np.moveaxis((thumbnail >> 5).astype(np.int64), -1, 0)
    counts = np.bincount(((red * 8 + green) * 8 + blue).ravel(), minlength=512)
    shares: Float[np.ndarray, " 512"] = counts / counts.sum()
    return shares


def wanted_parts(cuts: Sequence[int], frame_count: int) -> dict[int, tuple[int, int]]:
    """First frame of a shot -> first and past-the-end frame of its longest part without unwanted frames."""
    parts = {}
    for start, stop in zip(cuts, [*cuts[1:], frame_count], strict=True):
        # Frames that follow each other have the same difference from their number among the wanted ones.
        wanted = [t for t in range(start, stop) if not any(first <= t < last for first, last in UNWANTED)]
        runs = [[t for _, t in run] for _, run in groupby(enumerate(wanted), lambda pair: pair[1] - pair[0])]
        longest = max(runs, key=len, default=[])
        if len(longest) >= SHORTEST:
            parts[start] = longest[0], longest[-1] + 1
    return parts


def write_shots(film: Path, folder: Path) -> None:
    """Cut the film into `folder/{train,validation,test,bundled}/FIRST_LAST.mp4` at SHOT_SIZE; what is there is kept."""
    video = open_video(str(film))
    thumbnails = [_shrink(frame, THUMBNAIL) for frame in track(frames_of(video), "cuts", video.frame_count)]
    parts = wanted_parts(find_cuts(np.stack(thumbnails)), video.frame_count)
    lost = {BUNDLED, *VALIDATION, *TEST} - set(parts)
    if lost:
        raise SystemExit(f"{film} has no cut at frames {sorted(lost)}: it is another film or another edition")
    for shot, (start, stop) in track(parts.items(), "shots", len(parts)):
        path = folder / split_of(shot) / f"{start:05d}_{stop - 1:05d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            continue
        with VideoWriter(path, mean_frame_rate(video)) as writer:
            for frame in frames_of(video, start, stop):
                small = _shrink(frame, (SHOT_SIZE[1], SHOT_SIZE[0]))
                writer.write(torch.from_numpy(small).permute(2, 0, 1)[None])
    write_json(folder / "shots.json", {split: _listed(parts, split) for split in ("train", "validation", "test")})


def write_stills(film: Path, shots: Path, folder: Path) -> None:
    """Take stills of the held-out shots that `write_shots` left in `shots`: `folder/{validation,test}/FRAME.png`."""
    video = open_video(str(film))
    listed = json.loads((shots / "shots.json").read_text(encoding="utf-8"))
    for split in ("validation", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for first, past in listed[split]:
            for share in STILLS:
                frame = int(first + share * (past - 1 - first))
                still = _shrink(video.read([frame])[0], (STILL_SIZE[1], STILL_SIZE[0]))
                write_png(folder / split / f"{frame:05d}.png", torch.from_numpy(still).permute(2, 0, 1))
    write_json(folder / "stills.json", {"size": STILL_SIZE, "shots": listed})


def split_of(shot: int) -> str:
    """What the shot that starts at this frame is for."""
    if shot == BUNDLED:
        return "bundled"
    return "validation" if shot in VALIDATION else "test" if shot in TEST else "train"


def _listed(parts: dict[int, tuple[int, int]], split: str) -> list[tuple[int, int]]:
    return [frames for shot, frames in parts.items() if split_of(shot) == split]


def _shrink(frame: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    picture = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
