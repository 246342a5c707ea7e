"""The viewer's page: viser's own player with the scene in it, and nothing that it would have to fetch.

viser, an optional library, wants a server to record from: it gets one on this machine's loopback, on a port that the
system picks, for as long as the page takes to make.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fourd_core.data import Queries
from fourd_core.errors import RunError
from fourd_core.files import write_text
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.trails import TRAIL
from fourd_core.media.video import mean_frame_rate
from fourd_core.progress import track
from fourd_core.viewer.scene import Moment, Paths, Scene, gather

if TYPE_CHECKING:
    from viser import ViserServer

FRAMES = 64
"""Frames that a page shows at most, unless another number is asked for."""
DISTANCE = 2.0
"""The median depth on the page: its controls, its near and its far plane suit scenes of about this size."""
FAR = 500 * DISTANCE
"""Points beyond are left out: they are sky, and half precision would not hold them."""
LINE = 0.004 * DISTANCE
"""How thick a line is."""
SLOWEST, FASTEST = 8.0, 30.0
"""Frames a second, whatever the time between those that were chosen."""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; worker-src blob: data:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; connect-src data: blob:; media-src data: blob:"
)
_CAPTION = (
    "position:fixed;right:0;top:0;max-width:60%;padding:.3rem .6rem;font:13px/1.4 system-ui,sans-serif;"
    "color:#222;background:rgba(255,255,255,.8);z-index:10;pointer-events:none"
)


def page_path(folder: Path, name: str) -> Path:
    """Where the viewer page of a video stands in a stage's folder."""
    return folder / f"{name}_4d.html"


def check_viser() -> None:
    """Refuse to go on without viser.

    Raises:
        RunError: it is not installed.
    """
    if find_spec("viser") is None:
        raise RunError('the 4D viewer needs viser, which is not installed; run: pip install "fourd-core[viewer]"')


def write_viewer(
    store: ArrayStore, video: Video, path: Path, queries: Queries | None = None, frames: int = FRAMES
) -> Scene:
    """Write the page of one video's arrays; returns the scene that it shows.

    Args:
        queries: the points that were followed, which fix the tracks' colours.
        frames: how many are shown at most, evenly chosen.
    Raises:
        RunError: viser is not installed; nothing in the arrays has a place in space; the disk is full.
        MediaError: a frame cannot be decoded.
    """
    check_viser()
    scene = gather(store, video, frames, queries)
    rate = mean_frame_rate(video) * len(scene.moments) / max(store.done, 1)
    with _server() as server:
        page = _Page(server, scene).play(min(max(rate, SLOWEST), FASTEST))
    name = PurePosixPath(video.name).name
    title = html.escape(f"{name} in 4D")
    caption = html.escape(". ".join([name, *scene.notes]))
    head = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">'
    page = page.replace("<head>", f"<head>{head}<title>{title}</title>", 1)
    before, end, after = page.rpartition("</body>")
    write_text(path, f'{before}<div style="{_CAPTION}">{caption}</div>{end}{after}')
    return scene


@contextmanager
def _server() -> Iterator[ViserServer]:
    import viser

    with redirect_stdout(io.StringIO()):  # it greets and says goodbye
        server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        yield server
    finally:
        with redirect_stdout(io.StringIO()):
            server.stop()


class _Page:
    """Puts a scene on a server: everything at first hidden, then shown frame by frame."""

    def __init__(self, server: ViserServer, scene: Scene) -> None:
        self._scene, self._record = scene, server
        self._draw = server.scene
        self._scale = DISTANCE / _median_depth(scene)

    def play(self, rate: float) -> str:
        """The page, playing at so many frames a second."""
        moments, paths = self._scene.moments, self._scene.paths
        self._look(moments[0])
        shown = [[self._camera(place), *self._cloud(place)] for place in range(len(moments))]
        ways: list[Any] = []
        if paths is not None:
            for place, items in enumerate(shown):
                items += self._marks(paths, place)
            ways = [self._way(paths, place) for place in range(1, len(moments))]
        recording = self._record.get_scene_serializer()
        for place in track(range(len(moments)), "viewer", len(moments)):
            for number, items in enumerate(shown):
                for item in items:
                    item.visible = number == place
            for end, way in enumerate(ways, start=1):
                age = place - end
                way.visible = 0 <= age < TRAIL
                if way.visible:
                    way.thickness = LINE * (1 - age / TRAIL)
            recording.insert_sleep(1 / rate)
        return recording.as_html()

    def _look(self, first: Moment) -> None:
        """Begin a little behind, above and beside the first camera, so that the depth can be seen."""
        right, down, ahead = first.world_from_cam[:3, :3].double().T.numpy()
        middle = self._at(first.world_from_cam[:3, 3])
        self._draw.set_up_direction(-down)
        start = self._record.initial_camera
        start.position = middle + DISTANCE * (0.3 * right - 0.35 * down - 0.35 * ahead)
        start.look_at = middle + DISTANCE * ahead
        start.fov = math.radians(50)
        for place, moment in enumerate(self._scene.moments):
            self._frustum(f"/path/{place:04d}", moment, size=0.02, thickness=LINE / 4)

    # Clouds without points are left out: viser's player complains of them.

    def _cloud(self, place: int) -> Iterator[Any]:
        moment = self._scene.moments[place]
        points = self._at(moment.points)
        near = np.linalg.norm(points, axis=1) < FAR
        size = self._scene.spacing * DISTANCE / float(moment.intrinsics.diagonal()[:2].max())
        if near.any():
            yield self._draw.add_point_cloud(
                f"/points/{place:04d}", points[near], moment.colours.numpy()[near],
                point_size=size, point_shape="square", point_shading="flat", visible=False,
            )  # fmt: skip

    def _camera(self, place: int) -> Any:
        moment = self._scene.moments[place]
        picture = moment.picture.permute(1, 2, 0).numpy()
        return self._frustum(
            f"/camera/{place:04d}", moment, size=0.08, thickness=LINE / 2, image=picture, visible=False
        )

    def _frustum(self, name: str, moment: Moment, size: float, thickness: float, **more: Any) -> Any:
        import viser.transforms

        turn = viser.transforms.SO3.from_matrix(moment.world_from_cam[:3, :3].double().numpy())
        height, width = moment.size
        return self._draw.add_camera_frustum(
            name, 2 * math.atan(height / 2 / float(moment.intrinsics[1, 1])), width / height,
            scale=size * DISTANCE, thickness=thickness, color=(230, 80, 20), format="jpeg", jpeg_quality=80,
            wxyz=turn.wxyz, position=self._at(moment.world_from_cam[:3, 3]), cast_shadow=False, receive_shadow=False,
            **more,
        )  # fmt: skip

    def _marks(self, paths: Paths, place: int) -> Iterator[Any]:
        seen = paths.seen[place]
        if seen.any():
            yield self._draw.add_point_cloud(
                f"/tracks/{place:04d}", self._at(paths.xyz[place][seen]), _to_8_bit(paths.colours[seen]),
                point_size=5 * LINE, point_shape="circle", precision="float32", visible=False,
            )  # fmt: skip

    def _way(self, paths: Paths, place: int) -> Any:
        """From the moment before to this one."""
        seen = paths.seen[place] & paths.seen[place - 1]
        ends = self._at(paths.xyz[place - 1 : place + 1, seen]).swapaxes(0, 1)
        colours = np.repeat(_to_8_bit(paths.colours[seen])[:, None], 2, axis=1)
        return self._draw.add_line_segments(f"/trails/{place:04d}", ends, colours, thickness=LINE, visible=False)

    def _at(self, xyz: Float[Tensor, "*n 3"]) -> NDArray[np.float64]:
        """Points of the world on the page."""
        points: NDArray[np.float64] = xyz.double().numpy() * self._scale
        return points


def _median_depth(scene: Scene) -> float:
    """How far the points lie from their cameras; without points, how far the cameras travel."""
    distances = [
        torch.linalg.vector_norm(moment.points - moment.world_from_cam[:3, 3], dim=-1) for moment in scene.moments
    ]
    far = torch.cat(distances)
    if len(far):
        return max(float(far.median()), 1e-12)
    places = torch.stack([moment.world_from_cam[:3, 3] for moment in scene.moments])
    return float(torch.linalg.vector_norm(places - places[0], dim=-1).max()) or 1.0


def _to_8_bit(colours: Float[Tensor, "n 3"]) -> NDArray[np.uint8]:
    bytes_: NDArray[np.uint8] = (colours * 255).round().byte().numpy()
    return bytes_
