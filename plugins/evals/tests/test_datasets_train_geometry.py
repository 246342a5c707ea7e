"""Readers of the training data sets: what a known scene, written as each of them writes, is read back as."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from fourd_evals.annotated import AnnotatedSet
from fourd_evals.datasets_dynamic_replica import DynamicReplica
from fourd_evals.datasets_kubric import Kubric
from fourd_evals.datasets_point_odyssey import PointOdyssey
from fourd_evals.datasets_tartanair import TartanAir
from fourd_evals.miniatures import in_memory
from fourd_evals.miniatures_kubric import cotracker_files, kubric_raw_files, kubric_record_files
from fourd_evals.miniatures_training import dynamic_replica_files, point_odyssey_files, points_of, tartanair_files
from fourd_evals.scene import Scene, known_scene
from torch import Tensor

from fourd_core.data import Cameras, Maps, Predictions, Tracks
from fourd_core.geometry import inverse, point_maps, project, transform, unproject
from fourd_core.interfaces import AnnotatedVideo
from fourd_core.recipe import Location

FORWARDS, BACKWARDS = [0, 1, 2, 3], [3, 2, 1, 0]
OFF_CENTRE = known_scene(middle=(15.0, 13.0))
"""For data sets that state the principal point."""


def opened(cls: type[AnnotatedSet], name: str, files: dict[str, bytes]) -> AnnotatedVideo:
    """The first video of a folder."""
    return first_of(cls, Location(in_memory(f"geometry-{name}", files)))


def first_of(cls: type[AnnotatedSet], root: Location) -> AnnotatedVideo:
    video: AnnotatedVideo = cls(cls.Config(root=root, held_out=0)).videos("all")[0]
    return video


def on_disk(folder: Path, files: dict[str, bytes]) -> Location:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return Location(str(folder))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[AnnotatedVideo, Scene]]:
    """Each data set's reading of a scene, and the scene."""
    scene = known_scene()
    exported = on_disk(tmp_path_factory.mktemp("cotracker"), cotracker_files(scene, "0007"))
    return {
        "tartanair": (opened(TartanAir, "tartanair", tartanair_files(scene)), scene),
        "point_odyssey": (opened(PointOdyssey, "odyssey", point_odyssey_files(OFF_CENTRE)), OFF_CENTRE),
        "dynamic_replica": (opened(DynamicReplica, "replica", dynamic_replica_files({"a": OFF_CENTRE})), OFF_CENTRE),
        "kubric": (opened(Kubric, "raw", kubric_raw_files(scene, "7")), scene),
        "kubric_records": (opened(Kubric, "records", kubric_record_files()), scene),
        "kubric_cotracker": (first_of(Kubric, exported), scene),
    }


KNOWN = {
    "tartanair": {"depth", "flow", "cameras"},
    "point_odyssey": {"depth", "cameras", "tracks"},
    "dynamic_replica": {"depth", "flow", "cameras", "tracks"},
    "kubric": {"depth", "flow", "motion", "cameras", "tracks"},
    "kubric_records": {"depth", "flow", "motion", "cameras", "tracks"},
    "kubric_cotracker": {"tracks"},
}
DEPTH_STEP = {"tartanair": 1e-6, "point_odyssey": 8e-3, "dynamic_replica": 4e-3, "kubric": 1e-6, "kubric_records": 4e-4}
"""Metres by which a stored depth may differ: half a step of 16 bits over 1000 m, of a float16 near 8 m, none, ..."""
FLOW_STEP = {"tartanair": 1e-5, "dynamic_replica": 4e-3, "kubric": 2e-4, "kubric_records": 2e-4}
"""Pixels, likewise."""


def known_in(name: str) -> list[str]:
    return [data for data, known in KNOWN.items() if name in known]


def maps(truth: Predictions, name: str) -> Tensor:
    prediction = truth[name]
    assert isinstance(prediction, Maps)
    return prediction.values[0]


def cameras_of(truth: Predictions) -> Cameras:
    assert isinstance(truth["cameras"], Cameras)
    return truth["cameras"]


def tracks_of(truth: Predictions) -> Tracks:
    assert isinstance(truth["tracks"], Tracks)
    return truth["tracks"]


@pytest.mark.parametrize("data", KNOWN)
def test_pictures_and_what_is_known(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """Frames in the scene's colours, JPEG ones nearly; truth has exactly what is known, of the frames asked for."""
    video, scene = videos[data]
    assert video.known == KNOWN[data] and video.size == scene.size and video.frame_count == 4
    frames = video.read([2, 0])
    for frame, index in zip(frames, (2, 0), strict=True):
        difference = (frame.double() - scene.picture(index)).abs()
        assert difference.mean() < (3 if data == "point_odyssey" else 1e-9)
    truth = video.truth([2, 0])
    assert set(truth) == KNOWN[data]
    for prediction in truth.values():
        assert all(tensor.shape[:2] == (1, 2) for tensor in prediction.tensors().values())


@pytest.mark.parametrize("data", known_in("depth"))
def test_depth_is_z(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """z in metres, whatever is stored; the first row is sky or a hole where a data set has such."""
    video, scene = videos[data]
    depth = maps(video.truth([1, 3]), "depth")
    unknown = 0 if data.startswith("kubric") else 1
    assert depth[:, :, :unknown].isnan().all()
    for found, index in zip(depth[:, 0], (1, 3), strict=True):
        wrong = found[unknown:].double() - scene.traced[index].depth[unknown:]
        assert wrong.abs().max() < DEPTH_STEP[data]


@pytest.mark.parametrize("data", known_in("cameras"))
def test_cameras(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """Poses in OpenCV's axes in the data set's own world, the pinhole with pixel centres at +0.5."""
    video, scene = videos[data]
    cameras = cameras_of(video.truth([3, 0, 1]))
    assert (cameras.world_from_cam[0] - scene.camera[[3, 0, 1]]).abs().max() < 1e-5
    assert (cameras.intrinsics[0] - scene.intrinsics).abs().max() < 1e-5


@pytest.mark.parametrize("data", known_in("cameras"))
def test_the_wall_is_one_plane(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """Depth, pinhole and poses agree: the wall's pixels of every frame lie in the wall, as its pose says by hand."""
    video, scene = videos[data]
    truth = video.truth(FORWARDS)
    cameras = cameras_of(truth)
    world = point_maps(maps(truth, "depth")[None, :, 0], cameras.intrinsics, cameras.world_from_cam)[0]
    wall = torch.stack([traced.body == 0 for traced in scene.traced]) & world.isfinite().all(-1)
    # The wall goes through (0, 0, 6) and is turned by 0.1 about y: its normal is (sin 0.1, 0, cos 0.1).
    normal = torch.tensor([0.0998334, 0.0, 0.9950042])
    beside = (world[wall] - torch.tensor([0.0, 0.0, 6.0])) @ normal
    assert wall.sum() > 1000 and beside.abs().max() < 1.5 * DEPTH_STEP[data] + 1e-5


@pytest.mark.parametrize("data", known_in("flow"))
@pytest.mark.parametrize("order", [FORWARDS, BACKWARDS], ids=["forwards", "backwards"])
def test_flow_leads_to_the_frame_before(
    videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str, order: list[int]
) -> None:
    """Pixels (x, y) to the frame before in the order asked for: the projected motion of what each pixel shows."""
    video, scene = videos[data]
    flow = maps(video.truth(order), "flow")
    assert flow[0].isnan().all()
    if data == "tartanair" and order == FORWARDS:
        assert flow.isnan().all()  # forward flow alone is stored
        return
    masked = 0 if data.startswith("kubric") else 1
    assert flow[1:, :, :, :masked].isnan().all()
    for place in (1, 2, 3):
        expected = scene.flow(order[place], order[place - 1])[:, :, masked:]
        assert (flow[place][:, :, masked:] - expected).abs().max() < FLOW_STEP[data]
        assert expected.abs().max() > 1  # and they do move


@pytest.mark.parametrize("data", known_in("flow"))
def test_flow_is_known_between_neighbours_only(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """Of frames that are not neighbours, or of one frame twice, nothing is known."""
    video, _ = videos[data]
    flow = maps(video.truth([0, 2, 2, 1]), "flow")
    assert flow[:3].isnan().all() and flow[3].isfinite().any()


@pytest.mark.parametrize("data", known_in("motion"))
def test_motion(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """1 on the body that moves, 0 on the wall and on the body that rests, though the camera moves."""
    video, scene = videos[data]
    motion = maps(video.truth(FORWARDS), "motion")[:, 0]
    for index in FORWARDS:
        assert torch.equal(motion[index], (scene.traced[index].body == 1).float())
        assert torch.equal(motion[index].bool(), scene.moving(index))
        assert (scene.traced[index].body == 2).any()


@pytest.mark.parametrize("data", known_in("tracks"))
def test_tracks_reproject(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """Pixels, depth, camera and world positions are of one point."""
    video, _ = videos[data]
    truth = video.truth(FORWARDS)
    tracks = tracks_of(truth)
    assert tracks.live.any() and not bool(tracks.visibility[~tracks.live].any())
    assert all(tensor.isfinite().all() for tensor in tracks.tensors().values())
    if data == "kubric_cotracker":
        assert tracks.depth is None
        return
    assert tracks.depth is not None and tracks.xyz is not None and tracks.xyz_camera is not None
    cameras, live = cameras_of(truth), tracks.live
    seen = transform(inverse(cameras.world_from_cam)[:, :, None], tracks.xyz)
    assert (seen - tracks.xyz_camera)[live].abs().max() < 1e-4
    assert (tracks.xyz_camera[..., 2] - tracks.depth)[live].abs().max() < 1e-6
    assert (project(seen, cameras.intrinsics[:, :, None]) - tracks.xy)[live].abs().max() < 1e-3


@pytest.mark.parametrize("data", ["point_odyssey", "dynamic_replica", "kubric_cotracker"])
def test_stored_tracks(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """The scene's points, seen where nothing is before them; PointOdyssey's first two are unknown in the last frame."""
    video, scene = videos[data]
    point, body = points_of(scene)
    order = [3, 1]
    tracks = tracks_of(video.truth(order))
    lost = torch.zeros(2, len(body), dtype=torch.bool)
    lost[0, :2] = data == "point_odyssey"
    assert torch.equal(tracks.live[0], ~lost)
    for place, index in enumerate(order):
        known = ~lost[place]
        xy, seen = scene.place(point, body, index)
        visible = scene.unhidden(point, body, index)
        assert 0 < visible.sum() < len(visible)
        assert torch.equal(tracks.visibility[0, place][known], visible.float()[known])
        assert (tracks.xy[0, place] - xy)[known].abs().max() < 1e-3
        if tracks.depth is not None:
            assert (tracks.depth[0, place] - seen[:, 2])[known].abs().max() < 1e-5


@pytest.mark.parametrize("data", ["kubric", "kubric_records"])
def test_derived_tracks(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """Points of pixels go with their bodies, as the scene's own do; hidden where another body is before them."""
    video, scene = videos[data]
    tracks = tracks_of(video.truth(FORWARDS))
    per_frame = 256
    assert tracks.xy.shape == (1, 4, 4 * per_frame, 2) and tracks.xyz is not None
    agreed: list[Tensor] = []
    for source in FORWARDS:
        mine = slice(source * per_frame, (source + 1) * per_frame)
        at_source = tracks.xy[0, source, mine].double()
        assert (at_source - at_source.floor() - 0.5).abs().max() < 1e-3  # centres of pixels
        assert bool(tracks.visibility[0, source, mine].all())
        shown = scene.trace(source, at_source.floor() + 0.5)
        for index in FORWARDS:
            xy, seen = scene.place(shown.point, shown.body, index)
            assert (tracks.xy[0, index, mine] - xy).abs().max() < 0.01
            visible = scene.unhidden(shown.point, shown.body, index)
            agreed.append(tracks.visibility[0, index, mine].bool() == visible)
            assert (tracks.xyz[0, index, mine] - transform(scene.camera[index], seen)).abs().max() < 0.005
    # What is decided by a pixel's own body is wrong within half a pixel of an edge, and nowhere else.
    assert torch.cat(agreed).float().mean() > 0.97
    hidden = (tracks.visibility[0] == 0) & ((tracks.xy[0] > 1) & (tracks.xy[0] < torch.tensor([31.0, 23.0]))).all(-1)
    assert hidden.sum() > 20  # some are within the frame and behind another body


@pytest.mark.parametrize("data", known_in("tracks"))
def test_the_same_points_whatever_is_asked_for(videos: dict[str, tuple[AnnotatedVideo, Scene]], data: str) -> None:
    """A long video is asked for in pieces, and a point must be the same one in all of them."""
    video, _ = videos[data]
    whole, part = tracks_of(video.truth(FORWARDS)), tracks_of(video.truth([2, 1, 2]))
    for name, values in part.tensors().items():
        assert torch.equal(values[0], whole.tensors()[name][0][[2, 1, 2]])


def test_depth_of_tracks_is_that_of_the_map(videos: dict[str, tuple[AnnotatedVideo, Scene]]) -> None:
    """A point of a pixel unprojects from the depth map by hand."""
    video, _ = videos["kubric"]
    truth = video.truth([2])
    tracks, depth, intrinsics = tracks_of(truth), maps(truth, "depth")[0, 0], cameras_of(truth).intrinsics[0, 0]
    own = slice(2 * 256, 3 * 256)  # the points that this frame names
    xy = tracks.xy[0, 0, own]
    column, row = xy.long().unbind(-1)
    assert tracks.depth is not None and tracks.xyz_camera is not None
    assert (depth[row, column] - tracks.depth[0, 0, own]).abs().max() < 1e-5
    assert (unproject(xy, tracks.depth[0, 0, own], intrinsics) - tracks.xyz_camera[0, 0, own]).abs().max() < 1e-4


def test_image_bounds_of_pytorch3d() -> None:
    """The other format of its intrinsics is relative to each side, not to the shorter one."""
    files = dynamic_replica_files({"a": OFF_CENTRE}, intrinsics_format="ndc_norm_image_bounds")
    cameras = cameras_of(opened(DynamicReplica, "bounds", files).truth([0]))
    assert (cameras.intrinsics[0, 0] - OFF_CENTRE.intrinsics).abs().max() < 1e-5


def test_point_odyssey_of_version_one() -> None:
    """`visibilities` has 1 for seen, 0 for hidden, 2 for not valid; a compressed archive is read as one that is not."""
    new, old = (
        tracks_of(
            opened(PointOdyssey, f"old-{old}", point_odyssey_files(OFF_CENTRE, compressed=old, old=old)).truth([3])
        )
        for old in (False, True)
    )
    assert torch.equal(new.live, old.live) and torch.equal(new.visibility, old.visibility)
    assert int((~new.live).sum()) == 2 and torch.equal(new.xy, old.xy)


def test_too_far_is_unknown() -> None:
    """`max_depth` cuts off what is farther, in the depth map and among the points that are followed."""
    root = Location(in_memory("geometry-near", kubric_raw_files(known_scene(), "7")))
    config = Kubric.Config(root=root, held_out=0)
    near = Kubric(attrs.evolve(config, max_depth=5.0)).videos("all")[0].truth([0])
    everything = Kubric(config).videos("all")[0].truth([0])
    far = maps(everything, "depth") >= 5
    assert 0 < far.float().mean() < 1
    assert torch.equal(maps(near, "depth").isnan(), far)
    depth = tracks_of(near).depth
    assert depth is not None and depth[..., :256].max() < 5  # the points that the frame itself names
