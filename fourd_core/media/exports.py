"""A video's predictions in the file formats of other programs, read from the arrays a chunk at a time.

Arrays are found by their attribute `kind`: "depth", "flow", "world_from_cam", "intrinsics". Maps may have another size
than the video, whose whole frame they then show; cameras and flow are in the video's pixels all the same, and are
converted here to the pixels of the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import attrs
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fourd_core.errors import RecipeError, RunError
from fourd_core.files import disk_errors, write_json
from fourd_core.geometry import pixel_centres
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.clouds import point_cloud, thinning
from fourd_core.media.formats.colmap import write_colmap
from fourd_core.media.formats.depth import KITTI, write_depth_png
from fourd_core.media.formats.flow import write_flo, write_kitti_flow
from fourd_core.media.formats.nerfstudio import write_transforms
from fourd_core.media.formats.points import PlyWriter, PointCloud, write_ply
from fourd_core.media.formats.tum import write_tum
from fourd_core.media.writers import write_png
from fourd_core.progress import track

ExportFormat = Literal["flo", "kitti_flow", "depth_png", "ply", "ply_fused", "colmap", "nerfstudio", "tum"]

COLMAP_POINTS = 100_000
"""About as many points as COLMAP itself finds: they only start the programs that read its models."""
_WITH_IMAGES = ("colmap", "nerfstudio")
_CALLED = {"depth": "depth", "flow": "flow", "world_from_cam": "camera poses", "intrinsics": "intrinsics"}


def check_formats(kinds: Collection[str], formats: Sequence[ExportFormat]) -> None:
    """Refuse formats that the predictions do not suffice for; nothing is written.

    Args:
        kinds: of the arrays that a run gives, one for each array (repeats mean several of a kind).
        formats: that the user asks for.
    Raises:
        RecipeError: something is missing, or a scene would have two depths or cameras; names all that is wrong.
    """
    found = Counter(kinds)
    mistakes = []
    for name in dict.fromkeys(formats):
        missing = [_CALLED[kind] for kind in _EXPORTS[name].needs if not found[kind]]
        several = [_CALLED[kind] for kind in _EXPORTS[name].needs if found[kind] > 1 and not _EXPORTS[name].each]
        if missing:
            mistakes.append(f'the export "{name}" needs {" and ".join(missing)}, which no head of the recipe predicts')
        if several:
            mistakes.append(f'the export "{name}" needs one head for {" and ".join(several)}; the recipe has several')
    if mistakes:
        raise RecipeError("\n".join(mistakes))


def export_video(
    store: ArrayStore,
    video: Video,
    folder: Path,
    name: str,
    formats: Sequence[ExportFormat],
    *,
    depth_scale: float = KITTI,
    fused_points: int = 10_000_000,
) -> None:
    """Write a video's predictions into `folder / name`, a scene that other programs open as it is.

    flo         `flo/<head>/<frame>_to_<frame before>.flo`, frame numbers of six digits
    kitti_flow  the same as `kitti_flow/<head>/....png`
    depth_png   `depth_png/<head>/<frame>.png` and `scale.json`, which says what one step is
    ply         `ply/<frame>.ply`, a point for every pixel with a depth, in the world
    ply_fused   `points.ply`, all frames' points in one file, evenly thinned out
    colmap      `sparse/0/*.txt` and `images/<frame>.png`; with about 100,000 points where one head predicts depth
    nerfstudio  `transforms.json` and the same images
    tum         `trajectory.txt`

    Args:
        video: that the arrays were predicted from.
        depth_scale: steps per unit of depth in the depth PNGs.
        fused_points: at most about as many points in `points.ply`.
    Raises:
        RecipeError: see `check_formats`.
        RunError: the arrays are another video's; the disk is full.
        MediaError: a frame cannot be decoded.
    """
    check_formats([kind for kind in _CALLED for _ in store.of_kind(kind)], formats)
    if store.done > video.frame_count:
        raise RunError(f"{store.folder} holds {store.done} frames, and {video.name} has only {video.frame_count}")
    scene = _Scene(store, video, folder / name, depth_scale, fused_points)
    if set(formats) & set(_WITH_IMAGES):
        _images(scene)
    for export in dict.fromkeys(formats):
        _EXPORTS[export].write(scene)


@attrs.frozen(eq=False)
class _Scene:
    """One video's arrays and frames, and where its files go."""

    store: ArrayStore
    video: Video
    folder: Path
    depth_scale: float
    fused_points: int

    def names(self, kind: str) -> list[str]:
        return self.store.of_kind(kind)

    def subfolder(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def matrices(self, kind: str) -> Float64[Tensor, "t k k"]:
        """Poses or intrinsics as a whole: a few numbers a frame."""
        return torch.from_numpy(self.store[self.names(kind)[0]][: self.store.done]).double()

    def rows(self, name: str) -> Iterator[Float[Tensor, "c h w"]]:
        """Maps frame by frame, decompressed a chunk at a time."""
        array, done = self.store[name], self.store.done
        for start in range(0, done, array.chunks[0]):
            yield from torch.from_numpy(array[start : min(start + array.chunks[0], done)]).float()

    def file_paths(self) -> list[str]:
        return [f"images/{index:06d}.png" for index in range(self.store.done)]

    def clouds(self, label: str, limit: int | None = None) -> Iterator[PointCloud]:
        """The points of each frame; of all frames together not many more than `limit`, on an even grid of pixels."""
        (name,) = self.names("depth")
        height, width = self.store[name].shape[-2:]
        poses, pinholes = self.matrices("world_from_cam"), self.matrices("intrinsics")
        step = 1 if limit is None else thinning(self.store.done * height * width, limit)
        xy = pixel_centres(self.video.size, (height, width))
        for index, depth in enumerate(track(self.rows(name), label, self.store.done)):
            rgb = self.video.read([index])[0]
            yield point_cloud(depth[0], xy, rgb, pinholes[index], poses[index], step)


def _images(scene: _Scene) -> None:
    scene.subfolder("images")
    for index, name in enumerate(track(scene.file_paths(), "export images", scene.store.done)):
        write_png(scene.folder / name, scene.video.read([index])[0])


def _flow(scene: _Scene, export: str, suffix: str, write: Callable[[Path, Float[Tensor, "2 h w"]], None]) -> None:
    for name in scene.names("flow"):
        folder = scene.subfolder(export, name)
        height, width = scene.store[name].shape[-2:]
        per_pixel = torch.tensor([width / scene.video.size[1], height / scene.video.size[0]]).view(2, 1, 1)
        for index, flow in enumerate(track(scene.rows(name), f"export {export} {name}", scene.store.done)):
            if index:  # no frame comes before the first
                write(folder / f"{index:06d}_to_{index - 1:06d}{suffix}", flow * per_pixel)


def _flo(scene: _Scene) -> None:
    _flow(scene, "flo", ".flo", write_flo)


def _kitti_flow(scene: _Scene) -> None:
    _flow(scene, "kitti_flow", ".png", write_kitti_flow)


def _depth_png(scene: _Scene) -> None:
    for name in scene.names("depth"):
        folder = scene.subfolder("depth_png", name)
        unit = str(scene.store[name].attrs.get("unit", "1"))
        write_json(folder / "scale.json", {"steps_per_unit": scene.depth_scale, "unit": unit, "unknown": 0})
        for index, depth in enumerate(track(scene.rows(name), f"export depth_png {name}", scene.store.done)):
            write_depth_png(folder / f"{index:06d}.png", depth, scene.depth_scale)


def _ply(scene: _Scene) -> None:
    folder = scene.subfolder("ply")
    for index, cloud in enumerate(scene.clouds("export ply")):
        write_ply(folder / f"{index:06d}.ply", cloud)


def _ply_fused(scene: _Scene) -> None:
    with PlyWriter(scene.subfolder() / "points.ply") as writer:
        for cloud in scene.clouds("export ply_fused", scene.fused_points):
            writer.append(cloud)


def _colmap(scene: _Scene) -> None:
    points = scene.clouds("export colmap", COLMAP_POINTS) if len(scene.names("depth")) == 1 else ()
    names = [Path(path).name for path in scene.file_paths()]
    cameras = scene.matrices("intrinsics"), scene.matrices("world_from_cam")
    write_colmap(scene.subfolder("sparse", "0"), names, scene.video.size, *cameras, points)


def _nerfstudio(scene: _Scene) -> None:
    cameras = scene.matrices("intrinsics"), scene.matrices("world_from_cam")
    write_transforms(scene.subfolder() / "transforms.json", scene.file_paths(), scene.video.size, *cameras)


def _tum(scene: _Scene) -> None:
    times = scene.video.times(range(scene.store.done))
    write_tum(scene.subfolder() / "trajectory.txt", times, scene.matrices("world_from_cam"))


@attrs.frozen
class _Export:
    write: Callable[[_Scene], None]
    needs: tuple[str, ...]
    each: bool = False
    """Whether every array of a kind is written for itself."""


_CAMERAS = ("world_from_cam", "intrinsics")
_EXPORTS: dict[ExportFormat, _Export] = {
    "flo": _Export(_flo, ("flow",), each=True),
    "kitti_flow": _Export(_kitti_flow, ("flow",), each=True),
    "depth_png": _Export(_depth_png, ("depth",), each=True),
    "ply": _Export(_ply, ("depth", *_CAMERAS)),
    "ply_fused": _Export(_ply_fused, ("depth", *_CAMERAS)),
    "colmap": _Export(_colmap, _CAMERAS),
    "nerfstudio": _Export(_nerfstudio, _CAMERAS),
    "tum": _Export(_tum, ("world_from_cam",)),
}
