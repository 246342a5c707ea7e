"""A prediction beside the frames it was made from, as an mp4 and a few PNGs.

Colours are fixed over the whole video before the first frame is drawn: features get one basis, depth and flow one
range. So the arrays are read twice, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.files import disk_errors
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.pca import FeaturePCA
from fourd_core.media.pictures import depth_picture, depth_range, flow_picture, largest_flow, side_by_side
from fourd_core.media.video import mean_frame_rate
from fourd_core.media.views import View
from fourd_core.media.writers import VideoWriter, write_png
from fourd_core.progress import track

CHUNK = 4
"""Frames in memory at a time."""

Painter = Callable[[Float[Tensor, "t c h w"]], UInt8[Tensor, "t 3 h w"]]


def draw(store: ArrayStore, video: Video, view: View, folder: Path, name: str, *, pictures: int, movie: bool) -> None:
    """Draw every array of a store.

    Args:
        folder: gets `<name>_<array>.mp4` and `pictures/<name>_<array>_<frame>.png`.
        pictures: how many frames become PNGs.
        movie: whether to write the mp4.
    """
    count = store.done
    chosen = {round(i * (count - 1) / max(pictures - 1, 1)) for i in range(pictures)}
    if not (chosen or movie):
        return
    with disk_errors(folder):
        (folder / "pictures").mkdir(exist_ok=True)
    for array in store:
        path = folder / f"{name}_{array}.mp4"
        if movie and path.exists():
            continue  # drawn before the run was stopped: the movie appears last
        paint = _painter(store, array)
        starts = [start for start in range(0, count, CHUNK) if movie or chosen & set(_frames(start, count))]
        with VideoWriter(path, mean_frame_rate(video)) if movie else nullcontext() as writer:
            for start in track(starts, f"drawing {array}", len(starts)):
                frames = (view.apply(video.read(_frames(start, count))) * 255).round().byte()
                rows = side_by_side([frames, paint(_values(store, array, start))])
                if writer is not None:
                    writer.write(rows)
                for index in chosen & set(_frames(start, count)):
                    write_png(folder / "pictures" / f"{name}_{array}_{index:05d}.png", rows[index - start])


def _frames(start: int, count: int) -> range:
    """The frames of the chunk that begins at `start`."""
    return range(start, min(start + CHUNK, count))


def _values(store: ArrayStore, array: str, start: int) -> Float[Tensor, "t c h w"]:
    return torch.from_numpy(store[array][start : min(start + CHUNK, store.done)]).float()


def _chunks(store: ArrayStore, array: str) -> Iterator[Float[Tensor, "t c h w"]]:
    starts = range(0, store.done, CHUNK)
    return (_values(store, array, start) for start in track(starts, f"colours of {array}", len(starts)))


def _painter(store: ArrayStore, array: str) -> Painter:
    """Colours that fit what the array holds, with one range for the whole video."""
    channels, unit = store[array].shape[1], store[array].attrs.get("unit", "1")
    if channels == 2 and unit == "px":
        largest = max(largest_flow(chunk) for chunk in _chunks(store, array))
        return lambda flow: flow_picture(flow, largest)
    if channels == 1:
        ranges = [found for chunk in _chunks(store, array) if (found := depth_range(chunk)) is not None]
        near, far = min((low for low, _ in ranges), default=1.0), max((high for _, high in ranges), default=1.0)
        return lambda depth: depth_picture(depth, near, far)
    basis = FeaturePCA(channels)
    for chunk in _chunks(store, array):
        basis.update(chunk)
    basis.finish()
    return basis.picture
