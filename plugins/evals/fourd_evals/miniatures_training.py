"""The training data sets in miniature, with the real file names and encodings: for contract tests and tests.

All of them show a scene of `fourd_evals.scene`, of which everything is known.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fourd_core.geometry import inverse, transform
from fourd_core.media.formats.rotations import quaternion_from_rotation
from fourd_core.recipe import Location
from fourd_evals.datasets_dynamic_replica import FLIP
from fourd_evals.datasets_tartanair import NED_FROM_CAM
from fourd_evals.miniatures import encoded, in_memory
from fourd_evals.scene import Scene, known_scene

Files = dict[str, bytes]


def npy_bytes(values: ndarray) -> bytes:
    """A `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def png16(values: ndarray) -> bytes:
    """A PNG of 16 bits: `h w`, or `h w c` with grey and transparency (2) or RGB (3)."""
    height, width = values.shape[:2]
    colour = {1: 0, 2: 4, 3: 2}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture(scene: Scene, frame: int, suffix: str = "png") -> bytes:
    """A frame's picture file."""
    return encoded(scene.picture(frame).permute(1, 2, 0).numpy(), suffix)


def points_of(scene: Scene, count: int = 40) -> tuple[Tensor, Tensor]:
    """Points that the first and the last frame show, in their bodies' axes, and their bodies."""
    chosen = torch.randperm(scene.size[0] * scene.size[1], generator=torch.Generator().manual_seed(0))[: count // 2]
    ends = [scene.traced[0], scene.traced[-1]]
    return (
        torch.cat([end.point.flatten(0, 1)[chosen] for end in ends]),
        torch.cat([end.body.flatten()[chosen] for end in ends]),
    )


def tartanair_files(scene: Scene, flight: str = "office/Easy/P000") -> Files:
    """A flight; the sky is the first row, and the flow of the first column is masked."""
    files: Files = {}
    for frame, traced in enumerate(scene.traced):
        depth = traced.depth.float().numpy()
        depth[0] = 10000
        files[f"{flight}/image_left/{frame:06d}_left.png"] = picture(scene, frame)
        files[f"{flight}/depth_left/{frame:06d}_left_depth.npy"] = npy_bytes(depth)
        if frame + 1 < scene.frames:
            mask = np.zeros(scene.size, np.uint8)
            mask[:, 0] = 100
            flow = scene.flow(frame, frame + 1).permute(1, 2, 0).float().numpy()
            files[f"{flight}/flow/{frame:06d}_{frame + 1:06d}_flow.npy"] = npy_bytes(flow)
            files[f"{flight}/flow/{frame:06d}_{frame + 1:06d}_mask.npy"] = npy_bytes(mask)
    quaternions = quaternion_from_rotation(scene.camera[:, :3, :3] @ NED_FROM_CAM.mT)
    rows = torch.cat([scene.camera[:, :3, 3], quaternions[:, [1, 2, 3, 0]]], -1)
    files[f"{flight}/pose_left.txt"] = "\n".join(" ".join(map(repr, row)) for row in rows.tolist()).encode()
    return files


@cache
def tartanair_miniature() -> Location:
    """Three flights in two environments."""
    flights = ("office/Easy/P000", "office/Hard/P001", "ocean/Easy/P000")
    files = [tartanair_files(known_scene(texture=n), flight) for n, flight in enumerate(flights)]
    return Location(in_memory("tartanair", {name: data for part in files for name, data in part.items()}))


def point_odyssey_files(
    scene: Scene, sequence: str = "train/ani", compressed: bool = False, old: bool = False
) -> Files:
    """A video; the first point is lost in the last frame, the second one marked as not valid there.

    Args:
        old: as version 1.0 names and codes it.
    """
    point, body = points_of(scene)
    places = [scene.place(point, body, frame) for frame in range(scene.frames)]
    xy = torch.stack([place[0] for place in places])
    world = torch.stack([transform(scene.bodies[frame][body], point) for frame in range(scene.frames)])
    seen = torch.stack([scene.unhidden(point, body, frame) for frame in range(scene.frames)])
    valid = torch.ones_like(seen)
    xy[-1, 0], valid[-1, 1] = torch.inf, False
    arrays: dict[str, Any] = {
        "trajs_2d": xy.float().numpy(),
        "trajs_3d": world.float().numpy(),
        "intrinsics": scene.intrinsics.expand(scene.frames, 3, 3).float().numpy(),
        "extrinsics": inverse(scene.camera).float().numpy(),
    }
    if old:
        arrays["visibilities"] = torch.where(valid, seen.long(), 2).numpy().astype(np.uint8)
    else:
        arrays |= {"visibs": seen.numpy(), "valids": valid.numpy()}
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    files = {f"{sequence}/{'annotations' if old else 'anno'}.npz": buffer.getvalue()}
    for frame, traced in enumerate(scene.traced):
        codes = (traced.depth / 1000 * 65535).round().numpy().astype(np.uint16)
        codes[0] = 0
        files[f"{sequence}/rgbs/rgb_{frame:05d}.jpg"] = picture(scene, frame, "jpg")
        files[f"{sequence}/depths/depth_{frame:05d}.png"] = png16(codes)
    return files


@cache
def point_odyssey_miniature() -> Location:
    """One video to train on, one that is held out."""
    files = point_odyssey_files(known_scene())
    files |= point_odyssey_files(known_scene(texture=1), "val/r1_new_f", compressed=True)
    return Location(in_memory("point_odyssey", files))


def dynamic_replica_files(
    scenes: Mapping[str, Scene], split: str = "train", intrinsics_format: str = "ndc_isotropic"
) -> Files:
    """A split with the left cameras of some scenes; the flow of the first column does not hold."""
    files: Files = {}
    entries: list[dict[str, Any]] = []
    for name, scene in scenes.items():
        for frame in range(scene.frames):
            entry = _replica_frame(scene, name, frame, intrinsics_format)
            data = _replica_data(scene, frame, entry)
            files |= {f"{split}/{path}": content for path, content in data.items()}
            entries.append(entry)
    # Frames in no order, as a list of frames may be.
    files[f"{split}/frame_annotations_{split}.jgz"] = gzip.compress(json.dumps(entries[::-1]).encode())
    return files


def _replica_frame(scene: Scene, name: str, frame: int, intrinsics_format: str) -> dict[str, Any]:
    """A frame's entry in the list."""
    stem, last = f"{name}_left/{{}}/{name}_left_{frame:04d}", scene.frames - 1
    kinds = {
        "image": "images", "depth": "depths", "flow_forward": "flow_forward", "flow_backward": "flow_backward",
        "flow_forward_mask": "flow_forward_mask", "flow_backward_mask": "flow_backward_mask",
    }  # fmt: skip
    entry: dict[str, Any] = {kind: {"path": f"{stem.format(folder)}.png"} for kind, folder in kinds.items()}
    for missing in ["flow_forward"] * (frame == last) + ["flow_backward"] * (frame == 0):
        entry[missing] = entry[f"{missing}_mask"] = {"path": None}
    height, width = scene.size
    k = scene.intrinsics
    half = (width / 2, height / 2) if intrinsics_format == "ndc_norm_image_bounds" else (min(scene.size) / 2,) * 2
    back = inverse(scene.camera[frame])
    entry["image"]["size"] = [height, width]
    return entry | {
        "sequence_name": name,
        "frame_number": frame,
        "camera_name": "left",
        "trajectories": {"path": f"{name}_left/trajectories/{frame:06d}.pth"},
        "viewpoint": {
            "R": (FLIP[:, None] * back[:3, :3]).mT.tolist(),
            "T": (FLIP * back[:3, 3]).tolist(),
            "focal_length": [float(k[0, 0] / half[0]), float(k[1, 1] / half[1])],
            "principal_point": [float((width / 2 - k[0, 2]) / half[0]), float((height / 2 - k[1, 2]) / half[1])],
            "intrinsics_format": intrinsics_format,
        },
    }


def _replica_data(scene: Scene, frame: int, entry: dict[str, Any]) -> Files:
    """The files that a frame's entry names."""

    def bits(values: Tensor) -> bytes:
        return png16(values.numpy().astype(np.float16).view(np.uint16))

    point, body = points_of(scene)
    xy, seen = scene.place(point, body, frame)
    buffer = io.BytesIO()
    tracks = {
        "traj_2d": torch.cat([xy, seen[:, 2:]], -1).float(),
        "traj_3d_world": transform(scene.bodies[frame][body], point).float(),
        "verts_inds_vis": scene.unhidden(point, body, frame),
        "img": scene.picture(frame).permute(1, 2, 0),
    }
    torch.save(tracks, buffer)
    depth = scene.traced[frame].depth.clone()
    depth[0] = 0
    files = {
        entry["image"]["path"]: picture(scene, frame),
        entry["depth"]["path"]: bits(depth),
        entry["trajectories"]["path"]: buffer.getvalue(),
    }
    mask = np.full(scene.size, 255, np.uint8)
    mask[:, 0] = 0
    for kind, to in (("flow_forward", frame + 1), ("flow_backward", frame - 1)):
        if entry[kind]["path"]:
            files[entry[kind]["path"]] = bits(torch.cat(scene.flow(frame, to).unbind(), dim=1))
            files[entry[f"{kind}_mask"]["path"]] = encoded(mask)
    return files


@cache
def dynamic_replica_miniature() -> Location:
    """One scene to train on, one that is held out."""
    files = dynamic_replica_files({"009850-3_obj_source": known_scene(middle=(15.0, 13.0))})
    files |= dynamic_replica_files({"1b1d2e-7_obj_source": known_scene(texture=1)}, "valid")
    return Location(in_memory("dynamic_replica", files))


def malicious_npy() -> bytes:
    """A `.npy` whose pickle would call a function."""

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("this must not be run",)

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    return buffer.getvalue() + pickle.dumps(Call())
