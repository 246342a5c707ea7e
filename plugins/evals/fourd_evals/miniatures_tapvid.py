"""TAP-Vid and TAPVid-3D in miniature, in memory: for contract tests and tests."""

from __future__ import annotations

import io
import pickle
from functools import cache
from typing import Any

import numpy as np
from numpy import ndarray

from fourd_evals.miniatures import encoded, in_memory
from fourd_evals.miniatures_evaluation import picture, turned


def tapvid_item(seed: int, frames: int = 4, jpeg: bool = False) -> dict[str, Any]:
    """A video of TAP-Vid and two points; the second is occluded in the last frame."""
    pictures = np.stack([picture(seed + n) for n in range(frames)])
    points = np.zeros((2, frames, 2), np.float32)
    points[0] = np.stack([np.arange(frames) / 8, np.full(frames, 0.25)], -1)
    points[1] = 0.75, 1.0
    occluded = np.zeros((2, frames), bool)
    occluded[1, -1] = True
    video: Any = [encoded(frame, "jpg") for frame in pictures] if jpeg else pictures
    return {"video": video, "points": points, "occluded": occluded}


@cache
def tapvid_miniature() -> str:
    """DAVIS' dict of two videos."""
    return in_memory("tapvid", {"tapvid_davis.pkl": pickle.dumps({"goat": tapvid_item(900), "dog": tapvid_item(910)})})


def tapvid3d_arrays(seed: int, frames: int = 3, moves: bool = True) -> dict[str, ndarray]:
    """A file of TAPVid-3D: the first point lies at (1, 0, 2 + frame) before the camera, the second is behind it, the
    third is not known in frame 0."""
    points = np.zeros((frames, 3, 3))
    points[:, 0] = [(1, 0, 2 + n) for n in range(frames)]
    points[:, 1] = (0, 0, -1)
    points[:, 2] = (0, 1, 4)
    points[0, 2] = np.nan
    visibility = np.ones((frames, 3), bool)
    visibility[:, 1] = False
    visibility[2, 0] = False
    arrays = {
        "images_jpeg_bytes": np.array([encoded(picture(seed + n), "jpg") for n in range(frames)]),
        "queries_xyt": np.array([[26.0, 12, 0], [0, 0, 0], [16, 17.25, 1]], np.float32),
        "tracks_XYZ": points,
        "visibility": visibility,
        "fx_fy_cx_cy": np.array([20.0, 21, 16, 12]),
    }
    if moves:
        arrays["extrinsics_w2c"] = np.stack([turned((n, 0, 3)) for n in range(frames)])
    return arrays


def npz(arrays: dict[str, Any]) -> bytes:
    """A file of arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@cache
def tapvid3d_miniature() -> str:
    """One video with a camera that moves and one without."""
    return in_memory(
        "tapvid3d",
        {
            "adt/room.npz": npz(tapvid3d_arrays(950)),
            "pstudio/ball_1.npz": npz(tapvid3d_arrays(960, moves=False)),
        },
    )
