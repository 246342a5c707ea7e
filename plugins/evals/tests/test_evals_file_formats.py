"""Flow, depth and camera files: what public programs read from the same bytes, and our own way there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fourd_evals import file_formats as formats

from fourd_core.errors import MediaError

DATA = Path(__file__).parent / "data" / "file_formats.npz"
"""`file/*` the files' bytes, the rest what other programs put in or read back."""


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(DATA) as file:
        return dict(file)


def test_flow_files_hold_what_others_read_from_them(stored: dict[str, np.ndarray]) -> None:
    truth = torch.from_numpy(stored["flow_with_nan"]).permute(2, 0, 1)
    flo = formats.read_flo(stored["file/with_unknown.flo"].tobytes())
    flo5 = formats.read_flo5(stored["file/spring.flo5"].tobytes())
    torch.testing.assert_close(flo, truth, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(flo5, truth, rtol=0, atol=0, equal_nan=True)
    for writer in ("flowpy", "spring"):
        flow, valid = formats.read_kitti_flow(stored[f"file/kitti_flow_{writer}.png"].tobytes())
        read = torch.from_numpy(stored[f"kitti_{writer}"]).permute(2, 0, 1)
        torch.testing.assert_close(flow, read, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(valid, truth.isfinite().all(dim=0))
        below = (truth - flow)[:, valid]
        assert below.min() >= 0 and below.max() <= 1 / 64  # they truncate


def test_sintel_files_hold_what_others_read_from_them(stored: dict[str, np.ndarray]) -> None:
    depth = formats.read_dpt(stored["file/frame_0001.dpt"].tobytes())
    assert torch.equal(depth[0], torch.from_numpy(stored["depth"]))
    intrinsics, cam_from_world = formats.read_cam(stored["file/frame_0002.cam"].tobytes())
    assert torch.equal(intrinsics, torch.from_numpy(stored["K"]))
    torch.testing.assert_close(cam_from_world.inverse(), torch.from_numpy(stored["c2w"]), rtol=1e-6, atol=1e-7)


def test_every_format_there_and_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    flow = torch.rand(2, 5, 7, generator=generator) * 8 - 4
    flow[:, 1, 2] = torch.nan
    path = tmp_path / "file"
    formats.write_flo5(path, flow)
    torch.testing.assert_close(formats.read_flo5(path), flow, rtol=0, atol=0, equal_nan=True)
    formats.write_vkitti_flow(path, flow)
    read, valid = formats.read_vkitti_flow(path)
    torch.testing.assert_close(read, flow, rtol=0, atol=1e-4, equal_nan=True)
    assert torch.equal(valid, flow[0].isfinite())
    formats.write_dsp5(path, flow[:1])
    torch.testing.assert_close(formats.read_dsp5(path), flow[:1], rtol=0, atol=0, equal_nan=True)
    formats.write_dpt(path, flow[:1])
    torch.testing.assert_close(formats.read_dpt(path), flow[:1], rtol=0, atol=0, equal_nan=True)
    camera = torch.eye(4, dtype=torch.float64)
    camera[:3] = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    formats.write_cam(path, camera[:3, :3], camera)
    intrinsics, cam_from_world = formats.read_cam(path)
    assert torch.equal(intrinsics, camera[:3, :3]) and torch.equal(cam_from_world, camera)


def test_virtual_kitti_counts_over_the_side_less_one(tmp_path: Path) -> None:
    samples = np.zeros((3, 5, 3), np.uint16)
    samples[0, 1] = (65535, 0, 1)
    samples[2, 4] = (0, 65535, 1)
    formats.write_png16(tmp_path / "flow.png", samples)
    flow, valid = formats.read_vkitti_flow(tmp_path / "flow.png")
    assert flow[:, 0, 1].tolist() == [4.0, -2.0] and flow[:, 2, 4].tolist() == [-4.0, 2.0]
    assert int(valid.sum()) == 2 and int(flow.isnan().sum()) == 26


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    formats.write_dpt(path, torch.zeros(1, 2, 3))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MediaError, match="3x2 pixels and has 35 bytes"):
        formats.read_dpt(path)
    with pytest.raises(MediaError, match="camera file has 172 bytes and this one 35"):
        formats.read_cam(path)
    with pytest.raises(MediaError, match="does not begin with the number"):
        formats.read_cam(b"PIEK")
    with pytest.raises(MediaError, match="not an HDF5 file with an array 'flow'"):
        formats.read_flo5(path)
    with pytest.raises(MediaError, match="cannot read"):
        formats.read_dpt(tmp_path / "nothing")
