"""Evaluation data sets in miniature, in memory, with the real file names and encodings: for contract tests and tests.

What is in them is simple enough to be known by hand: planes that face the camera, constant flow, cameras at whole
numbers. Pictures are noise, so that no two are alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from fourd_evals import file_formats
from fourd_evals.miniatures import encoded, in_memory

SIZE = (24, 32)
TURN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""A quarter turn about the y axis, from the world to the camera."""
FORWARD, BACKWARD = (1.5, -2.25), (-0.5, 2.25)
"""Flow of all known pixels."""


def picture(seed: int, size: tuple[int, int] = SIZE) -> ndarray:
    """Noise in blocks of 4 x 4."""
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    coarse = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]


def written(write: Callable[[Path], None]) -> bytes:
    """What a writer of files writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def constant(values: tuple[float, ...], size: tuple[int, int] = SIZE) -> Float[Tensor, "c h w"]:
    """A map that is the same everywhere."""
    return torch.tensor(values)[:, None, None].expand(-1, *size).clone()


def turned(position: tuple[float, float, float]) -> ndarray:
    """`cam_from_world` of a camera with the rotation `TURN` at a place in the world, 4x4."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = TURN, -TURN @ np.array(position)
    return pose


def _text(rows: list[list[Any]]) -> bytes:
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()


@cache
def vkitti2_miniature() -> str:
    """Two scenes of three frames: sky in the first two rows, else 12.34 m deep; vehicles 0 (moves), 1 (parks) and 7
    (not listed) in blocks of the rows from 4 on."""
    files: dict[str, bytes] = {}
    codes = np.full(SIZE, 1234, np.uint16)
    codes[:2] = 65535
    ids = np.zeros(SIZE, np.uint8)
    ids[4:8, :4], ids[4:8, 4:8], ids[4:8, 8:12] = 1, 2, 8
    flows = {name: constant(value) for name, value in (("forward", FORWARD), ("backward", BACKWARD))}
    for scene in ("Scene01", "Scene20"):
        boxes: list[list[Any]] = [["frame", "cameraID", "trackID", "left", "right", "top", "bottom", "isMoving"]]
        columns = [
            "r1,1",
            "r1,2",
            "r1,3",
            "t1",
            "r2,1",
            "r2,2",
            "r2,3",
            "t2",
            "r3,1",
            "r3,2",
            "r3,3",
            "t3",
            "0",
            "0",
            "0",
            "1",
        ]
        poses: list[list[Any]] = [["frame", "cameraID", *columns]]
        pinholes: list[list[Any]] = [["frame", "cameraID", "K[0,0]", "K[1,1]", "K[0,2]", "K[1,2]"]]
        for n in range(3):
            for camera in (0, 1):
                boxes += [[n, camera, track, 0, 3, 4, 7, (track == 0) == (camera == 0)] for track in (0, 1)]
                poses.append([n, camera, *turned((n, 10 * camera, 3)).ravel()])
                pinholes.append([n, camera, 20, 21, 15.5, 11.5])
            frames, at = f"{scene}/clone/frames", "Camera_0"
            files |= {
                f"{frames}/rgb/{at}/rgb_{n:05d}.jpg": encoded(picture(10 * int(scene[5:]) + n), "jpg"),
                f"{frames}/depth/{at}/depth_{n:05d}.png": encoded(codes),
                f"{frames}/instanceSegmentation/{at}/instancegt_{n:05d}.png": encoded(ids),
            }
            for name, there, wanted in (
                ("forward", "flow", n < 2),
                ("backward", "backwardFlow", n > 0),
            ):
                flow = flows[name] + n / 4
                flow[:, :, 0] = torch.nan
                if wanted:
                    data = written(lambda path, flow=flow: file_formats.write_vkitti_flow(path, flow))  # type: ignore[misc]
                    files[f"{frames}/{name}Flow/{at}/{there}_{n:05d}.png"] = data
        for table, rows in (("bbox", boxes), ("extrinsic", poses), ("intrinsic", pinholes)):
            files[f"{scene}/clone/{table}.txt"] = _text(rows)
    return in_memory("vkitti2", files)


@cache
def sintel_miniature(frames: int = 3, names: tuple[str, ...] = ("alley_1", "alley_2")) -> str:
    """Two sequences, clean and final: depth rises by a metre a frame, the camera moves by one."""
    files: dict[str, bytes] = {}
    k = torch.tensor([[20.0, 0, 15.5], [0, 21.0, 11.5], [0, 0, 1]])
    for number, name in enumerate(names):
        for n in range(1, frames + 1):
            depth, flow = constant((1.5 + n,)), constant(FORWARD) + n / 4
            flow[:, :, 0] = torch.nan
            cam = torch.from_numpy(turned((n, 0, 3)))
            for pass_, seed in (("clean", 100), ("final", 200)):
                files[f"training/{pass_}/{name}/frame_{n:04d}.png"] = encoded(picture(seed + 10 * number + n))
            files[f"training/depth/{name}/frame_{n:04d}.dpt"] = written(
                lambda path, depth=depth: file_formats.write_dpt(path, depth)  # type: ignore[misc]
            )
            files[f"training/camdata_left/{name}/frame_{n:04d}.cam"] = written(
                lambda path, cam=cam: file_formats.write_cam(path, k, cam)  # type: ignore[misc]
            )
            if n < frames:
                files[f"training/flow/{name}/frame_{n:04d}.flo"] = written(
                    lambda path, flow=flow: file_formats.write_flo(path, flow)  # type: ignore[misc]
                )
    return in_memory(f"sintel-4d-{frames}-{len(names)}", files)


SPRING_STEP = np.array([0.13, 0.0, 0.65])
"""By how much Spring's camera moves from frame to frame, in metres."""
SPRING_PLANE, SPRING_FOCAL = 6.5, 100.0
SPRING_MOVES = (0.0, 0.3, 0.0)
"""By how much the block of Spring's rows 8 to 11, columns 20 to 27 moves, in metres."""


def _spring_maps(n: int, step: int) -> tuple[ndarray, ndarray, ndarray]:
    """Flow, disparity and second disparity of frame n (from 0) to frame n + step, on the doubled grid."""
    height, width = 2 * SIZE[0], 2 * SIZE[1]
    y, x = (np.mgrid[:height, :width] + 0.5) / 2
    z = np.full((height, width), SPRING_PLANE - n * SPRING_STEP[2])
    points = np.stack([(x - 16) * z / SPRING_FOCAL, (y - 12) * z / SPRING_FOCAL, z], -1)
    there = points - step * SPRING_STEP
    there[16:24, 40:56] += np.array(SPRING_MOVES) * step
    flow = SPRING_FOCAL * there[..., :2] / there[..., 2:] + np.array([16, 12]) - np.stack([x, y], -1)
    disparities = [SPRING_FOCAL * 0.065 / depth for depth in (z, there[..., 2])]
    for disparity in disparities:
        disparity[:4] = 0  # sky
    for values in (flow, *disparities):
        values[1::2] = 77  # what no reader of full HD takes
    return flow.transpose(2, 0, 1), disparities[0], disparities[1]


@cache
def spring_miniature(frames: int = 3) -> str:
    """Two sequences: the camera flies over a wall that faces it, on which a block slides down; above is the sky."""
    files: dict[str, bytes] = {}
    for sequence in ("0001", "0002"):
        base = f"train/{sequence}"
        poses = []
        for n in range(frames):
            world = np.eye(4)
            world[:3, 3] = -n * SPRING_STEP
            poses.append(list(world.ravel()))
            files[f"{base}/frame_left/frame_left_{n + 1:04d}.png"] = encoded(picture(300 + 20 * int(sequence) + n))
            for direction, step in (("FW", 1), ("BW", -1)):
                flow, disparity, second = (torch.from_numpy(values).float() for values in _spring_maps(n, step))
                maps: dict[str, Tensor] = {f"disp1_left/disp1_left_{n + 1:04d}.dsp5": disparity[None]}
                if 0 <= n + step < frames:
                    name = f"disp2_{direction}_left"
                    maps[f"{name}/{name}_{n + 1:04d}.dsp5"] = second[None]
                    maps[f"flow_{direction}_left/flow_{direction}_left_{n + 1:04d}.flo5"] = flow
                for path, values in maps.items():
                    write = file_formats.write_flo5 if len(values) == 2 else file_formats.write_dsp5
                    files[f"{base}/{path}"] = written(lambda at, w=write, v=values: w(at, v))  # type: ignore[misc]
        files[f"{base}/cam_data/extrinsics.txt"] = _text(poses)
        files[f"{base}/cam_data/intrinsics.txt"] = _text([[SPRING_FOCAL, SPRING_FOCAL, 16, 12]] * frames)
    return in_memory(f"spring-{frames}", files)


@cache
def kitti_depth_miniature(frames: int = 3) -> str:
    """Two drives of 25 x 33 pixels: annotated from frame 5 on, 10 m plus a quarter a frame; no laser above."""
    files: dict[str, bytes] = {}
    size = (25, 33)
    for drive, date in (("0002", "2011_09_26"), ("0016", "2011_10_03")):
        name = f"{date}_drive_{drive}_sync"
        files[f"raw/{date}/calib_cam_to_cam.txt"] = (
            b"calib_time: 09-Jan-2012\nP_rect_02: 20 0 15.5 4 0 21 11.5 1 0 0 1 0\n"
        )
        for n in range(frames + 5):
            pixels = encoded(picture(400 + 200 * int(drive) + n, size))
            files[f"raw/{date}/{name}/image_02/data/{n:010d}.png"] = pixels
            codes = np.full(size, 2560 + 64 * n, np.uint16)
            codes[:10] = 0
            if n >= 5:
                maps = f"data_depth_annotated/val/{name}/proj_depth/groundtruth/image_02"
                files[f"{maps}/{n:010d}.png"] = encoded(codes)
    return in_memory(f"kitti-depth-{frames}", files)


@cache
def kitti_flow_miniature() -> str:
    """Two pairs of 2015; a vehicle moves in the upper left."""
    files: dict[str, bytes] = {}
    objects = np.zeros(SIZE, np.uint8)
    objects[:4, :6] = 3
    for pair in range(2):
        for n in (10, 11):
            files[f"training/image_2/{pair:06d}_{n}.png"] = encoded(picture(500 + 20 * pair + n))
        for kind, hidden in (("occ", 1), ("noc", 5)):
            flow = constant(FORWARD) + pair
            flow[:, :, :hidden] = torch.nan
            files[f"training/flow_{kind}/{pair:06d}_10.png"] = written(
                lambda path, flow=flow: file_formats.write_kitti_flow(path, flow)  # type: ignore[misc]
            )
        files[f"training/obj_map/{pair:06d}_10.png"] = encoded(objects)
        files[f"training/calib_cam_to_cam/{pair:06d}.txt"] = b"P_rect_02: 20 0 15.5 4 0 21 11.5 1 0 0 1 0\n"
    return in_memory("kitti-flow", files)


@cache
def scannet_miniature(frames: int = 11) -> str:
    """Two scenes: colours of 96 x 128 pixels, depth of 48 x 64 with its own number in millimetres plus a metre and a
    border that is not known; tracking was lost in frame 3."""
    files: dict[str, bytes] = {}
    for number, scene in enumerate(("scene0707_00", "scene0708_00")):
        base = f"scans_test/{scene}"
        for n in range(frames):
            codes = np.zeros((48, 64), np.uint16)
            codes[8:-8, 11:-11] = 1000 + n
            codes[8, 11] = 2000
            pose = np.linalg.inv(turned((n, 0, 3))) if n != 3 else np.full((4, 4), -np.inf)
            files |= {
                f"{base}/color/{n}.jpg": encoded(picture(600 + 20 * number + n, (96, 128)), "jpg"),
                f"{base}/depth/{n}.png": encoded(codes),
                f"{base}/pose/{n}.txt": _text(pose.tolist()),
            }
        intrinsics = np.diag([20.0, 21, 1, 1])
        intrinsics[:2, 2] = 31.5, 23.5
        files[f"{base}/intrinsic/intrinsic_depth.txt"] = _text(intrinsics.tolist())
    return in_memory(f"scannet-{frames}", files)


def _rgbd(name: str, sequences: tuple[str, ...], frames: int) -> str:
    files: dict[str, bytes] = {}
    for number, sequence in enumerate(sequences):
        poses: list[list[Any]] = [["# timestamp tx ty tz qx qy qz qw"]]
        for n in range(frames):
            time = 1311868164 + 0.04 * n
            codes = np.full(SIZE, 5000 + 100 * n, np.uint16)
            codes[0] = 0
            files[f"{sequence}/rgb/{time:.6f}.png"] = encoded(picture(700 + 300 * number + n))
            if n != 1:  # a depth map was dropped
                files[f"{sequence}/depth/{time + 0.012:.6f}.png"] = encoded(codes)
            # A quarter turn about y as a quaternion (x, y, z, w); a pose nearer in time than this one is of n + 100.
            turn = [0, -np.sqrt(0.5), 0, np.sqrt(0.5)]
            if n != 2:
                poses.append([f"{time - 0.015:.6f}", n, 0, 3, *turn])
                poses.append([f"{time + 0.005:.6f}", n + 100, 0, 3, *turn])
        files[f"{sequence}/groundtruth.txt"] = _text(poses)
    return in_memory(name, files)


@cache
def tum_miniature(frames: int = 5) -> str:
    """Two of TUM's sequences: a metre deep and 2 cm more each frame; frame 1 has no depth, frame 2 no pose."""
    return _rgbd(f"tum-{frames}", ("rgbd_dataset_freiburg3_sitting_xyz", "rgbd_dataset_freiburg3_walking_rpy"), frames)


@cache
def bonn_miniature(frames: int = 5) -> str:
    """Three of Bonn's sequences, as TUM's."""
    return _rgbd(
        f"bonn-{frames}", ("rgbd_bonn_balloon2", "rgbd_bonn_person_tracking", "rgbd_bonn_person_tracking2"), frames
    )
