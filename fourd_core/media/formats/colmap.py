"""COLMAP's sparse model as text: `cameras.txt`, `images.txt`, `points3D.txt`.

COLMAP's pixels are fourd's (the centre of the top left one is (0.5, 0.5)) and so are its camera axes; its poses lead
from the world to the camera.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from fourd_core.files import atomic
from fourd_core.media.formats.points import PointCloud
from fourd_core.media.formats.rotations import quaternion_from_rotation, rotation_from_quaternion


def write_colmap(
    folder: Path,
    names: Sequence[str],
    size: tuple[int, int],
    intrinsics: Float[Tensor, "t 3 3"],
    world_from_cam: Float[Tensor, "t 4 4"],
    points: Iterable[PointCloud] = (),
) -> None:
    """Write a model into an existing folder.

    The camera model is PINHOLE, which has no skew; frames with the same intrinsics share one camera. A frame whose
    camera is not finite is left out, as an image is that COLMAP could not register.

    Args:
        names: of the image files, without white space.
        size: height and width of the images.
        points: in the world; they have no tracks, and their error is -1: unknown.

    Source: COLMAP's documentation, Output format, Text format.

    Raises:
        ValueError: a name with white space, or not one for each frame.
        RunError: the disk is full, the folder is not writable.
    """
    if len(names) != len(world_from_cam) or any(name.split() != [name] for name in names):
        raise ValueError("every frame needs an image name, and COLMAP allows no white space in it")
    cameras: dict[tuple[float, ...], int] = {}
    lines = list(_images(names, intrinsics, world_from_cam, cameras))
    _write(
        folder / "cameras.txt",
        "CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] (fx, fy, cx, cy)",
        (_line(number, "PINHOLE", size[1], size[0], *camera) for camera, number in cameras.items()),
    )
    _write(
        folder / "images.txt",
        "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME; then a line of POINTS2D[], empty here",
        (line + "\n" for line in lines),
    )
    _write(folder / "points3D.txt", "POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]", _points(points))


def _images(
    names: Sequence[str],
    intrinsics: Float[Tensor, "t 3 3"],
    world_from_cam: Float[Tensor, "t 4 4"],
    cameras: dict[tuple[float, ...], int],
) -> Iterator[str]:
    """The images' lines; fills in `cameras`, the number of each set of parameters."""
    poses, pinholes = world_from_cam.double().cpu(), intrinsics.double().cpu()
    # The pose's rotation may carry rounding errors; the file's is exact, and the camera's centre must stay.
    quaternions = quaternion_from_rotation(poses[:, :3, :3].mT)
    shifts = -(rotation_from_quaternion(quaternions) @ poses[:, :3, 3:]).squeeze(-1)
    known = poses.isfinite().flatten(1).all(dim=1) & pinholes.isfinite().flatten(1).all(dim=1)
    for frame in known.nonzero().flatten().tolist():
        k = pinholes[frame]
        parameters = tuple(map(float, (k[0, 0], k[1, 1], k[0, 2], k[1, 2])))
        camera = cameras.setdefault(parameters, len(cameras) + 1)
        yield _line(frame + 1, *quaternions[frame].tolist(), *shifts[frame].tolist(), camera, names[frame])


def _points(clouds: Iterable[PointCloud]) -> Iterator[str]:
    count = 0
    for cloud in clouds:
        kept = cloud.xyz.isfinite().all(dim=-1)
        for xyz, rgb in zip(cloud.xyz[kept].tolist(), cloud.rgb[kept].tolist(), strict=True):
            count += 1
            yield _line(count, *xyz, *rgb, -1)


def _line(*values: float | str) -> str:
    return " ".join(map(str, values)) + "\n"


def _write(path: Path, columns: str, lines: Iterable[str]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f"# {columns}\n")
        file.writelines(lines)
