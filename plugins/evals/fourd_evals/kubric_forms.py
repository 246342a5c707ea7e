"""The forms in which people have scenes of Kubric, and what is stored of each.

    raw        <scene>/rgba_00000.png, segmentation_00000.png, {forward,backward}_flow_00000.png, depth_00000.tiff,
               data_ranges.json, metadata.json
    TFDS       movi_e-train.tfrecord-00000-of-01024 ..., perhaps dataset_info.json, in one folder
    CoTracker  <scene>/<scene>.npy (a dict: coords, visibility) and <scene>/frames/: tracks alone

Numbers are as they are stored: flow as (row, column), Blender's axes; `datasets_kubric` says what becomes of them.

Source: Greff et al., Kubric, CVPR 2022, and the documentation of its data sets (challenges/movi).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_evals.annotated import root_here
from fourd_evals.roots import Root, picture_samples
from fourd_evals.tfrecords import Example, record_places

Stored = Literal["forward_flow", "backward_flow"]
RADIUS = 0.5
"""Metres that a body is taken to reach from its origin where its box is not stored."""


class KubricScene(ABC):
    """What is stored of one scene.

    Attributes:
        focal: focal length in widths of the sensor.
        camera: positions `t 3` and quaternions `t 4` (w, x, y, z), camera to world, Blender's axes.
        bodies: positions `n t 3` and quaternions `n t 4` of the instances.
        radius: how far each reaches from its origin, `n`.
        ranges: the least and the largest number of what is stored in 16 bits.
    """

    def __init__(self, location: str, name: str, size: tuple[int, int], frame_rate: float) -> None:
        self.location, self.name, self.size, self.frame_rate = location, name, size, frame_rate
        self.focal = 1.0
        self.camera: tuple[Float64[Tensor, "t 3"], Float64[Tensor, "t 4"]]
        self.bodies: tuple[Float64[Tensor, "n t 3"], Float64[Tensor, "n t 4"]]
        self.radius: Float64[Tensor, " n"]
        self.ranges: Mapping[str, tuple[float, float]] = {}

    @property
    def root(self) -> Root:
        """The folder, as this process reads it."""
        return root_here(self.location)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self.root.place(self.name)

    @property
    def frame_count(self) -> int:
        """How many frames it has."""
        return len(self.camera[0])

    @abstractmethod
    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """A frame, RGB."""

    @abstractmethod
    def segmentation(self, index: int) -> Int64[Tensor, "h w"]:
        """0 is the background, else the number of the instance, from 1 on."""

    @abstractmethod
    def distance(self, index: int) -> Float64[Tensor, "h w"]:
        """Metres from the camera's centre."""

    @abstractmethod
    def codes(self, stored: Stored, index: int) -> ndarray:
        """A flow map in 16 bits, `h w 2`: rows, columns."""

    def flow(self, stored: Stored, index: int) -> Float64[Tensor, "2 h w"]:
        """A flow map as it is stored, in pixels: rows, columns."""
        return self.scaled(self.codes(stored, index), stored).movedim(-1, 0)

    def scaled(self, codes: ndarray, what: str) -> Float64[Tensor, "..."]:
        """Numbers from 16 bits: 0 is the least, 65535 the largest one of their range."""
        low, high = self.ranges[what]
        return torch.from_numpy(codes.astype(np.float64) / 65535 * (high - low) + low)


class RawScene(KubricScene):
    """A folder as Kubric's worker writes it."""

    def __init__(self, root: Root, name: str) -> None:
        try:
            about = json.loads(root.read(f"{name}/metadata.json"))
            camera, instances = about["camera"], about["instances"]
            width, height = about["metadata"]["resolution"]
            super().__init__(root.location, name, (height, width), float(about["metadata"].get("frame_rate", 12)))
            self.focal = float(camera["focal_length"]) / float(camera["sensor_width"])
            self.camera = _numbers(camera["positions"]), _numbers(camera["quaternions"])
            positions, quaternions = ([item[key] for item in instances] for key in ("positions", "quaternions"))
            self.bodies = (
                _numbers(positions).reshape(len(instances), self.frame_count, 3),
                _numbers(quaternions).reshape(len(instances), self.frame_count, 4),
            )
            boxes = [item.get("bboxes_3d") for item in instances]
            self.radius = _radius(self.bodies[0], _numbers(boxes) if boxes and all(boxes) else None)
            ranges = json.loads(root.read(f"{name}/data_ranges.json"))
            self.ranges = {key: (value["min"], value["max"]) for key, value in ranges.items()}
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise MediaError(
                f"metadata.json or data_ranges.json of {root.place(name)} lacks what Kubric writes: {error!r}"
            ) from error

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Transparency is left out."""
        return self.root.picture(f"{self.name}/rgba_{index:05d}.png")

    def segmentation(self, index: int) -> Int64[Tensor, "h w"]:
        """From a picture with a palette."""
        return self.root.label_map(f"{self.name}/segmentation_{index:05d}.png")

    def distance(self, index: int) -> Float64[Tensor, "h w"]:
        """From a TIFF of float32."""
        name = f"{self.name}/depth_{index:05d}.tiff"
        return torch.from_numpy(picture_samples(self.root.read(name), self.root.place(name)).astype(np.float64))

    def codes(self, stored: Stored, index: int) -> ndarray:
        """From a PNG of two channels, or three."""
        name = f"{self.name}/{stored}_{index:05d}.png"
        return two_channels(self.root.read(name), self.root.place(name))


class RecordScene(KubricScene):
    """One example of a TFDS export; its data are read when asked for, and the last few kept.

    Args:
        name: the file and the number in it, `movi_e-train.tfrecord-00000-of-01024/3`.
    """

    def __init__(self, root: Root, name: str) -> None:
        self.location, self.name = root.location, name
        example = self._example
        try:
            size = [int(example.integers(f"metadata/{key}")[0]) for key in ("height", "width")]
            super().__init__(root.location, name, (size[0], size[1]), 12.0)
            focal, sensor = (example.floats(f"camera/{key}") for key in ("focal_length", "sensor_width"))
            self.focal = float(focal[0]) / float(sensor[0])
            self.camera = self._floats("camera/positions", 3), self._floats("camera/quaternions", 4)
            frames = len(self.camera[0])
            positions, quaternions = self._floats("instances/positions", 3), self._floats("instances/quaternions", 4)
            self.bodies = positions.reshape(-1, frames, 3), quaternions.reshape(-1, frames, 4)
            boxes = self._floats("instances/bboxes_3d", 24) if "instances/bboxes_3d" in example else None
            self.radius = _radius(self.bodies[0], None if boxes is None else boxes.reshape(-1, frames, 8, 3))
            ranges = {
                key: example.floats(f"metadata/{key}_range") for key in ("depth", "forward_flow", "backward_flow")
            }
            self.ranges = {key: (float(low), float(high)) for key, (low, high) in ranges.items()}
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise MediaError(f"{root.place(name)} lacks a feature of Kubric's MOVi data sets: {error!r}") from error

    @property
    def _example(self) -> Example:
        return _read_example(self.location, self.name, os.getpid())

    def _floats(self, name: str, columns: int) -> Float64[Tensor, "n c"]:
        return torch.from_numpy(self._example.floats(name).astype(np.float64)).reshape(-1, columns)

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """From a PNG."""
        return torch.from_numpy(self._samples("video", index, "RGB")).permute(2, 0, 1)

    def segmentation(self, index: int) -> Int64[Tensor, "h w"]:
        """From a grey PNG."""
        return torch.from_numpy(self._samples("segmentations", index).astype(np.int64))

    def distance(self, index: int) -> Float64[Tensor, "h w"]:
        """From a grey PNG of 16 bits."""
        return self.scaled(self._samples("depth", index), "depth")

    def codes(self, stored: Stored, index: int) -> ndarray:
        """Stored as numbers one by one."""
        height, width = self.size
        count = height * width * 2
        codes = self._example.integers(stored, index * count, (index + 1) * count)
        if len(codes) != count:
            raise MediaError(f"{self.place} has no {stored} of frame {index}")
        return codes.reshape(height, width, 2)

    def _samples(self, name: str, index: int, mode: str | None = None) -> ndarray:
        try:
            data = self._example.bytes_of(name)[index]
        except (KeyError, IndexError) as error:
            raise MediaError(f"{self.place} has no {name} of frame {index}") from error
        return picture_samples(data, f"{name} of frame {index} of {self.place}", mode)


@lru_cache(maxsize=4)
def _read_example(location: str, name: str, _process: int) -> Example:
    root, (file, _, number) = root_here(location), name.rpartition("/")
    try:
        with root.open(file) as handle:
            for place, (start, size) in enumerate(record_places(handle)):
                if place == int(number):
                    handle.seek(start)
                    return Example(handle.read(size))
    except ValueError as error:
        raise MediaError(f"{root.place(file)} cannot be read: {error}") from error
    raise MediaError(f"{root.place(file)} has no record {number}")


def record_counts(root: Root, files: list[str]) -> list[int]:
    """How many examples each file has: as `dataset_info.json` says, or counted, which opens every file."""
    if root.has("dataset_info.json"):
        try:
            splits = json.loads(root.read("dataset_info.json"))["splits"]
            lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in splits}
            return [lengths[split_of(file)][int(file.rpartition("-")[0].rpartition("-of")[0][-5:])] for file in files]
        except (KeyError, TypeError, ValueError, IndexError):
            pass  # of another version, or of other files: they tell themselves
    counts = []
    for file in files:
        with root.open(file) as handle:
            try:
                counts.append(sum(1 for _ in record_places(handle)))
            except ValueError as error:
                raise MediaError(f"{root.place(file)} cannot be read: {error}") from error
    return counts


def split_of(file: str) -> str:
    """`train` of `movi_e-train.tfrecord-00000-of-01024`."""
    return file.partition(".tfrecord")[0].rpartition("-")[2]


def two_channels(data: bytes, place: str) -> ndarray:
    """The first two channels of a PNG of 16 bits: of grey and transparency, or of RGB."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise MediaError(f"{place} is not a PNG of 16 bits with two channels or more")
    # OpenCV gives RGB as BGR, and grey with transparency as the grey three times and the transparency.
    channels = [0, 3] if values.shape[2] == 4 and (values[..., 0] == values[..., 2]).all() else [2, 1]
    return np.ascontiguousarray(values[..., channels])


def _numbers(values: Any) -> Float64[Tensor, "..."]:
    numbers: Tensor = torch.tensor(values, dtype=torch.float64)
    return numbers


def _radius(positions: Float64[Tensor, "n t 3"], boxes: Float64[Tensor, "n t 8 3"] | None) -> Float64[Tensor, " n"]:
    """The farthest corner of each body's box."""
    if boxes is None or len(boxes) != len(positions):
        return torch.full((len(positions),), RADIUS, dtype=torch.float64)
    farthest: Tensor = (boxes - positions[:, :, None]).norm(dim=-1).amax(dim=(1, 2))
    return farthest
