"""Camera files: conventions checked by projecting a point as each program would, and numbers by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TESTS
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.media.formats.colmap import write_colmap
from fourd_core.media.formats.nerfstudio import write_transforms
from fourd_core.media.formats.points import PointCloud
from fourd_core.media.formats.rotations import quaternion_from_rotation, rotation_from_quaternion
from fourd_core.media.formats.tum import read_tum, write_tum

DATA = TESTS / "data" / "formats"
SIZE = 48, 64


def random_rotations(count: int, angle: float | None = None) -> Tensor:
    """Rotations in float64, by Rodrigues' formula; `angle` in radians."""
    generator = torch.Generator().manual_seed(count)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=1)
    angles = torch.rand(count, generator=generator, dtype=torch.float64) * math.pi if angle is None else angle
    cross = torch.linalg.cross(axis[:, None].expand(-1, 3, -1), torch.eye(3).double().expand(count, -1, -1)).mT
    turn = torch.as_tensor(angles, dtype=torch.float64).expand(count)[:, None, None]
    rotations: Tensor = torch.eye(3).double() + turn.sin() * cross + (1 - turn.cos()) * cross @ cross
    return rotations


def cameras(count: int) -> tuple[Tensor, Tensor]:
    """Intrinsics that differ, and poses."""
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = random_rotations(count)
    poses[:, :3, 3] = torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    intrinsics[:, 0, 0] = 50 + torch.arange(count)
    intrinsics[:, 1, 1] = 52.5
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 31.5, 24.25
    return intrinsics, poses


def project(intrinsics: Tensor, world_from_cam: Tensor, point: Tensor) -> Tensor:
    """In our conventions."""
    camera = world_from_cam[:3, :3].T @ (point - world_from_cam[:3, 3])
    xy: Tensor = (intrinsics @ camera)[:2] / camera[2]
    return xy


POINT = torch.tensor([0.3, -0.2, 5.0], dtype=torch.float64)

# --- rotations -------------------------------------------------------------------------------------------------------


def test_quaternions_by_hand() -> None:
    """A quarter turn about z takes x to y."""
    half = math.sqrt(0.5)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(quaternion_from_rotation(quarter), torch.tensor([half, 0, 0, half]))
    assert torch.allclose(rotation_from_quaternion(torch.tensor([3 * half, 0, 0, 3 * half])), quarter, atol=5e-7)
    halves = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    assert torch.equal(quaternion_from_rotation(halves).abs(), torch.eye(4)[1:])


@pytest.mark.parametrize("short_of_half_turn", [None, 0.0, 1e-9, 1e-5, 1e-2])
def test_quaternions_and_back(short_of_half_turn: float | None) -> None:
    """To the last digits of float64 at every angle, half turns included, in batches of any shape."""
    angle = None if short_of_half_turn is None else math.pi - short_of_half_turn
    rotations = random_rotations(200, angle)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).double().expand(200, 3, 3), atol=1e-14)
    quaternions = quaternion_from_rotation(rotations.view(4, 50, 3, 3))
    assert quaternions.shape == (4, 50, 4)
    assert (quaternions.norm(dim=-1) - 1).abs().max() < 1e-14
    assert (quaternions[..., 0] >= 0).all()
    assert (rotation_from_quaternion(quaternions) - rotations.view(4, 50, 3, 3)).abs().max() < 1e-14


# --- TUM -------------------------------------------------------------------------------------------------------------


def test_tum_of_others() -> None:
    times, poses = read_tum(DATA / "trajectory_tum.txt")
    stored = load_file(DATA / "read.safetensors")["world_from_cam"]
    assert times.tolist() == list(range(24))
    assert (poses - stored).abs().max() < 1e-12


def test_tum_round_trip(tmp_path: Path) -> None:
    _, poses = cameras(9)
    times = torch.arange(9, dtype=torch.float64) / 30
    poses[4, 1, 3] = math.nan
    write_tum(tmp_path / "a.txt", times, poses)
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    read_times, read_poses = read_tum(tmp_path / "a.txt")
    assert torch.equal(read_times, times[kept])
    assert torch.equal(read_poses[:, :, 3], poses[kept][:, :, 3])
    assert (read_poses - poses[kept]).abs().max() < 1e-14
    assert np.loadtxt(tmp_path / "a.txt").shape == (8, 8)


def test_tum_by_hand(tmp_path: Path) -> None:
    """A quarter turn about z: qz = qw, the scalar last."""
    pose = torch.tensor([[0.0, -1, 0, 1.5], [1, 0, 0, -2], [0, 0, 1, 0.25], [0, 0, 0, 1]])
    write_tum(tmp_path / "a.txt", torch.tensor([0.5]), pose[None])
    comment, line = (tmp_path / "a.txt").read_text().splitlines()
    assert comment == "# timestamp tx ty tz qx qy qz qw"
    assert [float(word) for word in line.split()] == pytest.approx([0.5, 1.5, -2, 0.25, 0, 0, 0.5**0.5, 0.5**0.5])


@pytest.mark.parametrize("line", ["1 2 3", "1 2 3 4 5 6 7 x", "1 2 3 4 0 0 0 0"])
def test_tum_lines_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"# fine\n\n0 0 0 0 0 0 0 1\n{line}\n")
    with pytest.raises(MediaError, match=rf"a\.txt, line 4: expected 'timestamp .* got '{line}'"):
        read_tum(tmp_path / "a.txt")


def test_an_empty_trajectory(tmp_path: Path) -> None:
    write_tum(tmp_path / "a.txt", torch.zeros(0), torch.zeros(0, 4, 4))
    assert [tuple(part.shape) for part in read_tum(tmp_path / "a.txt")] == [(0,), (0, 4, 4)]


# --- COLMAP ----------------------------------------------------------------------------------------------------------


def colmap_lines(path: Path) -> list[list[str]]:
    return [line.split(" ") for line in path.read_text().splitlines() if not line.startswith("#")]


def test_colmap_projects_as_we_do(tmp_path: Path) -> None:
    """x = R(q) X + t, u = fx x / z + cx; an image is two lines, the second without points."""
    intrinsics, poses = cameras(5)
    intrinsics[3, 0, 0] = intrinsics[1, 0, 0]
    poses[2] = math.nan
    names = [f"{index}.png" for index in range(5)]
    write_colmap(tmp_path, names, SIZE, intrinsics, poses)
    pinholes = {}
    for number, model, width, height, *parameters in colmap_lines(tmp_path / "cameras.txt"):
        assert (model, width, height) == ("PINHOLE", "64", "48")
        pinholes[number] = [float(word) for word in parameters]
    assert len(pinholes) == 3, "frames 1 and 3 share one camera, frame 2 has none"

    lines = colmap_lines(tmp_path / "images.txt")
    assert lines[1::2] == [[""]] * 4
    seen = []
    for _, *numbers, camera, name in lines[::2]:
        values = torch.tensor([float(word) for word in numbers], dtype=torch.float64)
        frame = int(name.removesuffix(".png"))
        seen.append(frame)
        x, y, z = rotation_from_quaternion(values[:4]) @ POINT + values[4:]
        fx, fy, cx, cy = pinholes[camera]
        xy = torch.stack([fx * x / z + cx, fy * y / z + cy])
        assert torch.allclose(xy, project(intrinsics[frame], poses[frame], POINT), rtol=1e-10)
    assert seen == [0, 1, 3, 4]
    assert colmap_lines(tmp_path / "points3D.txt") == []


def test_colmap_by_hand(tmp_path: Path) -> None:
    """The camera stands at (1, 2, 3) and is turned a quarter about z: t = -R^T c = (-2, 1, -3)."""
    pose = torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    pinhole = torch.tensor([[50.0, 0, 32], [0, 40, 24], [0, 0, 1]])
    point = PointCloud(
        torch.tensor([[0.5, 1, 2], [math.nan, 0, 0]]), torch.tensor([[255, 0, 9], [0, 0, 0]], dtype=torch.uint8)
    )
    write_colmap(tmp_path, ["a.png"], SIZE, pinhole[None], pose[None], [point, point])
    assert colmap_lines(tmp_path / "cameras.txt") == [["1", "PINHOLE", "64", "48", "50.0", "40.0", "32.0", "24.0"]]
    line = colmap_lines(tmp_path / "images.txt")[0]
    assert [float(word) for word in line[1:8]] == pytest.approx([0.5**0.5, 0, 0, -(0.5**0.5), -2, 1, -3])
    assert (line[0], *line[8:]) == ("1", "1", "a.png")
    assert colmap_lines(tmp_path / "points3D.txt") == [f"{n} 0.5 1.0 2.0 255 0 9 -1".split() for n in (1, 2)]


def test_colmap_keeps_the_centre_of_a_pose_with_rounding_errors(tmp_path: Path) -> None:
    intrinsics, poses = cameras(4)
    rough = poses.half()
    write_colmap(tmp_path, list("abcd"), SIZE, intrinsics, rough)
    for line, pose in zip(colmap_lines(tmp_path / "images.txt")[::2], rough.double(), strict=True):
        values = torch.tensor([float(word) for word in line[1:8]], dtype=torch.float64)
        centre = -rotation_from_quaternion(values[:4]).T @ values[4:]
        assert torch.allclose(centre, pose[:3, 3], atol=1e-12)


def test_colmap_names(tmp_path: Path) -> None:
    intrinsics, poses = cameras(1)
    for names in (["a b.png"], [], ["a", "b"]):
        with pytest.raises(ValueError, match="every frame needs an image name"):
            write_colmap(tmp_path, names, SIZE, intrinsics, poses)


# --- nerfstudio ------------------------------------------------------------------------------------------------------


def test_nerfstudio_projects_as_we_do(tmp_path: Path) -> None:
    """In OpenGL's camera a point ahead has z < 0: u = cx - fx x / z, v = cy + fy y / z."""
    intrinsics, poses = cameras(4)
    intrinsics[0, 0, 2] = math.nan
    write_transforms(tmp_path / "t.json", [f"images/{index}.png" for index in range(4)], SIZE, intrinsics, poses)
    content = json.loads((tmp_path / "t.json").read_text())
    assert (content["w"], content["h"], content["camera_model"]) == (64, 48, "OPENCV")
    assert [frame["file_path"] for frame in content["frames"]] == [f"images/{index}.png" for index in (1, 2, 3)]
    for frame, index in zip(content["frames"], (1, 2, 3), strict=True):
        matrix = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        assert torch.equal(matrix[3], torch.tensor([0.0, 0, 0, 1]).double())
        assert torch.linalg.det(matrix[:3, :3]) == pytest.approx(1)
        x, y, z, _ = torch.linalg.inv(matrix) @ torch.cat([POINT, torch.ones(1)])
        xy = torch.stack([frame["cx"] - frame["fl_x"] * x / z, frame["cy"] + frame["fl_y"] * y / z])
        assert torch.allclose(xy, project(intrinsics[index], poses[index], POINT), rtol=1e-10)


def test_nerfstudio_by_hand(tmp_path: Path) -> None:
    """The camera at rest looks along -z of its own axes, y up."""
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([1.0, 2, 3])
    pinhole = torch.tensor([[50.0, 0, 32], [0, 40, 24], [0, 0, 1]])
    write_transforms(tmp_path / "t.json", ["a.png"], SIZE, pinhole[None], pose[None])
    (frame,) = json.loads((tmp_path / "t.json").read_text())["frames"]
    assert frame["transform_matrix"] == [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]]
    assert [frame[key] for key in ("fl_x", "fl_y", "cx", "cy")] == [50, 40, 32, 24]
    with pytest.raises(ValueError, match="1 frames need as many file paths, got 0"):
        write_transforms(tmp_path / "t.json", [], SIZE, pinhole[None], pose[None])


def test_nerfstudio_without_a_known_camera(tmp_path: Path) -> None:
    write_transforms(tmp_path / "t.json", ["a"], SIZE, torch.full((1, 3, 3), math.nan), torch.eye(4)[None])
    assert json.loads((tmp_path / "t.json").read_text())["frames"] == []
