"""The array store: what is committed survives, what is not vanishes, and memory stays constant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from fourd_core.errors import RunError
from fourd_core.media.arrays import ArrayStore


def values(start: int, stop: int) -> torch.Tensor:
    """Frames `t 2 3 4` whose every number is the frame's."""
    return torch.arange(start, stop).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4)


def test_appending_and_reading_with_plain_zarr(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "arrays", attributes={"video": "a.mp4"})
    for start, stop in ((0, 5), (5, 6), (6, 40)):
        store.append("depth", values(start, stop), unit="m", kind="depth")
        store.append("label", torch.arange(start, stop), axes="t")
        store.commit()
    assert not store.complete
    store.finish()

    group = zarr.open_group(tmp_path / "arrays", mode="r")
    assert group.metadata.zarr_format == 3
    assert dict(group.attrs)["video"] == "a.mp4"
    assert (group.attrs["done"], group.attrs["complete"]) == (40, True)
    assert "top left pixel is (0.5, 0.5)" in group.attrs["conventions"]["coordinates"]  # type: ignore[index,call-overload,operator]
    depth, label = group["depth"], group["label"]
    assert isinstance(depth, zarr.Array)
    assert isinstance(label, zarr.Array)
    assert np.array_equal(depth[:], values(0, 40).numpy())
    assert np.array_equal(label[:], np.arange(40))
    assert dict(depth.attrs) == {"unit": "m", "kind": "depth"}
    assert depth.metadata.dimension_names == ("t", "c", "h", "w")  # type: ignore[union-attr]
    assert depth.chunks[0] == 16


def test_large_frames_have_chunks_of_few(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a", precision="float16")
    store.append("features", torch.zeros(1, 64, 128, 128))  # 2 MB a frame
    assert store["features"].chunks == (8, 64, 128, 128)
    assert store["features"].dtype == np.float16


def test_resume_drops_what_was_not_committed(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a")
    store.append("x", values(0, 20))
    store.append("y", values(0, 20))
    store.commit()
    store.append("x", values(20, 27))  # killed before y
    store = ArrayStore(tmp_path / "a")
    assert store.done == 20
    assert store["x"].shape[0] == store["y"].shape[0] == 20
    for name in "xy":
        store.append(name, values(20, 50))
    store.finish()
    assert np.array_equal(store["x"][:], values(0, 50).numpy())
    assert np.array_equal(ArrayStore(tmp_path / "a")["y"][:], values(0, 50).numpy())


KILLED = """
import sys, torch
from pathlib import Path
from fourd_core.media.arrays import ArrayStore

store = ArrayStore(Path(sys.argv[1]))
while True:
    start = store["x"].shape[0] if "x" in store else 0
    store.append("x", torch.arange(start, start + 3).float().view(-1, 1).expand(-1, 1000), axes="t n")
    store.commit()
    sys.stdout.write(f"{store.done}\\n")
    sys.stdout.flush()
"""


def test_killed_and_resumed(tmp_path: Path) -> None:
    done = 0
    for lines in (4, 7):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(lines):
            reported = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.communicate()
        store = ArrayStore(tmp_path / "a")
        assert store.done >= reported > done
        done = store.done
        assert np.array_equal(store["x"][:, 7], np.arange(done))


def test_arrays_of_different_lengths_are_not_committed(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a")
    store.append("x", values(0, 2))
    store.append("y", values(0, 3))
    with pytest.raises(ValueError, match="'x': 2, 'y': 3"):
        store.commit()


def test_another_shape_is_refused(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a")
    store.append("x", values(0, 2))
    with pytest.raises(ValueError, match=r"'x' has frames of shape \(2, 3, 4\), not \(2, 3, 5\)"):
        store.append("x", torch.zeros(1, 2, 3, 5))


def test_too_large_for_half_precision(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a", precision="float16")
    store.append("x", torch.tensor([1.0, float("inf")]).view(1, 1, 1, 2))
    too_large = torch.tensor([1.0, 1e5]).view(1, 1, 1, 2)
    with pytest.raises(RunError, match=r"'x' has numbers over 65504.*; set stages\.NAME\.precision = \"float32\""):
        store.append("x", too_large)
    with pytest.raises(RunError, match=r'set stages\.map\.precision = "float32"'):
        ArrayStore(tmp_path / "a", "float16", precision_key="stages.map.precision").append("x", too_large)
    store.append("y.xyz", torch.tensor([[1.0, 1e5]]), axes="t n")  # not a map
    assert store["y.xyz"][0, 1] == 1e5


@pytest.mark.parametrize("kind", ["depth", "flow", "mask", "features"])
def test_features_and_masks_alone_are_halved(tmp_path: Path, kind: str) -> None:
    store = ArrayStore(tmp_path / "a", precision="float16")
    for _ in range(2):
        store.append("x", torch.full((1, 1, 1, 1), 300.3), kind=kind)
    store.patch("x", 1, torch.full((1, 1, 1, 1), 300.3), unit="1", kind=kind, axes="t c h w")
    kept = {"depth": 300.3, "flow": 300.3, "mask": 300.25, "features": 300.25}[kind]
    assert store["x"][:].flatten().tolist() == pytest.approx([kept, kept], rel=1e-7)


def test_bfloat16_is_stored(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a")
    store.append("x", torch.tensor([[1.5]], dtype=torch.bfloat16), axes="t n")
    assert store["x"][0, 0] == 1.5


def test_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the arrays are called, and chunk by chunk."""
    store = ArrayStore(tmp_path / "a", precision="float16")
    for start, stop in ((0, 17), (17, 40)):
        store.append("file", values(start, stop))
        store.append("depth", values(start, stop), kind="depth")
        store.append("track.live", torch.arange(start, stop)[:, None] % 3 == 0, axes="t n")
    most = 0
    read = zarr.Array.__getitem__

    def counted(array: zarr.Array, key: slice) -> np.ndarray:
        nonlocal most
        rows = read(array, key)
        most = max(most, len(rows))
        return rows

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    store.export_npz(tmp_path / "a.npz")
    assert most == 16
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["depth", "file", "track.live"]
        assert [arrays[name].dtype for name in ("depth", "file", "track.live")] == [np.float32, np.float16, bool]
        for name in ("depth", "file"):
            assert np.array_equal(arrays[name], values(0, 40).numpy())
        assert np.array_equal(arrays["track.live"][:, 0], np.arange(40) % 3 == 0)


def test_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "arrays"):
        with pytest.raises(RunError, match="cannot write"):
            ArrayStore(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds other files and no arrays"):
        ArrayStore(tmp_path / "other")
    ArrayStore(tmp_path / "a")
    (tmp_path / "a" / "zarr.json").write_text("{")
    with pytest.raises(RunError, match="are damaged"):
        ArrayStore(tmp_path / "a")


LIMITED = """
import resource, sys, torch
from pathlib import Path
from fourd_core.errors import RunError
from fourd_core.media.arrays import ArrayStore

store = ArrayStore(Path(sys.argv[1]))
store.append("x", torch.zeros(2, 1, 4, 4))
store.commit()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    store.append("y", torch.rand(2, 1, 200, 200))
except RunError as error:
    sys.stdout.write(str(error))
"""


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"cannot write {tmp_path / 'a'}: the file grew over the size limit of this system or user"
    store = ArrayStore(tmp_path / "a")
    assert (store.done, store["x"].shape[0]) == (2, 2)


MEMORY = """
import resource, sys, torch
from pathlib import Path
from fourd_core.media.arrays import ArrayStore

store = ArrayStore(Path(sys.argv[1]))
peaks = []
for turn in range(60):
    store.append("x", torch.rand(4, 3, 128, 128))
    store.commit()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.stdout.write(f"{peaks[19]} {peaks[-1]}")
"""


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """47 MB are written; the peak after a third of them is the peak."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    early, late = map(int, result.stdout.split())
    unit = 1024 if sys.platform == "linux" else 1
    assert (late - early) * unit < 12 * 2**20, json.dumps({"early": early, "late": late, "cores": os.cpu_count()})
