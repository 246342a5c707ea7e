"""The training data sets as components: splits, lists, other processes, the mixture, damaged folders."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from fourd_evals import miniatures_kubric
from fourd_evals import miniatures_training as miniatures
from fourd_evals.annotated import AnnotatedSet, pinhole
from fourd_evals.datasets_dynamic_replica import DynamicReplica
from fourd_evals.datasets_kubric import Kubric
from fourd_evals.datasets_mixture import Mixture
from fourd_evals.datasets_point_odyssey import PointOdyssey
from fourd_evals.datasets_tartanair import TartanAir
from fourd_evals.miniatures import encoded, in_memory
from fourd_evals.rigid_scenes import moving, unhidden
from fourd_evals.scene import known_scene, poses
from fourd_evals.tfrecords import Example, record_places
from PIL import Image

from fourd_core.data import Cameras, Maps, Predictions, Tracks
from fourd_core.errors import MediaError
from fourd_core.geometry import project, transform
from fourd_core.interfaces import AnnotatedVideo
from fourd_core.media.dataset import VideoFiles
from fourd_core.recipe import ComponentConfig, Location
from fourd_core.testing import check_component, form

SETS: list[type[Any]] = [TartanAir, PointOdyssey, DynamicReplica, Kubric]


def on_disk(folder: Path, files: dict[str, bytes]) -> Location:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return Location(str(folder))


def data_set(cls: type[AnnotatedSet], root: Location, **keys: Any) -> AnnotatedSet:
    return cls(cls.Config(root=root, **keys))


def first(cls: type[AnnotatedSet], root: Location) -> AnnotatedVideo:
    video: AnnotatedVideo = data_set(cls, root, held_out=0).videos("all")[0]
    return video


def maps(truth: Predictions, name: str) -> torch.Tensor:
    prediction = truth[name]
    assert isinstance(prediction, Maps)
    return prediction.values[0]


# ---- as components


@pytest.mark.parametrize("cls", [*SETS, Mixture])
def test_contract(cls: type[Any]) -> None:
    check_component("datasets", cls)


@pytest.mark.parametrize("cls", SETS)
def test_another_process_reads_the_same(cls: type[Any]) -> None:
    """Data sets and their sequences pickle, with the split, and tell the same truth."""
    data = cls(cls.example())
    videos = pickle.loads(pickle.dumps(data.videos("train")))
    again = pickle.loads(pickle.dumps(videos[0])).truth([0, 1])
    for name, prediction in data.videos("train")[0].truth([0, 1]).items():
        for field, tensor in prediction.tensors().items():
            assert torch.equal(tensor.nan_to_num(-1), again[name].tensors()[field].nan_to_num(-1))
    assert list(videos.keys) == [video.key for video in data.videos("train")]


def test_splits() -> None:
    """A data set's own split counts, whatever `held_out` says; others lose their last sequences to it."""
    own = PointOdyssey(PointOdyssey.Config(root=miniatures.point_odyssey_miniature(), held_out=0))
    assert list(own.videos("train").keys) == ["train/ani"]
    assert list(own.videos("held_out").keys) == ["val/r1_new_f"]
    assert list(own.videos("all").keys) == ["train/ani", "val/r1_new_f"]
    flights = data_set(TartanAir, miniatures.tartanair_miniature(), held_out=0.3)
    assert list(flights.videos("train").keys) == ["ocean/Easy/P000", "office/Easy/P000"]
    assert list(flights.videos("held_out").keys) == ["office/Hard/P001"]
    easy = data_set(TartanAir, miniatures.tartanair_miniature(), levels=("Easy",), held_out=0)
    assert list(easy.videos("train").keys) == ["ocean/Easy/P000", "office/Easy/P000"]
    assert len(easy.videos("held_out")) == 0
    records = data_set(Kubric, Location(in_memory("sets-records", miniatures_kubric.kubric_record_files())))
    assert list(records.videos("held_out").keys) == ["movi_f-validation.tfrecord-00000-of-00001/0"]
    assert [key[-2:] for key in records.videos("train").keys] == ["/0", "/1", "/0"]
    replica = data_set(DynamicReplica, miniatures.dynamic_replica_miniature())
    assert list(replica.videos("train").keys) == ["train/009850-3_obj_source/left"]


def test_a_part_alone_is_split(tmp_path: Path) -> None:
    """Where only one part of a data set was copied, its last sequences are held out."""
    files: dict[str, bytes] = {}
    for name in ("a", "b"):
        files |= miniatures.point_odyssey_files(known_scene(frames=2), f"val/{name}")
    data = data_set(PointOdyssey, on_disk(tmp_path, files), held_out=0.5)
    assert (list(data.videos("train").keys), list(data.videos("held_out").keys)) == (["val/a"], ["val/b"])


def test_a_list_limits_training(tmp_path: Path) -> None:
    chosen = tmp_path / "list.txt"
    chosen.write_text("office/Easy/P000\n")
    root = miniatures.tartanair_miniature()
    data = data_set(TartanAir, root, list=Location(str(chosen)), held_out=0)
    assert list(data.videos("train").keys) == ["office/Easy/P000"]
    chosen.write_text("P007\n")
    with pytest.raises(MediaError, match=r"names 1 video.s. that are not below .*: P007"):
        data_set(TartanAir, root, list=Location(str(chosen))).videos("train")


# ---- by hand: what no writer of ours has touched


def test_axes_of_tartanair(tmp_path: Path) -> None:
    """A pose of no rotation looks along the world's x, with y to the right and z down."""
    files = miniatures.tartanair_files(known_scene(frames=1), "e/Easy/P000")
    files["e/Easy/P000/pose_left.txt"] = b"1 2 3 0 0 0 1\n"
    pose = first(TartanAir, on_disk(tmp_path, files)).truth([0])["cameras"]
    assert isinstance(pose, Cameras)
    ahead_right_down = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    seen = transform(pose.world_from_cam[0, 0], ahead_right_down)
    assert torch.allclose(seen, torch.tensor([[2.0, 2, 3], [1, 3, 3], [1, 2, 4]]))


def test_axes_and_numbers_of_kubric(tmp_path: Path) -> None:
    """No rotation looks along -z with y up; distances shrink beside the axis; flow is (row, column), backward reversed.

    With a lens of 35 mm before a sensor of 70 mm, a picture 4 pixels wide has a focal length of 2: the pixel in column
    3 and row 1 of 2 looks along (0.75, 0.25, 1).
    """
    camera = {"focal_length": 35.0, "sensor_width": 70.0}
    still = {"positions": [[0, 0, 7]] * 2, "quaternions": [[1, 0, 0, 0]] * 2}
    codes = np.zeros((2, 4, 2), np.uint16)
    codes[..., 0] = 65535  # rows
    depth = io.BytesIO()
    Image.fromarray(np.full((2, 4), 5.0, np.float32)).save(depth, "TIFF")
    files = {
        "s/metadata.json": json.dumps(
            {"metadata": {"resolution": [4, 2]}, "camera": camera | still, "instances": []}
        ).encode(),
        "s/data_ranges.json": b'{"forward_flow": {"min": -2, "max": 3}, "backward_flow": {"min": -4, "max": 5}}',
    }
    for frame in range(2):
        files[f"s/rgba_{frame:05d}.png"] = encoded(np.zeros((2, 4, 4), np.uint8))
        files[f"s/segmentation_{frame:05d}.png"] = encoded(np.zeros((2, 4), np.uint8))
        files[f"s/depth_{frame:05d}.tiff"] = depth.getvalue()
        files[f"s/forward_flow_{frame:05d}.png"] = miniatures.png16(codes)
        three = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)  # as RGB it is the same
        files[f"s/backward_flow_{frame:05d}.png"] = miniatures.png16(three)
    video = first(Kubric, on_disk(tmp_path, files))
    truth, reverse = video.truth([0, 1]), video.truth([1, 0])
    assert torch.equal(maps(truth, "flow")[1, :, 0, 0], torch.tensor([4.0, -5.0]))
    assert torch.equal(maps(reverse, "flow")[1, :, 0, 0], torch.tensor([-2.0, 3.0]))
    z = maps(truth, "depth")[0, 0, 1, 3]
    assert abs(float(z) - 5 / (0.75**2 + 0.25**2 + 1) ** 0.5) < 1e-6
    assert not maps(truth, "motion").any()
    cameras = truth["cameras"]
    assert isinstance(cameras, Cameras)
    assert torch.equal(cameras.intrinsics[0, 0], pinhole(2, 2, 2, 1))
    ahead_and_down = torch.tensor([[0.0, 0, 1], [0, 1, 0]])
    seen = transform(cameras.world_from_cam[0, 0], ahead_and_down)
    assert torch.equal(seen, torch.tensor([[0.0, 0, 6], [0, -1, 7]]))


def test_axes_of_pytorch3d(tmp_path: Path) -> None:
    """Row vectors, x to the left, y up: with R = I, a point left above is seen left above; T moves the camera back."""
    files = miniatures.dynamic_replica_files({"a": known_scene(frames=1)})
    name = "train/frame_annotations_train.jgz"
    (entry,) = json.loads(gzip.decompress(files[name]))
    entry["viewpoint"] |= {"R": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], "T": [0, 0, 3]}
    entry["viewpoint"] |= {"focal_length": [2, 2], "principal_point": [0.5, 0]}
    files[name] = gzip.compress(json.dumps([entry]).encode())
    cameras = first(DynamicReplica, on_disk(tmp_path, files)).truth([0])["cameras"]
    assert isinstance(cameras, Cameras)
    pose, intrinsics = cameras.world_from_cam[0, 0], cameras.intrinsics[0, 0]
    # (1, 0, 1) R = (0, 1, 1): one up and, with T, four ahead.
    seen = transform(torch.linalg.inv(pose), torch.tensor([1.0, 0, 1]))
    assert torch.allclose(seen, torch.tensor([0.0, -1, 4]), atol=1e-6)
    # 24 x 32 pixels, half the shorter side is 12: f = 24; the principal point 0.5 to the left of the middle is 6 px.
    assert torch.allclose(project(seen, intrinsics), torch.tensor([16.0 - 6, 12 - 24 / 4]), atol=1e-5)


def test_depth_codes_by_hand(tmp_path: Path) -> None:
    """16384 of PointOdyssey is 250.0038 m, 0 and 65535 are nothing; the bits 0x4200 of DynamicReplica are 3 m."""
    files = miniatures.point_odyssey_files(known_scene(frames=1))
    codes = np.full((24, 32), 16384, np.uint16)
    codes[0, 0], codes[0, 1] = 0, 65535
    files["train/ani/depths/depth_00000.png"] = miniatures.png16(codes)
    depth = maps(first(PointOdyssey, on_disk(tmp_path / "odyssey", files)).truth([0]), "depth")[0, 0]
    assert depth[0, :2].isnan().all() and abs(float(depth[5, 5]) - 250.003815) < 1e-4
    files = miniatures.dynamic_replica_files({"a": known_scene(frames=1)})
    files["train/a_left/depths/a_left_0000.png"] = miniatures.png16(np.full((24, 32), 0x4200, np.uint16))
    depth = maps(first(DynamicReplica, on_disk(tmp_path / "replica", files)).truth([0]), "depth")
    assert (depth == 3).all()


def test_what_counts_as_moving() -> None:
    """By the farthest point of a body: it may move by `still`, by going or by turning; the first frame looks ahead."""
    going = poses([(0, 0, 0), (0.001, 0, 0), (0.003, 0, 0)], [(0, 0, 0)] * 3)
    turning = poses([(0, 0, 0)] * 3, [(0, 0, 0), (0.004, 0, 0), (0.004, 0, 0)])
    bodies = torch.stack([going, turning, turning])
    radius = torch.tensor([1.0, 1.0, 0.25], dtype=torch.float64)
    expected = torch.tensor([[False, False, True], [True, True, False], [False, False, False]])
    assert torch.equal(moving(bodies, radius, 0.0015), expected)
    assert not moving(bodies[:, :1], radius, 0.0015).any()
    assert moving(bodies[:0], radius[:0], 0.0015).shape == (0, 3)


def test_what_counts_as_hidden() -> None:
    """Another body at the point's pixel hides it, and so does its own body by more than the tolerance, in 1 / depth."""
    depth_map = torch.tensor([[4.0, 4.0, 2.0, torch.nan]], dtype=torch.float64)
    body_map = torch.tensor([[0, 0, 1, 1]])
    cases = {
        (1.8, 4.0, 0): True,  # its own pixel; the next one, of the other body, does not count
        (2.2, 4.0, 0): False,  # the other body's pixel, whatever its neighbour shows
        (1.8, 4.07, 0): True,  # within 2 %
        (1.8, 4.09, 0): False,
        (1.8, 3.0, 0): True,  # before the surface
        (1.8, -4.0, 0): False,  # behind the camera
        (4.1, 4.0, 1): False,  # outside
        (2.9, 2.0, 1): True,  # beside a hole
        (3.6, 2.0, 1): False,  # in a hole, with nothing known around it
    }
    x, depth, body = (torch.tensor(values) for values in zip(*cases, strict=True))
    xy = torch.stack([x, torch.full_like(x, 0.5)], -1).double()
    seen = unhidden(xy, depth.double(), body, depth_map, body_map, 0.02)
    assert seen.tolist() == list(cases.values())
    slanted = torch.tensor([[1 / 0.5, 1 / 0.4]], dtype=torch.float64)  # half way between the two: 1 / 0.45
    depth = torch.tensor([1 / 0.451, 1 / 0.449], dtype=torch.float64)
    middle = torch.tensor([[1.0, 0.5]] * 2, dtype=torch.float64)
    bodies = torch.zeros(2, dtype=torch.long)
    assert unhidden(middle, depth, bodies, slanted, bodies[None], 0.0).tolist() == [True, False]


def test_records_by_hand() -> None:
    """An example of TensorFlow, byte by byte: `n` holds 1 and 300, `f` holds 1.5 and `b` two texts."""
    feature_n = bytes.fromhex("1a05 0a03 01ac02")
    feature_f = bytes.fromhex("1206 0a04 0000c03f")
    feature_b = bytes.fromhex("0a08 0a03") + b"one" + bytes.fromhex("0a01") + b"2"
    entries = b""
    for name, feature in ((b"n", feature_n), (b"f", feature_f), (b"b", feature_b)):
        entry = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        entries += b"\x0a" + bytes([len(entry)]) + entry
    data = b"\x0a" + bytes([len(entries)]) + entries
    example = Example(data)
    assert example.integers("n").tolist() == [1, 300] and example.integers("n", 1).tolist() == [300]
    assert example.integers("n", 2).tolist() == example.integers("n", 3).tolist() == []
    assert example.floats("f").tolist() == [1.5]
    assert [bytes(item) for item in example.bytes_of("b")] == [b"one", b"2"]
    file = io.BytesIO(miniatures_kubric.record(b"abc") + miniatures_kubric.record(data))
    assert list(record_places(file)) == [(12, 3), (31, len(data))]
    with pytest.raises(ValueError, match=r"cut off"):
        list(record_places(io.BytesIO(file.getvalue()[:-1])))


def test_records_are_counted_or_stated(tmp_path: Path) -> None:
    """`dataset_info.json` says how many examples a file has, so that it need not be opened."""
    files = miniatures_kubric.kubric_record_files()
    splits = [{"name": "train", "shardLengths": ["2", "1"]}, {"name": "validation", "shardLengths": ["5"]}]
    files["dataset_info.json"] = json.dumps({"splits": splits}).encode()
    data = data_set(Kubric, on_disk(tmp_path, files))
    assert (len(data.videos("train")), len(data.videos("held_out"))) == (3, 5)
    with pytest.raises(MediaError, match=r"validation.tfrecord-00000-of-00001 has no record 4"):
        data.videos("held_out")[4]


# ---- what is wrong


@pytest.mark.parametrize("cls", SETS)
def test_another_folder(cls: type[Any], tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    with pytest.raises(MediaError, match=f"does not hold {cls.title}: looked for .*; found something"):
        data_set(cls, Location(str(tmp_path))).videos("train")
    with pytest.raises(MediaError, match=f"the folder of {cls.title} is not named: set root"):
        cls(cls.Config()).videos("train")


def test_pickles_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in CoTracker's export nor in DynamicReplica's trajectories."""
    files = miniatures_kubric.cotracker_files(known_scene(frames=2), "0001")
    files["0001/0001.npy"] = miniatures.malicious_npy()
    with pytest.raises(MediaError, match=r"0001.npy is a pickle of more than numbers"):
        first(Kubric, on_disk(tmp_path / "kubric", files))
    files = miniatures.dynamic_replica_files({"a": known_scene(frames=1)})
    buffer = io.BytesIO()
    torch.save({"traj_2d": print}, buffer)
    files["train/a_left/trajectories/000000.pth"] = buffer.getvalue()
    with pytest.raises(MediaError, match=r"is not a torch file of tensors alone"):
        first(DynamicReplica, on_disk(tmp_path / "replica", files)).truth([0])
    assert "must not be run" not in capsys.readouterr().out


def test_damaged_files(tmp_path: Path) -> None:
    """One sentence with the file's place."""
    scene = known_scene(frames=2)
    files = miniatures.tartanair_files(scene)
    files["office/Easy/P000/depth_left/000001_left_depth.npy"] = b"nothing"
    flight = first(TartanAir, on_disk(tmp_path / "tartanair", files))
    with pytest.raises(MediaError, match=r"000001_left_depth.npy is not a file of one array"):
        flight.truth([1])
    (tmp_path / "tartanair/office/Easy/P000/flow/000000_000001_flow.npy").unlink()
    with pytest.raises(MediaError, match=r"the file .*000000_000001_flow.npy does not exist"):
        flight.flow(0, 1)  # type: ignore[attr-defined]
    short = miniatures.tartanair_files(scene) | {"office/Easy/P000/pose_left.txt": b"0 0 0 0 0 0 1"}
    with pytest.raises(MediaError, match=r"pose_left.txt has numbers of shape .1, 7., not 7 for each of the 2 frames"):
        first(TartanAir, on_disk(tmp_path / "short", short))
    files = miniatures.point_odyssey_files(scene)
    files["train/ani/anno.npz"] = files["train/ani/anno.npz"][:500]
    with pytest.raises(MediaError, match=r"anno.npz is not an archive of arrays"):
        first(PointOdyssey, on_disk(tmp_path / "odyssey", files))
    files = miniatures_kubric.kubric_raw_files(scene, "7")
    files["7/segmentation_00001.png"] = encoded(np.full((24, 32), 3, np.uint8))
    with pytest.raises(MediaError, match=r"frame 1 of .* names instance 3, and there are 2"):
        first(Kubric, on_disk(tmp_path / "kubric", files)).truth([1])
    files["7/rgba_00001.png"] = encoded(np.zeros((8, 32, 3), np.uint8))
    with pytest.raises(MediaError, match=r"picture of frame 1 of .* has 8 x 32 rows and columns, not 24 x 32"):
        first(Kubric, on_disk(tmp_path / "size", files)).read([1])


# ---- the mixture


def mixture(**keys: Any) -> Mixture:
    sets = {"flights": TartanAir, "ani": PointOdyssey, "movi": Kubric}
    sections = {name: ComponentConfig("datasets", name, cls.example()) for name, cls in sets.items()}
    return Mixture(Mixture.Config(**({"sets": sections} | keys)))


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name data sets by their entry points; here the names are the tests' own."""
    classes = {"flights": TartanAir, "tartanair": TartanAir, "ani": PointOdyssey, "point_odyssey": PointOdyssey}
    classes |= {"movi": Kubric, "kubric": Kubric, "film": VideoFiles}
    monkeypatch.setattr("fourd_core.registry.load", lambda kind, name: classes[name])
    # The contract's own recipe knows one component alone, and a mixture names others.
    alone = form._Only.component
    monkeypatch.setattr(form._Only, "component", lambda self, kind, name: classes.get(name) or alone(self, kind, name))


def test_mixture_is_all_of_its_sets() -> None:
    """In order; keys say which set a video is of, and a renamed video still finds its files."""
    videos = mixture().videos("train")
    assert len(videos) == 2 + 1 + 2
    assert list(videos.keys) == [video.key for video in videos]
    assert videos.keys[2] == "ani/train/ani" and videos[-1].key == videos.keys[-1] == "movi/1"
    assert [video.key for video in videos[1:3]] == list(videos.keys[1:3])
    assert isinstance(videos[2], AnnotatedVideo) and "flow" not in videos[2].truth([0, 1])
    with pytest.raises(IndexError):
        videos[5]


def test_mixture_draws_by_weight() -> None:
    """3 : 1 between two sets, however many videos they have; none of the one whose weight is 0; the same every time."""
    data = mixture(weights={"flights": 3.0, "movi": 0.0})
    generator = torch.Generator().manual_seed(0)
    drawn = [data.videos("train")[data.draw("train", generator)].key for _ in range(400)]
    counts = {name: sum(key.startswith(f"{name}/") for key in drawn) for name in ("flights", "ani", "movi")}
    assert counts["movi"] == 0 and abs(counts["flights"] - 300) < 30
    inside = drawn.count("flights/ocean/Easy/P000") / counts["flights"]
    assert abs(inside - 0.5) < 0.1
    generator = torch.Generator().manual_seed(0)
    assert [data.videos("train")[data.draw("train", generator)].key for _ in range(20)] == drawn[:20]


def test_mixture_finds_its_sets_below_one_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`root/<name>`; a set that is not there is left out with a note; none at all is an error."""
    on_disk(tmp_path / "flights", miniatures.tartanair_files(known_scene(frames=2)))
    sections = {name: ComponentConfig("datasets", name, TartanAir.Config(held_out=0)) for name in ("flights",)}
    sections["ani"] = ComponentConfig("datasets", "ani", PointOdyssey.Config())
    keys = {"root": Location(str(tmp_path)), "sets": sections}
    assert list(mixture(**keys).videos("train").keys) == ["flights/office/Easy/P000"]
    assert "note: the mixture goes without ani (" in capsys.readouterr().err
    with pytest.raises(MediaError, match=r"none of the mixture's data sets is there: ani"):
        mixture(**(keys | {"sets": {"ani": sections["ani"]}})).videos("train")
    (tmp_path / "ani").mkdir()
    with pytest.raises(MediaError, match=r"does not hold PointOdyssey"):  # its folder is there and holds something else
        mixture(**keys).videos("train")
    with pytest.raises(MediaError, match=r"the folder of PointOdyssey is not named: set root"):
        mixture(sets={"ani": sections["ani"]}).videos("train")


def test_mixture_with_videos_of_which_nothing_is_known() -> None:
    """Plain videos go in too, under keys of their own, and say nothing of the truth."""
    film = ComponentConfig("datasets", "film", VideoFiles.example())
    (video,) = mixture(sets={"film": film}).videos("all")
    assert not isinstance(video, AnnotatedVideo) and video.frame_count == 10
    assert torch.equal(video.read([7]), VideoFiles(VideoFiles.example()).videos("all")[0].read([7]))
    assert mixture(sets={"film": film}).videos("all").keys == [video.key] and video.key.startswith("film/")


def test_mixture_refuses_weights_that_say_nothing() -> None:
    with pytest.raises(ValueError, match='weights name "fly", and the sets are flights, ani, movi'):
        mixture(weights={"fly": 1.0})
    with pytest.raises(ValueError, match=r"all weights are 0"):
        mixture(weights={"flights": 0.0, "ani": 0.0, "movi": 0.0})
    with pytest.raises(ValueError, match=r"at least 0, not ani = -1"):
        mixture(weights={"ani": -1.0})
    with pytest.raises(ValueError, match=r"no data set is named"):
        mixture(sets={})


def test_tracks_of_a_mixture_keep_their_kind() -> None:
    """A renamed scene follows the same points: which ones depends on its place, not on its key."""
    own = Kubric(Kubric.example()).videos("train")[0].truth([0])["tracks"]
    mixed = mixture().videos("train")[3]
    assert isinstance(mixed, AnnotatedVideo)
    tracks = mixed.truth([0])["tracks"]
    assert isinstance(tracks, Tracks) and isinstance(own, Tracks) and torch.equal(own.xy, tracks.xy)
    assert attrs.evolve(tracks).unit == "m"
