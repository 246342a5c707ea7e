"""Files that claim more than they hold, or lead elsewhere: a sentence, and nothing that grows."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from fourd_evals import arrays
from fourd_evals.datasets_dynamic_replica import DynamicReplica
from fourd_evals.miniatures import encoded, in_memory
from fourd_evals.miniatures_tapvid import npz
from fourd_evals.miniatures_training import dynamic_replica_files
from fourd_evals.roots import Root
from fourd_evals.scene import known_scene
from numpy.lib import format as npy

from fourd_core.errors import MediaError
from fourd_core.recipe import Location

FOLDER = "hostile"


def claiming(shape: tuple[int, ...]) -> bytes:
    """The head of an array of any size, and no numbers."""
    data = io.BytesIO()
    npy.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return data.getvalue()


def root(**files: bytes) -> Root:
    return Root(in_memory(FOLDER, {name.replace("_", "."): data for name, data in files.items()}))


def test_arrays_that_claim_more_than_any_memory() -> None:
    there = root(a_npy=claiming((10**6, 10**9)))
    with pytest.raises(MediaError, match=r"a\.npy is not a file of one array"):
        arrays.read_npy(there, "a.npy")
    archive = io.BytesIO()
    with arrays.ZipFile(archive, "w") as file:
        file.writestr("x.npy", claiming((3, 10**15)))
    there = root(b_npz=archive.getvalue())
    with pytest.raises(MediaError, match=r"b\.npz is not an archive of arrays"):
        arrays.NpzRows(there, "b.npz").rows(there, "x", [0])
    with pytest.raises(MediaError, match=r"b\.npz is not a file of plain arrays"):
        arrays.read_npz(there, "b.npz")


def test_an_archive_that_unpacks_to_much(monkeypatch: pytest.MonkeyPatch) -> None:
    there = root(c_npz=npz({"x": np.zeros(1000, np.float32)}))
    assert arrays.read_npz(there, "c.npz")["x"].shape == (1000,)
    monkeypatch.setattr(arrays, "LARGEST", 4000)  # the head of the array comes on top
    with pytest.raises(MediaError, match=r"its arrays would take 4\d\d\d bytes, more than 4000"):
        arrays.read_npz(there, "c.npz")


def test_a_picture_that_claims_a_wall_of_pixels() -> None:
    small = encoded(np.zeros((2, 2), np.uint8))
    head = b"IHDR" + struct.pack(">II", 10**5, 10**5) + small[24:29]
    large = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
    there = root(small_png=small, large_png=large)
    assert there.picture("small.png").shape == (3, 2, 2)
    with pytest.raises(MediaError, match=r"the picture .*large\.png cannot be decoded"):
        there.picture("large.png")


def test_a_list_that_leads_out_of_the_data_set() -> None:
    files = dynamic_replica_files({"a": known_scene(frames=2)})
    name = next(name for name in files if name.endswith(".jgz"))
    entries: list[dict[str, Any]] = json.loads(gzip.decompress(files[name]))
    next(entry for entry in entries if int(entry["frame_number"]))["image"]["path"] = "../../secret.png"
    files[name] = gzip.compress(json.dumps(entries).encode())
    video = DynamicReplica(DynamicReplica.Config(root=Location(in_memory("leading-out", files)))).videos("all")[0]
    video.read([0])
    with pytest.raises(MediaError, match=r"frame 1 of .* names a file outside of the data set: \.\./\.\./secret\.png"):
        video.read([1])


def test_a_map_from_elsewhere_is_called_by_its_own_place() -> None:
    with pytest.raises(MediaError, match=r"hostile.*/wrong\.png") as error:
        root(wrong_png=b"no picture").grey16("wrong.png")
    assert "/tmp" not in str(error.value)
