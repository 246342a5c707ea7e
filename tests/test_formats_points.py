"""PLY files, parsed here by hand and read by our own reader."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from fourd_core.errors import MediaError
from fourd_core.media.formats.points import PlyWriter, PointCloud, read_ply, write_ply

NAN = float("nan")


def cloud(count: int, seed: int = 0, confidence: bool = False) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    return PointCloud(
        torch.randn(count, 3, generator=generator),
        torch.randint(0, 256, (count, 3), generator=generator, dtype=torch.uint8),
        torch.rand(count, generator=generator) if confidence else None,
    )


def same(a: PointCloud, b: PointCloud) -> bool:
    if (a.confidence is None) != (b.confidence is None):
        return False
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None)


def test_a_file_by_hand(tmp_path: Path) -> None:
    """The point that is not finite is left out."""
    xyz = torch.tensor([[1.0, 2.0, 3.0], [0.0, NAN, 0.0], [-0.5, 0.25, 1e9]])
    rgb = torch.tensor([[255, 0, 7], [1, 1, 1], [0, 128, 254]], dtype=torch.uint8)
    write_ply(tmp_path / "a.ply", PointCloud(xyz, rgb))
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    lines = [line for line in header.decode("ascii").splitlines() if not line.startswith("comment ")]
    assert lines == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 2",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
    ]
    assert body == struct.pack("<3f3B", 1, 2, 3, 255, 0, 7) + struct.pack("<3f3B", -0.5, 0.25, 1e9, 0, 128, 254)


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_round_trip(tmp_path: Path, count: int, confidence: bool) -> None:
    written = cloud(count, confidence=confidence)
    write_ply(tmp_path / "a.ply", written)
    assert same(read_ply(tmp_path / "a.ply"), written)


def test_frames_appended_one_by_one_make_the_file_of_all(tmp_path: Path) -> None:
    """The number of points grows over several digits, and the header keeps its place."""
    parts = [cloud(count, seed=count) for count in (0, 3, 9, 200)]
    with PlyWriter(tmp_path / "parts.ply") as writer:
        for part in parts:
            writer.append(part)
            assert not (tmp_path / "parts.ply").exists()
    assert writer.count == 212
    xyz, rgb = (torch.cat([part[column] for part in parts]) for column in (0, 1))  # type: ignore[misc]
    write_ply(tmp_path / "whole.ply", PointCloud(xyz, rgb))
    assert (tmp_path / "parts.ply").read_bytes() == (tmp_path / "whole.ply").read_bytes()
    assert same(read_ply(tmp_path / "parts.ply"), PointCloud(xyz, rgb))


def test_an_interrupted_writer_leaves_what_was_there(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", cloud(2))
    with pytest.raises(KeyboardInterrupt), PlyWriter(tmp_path / "a.ply") as writer:
        writer.append(cloud(5))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
    assert same(read_ply(tmp_path / "a.ply"), cloud(2))


def test_confidence_for_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all points have a confidence"), PlyWriter(tmp_path / "a.ply") as writer:
        writer.append(cloud(3, confidence=True))
    assert list(tmp_path.iterdir()) == []


def test_files_of_others(tmp_path: Path) -> None:
    """Doubles, other names of the types, a normal between, faces behind the points, no colours."""
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment made by hand\nelement vertex 2\nproperty float64 x\n"
        "property double y\nproperty float32 z\nproperty float nx\nproperty uint8 quality\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    body = struct.pack("<ddffB", 1, 2, 3, 0, 9) + struct.pack("<ddffB", 4, 5, 6, 0, 9) + struct.pack("<B3i", 3, 0, 1, 0)
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    read = read_ply(tmp_path / "a.ply")
    assert read.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read.rgb.tolist() == [[0, 0, 0]] * 2
    assert read.confidence is None


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\n", "is not a binary little-endian PLY"),
        ("plu\n", "is not a binary little-endian PLY"),
        ("ply\nformat binary_little_endian 1.0\nelement face 0\n", "does not begin with points"),
        ("ply\nformat binary_little_endian 1.0\n", "does not begin with points"),
        ("ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\n", "does not begin with points"),
        (
            "ply\nformat binary_little_endian 1.0\nelement vertex many\n"
            "property float x\nproperty float y\nproperty float z\n",
            "does not begin with points",
        ),
        (
            "ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
            "property float x\nproperty float y\nproperty float z\n",
            "is cut off: it has 1 of 3 points",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, header: str, sentence: str) -> None:
    (tmp_path / "a.ply").write_bytes(header.encode() + b"end_header\n" + bytes(20))
    with pytest.raises(MediaError, match=sentence):
        read_ply(tmp_path / "a.ply")
