"""Camera trajectories as TUM's RGB-D benchmark keeps them: `timestamp tx ty tz qx qy qz qw` a line."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.files import atomic
from fourd_core.media.formats.reading import read_bytes
from fourd_core.media.formats.rotations import quaternion_from_rotation, rotation_from_quaternion


def write_tum(path: Path, times: Float[Tensor, " t"], world_from_cam: Float[Tensor, "t 4 4"]) -> None:
    """Write poses, from the camera to the world in OpenCV axes like fourd's own; a pose that is not finite is left out.

    Args:
        times: seconds.

    Source: Sturm et al., A benchmark for the evaluation of RGB-D SLAM systems, and its page on file formats.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    poses = world_from_cam.double().cpu()
    quaternions = quaternion_from_rotation(poses[:, :3, :3])[:, [1, 2, 3, 0]]
    rows = torch.cat([times.double().cpu()[:, None], poses[:, :3, 3], quaternions], dim=1)
    with atomic(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write("# timestamp tx ty tz qx qy qz qw\n")
        for row in rows[rows.isfinite().all(dim=1)]:
            file.write(" ".join(map(repr, row.tolist())) + "\n")


def read_tum(path: Path) -> tuple[Float64[Tensor, " t"], Float64[Tensor, "t 4 4"]]:
    """Read a trajectory: times in seconds and `world_from_cam`, in the file's order.

    Raises:
        MediaError: no such file; a line, which is named, is not eight numbers or has no rotation.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != 8 or not any(row[4:]):
            raise MediaError(f"{path}, line {number}: expected 'timestamp tx ty tz qx qy qz qw', got '{line.strip()}'")
        rows.append(row)
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 8)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(table), 1, 1)
    poses[:, :3, :3] = rotation_from_quaternion(table[:, [7, 4, 5, 6]])
    poses[:, :3, 3] = table[:, 1:4]
    return table[:, 0], poses
