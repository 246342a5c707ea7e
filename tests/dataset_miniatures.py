"""Public data sets in miniature: their folders, file names and encodings, with frames that carry their number."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import av
import fsspec
import torch
from numbered_media import encode, numbered

from fourd_core.media.writers import encode_png

Files = dict[str, bytes]
"""What a data set holds: contents by path."""

SIZE = (32, 80)
NO_MASK = encode_png(torch.zeros(3, *SIZE, dtype=torch.uint8))


def jpeg(number: int) -> bytes:
    """The picture of a number as a JPEG file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as output:
        stream = output.add_stream("mjpeg", rate=1, options={"qmin": "1", "q": "2"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number, SIZE), format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def mp4(frames: int) -> bytes:
    """An MP4 file of so many numbered frames."""
    buffer = io.BytesIO()
    encode(buffer, frames=frames, size=SIZE, container="mp4")
    return buffer.getvalue()


def frames(folder: str, numbers: range) -> Files:
    """JPEG frames `00000.jpg`, named as DAVIS and YouTube-VOS name them."""
    return {f"{folder}/{number:05d}.jpg": jpeg(number) for number in numbers}


def davis(resolution: str = "480p") -> Files:
    """Three sequences, of which one is for validation, and one that no list names."""
    files: Files = {
        "ImageSets/2017/train.txt": b"bear\r\nbmx-bumps\r\n",
        "ImageSets/2017/val.txt": b"blackswan\n\n",
        "ImageSets/2016/train.txt": b"bear\n",
        "README.md": b"DAVIS",
    }
    for count, name in enumerate(("bear", "blackswan", "bmx-bumps", "aerobatics"), start=2):
        files |= frames(f"JPEGImages/{resolution}/{name}", range(count))
        files[f"Annotations/{resolution}/{name}/00000.png"] = NO_MASK
    return files


def youtube_vos(*parts: str) -> Files:
    """Videos in the given parts; those of all frames have every frame, the others each fifth."""
    files: Files = {}
    for part in parts:
        names = ("003234408d", "0043f083b5", "00f88c4f0a") if part.startswith("train") else ("00ad5016a4",)
        step = 1 if part.endswith("all_frames") else 5
        for name in names:
            files |= frames(f"{part}/JPEGImages/{name}", range(0, 3 * step, step))
            files[f"{part}/Annotations/{name}/00000.png"] = NO_MASK
        files[f"{part}/meta.json"] = b'{"videos": {}}'
        files[f"meta_expressions/{part}/meta_expressions.json"] = b"{}"
    return files


def kinetics(*parts: str) -> Files:
    """A few clips of two labels in each part, the csv lists, and a clip that replaces a broken one."""
    names = ("abseiling/-0OjRFpHXkE_000012_000022.mp4", "abseiling/_a9w2x_x8Qs_000003_000013.mp4",
             "dunking basketball/4tx1l2K9y_8_000120_000130.mp4")  # fmt: skip
    clip = mp4(3)
    files: Files = {f"{part}/{name}": clip for part in parts for name in names}
    header = b"label,youtube_id,time_start,time_end,split\n"
    files |= {f"annotations/{part}.csv": header + b"abseiling,-0OjRFpHXkE,12,22," + part.encode() for part in parts}
    return files | {"replacement/abc_000001_000011.mp4": clip}


def put(files: Files, place: str, folder: Path) -> str:
    """The root of a data set, on the disk, in memory or in a zip archive."""
    if place == "memory":
        memory = fsspec.filesystem("memory")
        for name, data in files.items():
            memory.pipe_file(f"/{folder}/{name}", data)
        return f"memory://{folder}"
    if place == "zip":
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(f"some/set/{name}", data)
        return f"zip://some/set::{folder / 'set.zip'}"
    for name, data in files.items():
        path = folder / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder / "set")
