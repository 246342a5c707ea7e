"""Where finished frames go: into arrays on disk, or into the memory of a short video.

Tracks become whole here: their depth takes the unit of the depth maps, they are lifted into the world, and the second
pass's frames join those of the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import VISIBLE, Cameras, Maps, Prediction, Predictions, Tracks
from fourd_core.errors import RunError
from fourd_core.geometry import track_points
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.views import View
from fourd_core.placement import Pixels
from fourd_core.stitching import where_live
from fourd_core.streaming import Finished


class Sink(ABC):
    """Takes finished frames: those of the first pass in order, those of the second anywhere.

    Args:
        view: how the network saw the video.
        pixels: the grid on which the maps arrive.
    """

    def __init__(self, view: View, pixels: Pixels) -> None:
        self._view, self._pixels = view, pixels
        self._scales: dict[str, Tensor] = {}

    @property
    def state(self) -> dict[str, Tensor]:
        """What must be kept to go on later."""
        return dict(self._scales)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._scales = {name: scale.cpu() for name, scale in state.items()}

    def put(self, part: Finished) -> Predictions:
        """Keep a part; returns it as it is kept."""
        stop = part.first + part.frames
        known = {**(self._read_all(part.first, stop) if part.reverse else {}), **part.predictions}
        ordered = [known[name] for name in sorted(known)]  # of several the same in both passes
        depth = next((item for item in ordered if isinstance(item, Maps) and item.kind == "depth"), None)
        cameras = next((item for item in ordered if isinstance(item, Cameras)), None)
        whole: dict[str, Prediction] = {}
        for name, item in part.predictions.items():
            whole[name] = item
            if isinstance(item, Tracks):
                tracks = self._lifted(f"{name} {'backward' if part.reverse else 'forward'}", item, depth, cameras)
                before = self._read(name, part.first, stop) if part.reverse else None
                whole[name] = where_live(before, tracks) if isinstance(before, Tracks) else tracks
        for name, item in whole.items():
            (self._patch if part.reverse else self._append)(name, item, part.first)
        return Predictions(whole)

    def _read_all(self, start: int, stop: int) -> dict[str, Prediction]:
        found = {name: self._read(name, start, stop) for name in self._names()}
        return {name: item for name, item in found.items() if item is not None}

    def _lifted(self, name: str, tracks: Tracks, depth: Maps | None, cameras: Cameras | None) -> Tracks:
        if depth is not None and tracks.depth is not None:
            z = tracks.depth * self._scale(name, tracks, depth)[:, None, None]
            tracks = attrs.evolve(tracks, depth=z, unit=depth.unit)
            if cameras is not None:
                seen = track_points(tracks.xy, z, cameras.intrinsics)
                world = track_points(tracks.xy, z, cameras.intrinsics, cameras.world_from_cam)
                tracks = attrs.evolve(tracks, xyz_camera=seen, xyz=world)
        return _silent_where_not_live(tracks)

    def _scale(self, name: str, tracks: Tracks, depth: Maps) -> Float[Tensor, " b"]:
        """By how much the maps' depth exceeds the tracks' own: the median over what is visible in these frames.

        Where nothing is, as it was last; NaN before anything was.
        """
        assert tracks.depth is not None
        xy = tracks.xy if self._pixels == "video" else self._view.to_view(tracks.xy)
        dense = sample_nearest(depth.values[:, :, 0], xy)
        ratio = dense / tracks.depth
        seen = tracks.live & (tracks.visibility > VISIBLE) & ratio.isfinite() & (dense > 0) & (tracks.depth > 0)
        median = torch.where(seen, ratio, torch.nan).flatten(1).nanmedian(1).values
        last = self._scales.get(name, torch.full_like(median, torch.nan))
        self._scales[name] = torch.where(median.isnan(), last, median)
        return self._scales[name]

    @abstractmethod
    def _names(self) -> Iterator[str]:
        """The predictions that are kept."""

    @abstractmethod
    def _append(self, name: str, item: Prediction, first: int) -> None: ...

    @abstractmethod
    def _patch(self, name: str, item: Prediction, first: int) -> None: ...

    @abstractmethod
    def _read(self, name: str, start: int, stop: int) -> Prediction | None: ...


def sample_nearest(maps: Float[Tensor, "b t h w"], xy: Float[Tensor, "b t n 2"]) -> Float[Tensor, "b t n"]:
    """The number of the pixel in which each point lies; NaN outside the map."""
    h, w = maps.shape[-2:]
    column, row = xy.nan_to_num(-1.0).floor().long().unbind(-1)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    place = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
    return maps.flatten(2).gather(2, place).masked_fill(~inside, torch.nan)


def _silent_where_not_live(tracks: Tracks) -> Tracks:
    """NaN, and not visible, where the tracker says nothing."""

    def hide(name: str, tensor: Tensor) -> Tensor:
        silent = ~tracks.live.reshape(tracks.live.shape + (1,) * (tensor.ndim - 3))
        return tensor.masked_fill(silent, 0.0 if name == "visibility" else torch.nan)

    return tracks.with_tensors({name: hide(name, x) for name, x in tracks.tensors().items() if name != "live"})


class ArraySink(Sink):
    """Into the arrays of a store: maps under the head's name, other predictions under `head.field`."""

    def __init__(self, store: ArrayStore, view: View, pixels: Pixels) -> None:
        super().__init__(view, pixels)
        self._store = store

    def _names(self) -> Iterator[str]:
        return iter(dict.fromkeys(array.partition(".")[0] for array in self._store))

    def _append(self, name: str, item: Prediction, first: int) -> None:
        for array, tensor, facts in _arrays(name, item):
            self._store.append(array, tensor, **facts)

    def _patch(self, name: str, item: Prediction, first: int) -> None:
        for array, tensor, facts in _arrays(name, item):
            self._store.patch(array, first, tensor, **facts)

    def _read(self, name: str, start: int, stop: int) -> Prediction | None:
        return read_prediction(self._store, name, start, stop)


def read_prediction(store: ArrayStore, name: str, start: int, stop: int) -> Prediction | None:
    """Frames `start .. stop - 1` of what a head predicted, from the arrays of a run; None where there is nothing."""

    def tensor(array: str) -> Tensor:
        values = torch.from_numpy(store[array][start:stop])[None]
        return values.float() if values.is_floating_point() else values

    if name in store:
        facts: dict[str, Any] = dict(store[name].attrs)
        return Maps(tensor(name), kind=facts["kind"], unit=facts["unit"])
    # After a stop, arrays of a second pass may be there and empty.
    fields = [
        array.partition(".")[2] for array in store if array.startswith(f"{name}.") and store[array].shape[0] >= stop
    ]
    if not fields:
        return None
    tensors: dict[str, Any] = {field: tensor(f"{name}.{field}") for field in fields}
    kind, telling = (Cameras, "world_from_cam") if "world_from_cam" in fields else (Tracks, "depth")
    unit = str(store[f"{name}.{telling}"].attrs["unit"]) if telling in fields else "1"
    return kind(**tensors, unit=unit)


def _arrays(name: str, item: Prediction) -> Iterator[tuple[str, Tensor, dict[str, str]]]:
    axes = {"values": "t c h w", "world_from_cam": "t row column", "intrinsics": "t row column"}
    # `live` comes last: what a second pass finds live after a kill is whole.
    for field, tensor in sorted(item.tensors().items(), key=lambda entry: entry[0] == "live"):
        kind = item.kind if isinstance(item, Maps) else {"depth": "track_depth"}.get(field, field)
        array = name if isinstance(item, Maps) else f"{name}.{field}"
        facts = {"kind": kind, "axes": axes.get(field, "t n" if tensor.ndim == 3 else "t n c")}
        yield array, tensor[0], {"unit": item.unit_of(field), **facts}


class MemorySink(Sink):
    """Into the CPU's memory.

    Args:
        frame_count: of the video.
        limit: bytes that all predictions together may take.
    """

    def __init__(self, view: View, pixels: Pixels, frame_count: int, limit: int) -> None:
        super().__init__(view, pixels)
        self._frame_count, self._limit = frame_count, limit
        self.whole: dict[str, Prediction] = {}

    def _names(self) -> Iterator[str]:
        return iter(self.whole)

    def _append(self, name: str, item: Prediction, first: int) -> None:
        if name not in self.whole:
            self.whole[name] = self._room(item)
        target = self.whole[name].tensors()
        for field, tensor in sorted(item.tensors().items(), key=lambda entry: entry[0] == "live"):
            target[field][:, first : first + item.frame_count] = tensor

    _patch = _append

    def _read(self, name: str, start: int, stop: int) -> Prediction | None:
        return self.whole[name].frames(start, stop) if name in self.whole else None

    def _room(self, item: Prediction) -> Prediction:
        """The prediction with room for every frame of the video.

        Raises:
            RunError: together they would take more than the limit.
        """
        self._limit -= sum(tensor[:, :1].nbytes for tensor in item.tensors().values()) * self._frame_count
        if self._limit < 0:
            raise RunError(
                f"the predictions of {self._frame_count} frames would take too much memory, by "
                f"{-self._limit / 2**30:.1f} GB; write them to disk by a predict stage of `fourd run`, use a smaller "
                'view, or set pixels = "view"'
            )
        return item.map(lambda x: x.new_zeros(x.shape[0], self._frame_count, *x.shape[2:], device="cpu"))
