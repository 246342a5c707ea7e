"""Frames that a user hands over in Python are as good as those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fourd_core as fourd
from fourd_core.errors import MediaError
from fourd_core.media.video import open_given, open_video
from fourd_core.media.writers import write_png


@pytest.fixture
def frames() -> Tensor:
    """Five pictures, every number that a byte can hold among them."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (5, 3, 72, 96), dtype=torch.uint8, generator=generator)
    frames[0, 0].view(-1)[:256] = torch.arange(256)
    return frames


def forms(frames: Tensor) -> dict[str, Any]:
    array = frames.permute(0, 2, 3, 1).numpy()
    fixed = array.copy()
    fixed.flags.writeable = False
    return {
        "bytes": frames, "floats": frames / 255, "half": (frames / 255).half(), "double": frames.double() / 255,
        "with gradient": (frames / 255).requires_grad_(), "strided": frames.flip(-1).flip(-1).mT.contiguous().mT,
        "array": array, "contiguous array": np.ascontiguousarray(array), "read-only array": fixed,
        "mirrored array": np.ascontiguousarray(array[:, :, ::-1])[:, :, ::-1],
    }  # fmt: skip


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_predictions_of_frames_are_those_of_their_files(tmp_path: Path, toy_recipe: Path, frames: Tensor) -> None:
    (tmp_path / "pictures").mkdir()
    for number, frame in enumerate(frames):
        write_png(tmp_path / "pictures" / f"{number}.png", frame)
    system = fourd.load(toy_recipe, ["stages.predict.pixels=video"])
    expected = system.predict(tmp_path / "pictures").value
    assert expected.shape == (1, 5, 1, 72, 96)
    for name, given in forms(frames).items():
        assert torch.equal(system.predict(given).value, expected), name
    one = system.predict(str(tmp_path / "pictures" / "0.png")).value
    assert one.shape == (1, 1, 1, 72, 96)
    for name, given in forms(frames).items():
        assert torch.equal(system.predict(given[0]).value, one), name


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_given_frames_are_a_video(tmp_path: Path, frames: Tensor) -> None:
    for number, frame in enumerate(frames):
        write_png(tmp_path / f"{number}.png", frame)
    expected = open_video(str(tmp_path), frame_rate=10.0)
    for name, given in forms(frames).items():
        video = open_given(given, 10.0)
        assert (video.frame_count, video.size) == (5, (72, 96)), name
        assert torch.equal(video.read([4, 0, 4]), expected.read([4, 0, 4])), name
        assert video.read([1]).is_contiguous()
        assert torch.equal(video.times([0, 3]), expected.times([0, 3]))
    for wrong in (5, -1):
        with pytest.raises(IndexError, match=f"the given frames has frames 0 to 4, not {wrong}"):
            video.read([wrong])


ACCEPTED = (
    "cannot be taken as a video: give a torch tensor t 3 h w or 3 h w, uint8 or floating from 0 to 1, or a NumPy array "
    "t h w 3 or h w 3, uint8"
)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.zeros(8, 8, 3), "frames of shape (8, 8, 3)"),
        (torch.zeros(1, 2, 3, 8, 8), "frames of shape (1, 2, 3, 8, 8)"),
        (torch.zeros(2, 1, 8, 8), "frames of shape (2, 1, 8, 8)"),
        (torch.zeros(0, 3, 8, 8), "frames of shape (0, 3, 8, 8)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "frames of shape (2, 3, 8, 8)"),
        (np.zeros((8, 8), np.uint8), "frames of shape (8, 8)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64 frames"),
        (np.zeros((8, 8, 3)), "float64 frames"),
        (torch.full((3, 8, 8), 255.0), "float32 frames with values from 255 to 255"),
        (torch.linspace(-0.5, 1, 192).view(3, 8, 8), "float32 frames with values from -0.5 to 1"),
        (torch.full((3, 8, 8), torch.nan), "float32 frames with values from nan to nan"),
    ],
)
def test_what_is_no_video(given: Any, says: str) -> None:
    with pytest.raises(MediaError) as caught:
        open_given(given)
    assert str(caught.value) == f"{says} {ACCEPTED}"


def test_other_objects() -> None:
    with pytest.raises(MediaError) as caught:
        open_given([1, 2])
    assert str(caught.value) == f"an object of type list {ACCEPTED}, or name a file, folder or URL"
