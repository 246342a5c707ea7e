"""Kubric in miniature, as raw files, as records and as CoTracker exports it: for contract tests and tests."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from PIL import Image

from fourd_core.geometry import transform
from fourd_core.media.formats.rotations import quaternion_from_rotation
from fourd_core.recipe import Location
from fourd_evals.datasets_kubric import CAM_AXES
from fourd_evals.miniatures import encoded, in_memory
from fourd_evals.miniatures_training import Files, npy_bytes, picture, png16, points_of
from fourd_evals.scene import Scene, known_scene


def kubric_facts(scene: Scene) -> dict[str, ndarray]:
    """What is stored of the camera and the bodies: Blender's axes, quaternions (w, x, y, z)."""
    bodies = scene.bodies[:, 1:].transpose(0, 1)
    half = torch.tensor([[*sides, 0.0] for sides in scene.half[1:]], dtype=torch.float64)
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64)
    boxes = transform(bodies[:, :, None], (signs * half[:, None])[:, None])
    values = {
        "camera/positions": scene.camera[:, :3, 3],
        "camera/quaternions": quaternion_from_rotation(scene.camera[:, :3, :3] * CAM_AXES),
        "instances/positions": bodies[..., :3, 3],
        "instances/quaternions": quaternion_from_rotation(bodies[..., :3, :3]),
        "instances/bboxes_3d": boxes,
    }
    return {name: value.numpy() for name, value in values.items()}


def kubric_maps(scene: Scene) -> dict[str, ndarray]:
    """What is stored of the pixels, `t h w ...`: distances; flow as (row, column), both in the direction of time."""
    frames = range(scene.frames)
    rays = torch.stack([traced.depth for traced in scene.traced])
    height, width = scene.size
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x = (columns - width / 2) / scene.intrinsics[0, 0]
    y = (rows - height / 2) / scene.intrinsics[1, 1]
    forward = [scene.flow(frame, min(frame + 1, scene.frames - 1)) for frame in frames]
    backward = [-scene.flow(frame, max(frame - 1, 0)) for frame in frames]
    return {
        "depth": (rays * (x**2 + y**2 + 1).sqrt()).numpy(),
        "forward_flow": torch.stack(forward).flip(1).permute(0, 2, 3, 1).numpy(),
        "backward_flow": torch.stack(backward).flip(1).permute(0, 2, 3, 1).numpy(),
        "segmentations": torch.stack([traced.body for traced in scene.traced]).numpy().astype(np.uint8),
    }


def sixteen_bits(values: ndarray) -> tuple[ndarray, float, float]:
    """Codes over the range of the numbers, and that range."""
    low, high = float(np.float32(values.min())), float(np.float32(values.max()))
    return np.round((values - low) / (high - low) * 65535).clip(0, 65535).astype(np.uint16), low, high


def kubric_raw_files(scene: Scene, name: str) -> Files:
    """A scene as Kubric's worker writes it: 35 mm lens, the sensor so wide that the pinhole is the scene's."""
    facts, maps = kubric_facts(scene), kubric_maps(scene)
    files: Files = {}
    ranges: dict[str, dict[str, float]] = {}
    for kind in ("forward_flow", "backward_flow"):
        codes, low, high = sixteen_bits(maps[kind])
        ranges[kind] = {"min": low, "max": high}
        files |= {f"{name}/{kind}_{frame:05d}.png": png16(codes[frame]) for frame in range(scene.frames)}
    for frame in range(scene.frames):
        tiff, palette, ids = io.BytesIO(), io.BytesIO(), Image.fromarray(maps["segmentations"][frame], mode="P")
        Image.fromarray(maps["depth"][frame].astype(np.float32)).save(tiff, "TIFF")
        ids.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
        ids.save(palette, "PNG")
        rgba = torch.cat([scene.picture(frame), torch.full((1, *scene.size), 255, dtype=torch.uint8)])
        files[f"{name}/depth_{frame:05d}.tiff"] = tiff.getvalue()
        files[f"{name}/segmentation_{frame:05d}.png"] = palette.getvalue()
        files[f"{name}/rgba_{frame:05d}.png"] = encoded(rgba.permute(1, 2, 0).numpy())
    about = {
        "metadata": {"resolution": list(scene.size[::-1]), "frame_rate": 12, "num_instances": len(scene.half) - 1},
        "camera": {
            "focal_length": 35.0,
            "sensor_width": 35.0 * scene.size[1] / float(scene.intrinsics[0, 0]),
            "positions": facts["camera/positions"].tolist(),
            "quaternions": facts["camera/quaternions"].tolist(),
        },
        "instances": [
            {key: facts[f"instances/{key}"][n].tolist() for key in ("positions", "quaternions", "bboxes_3d")}
            for n in range(len(scene.half) - 1)
        ],
    }
    files[f"{name}/metadata.json"] = json.dumps(about).encode()
    files[f"{name}/data_ranges.json"] = json.dumps(ranges).encode()
    return files


@cache
def kubric_raw_miniature() -> Location:
    """Three raw scenes."""
    files = [kubric_raw_files(known_scene(texture=n), str(n)) for n in range(3)]
    return Location(in_memory("kubric_raw", {name: data for part in files for name, data in part.items()}))


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _varints(values: ndarray) -> bytes:
    """Numbers below 2^21, one after the other."""
    shifted = values.flatten().astype(np.int64)[:, None] >> np.array([0, 7, 14])
    more = shifted >> 7 > 0
    needed = np.concatenate([np.ones_like(more[:, :1]), more[:, :2]], axis=1)
    return bytes(((shifted & 127) | more * 128).astype(np.uint8)[needed].tobytes())


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def example_bytes(features: Mapping[str, Sequence[bytes] | ndarray]) -> bytes:
    """A `tf.train.Example`: bytes, float32 or integers by name."""
    entries = b""
    for name, values in features.items():
        if not isinstance(values, np.ndarray):
            feature = _field(1, b"".join(_field(1, value) for value in values))
        elif values.dtype.kind == "f":
            feature = _field(2, _field(1, values.astype("<f4").tobytes()))
        else:
            feature = _field(3, _field(1, _varints(values)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def record(data: bytes) -> bytes:
    """A record with its length; the checksums, which no reader here looks at, are 0."""
    return struct.pack("<QI", len(data), 0) + data + struct.pack("<I", 0)


def movi_example(scene: Scene) -> bytes:
    """An example of a MOVi data set."""
    maps = kubric_maps(scene)
    features: dict[str, Any] = {name: values.flatten() for name, values in kubric_facts(scene).items()}
    for kind in ("depth", "forward_flow", "backward_flow"):
        codes, low, high = sixteen_bits(maps[kind])
        features[f"metadata/{kind}_range"] = np.array([low, high], np.float32)
        features[kind] = [png16(frame) for frame in codes] if kind == "depth" else codes
    features |= {
        "video": [picture(scene, frame) for frame in range(scene.frames)],
        "segmentations": [encoded(ids) for ids in maps["segmentations"]],
        "metadata/height": np.array([scene.size[0]]),
        "metadata/width": np.array([scene.size[1]]),
        "camera/focal_length": np.array([35.0], np.float32),
        "camera/sensor_width": np.array([35.0 * scene.size[1] / float(scene.intrinsics[0, 0])], np.float32),
    }
    return example_bytes(features)


def kubric_record_files() -> Files:
    """Two files with three examples to train on, one to validate on."""
    names = ("train.tfrecord-00000-of-00002", "train.tfrecord-00001-of-00002", "validation.tfrecord-00000-of-00001")
    scenes = ((0, 1), (2,), (3,))
    return {
        f"movi_f-{name}": b"".join(record(movi_example(known_scene(texture=n))) for n in numbers)
        for name, numbers in zip(names, scenes, strict=True)
    }


def cotracker_files(scene: Scene, name: str) -> Files:
    """A scene of CoTracker's export: a pickled dict, True where a point is hidden."""
    point, body = points_of(scene)
    frames = range(scene.frames)
    xy = torch.stack([scene.place(point, body, frame)[0] for frame in frames], dim=1)
    seen = torch.stack([scene.unhidden(point, body, frame) for frame in frames], dim=1)
    stored = np.array({"coords": xy.float().numpy(), "visibility": (~seen).numpy()}, dtype=object)
    files = {f"{name}/frames/{frame:03d}.png": picture(scene, frame) for frame in frames}
    return files | {f"{name}/{name}.npy": npy_bytes(stored)}
