"""Readers of Virtual KITTI 2, Sintel, Spring and KITTI on generated miniatures whose geometry is known by hand."""

from __future__ import annotations

import attrs
import fsspec
import pytest
import torch
from fourd_evals import miniatures_evaluation as miniatures
from fourd_evals.datasets_kitti import KITTIDepth, KITTIFlow
from fourd_evals.datasets_sintel import ALL, MONST3R, Sintel
from fourd_evals.datasets_spring import Spring
from fourd_evals.datasets_vkitti2 import VKITTI2
from fourd_evals.miniatures import in_memory
from torch import Tensor

from fourd_core.data import Cameras, Maps, Predictions
from fourd_core.errors import MediaError
from fourd_core.geometry import inverse, pixel_centres, project, transform, unproject
from fourd_core.recipe import Location


def same(found: Tensor, wanted: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted).to(found), rtol=1e-6, atol=tolerance, equal_nan=True)


def camera_at(truth: Predictions, frame: int, position: tuple[float, float, float]) -> None:
    """The miniatures' camera: at a place, turned so that it looks along -x; what it has at its right lies along z."""
    cameras = truth["cameras"]
    assert isinstance(cameras, Cameras)
    pose = cameras.world_from_cam[0, frame]
    same(pose[:3, 3], position)
    same(pose[:3, :3] @ torch.tensor([0.0, 0, 1]), [-1.0, 0, 0])
    same(pose[:3, :3] @ torch.tensor([1.0, 0, 0]), [0.0, 0, 1])
    same(cameras.intrinsics[0, frame], [[20.0, 0, 16], [0, 21, 12], [0, 0, 1]])


def test_vkitti2() -> None:
    data = VKITTI2(VKITTI2.Config(root=Location(miniatures.vkitti2_miniature())))
    assert list(data.videos("held_out").keys) == ["Scene01/clone", "Scene20/clone"]
    assert len(data.videos("train")) == 0
    video = data.videos("held_out")[1]
    assert (video.frame_count, video.size, video.known) == (
        3, (24, 32), {"depth", "flow", "motion", "cameras"}
    )  # fmt: skip
    same(video.times([0, 2]), [0.0, 0.2])
    truth = video.truth([0, 1, 2])
    assert torch.isnan(truth.depth[:, :, :, :2]).all(), "the sky has a depth"
    same(truth.depth[:, :, :, 2:], torch.full((1, 3, 1, 22, 32), 12.34))
    # Backward flow belongs to the later frame, and its number is in its value; the first frame has none.
    assert torch.isnan(truth.flow[0, 0]).all()
    assert torch.isnan(truth.flow[..., 0]).all(), "an invalid pixel has flow"
    same(truth.flow[0, 1:, 0, :, 1:], torch.tensor([-0.25, 0.0])[:, None, None].expand(2, 24, 31), 31 / 65535)
    same(truth.flow[0, 1:, 1, :, 1:], torch.tensor([2.5, 2.75])[:, None, None].expand(2, 24, 31), 31 / 65535)
    forward = video.truth([2, 1, 0]).flow
    assert torch.isnan(forward[0, 0]).all()
    same(forward[0, 1:, 0, 5, 5], [1.75, 1.5], 31 / 65535)
    same(forward[0, 1:, 1, 5, 5], [-2.0, -2.25], 31 / 65535)
    assert torch.isnan(video.truth([0, 2]).flow).all(), "frames that are no neighbours have flow"
    motion = truth.motion[0, 1, 0]
    same(motion[4:8, 0:12:4], torch.tensor([1.0, 0.0, torch.nan]).expand(4, 3))
    assert (motion[:4] == 0).all() and (motion[:, 12:] == 0).all()
    camera_at(truth, 2, (2, 0, 3))
    assert video.intrinsics is not None
    same(video.intrinsics[:2, 2], [16, 12])


def test_vkitti2_other_camera_and_what_is_missing() -> None:
    files = _files(miniatures.vkitti2_miniature())
    kept = {path: data for path, data in files.items() if "bbox" not in path and "backward" not in path}
    data = VKITTI2(VKITTI2.Config(root=Location(in_memory("vkitti2-less", kept))))
    video = data.videos("all")[0]
    assert video.known == {"depth", "flow", "cameras"}
    assert torch.isnan(video.truth([0, 1]).flow).all()
    assert torch.isfinite(video.truth([1, 0]).flow[0, 1, :, :, 1:]).all()
    with pytest.raises(MediaError, match=r"does not hold Virtual KITTI 2: looked for Scene01/fog/frames/rgb/Camera_1"):
        VKITTI2(attrs_with(data.config, variations=("fog",), camera=1)).videos("all")
    with pytest.raises(MediaError, match="the folder of Virtual KITTI 2 is not named: set root"):
        VKITTI2(VKITTI2.Config()).videos("all")
    files["Scene01/clone/bbox.txt"] = files["Scene01/clone/bbox.txt"].replace(b"isMoving", b"moves")
    bad = VKITTI2(VKITTI2.Config(root=Location(in_memory("vkitti2-bad", files))))
    with pytest.raises(MediaError, match=r"bbox\.txt has no column isMoving"):
        bad.videos("all")[0]


def test_sintel() -> None:
    root = Location(miniatures.sintel_miniature())
    video = Sintel(Sintel.Config(root=root)).videos("held_out")[0]
    assert (video.key, video.known, video.depth_cap) == ("alley_1", {"depth", "flow", "cameras"}, 70.0)
    truth = video.truth([0, 1, 2])
    same(truth.depth[0, :, 0, 7, 9], [2.5, 3.5, 4.5])
    assert torch.isnan(truth.flow).all(), "Sintel's flow leads forward alone"
    forward = video.truth([2, 1, 0]).flow[0]
    assert torch.isnan(forward[0]).all()
    same(forward[1:, :, 7, 9], [[2.0, -1.75], [1.75, -2.0]])
    assert torch.isnan(forward[1:, :, :, 0]).all()
    camera_at(truth, 0, (1, 0, 3))
    assert video.intrinsics is not None
    same(video.intrinsics, [[20.0, 0, 16], [0, 21, 12], [0, 0, 1]])


def test_sintel_protocols() -> None:
    assert (len(ALL), len(MONST3R), len(set(MONST3R) - set(ALL))) == (23, 14, 0)
    root = Location(miniatures.sintel_miniature())
    crafter, monst3r = (Sintel(Sintel.Config(root=root, protocol=p)) for p in ("depthcrafter", "monst3r"))
    assert list(crafter.videos("held_out").keys) == ["alley_1", "alley_2"]
    assert list(monst3r.videos("held_out").keys) == ["alley_2"]
    assert list(monst3r.videos("train").keys) == ["alley_1"]
    assert "13 of the 14" in str(monst3r.note())
    clean, final = crafter.videos("held_out")[1], monst3r.videos("held_out")[0]
    assert not torch.equal(clean.read([0]), final.read([0])), "both are read from one rendering"
    same(clean.read([1])[0], torch.from_numpy(miniatures.picture(112)).permute(2, 0, 1))
    chosen = Sintel(Sintel.Config(root=root, protocol="none", only=("alley_2",)))
    assert list(chosen.videos("train").keys) == ["alley_1"]
    assert list(chosen.videos("held_out").keys) == ["alley_2"]
    assert chosen.videos("held_out")[0].depth_cap is None
    with pytest.raises(MediaError, match=r"holds 2 sequences of Sintel .* none of those to be evaluated \(cave_2"):
        Sintel(Sintel.Config(root=root, only=("cave_2",))).videos("all")
    with pytest.raises(MediaError, match=r"looked for training/clean/alley_1/frame_0001\.png; found training"):
        Sintel(Sintel.Config(root=Location(miniatures.kitti_flow_miniature()))).videos("all")


def test_spring_depth_flow_and_cameras_agree() -> None:
    video = Spring(Spring.Config(root=Location(miniatures.spring_miniature()))).videos("all")[0]
    assert video.known == {"depth", "flow", "motion", "cameras"}
    truth, ahead = video.truth([0, 1, 2]), video.truth([2, 1, 0])
    assert torch.isnan(truth.depth[0, :, 0, :2]).all()
    for frame in range(3):
        same(truth.depth[0, frame, 0, 2:4], torch.full((2, 32), 6.5 - 0.65 * frame))
    same(truth["cameras"].world_from_cam[0, 2, :3, 3], [0.26, 0.0, 1.3])  # type: ignore[attr-defined]
    for flows, order in ((truth.flow, [0, 1, 2]), (ahead.flow, [2, 1, 0])):
        assert torch.isnan(flows[0, 0]).all()
        for at in (1, 2):
            wanted = _flow_of_still_points(video.truth([order[at]]), video.truth([order[at - 1]]))
            same(flows[0, at][:, 2:8], wanted[:, 2:8], 2e-5)


def _flow_of_still_points(here: Predictions, there: Predictions) -> Tensor:
    """By projection; the maps were made at a quarter of each pixel."""
    cameras, other = here["cameras"], there["cameras"]
    assert isinstance(cameras, Cameras) and isinstance(other, Cameras)
    xy = pixel_centres((24, 32)) - 0.25
    points = transform(cameras.world_from_cam[0, 0], unproject(xy, here.depth[0, 0, 0], cameras.intrinsics[0, 0]))
    moved = project(transform(inverse(other.world_from_cam[0, 0]), points), other.intrinsics[0, 0])
    return (moved - xy).permute(2, 0, 1)


@pytest.mark.parametrize("threshold", [0.01, 1.0])
def test_spring_motion(threshold: float) -> None:
    """The block moves 0.3 m down at 6.5 m and less: 4.6 pixels; nothing else moves by a hundredth of one."""
    config = Spring.Config(root=Location(miniatures.spring_miniature()), motion_threshold=threshold)
    motion = Spring(config).videos("all")[0].truth([0, 1, 2]).motion[0, :, 0]
    block = torch.zeros(24, 32, dtype=torch.bool)
    block[8:12, 20:28] = True
    for frame in range(3):  # the last one by the flow to the frame before
        assert torch.isnan(motion[frame, :2]).all()
        assert torch.equal(motion[frame, 2:] == 1, block[2:])
        assert torch.equal(motion[frame, 2:] == 0, ~block[2:])
    still = Spring(Spring.Config(root=config.root, motion_threshold=6.0)).videos("all")[0]
    assert (still.truth([0]).motion[0, 0, 0, 2:] == 0).all()


def test_a_lens_that_zooms_is_not_one_pinhole() -> None:
    files = _files(miniatures.spring_miniature())
    name = next(name for name in files if name.endswith("0001/cam_data/intrinsics.txt"))
    lines = files[name].decode().splitlines()
    files[name] = "\n".join([*lines[:-1], "99 99 16 12"]).encode()
    root = Location(in_memory("spring-zoom", files))
    video = Spring(Spring.Config(root=root)).videos("all")[0]
    assert video.intrinsics is None and Spring(Spring.Config(root=root, clip=2)).videos("all")[0].intrinsics is not None
    cameras = video.truth([0, video.frame_count - 1])["cameras"]
    assert isinstance(cameras, Cameras) and float(cameras.intrinsics[0, 1, 0, 0]) == 99
    assert float(cameras.intrinsics[0, 0, 0, 0]) != 99


def test_spring_clips_and_partial_downloads() -> None:
    data = Spring(Spring.Config(root=Location(miniatures.spring_miniature(5)), clip=2))
    assert list(data.videos("all").keys) == ["0001/0001", "0001/0003", "0002/0001", "0002/0003"]
    whole = Spring(Spring.Config(root=data.config.root)).videos("all")[1]
    clip = data.videos("all")[3]
    assert torch.equal(clip.read([0, 1]), whole.read([2, 3]))
    same(clip.truth([0, 1]).flow[0, 1], whole.truth([2, 3]).flow[0, 1])
    same(clip.truth([0, 1]).depth, whole.truth([2, 3]).depth)
    same(clip.truth([1]).motion, whole.truth([3]).motion)
    same(clip.truth([1])["cameras"].world_from_cam, whole.truth([3])["cameras"].world_from_cam)  # type: ignore[attr-defined]
    files = {path: data for path, data in _files(miniatures.spring_miniature()).items() if "disp2" not in path}
    flow_only = {path: data for path, data in files.items() if "cam_data" not in path}
    for name, kept, known in (
        ("spring-still", files, {"depth", "flow", "cameras"}),
        ("spring-flow", flow_only, {"flow"}),
    ):
        video = Spring(Spring.Config(root=Location(in_memory(name, kept)))).videos("all")[0]
        assert video.known == known
        assert set(video.truth([0, 1])) == known


def test_kitti_depth() -> None:
    root = Location(miniatures.kitti_depth_miniature())
    video = KITTIDepth(KITTIDepth.Config(root=root)).videos("held_out")[0]
    assert (video.key, video.size, video.known, video.depth_cap) == (
        "2011_09_26_drive_0002_sync", (24, 32), {"depth"}, 80.0
    )  # fmt: skip
    depth = video.truth([0, 1, 2]).depth[0, :, 0]
    assert torch.isnan(depth[:, :10]).all()
    same(depth[:, 10, 0], [11.25, 11.5, 11.75])
    same(video.read([0])[0], torch.from_numpy(miniatures.picture(805, (25, 33))).permute(2, 0, 1)[:, :24, :32])
    assert video.intrinsics is not None
    same(video.intrinsics, [[20.0, 0, 16], [0, 21, 12], [0, 0, 1]])
    whole = KITTIDepth(KITTIDepth.Config(root=root, protocol="monst3r")).videos("held_out")[0]
    assert (whole.size, whole.depth_cap) == ((25, 33), None)
    many = Location(miniatures.kitti_depth_miniature(112))
    counts = [
        KITTIDepth(KITTIDepth.Config(root=many, protocol=p)).videos("all")[0].frame_count for p in ("monst3r", "none")
    ]
    assert counts == [110, 112]
    with pytest.raises(
        MediaError, match=r"does not hold KITTI's depth maps: looked for data_depth_annotated/val/<drive>"
    ):
        KITTIDepth(KITTIDepth.Config(root=Location(miniatures.kitti_flow_miniature()))).videos("all")


def test_kitti_flow() -> None:
    root = Location(miniatures.kitti_flow_miniature())
    video = KITTIFlow(KITTIFlow.Config(root=root)).videos("held_out")[1]
    assert (video.frame_count, video.known) == (2, {"flow", "motion"})
    assert torch.isnan(video.truth([0, 1]).flow).all()
    forward = video.truth([1, 0])
    assert torch.isnan(forward.flow[0, 0]).all()
    same(forward.flow[0, 1, :, 5, 1:], torch.tensor([2.5, -1.25])[:, None].expand(2, 31), 1 / 64)
    assert torch.isnan(forward.flow[0, 1, :, :, 0]).all()
    motion = forward.motion[0, :, 0]
    assert torch.isnan(motion[0]).all()
    same(motion[1, 3:5, 5:7], [[1.0, 0], [0, 0]])
    assert video.intrinsics is not None
    same(video.intrinsics[:2, 2], [16, 12])
    seen = KITTIFlow(KITTIFlow.Config(root=root, occluded=False)).videos("all")[1].truth([1, 0])
    assert torch.isfinite(seen.flow[0, 1, 0, 0]).tolist() == [False] * 5 + [True] * 27
    older = {p.replace("image_2", "colored_0"): d for p, d in _files(root).items() if "obj_map" not in p}
    older = {p.replace("calib_cam_to_cam", "calib"): d.replace(b"P_rect_02", b"P2") for p, d in older.items()}
    video = KITTIFlow(KITTIFlow.Config(root=Location(in_memory("kitti-2012", older)))).videos("all")[0]
    assert video.known == {"flow"}
    assert video.intrinsics is not None
    same(video.intrinsics[0], [20, 0, 16])


def test_maps_of_a_wrong_size_and_missing_files_are_named() -> None:
    files = _files(miniatures.sintel_miniature())
    del files["training/depth/alley_1/frame_0002.dpt"]
    flow = "training/flow/alley_1/frame_0002.flo"
    files[flow] = files[flow][:-8]
    video = Sintel(Sintel.Config(root=Location(in_memory("sintel-bad", files)))).videos("all")[0]
    with pytest.raises(MediaError, match=r"training/depth/alley_1/frame_0002\.dpt does not exist"):
        video.truth([1])
    with pytest.raises(MediaError, match=r"frame_0002\.flo is damaged"):
        Sintel(Sintel.Config(root=Location(in_memory("sintel-cut", _without_depth(files))))).videos("all")[0].truth(
            [2, 1]
        )
    with pytest.raises(IndexError, match="has frames 0 to 2, not 3"):
        video.truth([3])


def _without_depth(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if "/depth/" not in path}


def attrs_with(config: object, **changes: object) -> object:
    return attrs.evolve(config, **changes)  # type: ignore[type-var]


def _files(location: str) -> dict[str, bytes]:
    filesystem, path = fsspec.core.url_to_fs(location)
    return {name[len(path) + 1 :]: filesystem.cat_file(name) for name in filesystem.find(path)}


def test_maps_have_kinds_and_units() -> None:
    truth = VKITTI2(VKITTI2.example()).videos("all")[0].truth([0])
    kinds = {name: (item.kind, item.unit) for name, item in truth.items() if isinstance(item, Maps)}
    assert kinds == {"depth": ("depth", "m"), "flow": ("flow", "px"), "motion": ("mask", "1")}
