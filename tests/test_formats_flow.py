"""Flow and depth files: files of others are read, ours are read by others, numbers worked out by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import torch
from helpers import TESTS
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.errors import MediaError, RunError
from fourd_core.media.formats.depth import KITTI, MILLIMETRES, read_depth_png, write_depth_png
from fourd_core.media.formats.flow import read_flo, read_kitti_flow, write_flo, write_kitti_flow
from fourd_core.media.formats.png16 import read_png16, write_png16
from fourd_core.media.locations import file_at, filesystem_at

DATA = TESTS / "data" / "formats"
NAN = float("nan")


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    """What is in the files, flow as `2 h w`."""
    values = load_file(DATA / "read.safetensors")
    return {name: value.permute(2, 0, 1) if "flow" in name else value for name, value in values.items()}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, NaN where the other has NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def decoded(path: Path) -> np.ndarray:
    """The samples of a PNG as FFmpeg's picture demuxer reads them."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray()


# --- .flo ------------------------------------------------------------------------------------------------------------


def test_flo_of_others(stored: dict[str, Tensor]) -> None:
    assert same(read_flo(DATA / "dense.flo"), stored["flow"])
    assert stored["flow_with_nan"].isnan().sum() == 4
    assert same(read_flo(DATA / "with_unknown.flo"), stored["flow_with_nan"])


def test_flo_is_written_byte_for_byte_as_others_do(tmp_path: Path, stored: dict[str, Tensor]) -> None:
    for name, flow in (("dense.flo", stored["flow"]), ("with_unknown.flo", stored["flow_with_nan"])):
        write_flo(tmp_path / name, flow)
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_flo_by_hand(tmp_path: Path) -> None:
    """Two columns, one row: rows of (u, v) behind width and height; one unknown number makes the pixel unknown."""
    flow = torch.tensor([[[1.5, NAN]], [[-2.0, 3.0]]])
    write_flo(tmp_path / "a.flo", flow)
    assert (tmp_path / "a.flo").read_bytes() == struct.pack("<4sii4f", b"PIEH", 2, 1, 1.5, -2.0, 1e10, 1e10)
    assert struct.unpack("<f", b"PIEH") == (202021.25,)
    assert same(read_flo(tmp_path / "a.flo"), torch.tensor([[[1.5, NAN]], [[-2.0, NAN]]]))
    write_flo(tmp_path / "b.flo", torch.tensor([[[2e9, float("inf")]], [[0.0, 0.0]]]).half())
    assert read_flo(tmp_path / "b.flo").isnan().all()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"PIEX" + bytes(8), "is not a .flo file"),
        (b"PIEH", "is not a .flo file"),
        (struct.pack("<4sii", b"PIEH", 3, 2) + bytes(47), "states 3x2 pixels and has 59 bytes"),
        (struct.pack("<4sii", b"PIEH", -3, -2) + bytes(48), "states -3x-2 pixels"),
    ],
)
def test_flo_that_is_none(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "a.flo").write_bytes(data)
    with pytest.raises(MediaError, match=sentence):
        read_flo(tmp_path / "a.flo")


# --- KITTI flow ------------------------------------------------------------------------------------------------------


def test_kitti_flow_of_others(stored: dict[str, Tensor]) -> None:
    read = read_kitti_flow(DATA / "kitti_flow.png")
    assert same(read, stored["kitti_flow"])
    assert (read - stored["flow_with_nan"]).abs().nan_to_num().max() < 1 / 64


def test_kitti_flow_by_hand(tmp_path: Path) -> None:
    """64 u + 32768 rounded; -512 and 511.984375 are the last that fit."""
    u = torch.tensor([[0.0, 1.0, -0.5, 0.01], [-512.0, 511.984375, 512.0, NAN]])
    v = torch.tensor([[0.0, -1.0, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]])
    write_kitti_flow(tmp_path / "a.png", torch.stack([u, v]))
    rows = [
        [(32768, 32768, 1), (32832, 32704, 1), (32736, 32784, 1), (32769, 32768, 1)],
        [(0, 32768, 1), (65535, 32768, 1), (0, 0, 0), (0, 0, 0)],
    ]
    assert decoded(tmp_path / "a.png").tolist() == [[list(pixel) for pixel in row] for row in rows]
    expected_u = torch.tensor([[0.0, 1.0, -0.5, 1 / 64], [-512.0, 511.984375, NAN, NAN]])
    expected_v = torch.where(expected_u.isnan(), NAN, v)
    assert same(read_kitti_flow(tmp_path / "a.png"), torch.stack([expected_u, expected_v]))


def test_kitti_flow_in_steps_comes_back_exactly(tmp_path: Path) -> None:
    flow = torch.randint(-(2**15), 2**15, (2, 37, 51), generator=torch.Generator().manual_seed(0)) / 64
    write_kitti_flow(tmp_path / "a.png", flow)
    assert same(read_kitti_flow(tmp_path / "a.png"), flow)


# --- depth -----------------------------------------------------------------------------------------------------------


def test_depth_by_hand(tmp_path: Path) -> None:
    depth = torch.tensor([[[1.0, 0.5, 2.25, 255.99609375, 256.0], [NAN, 0.0, -1.0, 1e-4, float("inf")]]])
    write_depth_png(tmp_path / "a.png", depth, KITTI)
    assert decoded(tmp_path / "a.png").tolist() == [[256, 128, 576, 65535, 0], [0] * 5]
    expected = torch.tensor([[[1.0, 0.5, 2.25, 255.99609375, NAN], [NAN] * 5]])
    assert same(read_depth_png(tmp_path / "a.png", KITTI), expected)

    write_depth_png(tmp_path / "b.png", torch.tensor([[[1.2344, 65.535, 65.536]]]), MILLIMETRES)
    assert decoded(tmp_path / "b.png").tolist() == [[1234, 65535, 0]]
    assert same(read_depth_png(tmp_path / "b.png", MILLIMETRES), torch.tensor([[[1.234, 65.535, NAN]]]))


# --- PNG of 16 bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (7, 11), (64, 3), (1, 1, 3), (33, 40, 3)])
def test_png_is_exact(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    write_png16(tmp_path / "a.png", samples)
    assert np.array_equal(decoded(tmp_path / "a.png"), samples)
    assert np.array_equal(read_png16(tmp_path / "a.png", channels=1 if samples.ndim == 2 else 3), samples)


def test_every_value_survives(tmp_path: Path) -> None:
    samples = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    write_png16(tmp_path / "a.png", samples)
    assert np.array_equal(read_png16(tmp_path / "a.png", channels=1), samples)


def test_pngs_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(MediaError, match=f"cannot read {path}: No such file"):
        read_png16(path, channels=1)
    write_png16(path, np.random.default_rng(0).integers(0, 2**16, (9, 9)).astype(np.uint16))
    with pytest.raises(MediaError, match="holds gray16be pixels, not 3 x 16 bit"):
        read_png16(path, channels=3)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b"", b"no picture"):
        path.write_bytes(damaged)
        with pytest.raises(MediaError, match="is not a PNG picture or is damaged"):
            read_png16(path, channels=1)


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        write_flo(tmp_path / "no folder" / "a.flo", torch.zeros(2, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_anywhere_or_its_bytes(tmp_path: Path) -> None:
    flow = torch.tensor([[[1.5, -3.0]], [[0.25, 2.0]]])
    write_flo(tmp_path / "a.flo", flow)
    write_kitti_flow(tmp_path / "a.png", flow)
    for read, name in ((read_flo, "a.flo"), (read_kitti_flow, "a.png")):
        data = (tmp_path / name).read_bytes()
        url = f"memory://formats-flow/{name}"
        fsspec.filesystem("memory").pipe_file(url, data)
        for source in (tmp_path / name, str(tmp_path / name), url, file_at(*filesystem_at(url)), data):
            assert same(read(source), flow)
    with pytest.raises(MediaError, match=r"^what was given \(3 bytes\) is not a .flo file"):
        read_flo(b"PIE")
    with pytest.raises(MediaError, match=r"the file /formats-flow/none\.flo does not exist"):
        read_flo("memory://formats-flow/none.flo")
