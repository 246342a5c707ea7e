"""All that was predicted of a video beside its frames, as one mp4 and a few PNGs.

Colours are fixed over the whole video before the first frame is drawn: features get one basis, depth and flow one
range. So the maps are read twice, a chunk at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import VISIBLE, Queries
from fourd_core.files import disk_errors
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.panels import Size, arranged, fitted, panel_size
from fourd_core.media.pca import FeaturePCA
from fourd_core.media.pictures import (
    OUTLINE,
    depth_picture,
    depth_range,
    flow_picture,
    grey,
    largest_flow,
    mask_picture,
)
from fourd_core.media.trails import TRAIL, draw_tracks, point_colours
from fourd_core.media.video import mean_frame_rate
from fourd_core.media.views import View
from fourd_core.media.writers import VideoWriter, write_png
from fourd_core.memory import give_back
from fourd_core.placement import Pixels
from fourd_core.progress import track

CHUNK = 4
"""Frames in memory at a time."""

Painter = Callable[[range, UInt8[Tensor, "t 3 h w"]], UInt8[Tensor, "t 3 h w"]]
"""The panel of some frames, at the size of the frames that it is given."""


class Panel(NamedTuple):
    """A picture of the row: what stands above it, and how it is drawn."""

    label: str
    paint: Painter


class Scene(NamedTuple):
    """What a store holds, on which pixels, and how large it will be drawn."""

    store: ArrayStore
    view: View
    pixels: Pixels
    side: int

    @property
    def size(self) -> Size:
        """Height and width of the maps."""
        return self.view.video_size if self.pixels == "video" else self.view.size

    def chunk(self, start: int) -> range:
        """The frames of the chunk that begins at `start`."""
        return range(start, min(start + CHUNK, self.store.done))

    @property
    def step(self) -> int:
        """Every how many-th pixel of a row or column is drawn: no map is coloured much larger than it is shown."""
        return max(1, max(self.size) // self.side)

    def values(self, array: str, frames: range) -> Float[Tensor, "t ..."]:
        """Some frames of an array."""
        return torch.from_numpy(self.store[array][frames.start : frames.stop]).float()

    def maps(self, array: str, frames: range) -> Float[Tensor, "t c h w"]:
        """Some frames of a map, thinned out."""
        start = self.step // 2
        return self.values(array, frames)[..., start :: self.step, start :: self.step]

    def chunks(self, array: str) -> Iterator[Float[Tensor, "t c h w"]]:
        """All frames of a map, thinned out, a chunk at a time."""
        starts = range(0, self.store.done, CHUNK)
        frames = (self.chunk(start) for start in track(starts, f"colours of {array}", len(starts)))
        return (self.maps(array, part) for part in frames)

    def shown(self) -> tuple[slice, slice]:
        """The rows and columns of the thinned maps that the network saw; beyond them nothing is known."""
        if self.pixels == "view":
            return slice(None), slice(None)
        (left, top), (right, bottom) = self.view.visible()
        return self._between(top, bottom), self._between(left, right)

    def _between(self, start: float, stop: float) -> slice:
        """The drawn pixels whose centres lie well between two positions."""
        first, last = max(0, round(start + 1e-3)), round(stop - 1e-3)
        return slice(*(math.ceil((pixel - self.step // 2) / self.step) for pixel in (first, last)))


def draw(
    store: ArrayStore,
    video: Video,
    view: View,
    folder: Path,
    name: str,
    *,
    pixels: Pixels = "video",
    queries: Queries | None = None,
    pictures: int,
    movie: bool,
    side: int = 384,
) -> None:
    """Draw the frames and everything that a store holds of them, side by side.

    Args:
        folder: gets `<name>.mp4` and `pictures/<name>_<frame>.png`.
        pixels: on which grid the store's maps are.
        queries: the points that were followed, which fix the tracks' colours.
        pictures: how many frames become PNGs.
        movie: whether to write the mp4.
        side: the longer side of each panel, in pixels.
    """
    count, path = store.done, folder / f"{name}.mp4"
    chosen = {round(i * (count - 1) / max(pictures - 1, 1)) for i in range(pictures)}
    if not (chosen or movie) or (movie and path.exists()):  # drawn before the run was stopped: the movie appears last
        return
    with disk_errors(folder):
        (folder / "pictures").mkdir(exist_ok=True)
    scene = Scene(store, view, pixels, side)
    panels = list(_panels(scene, queries))
    size = panel_size(scene.size, side)
    starts = [start for start in range(0, count, CHUNK) if movie or chosen & set(scene.chunk(start))]
    with VideoWriter(path, mean_frame_rate(video)) if movie else nullcontext() as writer:
        for start in track(starts, f"drawing {name}", len(starts)):
            frames = video.read(scene.chunk(start))
            if pixels == "view":
                frames = (_sharper(view, size).apply(frames) * 255).round().byte()
            frames = fitted(frames, size)
            painted = [panel.paint(scene.chunk(start), frames) for panel in panels]
            whole = arranged([panel.label for panel in panels], painted)
            if writer is not None:
                writer.write(whole)
            for index in chosen & set(scene.chunk(start)):
                write_png(folder / "pictures" / f"{name}_{index:05d}.png", whole[index - start])
            give_back()


def _sharper(view: View, size: Size) -> View:
    """The same part of the frame with at least as many pixels as a panel, if the video has them."""
    wanted = max(math.ceil(side / own) for side, own in zip(size, view.size, strict=True))
    there = min(math.ceil(side / own) for side, own in zip(view.video_size, view.resized, strict=True))
    times = max(1, min(wanted, there))
    resized, seen, corner = (tuple(times * side for side in pair) for pair in (view.resized, view.size, view.corner))
    return View(view.video_size, resized, seen, corner)  # type: ignore[arg-type]


def _panels(scene: Scene, queries: Queries | None) -> Iterator[Panel]:
    yield Panel("video", lambda _, frames: frames)
    for kind, panel in (("depth", _depth), ("flow", _flow), ("mask", _mask), ("features", _features)):
        for name in scene.store.of_kind(kind):
            yield panel(scene, name)
    for name in scene.store.of_kind("xy"):
        yield _tracks(scene, name.removesuffix(".xy"), queries)


def _depth(scene: Scene, name: str) -> Panel:
    found = [item for chunk in scene.chunks(name) if (item := depth_range(chunk)) is not None]
    near, far = min((low for low, _ in found), default=1.0), max((high for _, high in found), default=1.0)
    unit = str(scene.store[name].attrs.get("unit", "1"))
    return Panel(
        f"{name} {near:.3g} - {far:.3g}" + (f" {unit}" if unit != "1" else ""),
        lambda frames, seen: fitted(depth_picture(scene.maps(name, frames), near, far), _size(seen)),
    )


def _flow(scene: Scene, name: str) -> Panel:
    largest = max(largest_flow(chunk) for chunk in scene.chunks(name))
    return Panel(
        f"{name} {largest:.3g} px",
        lambda frames, seen: fitted(flow_picture(scene.maps(name, frames), largest), _size(seen)),
    )


def _mask(scene: Scene, name: str) -> Panel:
    def paint(frames: range, seen: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 h w"]:
        share = scene.maps(name, frames).nan_to_num(0.0)
        return mask_picture(seen, F.interpolate(share, _size(seen), mode="bilinear", antialias=True))

    return Panel(f"{name} line {OUTLINE:g}", paint)


def _features(scene: Scene, name: str) -> Panel:
    rows, columns = scene.shown()
    basis = FeaturePCA(scene.store[name].shape[1])
    for chunk in scene.chunks(name):
        basis.update(chunk[..., rows, columns])
    basis.finish()

    def paint(frames: range, seen: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 h w"]:
        values = scene.maps(name, frames)
        picture = torch.zeros(len(values), 3, *values.shape[-2:], dtype=torch.uint8)
        picture[..., rows, columns] = basis.picture(values[..., rows, columns])
        return fitted(picture, _size(seen))

    return Panel(name, paint)


def _tracks(scene: Scene, name: str, queries: Queries | None) -> Panel:
    first = torch.from_numpy(scene.store[f"{name}.xy"][:1]).float()[0]
    colours = point_colours(first[:, 1] if queries is None else queries.xy[0, :, 1])

    def paint(frames: range, seen: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 h w"]:
        before = range(max(0, frames.start - TRAIL), frames.stop)
        xy = scene.values(f"{name}.xy", before)
        if scene.pixels == "view":
            xy = scene.view.to_view(xy)
        xy = xy * xy.new_tensor([seen.shape[-1] / scene.size[1], seen.shape[-2] / scene.size[0]])
        visible = scene.values(f"{name}.visibility", before) > VISIBLE
        pictures = (grey(seen) * 255).round().byte()
        drawn = []
        for picture, stop in zip(pictures, range(frames.start - before.start + 1, len(before) + 1), strict=True):
            past = slice(max(0, stop - TRAIL - 1), stop)
            drawn.append(draw_tracks(picture, xy[past], visible[past], colours))
        return torch.stack(drawn)

    return Panel(name, paint)


def _size(pictures: UInt8[Tensor, "t 3 h w"]) -> Size:
    return pictures.shape[-2], pictures.shape[-1]
