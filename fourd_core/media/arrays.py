"""Arrays of a run: Zarr 3, one array per prediction, growing along time, whatever happens in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
import zarr
from jaxtyping import Shaped
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from torch import Tensor
from zarr.storage import LocalStore

from fourd_core.errors import RunError
from fourd_core.files import atomic, disk_errors
from fourd_core.media.views import View

CHUNK_BYTES = 16 * 2**20
"""About the size of one file of the store: a few frames."""

MAP_AXES = "t c h w"
EXACT = ("depth", "flow")
"""Maps that are measured: in float16 a flow of 600 pixels has steps of half a pixel."""

CONVENTIONS = {
    "coordinates": "continuous pixels (x, y), the centre of the top left pixel is (0.5, 0.5)",
    "flow": "pixels (x, y) of the frame that it starts from",
    "depth": "z along the optical axis",
}


class ArrayStore(Mapping[str, "zarr.Array[Any]"]):
    """A folder of named arrays `t ...`, one row per frame; reading one back is `store[name][2:5]`.

    Frames count once they are committed: opening a store drops what came after the last `commit`, so that a killed
    run goes on at frame `done`. The attribute `complete` is set at the very end.
    """

    def __init__(
        self,
        folder: Path,
        precision: Literal["float16", "float32"] = "float32",
        attributes: Mapping[str, Any] | None = None,
        precision_key: str = "stages.NAME.precision",
    ) -> None:
        """Open or create a store.

        Args:
            precision: of features and masks; all other numbers are float32.
            attributes: plain JSON values kept with the store (the video's name, its size, the run).
            precision_key: what a user sets to choose the precision, for messages.
        Raises:
            RunError: the folder cannot be written, or holds something else.
        """
        self.folder = folder
        self._precision, self._precision_key = precision, precision_key
        with disk_errors(folder):
            if folder.exists() and not (folder / "zarr.json").exists() and any(folder.iterdir()):
                raise RunError(f"{folder} holds other files and no arrays; choose another folder")
            try:
                self._group = zarr.open_group(LocalStore(folder), mode="a", zarr_format=3)
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"the arrays in {folder} are damaged ({error}); delete that folder") from error
            if "done" not in self._group.attrs:
                self._group.update_attributes(
                    {"conventions": CONVENTIONS, **(attributes or {}), "done": 0, "complete": False}
                )
            self._arrays = dict(self._group.arrays())
            for array in self._arrays.values():
                self._resize(array, self.done)

    @property
    def attributes(self) -> dict[str, Any]:
        """What is kept with the store."""
        return dict(self._group.attrs)

    @property
    def done(self) -> int:
        """How many frames are committed."""
        return int(self._attribute("done"))

    @property
    def complete(self) -> bool:
        """Whether `finish` was called."""
        return bool(self._attribute("complete"))

    def of_kind(self, kind: str) -> list[str]:
        """The arrays of a kind."""
        return [name for name, array in self.items() if array.attrs.get("kind") == kind]

    def append(
        self,
        name: str,
        values: Shaped[Tensor, "t ..."],
        *,
        unit: str = "1",
        kind: str = "",
        axes: str = MAP_AXES,
    ) -> None:
        """Add frames at the end of an array, which is created at its first frames.

        Raises:
            RunError: the disk is full; a number is too large for float16.
            ValueError: another shape than before.
        """
        rows = self._to_numpy(name, values, axes, kind)
        with disk_errors(self.folder):
            if name not in self._arrays:
                self._arrays[name] = self._create(name, rows, axes, {"unit": unit, "kind": kind})
            array = self._arrays[name]
            if array.shape[1:] != rows.shape[1:]:
                raise ValueError(f"'{name}' has frames of shape {array.shape[1:]}, not {rows.shape[1:]}")
            start = array.shape[0]
            self._resize(array, start + len(rows))
            array[start:] = rows

    def patch(self, name: str, first: int, values: Shaped[Tensor, "t ..."], *, unit: str, kind: str, axes: str) -> None:
        """Write over frames that are there; an array that is not there yet is made for all of them.

        Raises:
            RunError: the disk is full; a number is too large for float16.
        """
        rows = self._to_numpy(name, values, axes, kind)
        with disk_errors(self.folder):
            if name not in self._arrays:
                self._arrays[name] = self._create(name, rows, axes, {"unit": unit, "kind": kind})
            array = self._arrays[name]
            self._resize(array, max(int(self.attributes.get("frames", self.done)), array.shape[0]))
            self._arrays[name][first : first + len(rows)] = rows

    def truncate(self, frames: int) -> None:
        """Drop the frames from `frames` on."""
        with disk_errors(self.folder):
            for array in self._arrays.values():
                self._resize(array, min(frames, array.shape[0]))
            self._group.update_attributes({"done": min(frames, self.done)})

    def commit(self) -> None:
        """Make all frames so far survive a kill.

        Raises:
            ValueError: the arrays have different numbers of frames.
        """
        lengths = {name: array.shape[0] for name, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays of different lengths cannot be committed: {lengths}")
        with disk_errors(self.folder):
            self._group.update_attributes({"done": max(lengths.values(), default=0)})

    def finish(self) -> None:
        """Commit and mark the store as complete."""
        self.commit()
        with disk_errors(self.folder):
            self._group.update_attributes({"complete": True})

    def export_npz(self, path: Path) -> None:
        """Write all arrays into one compressed npz file, which NumPy reads everywhere; a chunk in memory at a time.

        Raises:
            RunError: the disk is full.
        """
        with atomic(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
            for name, array in self._arrays.items():
                header = {"descr": dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    write_array_header_1_0(entry, header)
                    for start in range(0, array.shape[0], array.chunks[0]):
                        entry.write(np.asarray(array[start : start + array.chunks[0]]).tobytes())

    def __getitem__(self, name: str) -> zarr.Array[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def _attribute(self, name: str) -> Any:
        return self._group.attrs[name]

    def _to_numpy(
        self, name: str, values: Shaped[Tensor, "t ..."], axes: str, kind: str
    ) -> np.ndarray[Any, np.dtype[Any]]:
        if not values.is_floating_point():
            return values.detach().cpu().numpy()
        halved = self._precision == "float16" and axes == MAP_AXES and kind not in EXACT
        kept = values.detach().to(torch.float16 if halved else torch.float32)
        if bool((kept.isinf() & ~values.isinf()).any()):
            raise RunError(
                f"'{name}' has numbers over 65504, too large for float16; set {self._precision_key} = \"float32\""
            )
        return kept.cpu().numpy()

    def _create(
        self, name: str, rows: np.ndarray[Any, np.dtype[Any]], axes: str, attributes: dict[str, Any]
    ) -> zarr.Array[Any]:
        frames = max(1, min(16, CHUNK_BYTES // max(1, rows[:1].nbytes)))
        return self._group.create_array(
            name,
            shape=(0, *rows.shape[1:]),
            chunks=(frames, *rows.shape[1:]),
            dtype=rows.dtype,
            fill_value=math.nan if rows.dtype.kind == "f" else 0,
            dimension_names=axes.split(),
            attributes=attributes,
        )

    @staticmethod
    def _resize(array: zarr.Array[Any], frames: int) -> None:
        if array.shape[0] != frames:
            array.resize((frames, *array.shape[1:]))


def stored_view(store: ArrayStore) -> View:
    """How the network saw the video that a run's arrays were predicted from."""
    about = store.attributes["view"]
    video_size, resized, size, corner = (
        (int(about[key][0]), int(about[key][1])) for key in ("video_size", "resized", "size", "corner")
    )
    return View(video_size, resized, size, corner)
