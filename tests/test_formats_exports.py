"""Exports of a known scene: a tilted, coloured plane seen by a moving and turning camera."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.exports import check_formats, export_video
from fourd_core.media.formats.depth import KITTI, MILLIMETRES, read_depth_png
from fourd_core.media.formats.flow import read_flo, read_kitti_flow
from fourd_core.media.formats.points import read_ply
from fourd_core.media.formats.tum import read_tum
from fourd_core.media.video import open_video
from fourd_core.media.writers import write_png

FRAMES, HEIGHT, WIDTH = 3, 12, 16
NORMAL, DISTANCE = torch.tensor([0.2, -0.3, 1.0], dtype=torch.float64), 5.0
"""The plane: NORMAL . X = DISTANCE."""
PINHOLE = torch.tensor([[14.0, 0.5, 8.5], [0, 15, 5.5], [0, 0, 1]], dtype=torch.float64)
KINDS = ("world_from_cam", "intrinsics", "depth", "flow")


def world_from_cam(index: int) -> Tensor:
    """A turn about a slanted axis and a step to the side."""
    axis = torch.tensor([[0.0, -0.6, 0.4], [0.6, 0, -0.3], [-0.4, 0.3, 0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.matrix_exp(0.2 * index * axis)
    pose[:3, 3] = torch.tensor([0.3, -0.1, 0.2]) * index
    return pose


def plane_depth(index: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Depth `h w` of the plane at the centres of a grid of any size over the whole frame."""
    v = (torch.arange(height).double() + 0.5) * HEIGHT / height
    u = (torch.arange(width).double() + 0.5) * WIDTH / width
    pixels = torch.stack([*torch.meshgrid(u, v, indexing="xy"), torch.ones(height, width)], dim=-1)
    pose = world_from_cam(index)
    rays = pixels.double() @ torch.linalg.inv(PINHOLE).T @ pose[:3, :3].T
    depth: Tensor = (DISTANCE - NORMAL @ pose[:3, 3]) / (rays @ NORMAL)
    return depth


def colour(xyz: Tensor) -> Tensor:
    """What the plane looks like at a place: `... 3` in 0 to 255."""
    return 127 + 15 * (xyz.double() - torch.tensor([0, 0, DISTANCE])) * torch.tensor([1.0, 1.0, -1.0])


def plane_points(index: int) -> Tensor:
    """By a general matrix inverse, `h w 3`."""
    v, u = torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5
    pixels = torch.stack([*torch.meshgrid(u, v, indexing="xy"), torch.ones(HEIGHT, WIDTH)], dim=-1).double()
    camera = pixels @ torch.linalg.inv(PINHOLE).T * plane_depth(index)[..., None]
    pose = world_from_cam(index)
    points: Tensor = camera @ pose[:3, :3].T + pose[:3, 3]
    return points


@pytest.fixture
def video(tmp_path: Path) -> Video:
    (tmp_path / "frames").mkdir()
    for index in range(FRAMES):
        picture = colour(plane_points(index)).round().to(torch.uint8).permute(2, 0, 1)
        write_png(tmp_path / "frames" / f"{index}.png", picture)
    return open_video(str(tmp_path / "frames"))


def add(store: ArrayStore, name: str, kind: str, values: Tensor, **facts: str) -> None:
    store.append(name, values, **facts)
    store[name].update_attributes({"kind": kind})


def a_store(folder: Path, kinds: tuple[str, ...] = KINDS, size: tuple[int, int] = (HEIGHT, WIDTH)) -> ArrayStore:
    store = ArrayStore(folder)
    depth = torch.stack([plane_depth(index, *size) for index in range(FRAMES)])[:, None]
    depth[1, 0, 2, 3], depth[2, 0, 0, 0] = math.nan, 0.0
    values = {
        "depth": ("depth", depth, {"unit": "m"}),
        "flow": ("flow", torch.arange(FRAMES * 2 * size[0] * size[1]).view(FRAMES, 2, *size) / 64, {"unit": "px"}),
        "world_from_cam": (
            "cameras.world_from_cam",
            torch.stack([world_from_cam(index) for index in range(FRAMES)]),
            {"axes": "t i j"},
        ),
        "intrinsics": ("cameras.intrinsics", PINHOLE.repeat(FRAMES, 1, 1), {"axes": "t i j"}),
    }
    for kind in kinds:
        name, numbers, facts = values[kind]
        add(store, name, kind, numbers.float(), **facts)
    store.finish()
    return store


# --- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (6, 8), (24, 48)])
def test_points_of_all_frames_lie_on_the_plane_in_its_colours(
    tmp_path: Path, video: Video, size: tuple[int, int]
) -> None:
    """Colour is a function of the place, so a point that stands wrong has a wrong colour too."""
    export_video(a_store(tmp_path / "a", size=size), video, tmp_path, "clip", ["ply"])
    files = sorted((tmp_path / "clip" / "ply").iterdir())
    assert [file.name for file in files] == ["000000.ply", "000001.ply", "000002.ply"]
    for index, file in enumerate(files):
        cloud = read_ply(file)
        assert len(cloud.xyz) == size[0] * size[1] - (index > 0), "NaN and 0 are no depth"
        assert (cloud.xyz.double() @ NORMAL - DISTANCE).abs().max() < 1e-5
        # On a grid of another size the frame's pixel lies up to half a pixel away.
        slack = 0.51 if size == (HEIGHT, WIDTH) else 6
        assert (colour(cloud.xyz) - cloud.rgb).abs().max() < slack
    if size == (HEIGHT, WIDTH):
        assert torch.allclose(read_ply(files[0]).xyz.double(), plane_points(0).reshape(-1, 3), atol=1e-5)


def test_points_of_two_frames_coincide(tmp_path: Path) -> None:
    """A camera that steps by two pixels and rolls by a quarter turn sees the same points through other pixels."""
    side, focal, far = 8, 10.0, 4.0
    (tmp_path / "grey").mkdir()
    for index in range(2):
        write_png(tmp_path / "grey" / f"{index}.png", torch.full((3, side, side), 99, dtype=torch.uint8))
    pinhole = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
    roll = torch.tensor([[0.0, -1, 0, 2 * far / focal], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    store = ArrayStore(tmp_path / "a")
    add(store, "depth", "depth", torch.full((2, 1, side, side), far))
    add(store, "c.world_from_cam", "world_from_cam", torch.stack([torch.eye(4), roll]), axes="t i j")
    add(store, "c.intrinsics", "intrinsics", pinhole.repeat(2, 1, 1), axes="t i j")
    store.finish()
    export_video(store, open_video(str(tmp_path / "grey")), tmp_path, "clip", ["ply", "ply_fused"])
    first, second = (read_ply(tmp_path / "clip" / "ply" / f"00000{index}.ply").xyz for index in range(2))
    nearest = torch.cdist(second.double(), first.double()).min(dim=1).values
    assert (nearest < 1e-5).sum() == 6 * side, "six of the eight columns are seen by both"
    assert nearest.max() == pytest.approx(2 * far / focal, rel=1e-5)
    fused = read_ply(tmp_path / "clip" / "points.ply")
    assert torch.equal(fused.xyz, torch.cat([first, second]))
    assert (fused.rgb == 99).all()


def test_fused_points_are_thinned_out_evenly(tmp_path: Path, video: Video) -> None:
    """Of 3 x 192 points at most about 70: every third row and column, the middle ones."""
    export_video(a_store(tmp_path / "a"), video, tmp_path, "clip", ["ply_fused"], fused_points=70)
    kept = torch.cat([plane_points(index)[1::3, 1::3].reshape(-1, 3) for index in range(FRAMES)])
    assert torch.allclose(read_ply(tmp_path / "clip" / "points.ply").xyz.double(), kept, atol=1e-5)


# --- the other formats -----------------------------------------------------------------------------------------------


def test_flow_files(tmp_path: Path, video: Video) -> None:
    """Named by the frames they lead from and to; none for the first frame."""
    export_video(a_store(tmp_path / "a"), video, tmp_path, "clip", ["flo", "kitti_flow"])
    names = [path.stem for path in sorted((tmp_path / "clip" / "flo" / "flow").iterdir())]
    assert names == ["000001_to_000000", "000002_to_000001"]
    expected = torch.arange(2 * HEIGHT * WIDTH, 4 * HEIGHT * WIDTH).view(2, HEIGHT, WIDTH) / 64
    assert torch.equal(read_flo(tmp_path / "clip" / "flo" / "flow" / "000001_to_000000.flo"), expected)
    assert torch.equal(read_kitti_flow(tmp_path / "clip" / "kitti_flow" / "flow" / "000001_to_000000.png"), expected)


def test_flow_of_another_size_is_in_pixels_of_its_file(tmp_path: Path, video: Video) -> None:
    export_video(a_store(tmp_path / "a", size=(24, 8)), video, tmp_path, "clip", ["flo"])
    stored = torch.arange(2 * 24 * 8, 4 * 24 * 8).view(2, 24, 8) / 64
    flow = read_flo(tmp_path / "clip" / "flo" / "flow" / "000001_to_000000.flo")
    assert torch.equal(flow, stored * torch.tensor([0.5, 2.0]).view(2, 1, 1))


def test_depth_files(tmp_path: Path, video: Video) -> None:
    for scale, expected in ((KITTI, 256), (MILLIMETRES, 1000)):
        store = a_store(tmp_path / f"a{expected}")
        export_video(store, video, tmp_path, f"clip{expected}", ["depth_png"], depth_scale=scale)
        folder = tmp_path / f"clip{expected}" / "depth_png" / "depth"
        assert json.loads((folder / "scale.json").read_text()) == {
            "steps_per_unit": expected, "unit": "m", "unknown": 0,
        }  # fmt: skip
        read = read_depth_png(folder / "000001.png", scale)[0]
        assert read[2, 3].isnan()
        assert read.isnan().sum() == 1
        assert (read - plane_depth(1)).abs().nan_to_num().max() <= 0.5 / scale + 1e-6


def test_a_scene_for_colmap_and_nerfstudio(tmp_path: Path, video: Video) -> None:
    export_video(a_store(tmp_path / "a"), video, tmp_path, "clip", ["colmap", "nerfstudio"])
    scene = tmp_path / "clip"
    assert sorted(str(path.relative_to(scene)) for path in scene.rglob("*.*")) == [
        "images/000000.png", "images/000001.png", "images/000002.png",
        "sparse/0/cameras.txt", "sparse/0/images.txt", "sparse/0/points3D.txt", "transforms.json",
    ]  # fmt: skip
    assert torch.equal(open_video(str(scene / "images")).read([2, 0]), video.read([2, 0]))
    frames = json.loads((scene / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == [f"images/00000{index}.png" for index in range(3)]
    flipped = world_from_cam(2) * torch.tensor([1, -1, -1, 1])
    assert torch.allclose(torch.tensor(frames[2]["transform_matrix"]).double(), flipped, atol=1e-6)
    images = [line.split() for line in (scene / "sparse/0/images.txt").read_text().splitlines() if line[:1] != "#"]
    assert [line[-1] for line in images[::2]] == ["000000.png", "000001.png", "000002.png"]
    points = [line.split() for line in (scene / "sparse/0/points3D.txt").read_text().splitlines()[1:]]
    assert len(points) == 3 * HEIGHT * WIDTH - 2
    xyz = torch.tensor([[float(word) for word in point[1:4]] for point in points], dtype=torch.float64)
    assert (xyz @ NORMAL - DISTANCE).abs().max() < 1e-5


def test_cameras_alone(tmp_path: Path, video: Video) -> None:
    store = a_store(tmp_path / "a", kinds=("world_from_cam", "intrinsics"))
    export_video(store, video, tmp_path, "clip", ["tum", "colmap"])
    times, poses = read_tum(tmp_path / "clip" / "trajectory.txt")
    assert times.tolist() == [0, 0.04, 0.08]
    assert torch.allclose(poses, torch.stack([world_from_cam(index) for index in range(3)]), atol=1e-6)
    assert (tmp_path / "clip" / "sparse" / "0" / "points3D.txt").read_text().count("\n") == 1


def test_memory_stays_constant(tmp_path: Path, video: Video) -> None:
    """A store of 400 maps of 32 KB is read a chunk of 16 at a time."""
    store = ArrayStore(tmp_path / "a", "float16")
    for _ in range(25):
        add(store, "depth", "depth", torch.ones(16, 1, 128, 128))
    store.finish()
    video.frame_count = 400  # depth_png reads no frame
    tracemalloc.start()
    export_video(store, video, tmp_path, "clip", ["depth_png"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list((tmp_path / "clip" / "depth_png" / "depth").glob("*.png"))) == 400
    assert peak < 4 * 2**20 < store["depth"].nbytes / 3


# --- what is missing is said before anything is written --------------------------------------------------------------


def test_formats_that_need_more(tmp_path: Path, video: Video) -> None:
    check_formats(["features"], [])
    check_formats(["flow", "flow", "depth", "depth"], ["flo", "kitti_flow", "depth_png"])
    check_formats(["world_from_cam", "intrinsics"], ["colmap", "nerfstudio", "tum"])
    with pytest.raises(RecipeError) as caught:
        check_formats(["flow", "depth", "world_from_cam", "world_from_cam"], ["flo", "ply", "tum"])
    assert str(caught.value).splitlines() == [
        'the export "ply" needs intrinsics, which no head of the recipe predicts',
        'the export "ply" needs one head for camera poses; the recipe has several',
        'the export "tum" needs one head for camera poses; the recipe has several',
    ]
    store = a_store(tmp_path / "a", kinds=("flow",))
    with pytest.raises(RecipeError, match='"ply_fused" needs depth and camera poses and intrinsics, which no head'):
        export_video(store, video, tmp_path, "clip", ["flo", "ply_fused"])
    assert not (tmp_path / "clip").exists()


def test_arrays_of_another_video(tmp_path: Path, video: Video) -> None:
    store = a_store(tmp_path / "a")
    video.frame_count = 2
    with pytest.raises(RunError, match=r"holds 3 frames, and .* has only 2"):
        export_video(store, video, tmp_path, "clip", ["flo"])


def test_a_folder_in_the_way(tmp_path: Path, video: Video) -> None:
    (tmp_path / "clip").write_text("a file")
    with pytest.raises(RunError, match=r"cannot write .*clip/flo/flow"):
        export_video(a_store(tmp_path / "a"), video, tmp_path, "clip", ["flo"])
