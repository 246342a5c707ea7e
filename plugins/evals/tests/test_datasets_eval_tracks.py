"""Readers of TAP-Vid and TAPVid-3D on generated miniatures, and pickles that would run something."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fourd_evals import miniatures_tapvid as miniatures
from fourd_evals.datasets_tapvid import TAPVid
from fourd_evals.datasets_tapvid3d import TAPVid3D
from fourd_evals.miniatures import in_memory
from fourd_evals.plain_pickle import read_plain_pickle
from torch import Tensor

from fourd_core.data import Cameras, Tracks
from fourd_core.errors import MediaError
from fourd_core.recipe import Location


def same(found: Tensor | None, wanted: object, tolerance: float = 1e-6) -> None:
    assert found is not None
    torch.testing.assert_close(found, torch.as_tensor(wanted).to(found), rtol=1e-6, atol=tolerance, equal_nan=True)


def tracks_of(video: Any, frames: list[int]) -> Tracks:
    tracks = video.truth(frames)["tracks"]
    assert isinstance(tracks, Tracks)
    return tracks


def tapvid(name: str, **files: Any) -> TAPVid:
    data = {f"{file}.pkl": pickle.dumps(content) for file, content in files.items()}
    return TAPVid(TAPVid.Config(root=Location(in_memory(name, data))))


def test_tapvid_positions_visibility_and_frames() -> None:
    data = TAPVid(TAPVid.Config(root=Location(miniatures.tapvid_miniature())))
    assert list(data.videos("held_out").keys) == ["tapvid_davis/goat", "tapvid_davis/dog"]
    assert len(data.videos("train")) == 0
    video = data.videos("held_out")[1]
    assert (video.frame_count, video.size, video.known) == (4, (24, 32), {"tracks"})
    same(video.read([2])[0], torch.from_numpy(miniatures.picture(912)).permute(2, 0, 1))
    tracks = tracks_of(video, [3, 0, 1])
    # Fractions of the raster: 1.0 is the lower edge, 24, not the last pixel's centre.
    same(tracks.xy[0, :, 0], [[12.0, 6], [0, 6], [4, 6]])
    same(tracks.xy[0, :, 1], [[24.0, 24]] * 3)
    same(tracks.visibility[0], [[1.0, 0], [1, 1], [1, 1]])
    assert tracks.live.all() and tracks.live.dtype == torch.bool
    assert tracks.depth is None
    again = pickle.loads(pickle.dumps(video))
    same(tracks_of(again, [1]).xy, tracks.xy[:, 2:])


def test_tapvid_shards_of_jpegs_and_lists() -> None:
    jpegs = [miniatures.tapvid_item(920, jpeg=True), miniatures.tapvid_item(930, frames=2, jpeg=True)]
    jpegs[1]["video"] = np.array(jpegs[1]["video"], object)
    data = tapvid("tapvid-shards", **{"0001_of_0002": [miniatures.tapvid_item(940)], "0000_of_0002": jpegs})
    videos = data.videos("all")
    assert list(videos.keys) == ["0000_of_0002/00000", "0000_of_0002/00001", "0001_of_0002/00000"]
    assert [video.frame_count for video in videos] == [4, 2, 4]
    for video, seed in zip(videos, (920, 930, 940), strict=True):
        wanted = torch.from_numpy(miniatures.picture(seed + 1)).permute(2, 0, 1).float()
        assert (video.read([1])[0].float() - wanted).abs().mean() < 8
    same(tracks_of(videos[1], [0, 1]).visibility[0], [[1.0, 1], [1, 0]])


def test_tapvid_files_that_are_something_else() -> None:
    with pytest.raises(MediaError, match=r"does not hold TAP-Vid: looked for tapvid_davis\.pkl"):
        TAPVid(TAPVid.Config(root=Location(miniatures.tapvid3d_miniature()))).videos("all")
    with pytest.raises(MediaError, match=r"a\.pkl does not hold videos of TAP-Vid: dicts of video, points, occluded"):
        tapvid("tapvid-other", a={"goat": {"video": np.zeros(3)}}).videos("all")
    item = miniatures.tapvid_item(0)
    with pytest.raises(MediaError, match=r"a/goat has points \(2, 3, 2\) and occluded \(2, 4\) for 4 frames"):
        tapvid("tapvid-short", a={"goat": {**item, "points": item["points"][:, :3]}}).videos("all")[0]
    broken = tapvid("tapvid-broken", a={"goat": {**item, "video": [b"no jpeg"] * 4}})
    with pytest.raises(MediaError, match="frame 0 of a/goat cannot be decoded"):
        broken.videos("all")[0]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles_of_every_age(protocol: int) -> None:
    rng = np.random.default_rng(0)
    content = {
        "video": rng.integers(0, 256, (2, 3, 4, 3), np.uint8),
        "points": np.asfortranarray(rng.normal(size=(3, 2, 2))),
        "big": rng.normal(size=5).astype(">f4"),
        "rolled": rng.normal(size=(2, 3, 4)).transpose(1, 0, 2),
        "occluded": rng.random((3, 2)) > 0.5,
        "jpegs": np.array([b"\xff\x00", b"\xd8"], object),
        "nested": [("text", 1, 2.5, None, b"\xff", np.arange(3))],
    }
    data = pickle.dumps(content, protocol=protocol)
    # Arrays that were written by numpy 1 name other modules.
    for written in (data, data.replace(b"numpy._core", b"numpy.core") if protocol == 2 else data):
        found = read_plain_pickle(io.BytesIO(written), "it")
        for name in ("video", "points", "big", "rolled", "occluded", "jpegs"):
            assert found[name].dtype == content[name].dtype  # type: ignore[attr-defined]
            np.testing.assert_array_equal(found[name], content[name])  # type: ignore[arg-type]
        *plain, array = found["nested"][0]
        assert plain == ["text", 1, 2.5, None, b"\xff"]
        np.testing.assert_array_equal(array, [0, 1, 2])


class Evil:
    """Runs a program when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def test_pickles_that_run_something_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hidden_in_array = np.array([Evil(os.mkdir, str(trace))], object)
    evil = [
        Evil(os.mkdir, str(trace)),
        Evil(eval, "1"),
        Evil(getattr, dict, "get"),
        Evil(np.load, "x"),
        hidden_in_array,
    ]
    for content in evil:
        with pytest.raises(MediaError, match=r"it is a pickle of more than numbers, texts and arrays \(.*not opened"):
            read_plain_pickle(io.BytesIO(pickle.dumps({"video": content})), "it")
    with pytest.raises(MediaError, match=r"a\.pkl is a pickle of more than .*mkdir"):
        tapvid("tapvid-evil", a=Evil(os.mkdir, str(trace))).videos("all")
    assert not trace.exists()


def test_pickles_that_lie_about_memory_or_are_cut_off() -> None:
    array = pickle.dumps(np.arange(4, dtype=np.int64), protocol=2)
    objects = array.replace(b"i8", b"O8")
    assert objects != array
    with pytest.raises(MediaError, match="an array of addresses"):
        read_plain_pickle(io.BytesIO(objects), "it")
    records = pickle.dumps(np.zeros(2, [("a", "u1")]), protocol=2)
    with pytest.raises(MediaError, match="it is a pickle of more than"):
        read_plain_pickle(io.BytesIO(records), "it")
    with pytest.raises(MediaError, match="it is not a pickle, or is damaged"):
        read_plain_pickle(io.BytesIO(array.replace(b"K\x04\x85", b"K\x05\x85")), "it")
    for data in (array[:-20], b"", b"no pickle"):
        with pytest.raises(MediaError, match="damaged"):
            read_plain_pickle(io.BytesIO(data), "it")


def test_tapvid3d_projection_depth_and_queries() -> None:
    data = TAPVid3D(TAPVid3D.Config(root=Location(miniatures.tapvid3d_miniature())))
    assert list(data.videos("held_out").keys) == ["adt/room", "pstudio/ball_1"]
    video: Any = data.videos("held_out")[0]
    assert (video.frame_count, video.size, video.known) == (3, (24, 32), {"tracks", "cameras"})
    same(video.queries, [[0.0, 26, 12], [0, 0, 0], [1, 16, 17.25]])
    tracks = tracks_of(video, [0, 1, 2])
    # (1, 0, z) with fx = 20 and cx = 16: 16 + 20 / z.
    same(tracks.xy[0, :, 0], [[26.0, 12], [16 + 20 / 3, 12], [21, 12]])
    assert torch.isnan(tracks.xy[0, :, 1]).all(), "a point behind the camera has a place in the picture"
    same(tracks.xy[0, 1:, 2], [[16.0, 17.25]] * 2)
    same(tracks.depth[0, :, :2] if tracks.depth is not None else None, [[2.0, -1], [3, -1], [4, -1]])
    same(tracks.visibility[0], [[1.0, 0, 0], [1, 0, 1], [0, 0, 1]])
    assert tracks.live[0].tolist() == [[True, True, False], [True, True, True], [True, True, True]]
    same(tracks.xyz_camera[0, 2, 0] if tracks.xyz_camera is not None else None, [1.0, 0, 4])
    # The camera stands at (n, 0, 3), looks along -x and has +z at its right.
    same(tracks.xyz[0, :, 0] if tracks.xyz is not None else None, [[-2.0, 0, 4], [1 - 3, 0, 4], [2 - 4, 0, 4]])
    cameras = video.truth([2])["cameras"]
    assert isinstance(cameras, Cameras)
    same(cameras.world_from_cam[0, 0, :3, 3], [2.0, 0, 3])
    same(cameras.intrinsics[0, 0], [[20.0, 0, 16], [0, 21, 12], [0, 0, 1]])
    for query, frame, point in ((0, 0, 0), (2, 1, 2)):
        same(tracks.xy[0, frame, point], video.queries[query, 1:])


def test_tapvid3d_without_cameras_and_chosen_sources() -> None:
    root = Location(miniatures.tapvid3d_miniature())
    video = TAPVid3D(TAPVid3D.Config(root=root, sources=("pstudio",))).videos("all")[0]
    assert (video.key, video.known) == ("pstudio/ball_1", {"tracks"})
    assert set(video.truth([0])) == {"tracks"}
    assert tracks_of(video, [0]).xyz is None
    assert video.intrinsics is not None
    same(video.intrinsics[0], [20, 0, 16])
    wanted = torch.from_numpy(miniatures.picture(961)).permute(2, 0, 1).float()
    assert (video.read([1])[0].float() - wanted).abs().mean() < 8
    with pytest.raises(MediaError, match=r"looked for drivetrack/<name>\.npz; found adt, pstudio"):
        TAPVid3D(TAPVid3D.Config(root=root, sources=("drivetrack",))).videos("all")
    with pytest.raises(ValueError, match="must be in"):
        TAPVid3D.Config(sources=("kinetics",))


def test_tapvid3d_refuses_objects_and_other_files() -> None:
    arrays = miniatures.tapvid3d_arrays(970)
    less = {name: values for name, values in arrays.items() if name != "visibility"}
    objects = {**arrays, "images_jpeg_bytes": np.array([b"a", b"b", b"c"], object)}
    root = Location(
        in_memory(
            "tapvid3d-bad", {"adt/a.npz": miniatures.npz(less), "adt/b.npz": miniatures.npz(objects), "adt/c.npz": b"?"}
        )
    )
    videos = TAPVid3D(TAPVid3D.Config(root=root)).videos("all")
    with pytest.raises(MediaError, match=r"adt/a\.npz is not a file of TAPVid-3D: it has no visibility"):
        videos[0]
    for number, name in ((1, "b"), (2, "c")):
        with pytest.raises(MediaError, match=rf"adt/{name}\.npz is not a file of plain arrays"):
            videos[number]
