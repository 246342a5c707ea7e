"""The predict stage: a killed one goes on where it was, memories included, to the same bits."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import zarr
from helpers import Fourd, shell_environment, with_lines, write_video

from fourd_core.jobs.place import Place, size_of
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.views import exact
from fourd_core.sinks import ArraySink
from fourd_core.streaming import Position


def test_a_killed_prediction_with_a_memory_ends_with_the_same_bits(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "long.mp4", frames=240)
    recipe = with_lines(toy_recipe, '\n[memories.value]\nuse = "toy_average"\n')
    options = ["predict", "--set", f"data.video={tmp_path / 'long.mp4'}", "--set", "stages.predict.movie=false",
               "--set", "stages.predict.window=4", "--set", "stages.predict.stride=2"]  # fmt: skip
    fourd("run", recipe, *options, "--out", "whole", check=0)
    position = tmp_path / "killed/predict/long.position.pt"
    reached = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "fourd_core", "run", str(recipe), *options, "--out", "killed"],
            cwd=tmp_path, env=shell_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        before = position.stat().st_mtime_ns if position.exists() else 0
        while process.poll() is None and (not position.exists() or position.stat().st_mtime_ns == before):
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert position.exists(), "the kill came too late to test anything"
        reached.append(torch.load(position, weights_only=True)["start"])
    assert 0 < reached[0] < reached[1] < 240
    fourd("run", recipe, *options, "--out", "killed", check=0)
    whole, killed = (zarr.open_group(tmp_path / name / "predict/long.zarr", mode="r") for name in ("whole", "killed"))
    assert (whole["value"][:] == killed["value"][:]).all()
    assert not position.exists()


def test_the_size_of_a_state() -> None:
    state = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), None], "c": (1, {"d": torch.zeros(1)})}
    assert size_of(state) == 12 + 16 + 4


@pytest.mark.parametrize(
    ("key", "says"), [("stages.predict.stride=5", "stride"), ("stages.predict.window=0", "window")]
)
def test_windows_that_cannot_be_name_their_key(fourd: Fourd, toy_recipe: Path, key: str, says: str) -> None:
    assert says in fourd("run", toy_recipe, "predict", "--set", key, "--out", "a", check=2).stderr


def test_a_place_is_kept_and_found_again(tmp_path: Path) -> None:
    """Small states at every window, large ones now and then, or at once; what the sink knew comes back too."""
    view = exact((8, 12), (8, 12))
    store = ArrayStore(tmp_path / "clip.zarr", attributes={"frames": 4})
    store.append("depth", torch.zeros(4, 1, 8, 12))
    sink = ArraySink(store, view, "video")
    sink.restore({"points forward": torch.tensor([2.5])})
    place = Place(store, sink)
    large = Position(False, 2, {"points": [torch.zeros(2**19)]})
    place.save(large)
    assert not (tmp_path / "clip.position.pt").exists()
    place.save(large, at_once=True)
    other = ArraySink(store, view, "video")
    found = Place(store, other).load(torch.device("cpu"))
    assert (found.reverse, found.start) == (False, 2)
    assert other.state["points forward"].tolist() == [2.5]
    assert store.done == 2  # what was written behind the place is dropped
    place.save(Position(False, 2))
    assert Place(store, other).load(torch.device("cpu")).states == {}
    place.forget()
    assert not (tmp_path / "clip.position.pt").exists()
