"""Readers of ScanNet, TUM, Bonn and NYUv2 on generated miniatures."""

from __future__ import annotations

import pickle
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fourd_evals import miniatures_evaluation as miniatures
from fourd_evals.datasets_nyu_video import NYUDepth
from fourd_evals.datasets_scannet import ScanNet
from fourd_evals.datasets_tum import TUM, Bonn, associate, by_time, pair
from fourd_evals.miniatures import COLOURS, DEPTHS, in_memory, kinds, labelled_mat, nyu_miniature, splits_mat
from PIL import Image
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.recipe import Location


def same(found: Tensor, wanted: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted).to(found), rtol=1e-6, atol=tolerance, equal_nan=True)


def poses(video: Any, frames: list[int]) -> Tensor:
    found: Tensor = video.truth(frames)["cameras"].world_from_cam[0]
    return found


def test_scannet_in_the_order_of_numbers_and_cropped() -> None:
    root = Location(miniatures.scannet_miniature())
    video = ScanNet(ScanNet.Config(root=root)).videos("held_out")[0]
    assert (video.key, video.frame_count, video.size, video.depth_cap) == ("scene0707_00", 4, (32, 42), 10.0)
    same(video.times([0, 1]), [0.0, 0.1])
    depth = video.truth([0, 1, 2, 3]).depth[0, :, 0]
    same(depth[:, 5, 5], [1.0, 1.003, 1.006, 1.009])
    same(depth[:, 0, 0], [2.0] * 4)
    found = poses(video, [0, 1, 2, 3])
    assert torch.isnan(found[1]).all(), "a frame that was lost has a pose"
    same(found[[0, 2, 3], :3, 3], [[0.0, 0, 3], [6, 0, 3], [9, 0, 3]])
    same(found[2, :3, :3] @ torch.tensor([0.0, 0, 1]), [-1.0, 0, 0])
    assert video.intrinsics is not None
    same(video.intrinsics, [[20.0, 0, 32 - 11], [0, 21, 24 - 8], [0, 0, 1]])


def test_scannet_without_crop_and_all_frames() -> None:
    root = Location(miniatures.scannet_miniature())
    video = ScanNet(ScanNet.Config(root=root, protocol="monst3r")).videos("all")[0]
    assert (video.frame_count, video.size, video.depth_cap) == (4, (48, 64), None)
    depth = video.truth([1]).depth[0, 0, 0]
    assert torch.isnan(depth[:8]).all() and torch.isnan(depth[:, :11]).all()
    same(depth[20, 20], 1.003)
    # Colours have twice the depth's pixels: of each row and column the weights are 1, 3, 3, 1.
    with fsspec.open(f"{root}/scans_test/scene0707_00/color/3.jpg") as file, Image.open(file) as picture:
        colours = torch.from_numpy(np.array(picture)).permute(2, 0, 1).double()
    window = colours[:, 1:-1, 1:-1].unfold(1, 4, 2).unfold(2, 4, 2) @ torch.tensor([1.0, 3, 3, 1]).double() / 8
    wanted = window @ torch.tensor([1.0, 3, 3, 1]).double() / 8
    assert (video.read([1])[0, :, 1:-1, 1:-1].double() - wanted).abs().max() <= 0.51
    assert ScanNet(ScanNet.Config(root=root, protocol="none")).videos("all")[0].frame_count == 11
    many = ScanNet(ScanNet.Config(root=Location(miniatures.scannet_miniature(14)), protocol="none")).videos("all")[0]
    same(many.truth([9, 10, 13]).depth[0, :, 0, 20, 20], [1.009, 1.01, 1.013])
    with pytest.raises(MediaError, match=r"does not hold ScanNet's test scenes: looked for scans_test/scene0707_00"):
        ScanNet(ScanNet.Config(root=Location(nyu_miniature()))).videos("all")


def test_tum_associates_by_time() -> None:
    root = Location(miniatures.tum_miniature())
    video = TUM(TUM.Config(root=root, protocol="none")).videos("all")[0]
    assert (video.key, video.frame_count, video.known) == (
        "rgbd_dataset_freiburg3_sitting_xyz", 5, {"depth", "cameras"}
    )  # fmt: skip
    same(video.times([1, 4]), [0.04, 0.16])
    depth = video.truth(range(5)).depth[0, :, 0]
    assert torch.isnan(depth[:, 0]).all()
    same(depth[:, 3, 3], [1.0, torch.nan, 1.04, 1.06, 1.08])
    found = poses(video, [0, 1, 2, 3, 4])
    same(found[:, 0, 3], [100.0, 101.0, torch.nan, 103.0, 104.0])
    same(found[0, :3, :3] @ torch.tensor([0.0, 0, 1]), [-1.0, 0, 0])
    assert video.intrinsics is not None
    same(video.intrinsics[:2], [[535.4, 0, 320.6], [0, 539.2, 248.1]], 1e-4)
    own = TUM(TUM.Config(root=root, protocol="none", camera=(20, 21, 15.5, 11.5))).videos("all")[0]
    assert own.intrinsics is not None
    same(own.intrinsics[:2], [[20, 0, 16.0], [0, 21, 12]])


def test_tum_by_index_pairs_the_wrong_depth_where_one_was_dropped() -> None:
    config = TUM.Config(root=Location(miniatures.tum_miniature()), protocol="none", pairing="index")
    depth = TUM(config).videos("all")[0].truth(range(5)).depth[0, :, 0, 3, 3]
    same(depth, [1.0, 1.04, 1.06, 1.08, torch.nan])


def test_tum_protocol_takes_each_third_frame_with_a_pose() -> None:
    data = TUM(TUM.Config(root=Location(miniatures.tum_miniature(11))))
    assert "6 of the 8" in str(data.note())
    video = data.videos("held_out")[1]
    same(video.times([0, 1, 2, 3]), [0.0, 0.16, 0.28, 0.4])  # frames 0, (2 has none) 4, 7, 10
    same(poses(video, [0, 1, 2, 3])[:, 0, 3], [100.0, 104, 107, 110])
    assert video.frame_count == 4


def test_bonn_protocols() -> None:
    root = Location(miniatures.bonn_miniature(141))
    crafter, monst3r = (Bonn(Bonn.Config(root=root, protocol=p)) for p in ("depthcrafter", "monst3r"))
    assert list(crafter.videos("held_out").keys) == ["rgbd_bonn_balloon2", "rgbd_bonn_person_tracking"]
    assert list(monst3r.videos("held_out").keys) == ["rgbd_bonn_balloon2", "rgbd_bonn_person_tracking2"]
    video = crafter.videos("held_out")[0]
    assert (video.frame_count, video.depth_cap, monst3r.videos("held_out")[0].depth_cap) == (110, 10.0, 70.0)
    same(video.read([0])[0], torch.from_numpy(miniatures.picture(730)).permute(2, 0, 1))
    # The sorted list of depths lacks one, so that picture 30 gets the depth of 31, as the protocols' preparations do.
    same(video.truth([0]).depth[0, 0, 0, 3, 3], (5000 + 100 * 31) / 5000)
    same(poses(video, [0])[0, 0, 3], 130.0)
    by_clock = Bonn(Bonn.Config(root=root, pairing="time")).videos("held_out")[0]
    same(by_clock.truth([0]).depth[0, 0, 0, 3, 3], (5000 + 100 * 30) / 5000)
    assert video.intrinsics is not None
    same(video.intrinsics[0, 2], 316.09352)
    with pytest.raises(MediaError, match="has 5 pictures, and none that the protocol takes"):
        Bonn(Bonn.Config(root=Location(miniatures.bonn_miniature()))).videos("held_out")[0]


def test_association_takes_the_nearest_pair_first_and_each_time_once() -> None:
    assert associate([0.0, 0.015, 1.0], [0.01, 0.5, 1.0195]) == [(1, 0), (2, 2)]
    assert associate([0.0], [0.0201]) == []
    assert by_time(["5.1.png", "5.09.png", "5.2.png"]) == ["5.09.png", "5.1.png", "5.2.png"]
    assert pair(["1.0.png", "2.0.png"], ["1.01.png"], "time") == {"1.0.png": "1.01.png"}
    with pytest.raises(MediaError, match=r"the picture first\.png is not called by its time"):
        by_time(["first.png", "2.0.png"])


def test_rgbd_without_a_known_camera_or_poses() -> None:
    filesystem, path = fsspec.core.url_to_fs(miniatures.tum_miniature())
    files = {name[len(path) + 1 :]: filesystem.cat_file(name) for name in filesystem.find(path)}
    other = {name.replace("freiburg3", "robot"): data for name, data in files.items() if "groundtruth" not in name}
    root = Location(in_memory("tum-other", other))
    with pytest.raises(MediaError, match=r"camera of rgbd_dataset_robot_sitting_xyz is not known: set camera"):
        TUM(TUM.Config(root=root, protocol="none")).videos("all")[0]
    config = TUM.Config(root=root, protocol="none", camera=(1, 1, 0, 0))
    assert TUM(config).videos("all")[0].known == {"depth"}
    bad = {name: (data if "groundtruth" not in name else b"1 2 3\n") for name, data in files.items()}
    with pytest.raises(MediaError, match="line 1: expected 'timestamp tx"):
        TUM(TUM.Config(root=Location(in_memory("tum-bad", bad)), protocol="none")).videos("all")[0]


def test_nyu_pictures_are_videos_of_one_frame() -> None:
    data = NYUDepth(NYUDepth.Config(root=Location(nyu_miniature()), protocol="none"))
    assert list(data.videos("held_out").keys) == ["test/000000", "test/000001"]
    assert len(data.videos("train")) == 3
    video = data.videos("held_out")[0]
    labels = kinds(1)
    assert (video.frame_count, video.size, video.known) == (1, (48, 64), {"depth"})
    same(video.read([0])[0], torch.from_numpy(COLOURS[labels]).permute(2, 0, 1))
    same(video.truth([0]).depth[0, 0, 0], torch.from_numpy(DEPTHS[labels]))
    again = pickle.loads(pickle.dumps(video))
    assert torch.equal(again.read([0]), video.read([0]))


def test_nyu_crop() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 480, 640, 3), np.uint8)
    depths = rng.uniform(1, 9, (1, 480, 640)).astype(np.float32)
    depths[0, 50, 50] = 0
    files = {"nyu_depth_v2_labeled.mat": labelled_mat(images, depths, depths * 0), "splits.mat": splits_mat([], [1])}
    data = NYUDepth(NYUDepth.Config(root=Location(in_memory("nyu-whole", files))))
    video = data.videos("held_out")[0]
    assert (len(data.videos("train")), video.size, video.depth_cap) == (0, (426, 560), 10.0)
    same(video.read([0])[0], torch.from_numpy(images[0, 45:471, 41:601]).permute(2, 0, 1))
    wanted = depths[0, 45:471, 41:601].copy()
    wanted[5, 9] = np.nan
    same(video.truth([0]).depth[0, 0, 0], torch.from_numpy(wanted))
    assert video.intrinsics is not None
    same(video.intrinsics[:2, 2], [325.58244941 + 0.5 - 41, 253.73616633 + 0.5 - 45], 1e-4)
