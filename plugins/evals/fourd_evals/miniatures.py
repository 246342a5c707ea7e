"""Public data sets in miniature, in memory, with the real file names and encodings: for contract tests and tests.

What a probe shall find is in the colours: every class, normal, depth and motion has one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache

import attrs
import fsspec
import h5py
import numpy as np
import scipy.io
from numpy import ndarray
from PIL import Image
from torch import nn

from fourd_core.data import Clip, Maps, Tokens
from fourd_core.interfaces import BackboneSpec, CueProvider, Head
from fourd_core.randomness import seeded
from fourd_core.system import System
from fourd_core.testing.miniature import Patches

NORMALS = np.array([[0, 0, -1], [0, 0.8, -0.6], [0, -0.8, -0.6], [0.8, 0, -0.6]], np.float32)
"""Of the four kinds of surface; which side the last one faces no colour tells once a picture may be mirrored."""
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220], [230, 220, 60]], np.uint8)
"""Of the four kinds of things."""
DEPTHS = np.array([1.0, 2.0, 4.0, 6.0], np.float32)
SIZE = (48, 64)


def kinds(seed: int, size: tuple[int, int] = SIZE, count: int = 4) -> ndarray:
    """A map of `count` kinds of things, each a square of 16 x 16 pixels; all kinds occur."""
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    coarse = np.random.default_rng(seed).permutation(np.arange(rows * columns) % count).reshape(rows, columns)
    return np.kron(coarse, np.ones((16, 16), np.int64))[: size[0], : size[1]]


def in_memory(name: str, files: Mapping[str, bytes]) -> str:
    """Files below `memory://fourd-evals/NAME`, which is the answer."""
    root = f"memory://fourd-evals/{name}"
    for path, data in files.items():
        with fsspec.open(f"{root}/{path}", "wb") as handle:
            handle.write(data)
    return root


def encoded(pixels: ndarray, suffix: str = "png") -> bytes:
    """A picture file; JPEG at its best quality."""
    buffer = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(pixels).save(buffer, {"jpg": "JPEG", "png": "PNG"}[suffix], **options)
    return buffer.getvalue()


class Colours(Head):
    """Sixteen fixed functions of each pixel's own colour: features from which everything in here can be read."""

    channels = 16

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.taps = (0, backbone.tap(-1))
        self.mix = nn.Conv2d(3, self.channels, 1)

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """Features of each pixel."""
        values = self.mix(4 * clip.frames.flatten(0, 1) - 2).relu()
        return Maps(values.unflatten(0, clip.frames.shape[:2]))


def colour_system(cues: Mapping[str, CueProvider] | None = None) -> System:
    """Random projections of patches as the encoder, `Colours` as the head `features`."""
    with seeded(0, "colours"):
        backbone = Patches()
        return System(backbone, {"features": Colours(Colours.Config(), backbone.spec)}, cues=cues)


def normal_picture(normals: ndarray) -> ndarray:
    """Normals as DSINE codes them."""
    return np.round((normals + 1) / 2 * 255).astype(np.uint8)


def labelled_mat(images: ndarray, depths: ndarray, raw: ndarray) -> bytes:
    """MATLAB 7.3, as of `nyu_depth_v2_labeled.mat`: HDF5 behind 512 bytes of header, axes reversed.

    Args:
        images: `n h w 3`.
        depths: `n h w`, filled in.
        raw: `n h w`, as measured.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"], file["rawDepths"] = depths.transpose(0, 2, 1), raw.transpose(0, 2, 1)
    data = bytearray(buffer.getvalue())
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64 HDF5 schema 1.00 ."
    data[: len(header)] = header
    return bytes(data)


def splits_mat(train: list[int], test: list[int]) -> bytes:
    """`splits.mat`: columns of numbers from 1 on."""
    buffer = io.BytesIO()
    columns = {"trainNdxs": train, "testNdxs": test}
    scipy.io.savemat(buffer, {key: np.array(numbers, np.uint16)[:, None] for key, numbers in columns.items()})
    return buffer.getvalue()


def nyu_files(train: int = 3, val: int = 2) -> dict[str, bytes]:
    """The authors' labelled file, its split and normals; every other picture validates until there are enough."""
    maps = np.stack([kinds(seed) for seed in range(train + val)])
    raw = DEPTHS[maps]
    raw[:, :4] = 0  # nothing measured there
    order = list(range(1, train + val + 1))
    test = order[1 : 2 * val : 2]
    files = {
        "nyu_depth_v2_labeled.mat": labelled_mat(COLOURS[maps], DEPTHS[maps], raw),
        "splits.mat": splits_mat([n for n in order if n not in test], test),
    }
    for number, normals in enumerate(NORMALS[maps]):
        files[f"normals/{number:06d}_normal.png"] = encoded(normal_picture(normals))
    return files


@cache
def nyu_miniature() -> str:
    """NYUv2: three pictures to train on, two to validate on."""
    return in_memory("nyu", nyu_files())


FINE_LABELS = (0, 92, 105, 160)
"""COCO-Stuff labels of the four kinds of things: their coarse classes differ."""


def coco_files(train: int = 3, val: int = 2) -> dict[str, bytes]:
    """COCO-Stuff in the official folders, with curated lists."""
    files: dict[str, bytes] = {}
    for part, first, count in (("train2017", 9, train), ("val2017", 139, val)):
        names = [f"{number:012d}" for number in range(first, first + count)]
        for name in names:
            maps = kinds(int(name))
            labels = np.array(FINE_LABELS, np.uint8)[maps]
            labels[:2] = 255
            files[f"images/{part}/{name}.jpg"] = encoded(COLOURS[maps], "jpg")
            files[f"annotations/{part}/{name}.png"] = encoded(labels)
        files[f"curated/{part}/Coco164kFull_Stuff_Coarse.txt"] = "\n".join(names).encode()
    return files


@cache
def coco_miniature() -> str:
    """COCO-Stuff: three pictures to train on, two to validate on."""
    return in_memory("coco", coco_files())


@cache
def zero_shot_miniature() -> str:
    """COCO-Stuff with lists of pictures and classes, and text embeddings of its 182 labels; one label is novel."""
    lists = {
        "train_list": np.array([f"train2017/{n:012d}.jpg" for n in range(9, 12)]),
        "test_list": np.array([f"val2017/{n:012d}.jpg" for n in range(139, 141)]),
        "seen_cls": np.array(FINE_LABELS[:3]),
        "novel_cls": np.array(FINE_LABELS[3:]),
    }
    files = coco_files()
    for name, values in lists.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        files[f"{name}.npy"] = buffer.getvalue()
    buffer = io.BytesIO()
    embeddings = np.random.default_rng(0).standard_normal((182, 16)).astype(np.float32)
    np.savez(buffer, names=np.array([f"label {n}" for n in range(182)]), embeddings=embeddings)
    return in_memory("zero_shot", {**files, "text.npz": buffer.getvalue()})


@cache
def ade_miniature() -> str:
    """ADE20K: three pictures to train on, two to validate on; class 0 is what does not count."""
    files: dict[str, bytes] = {}
    for part, folder, count in (("train", "training", 3), ("val", "validation", 2)):
        for number in range(1, count + 1):
            maps, name = kinds(number + 10 * count), f"ADE_{part}_{number:08d}"
            labels = np.array([0, 1, 75, 150], np.uint8)[maps]
            files[f"ADEChallengeData2016/images/{folder}/{name}.jpg"] = encoded(COLOURS[maps], "jpg")
            files[f"ADEChallengeData2016/annotations/{folder}/{name}.png"] = encoded(labels)
    return in_memory("ade", files)


@cache
def sintel_miniature() -> str:
    """Sintel: four sequences of two pictures; the redder ones move by (2, 4) pixels, the others by (1, 2)."""
    files: dict[str, bytes] = {}
    for number, name in enumerate(("alley_1", "bamboo_1", "cave_2", "market_2")):
        maps = kinds(number)
        shift = 1 + number % 2
        first = COLOURS[maps] // 2
        first[..., 0] = 60 * shift
        flow = np.zeros((*SIZE, 2), "<f4")
        flow[...] = shift, 2 * shift
        flow[:2] = 1e10  # unknown
        header = b"PIEH" + np.array(SIZE[::-1], "<i4").tobytes()
        for frame, moved in ((1, first), (2, np.roll(first, (2 * shift, shift), (0, 1)))):
            files[f"training/final/{name}/frame_{frame:04d}.png"] = encoded(moved)
        files[f"training/flow/{name}/frame_0001.flo"] = header + flow.tobytes()
    return in_memory("sintel", files)
