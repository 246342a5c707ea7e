"""Files of public flow, depth and camera data sets that `fourd_core.media.formats` does not know.

Each reader takes a path or the bytes themselves and returns tensors in fourd's order (channels first); each has a twin
that writes. Flow is `(x, y)`, NaN where it is unknown. Numbers are as the file has them: intrinsics in the file's own
pixel convention, Spring's maps on their doubled grid.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt16
from numpy import ndarray
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.files import atomic
from fourd_core.media.formats import flow as flow_formats
from fourd_core.media.formats import png16
from fourd_core.media.formats.flow import write_flo, write_kitti_flow
from fourd_core.media.formats.png16 import write_png16
from fourd_core.media.formats.reading import read_bytes

__all__ = [
    "read_cam", "read_dpt", "read_dsp5", "read_flo", "read_flo5", "read_kitti_flow", "read_png16", "read_vkitti_flow",
    "write_cam", "write_dpt", "write_dsp5", "write_flo", "write_flo5", "write_kitti_flow", "write_png16",
    "write_vkitti_flow",
]  # fmt: skip

SINTEL_TAG = np.float32(202021.25)
"""What Sintel's depth and camera files begin with; its bytes spell PIEH."""


def read_png16(source: Path | bytes, channels: int) -> UInt16[ndarray, "h w *rgb"]:
    """A grey (1 channel: `h w`) or RGB (3: `h w 3`) PNG of 16 bits a sample.

    Raises:
        MediaError: no such file, damaged, or not a PNG of that many channels with 16 bits each.
    """
    with _on_disk(source) as path:
        return png16.read_png16(path, channels)


def read_flo(source: Path | bytes) -> Float[Tensor, "2 h w"]:
    """Middlebury's `.flo`; NaN where either number is over 1e9 or none.

    Raises:
        MediaError: no such file, another format, cut off.
    """
    with _on_disk(source) as path:
        return flow_formats.read_flo(path)


def read_kitti_flow(source: Path | bytes) -> tuple[Float[Tensor, "2 h w"], Bool[Tensor, "h w"]]:
    """KITTI's flow picture, NaN where it is unknown, and where it is known.

    Its writers truncate, they do not round, so a number may be up to 1/64 px too low.

    Raises:
        MediaError: no such file, not an RGB PNG of 16 bits.
    """
    with _on_disk(source) as path:
        flow = flow_formats.read_kitti_flow(path)
    return flow, flow.isfinite().all(dim=0)


def read_vkitti_flow(source: Path | bytes) -> tuple[Float[Tensor, "2 h w"], Bool[Tensor, "h w"]]:
    """Virtual KITTI 2's flow picture, NaN where it is unknown, and where it is known.

    Source: Cabon et al., Virtual KITTI 2, format description: red and green are 16-bit numbers over the range
    -(side - 1) .. side - 1, blue is 0 where there is no flow.

    Raises:
        MediaError: no such file, not an RGB PNG of 16 bits.
    """
    samples = torch.from_numpy(read_png16(source, channels=3).astype(np.float64)).permute(2, 0, 1)
    valid = samples[2] > 0
    flow = (samples[:2] * (2 / 65535) - 1) * _last_pixel(samples)
    return flow.where(valid, torch.nan).float(), valid


def write_vkitti_flow(path: Path, flow: Float[Tensor, "2 h w"]) -> None:
    """Write a flow picture of Virtual KITTI 2; what is not finite or does not fit becomes unknown.

    Raises:
        RunError: the disk is full, the folder is not writable.
    """
    codes = torch.round((flow.double() / _last_pixel(flow) + 1) * (65535 / 2))
    known = ((codes >= 0) & (codes < 2**16)).all(dim=0)
    samples = torch.cat([codes, torch.full_like(codes[:1], 65535)]).where(known, 0.0)
    write_png16(path, samples.permute(1, 2, 0).cpu().numpy().astype(np.uint16))


def read_flo5(source: Path | bytes) -> Float[Tensor, "2 h w"]:
    """Spring's `.flo5`, in pixels of the 1920 x 1080 frame, NaN where either number is not finite.

    The published maps have twice the frame's rows and columns: `flow[:, ::2, ::2]` belongs to its pixels.

    Source: Mehl et al., Spring, 2023, dataset's readme: HDF5 with one array `flow`, `h w 2`.

    Raises:
        MediaError: no such file, another format.
    """
    flow = _read_hdf5(source, "flow", axes=3).permute(2, 0, 1)
    return flow.where(flow.isfinite().all(dim=0), torch.nan)


def write_flo5(path: Path, flow: Float[Tensor, "2 h w"]) -> None:
    """Write a `.flo5` file."""
    _write_hdf5(path, "flow", flow.permute(1, 2, 0))


def read_dsp5(source: Path | bytes) -> Float[Tensor, "1 h w"]:
    """Spring's `.dsp5`: disparity in pixels of the 1920 x 1080 frame, NaN where it is not finite.

    The published maps have twice the frame's rows and columns, as those of `read_flo5`.

    Raises:
        MediaError: no such file, another format.
    """
    disparity = _read_hdf5(source, "disparity", axes=2)[None]
    return disparity.where(disparity.isfinite(), torch.nan)


def write_dsp5(path: Path, disparity: Float[Tensor, "1 h w"]) -> None:
    """Write a `.dsp5` file."""
    _write_hdf5(path, "disparity", disparity[0])


def read_dpt(source: Path | bytes) -> Float[Tensor, "1 h w"]:
    """Sintel's `.dpt`: z-depth in metres, as it is stored.

    Source: MPI Sintel depth training data, its sintel_io.py: the tag, int32 width, int32 height, float32 rows.

    Raises:
        MediaError: no such file, another format, cut off.
    """
    data, name = _sintel_bytes(source, "depth")
    width, height = (int(side) for side in np.frombuffer(data[4:12].ljust(8, b"\0"), "<i4"))
    if min(width, height) < 1 or len(data) != 12 + 4 * width * height:
        raise MediaError(f"{name} is damaged: it states {width}x{height} pixels and has {len(data)} bytes")
    return torch.from_numpy(np.frombuffer(data, "<f4", offset=12).reshape(1, height, width).astype(np.float32))


def write_dpt(path: Path, depth: Float[Tensor, "1 h w"]) -> None:
    """Write a `.dpt` file."""
    _, height, width = depth.shape
    header = SINTEL_TAG.tobytes() + np.array([width, height], "<i4").tobytes()
    with atomic(path) as temporary:
        temporary.write_bytes(header + depth.cpu().numpy().astype("<f4").tobytes())


def read_cam(source: Path | bytes) -> tuple[Float64[Tensor, "3 3"], Float64[Tensor, "4 4"]]:
    """Sintel's `.cam`: the pinhole matrix and `cam_from_world`, OpenCV axes.

    The matrix is the file's: its principal point counts the centre of the top left pixel as (0, 0).

    Source: MPI Sintel depth training data, its sintel_io.py: the tag, 9 float64 K, 12 float64 of the extrinsics.

    Raises:
        MediaError: no such file, another format, cut off.
    """
    data, name = _sintel_bytes(source, "camera")
    if len(data) != 4 + 21 * 8:
        raise MediaError(f"{name} is damaged: a camera file has {4 + 21 * 8} bytes and this one {len(data)}")
    numbers = torch.from_numpy(np.frombuffer(data, "<f8", offset=4).astype(np.float64))
    cam_from_world = torch.eye(4, dtype=torch.float64)
    cam_from_world[:3] = numbers[9:].reshape(3, 4)
    return numbers[:9].reshape(3, 3), cam_from_world


def write_cam(path: Path, intrinsics: Float[Tensor, "3 3"], cam_from_world: Float[Tensor, "4 4"]) -> None:
    """Write a `.cam` file."""
    numbers = torch.cat([intrinsics.double().flatten(), cam_from_world[:3].double().flatten()])
    with atomic(path) as temporary:
        temporary.write_bytes(SINTEL_TAG.tobytes() + numbers.cpu().numpy().astype("<f8").tobytes())


def _last_pixel(flow: Tensor) -> Tensor:
    height, width = flow.shape[-2:]
    return torch.tensor([width - 1, height - 1], dtype=torch.float64, device=flow.device).view(2, 1, 1)


def _name(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "the file"


@contextmanager
def _on_disk(source: Path | bytes) -> Iterator[Path]:
    """The core's readers take paths."""
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(source)
        yield path


def _bytes(source: Path | bytes) -> bytes:
    return read_bytes(source) if isinstance(source, Path) else source


def _sintel_bytes(source: Path | bytes, what: str) -> tuple[bytes, str]:
    data, name = _bytes(source), _name(source)
    if data[:4] != SINTEL_TAG.tobytes():
        raise MediaError(f"{name} is not a {what} file of Sintel: it does not begin with the number {SINTEL_TAG}")
    return data, name


def _read_hdf5(source: Path | bytes, key: str, axes: int) -> Float[Tensor, "..."]:
    try:
        with h5py.File(io.BytesIO(_bytes(source)), "r") as file:
            values = np.asarray(file[key], dtype=np.float32)
    except (OSError, KeyError, ValueError) as error:
        raise MediaError(f"{_name(source)} is not an HDF5 file with an array '{key}': {error}") from error
    if values.ndim != axes or (axes == 3 and values.shape[-1] != 2):
        raise MediaError(f"the array '{key}' of {_name(source)} has the shape {values.shape}")
    return torch.from_numpy(values)


def _write_hdf5(path: Path, key: str, values: Tensor) -> None:
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(key, data=values.cpu().numpy().astype(np.float32), compression="gzip")
