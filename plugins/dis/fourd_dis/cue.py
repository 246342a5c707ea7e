"""Dense Inverse Search flow (Kroeger et al., ECCV 2016) as OpenCV implements it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import attrs
import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from fourd_core.data import Clip, CueMaps
from fourd_core.interfaces import CueProvider

PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
SMALLEST = 16
"""The shorter side of the smallest frame: two patches."""


class DIS(CueProvider):
    """Dense optical flow by OpenCV's DIS between the two frames of a clip, forward and backward; needs no weights."""

    kind = "flow"

    @attrs.frozen
    class Config:
        """Speed against accuracy."""

        preset: Literal["ultrafast", "fast", "medium"] = "medium"
        """OpenCV's preset."""
        finest_scale: int | None = attrs.field(
            default=None, validator=attrs.validators.optional([attrs.validators.ge(0), attrs.validators.le(4)])
        )
        """Pyramid level at which the search ends, 0 for full resolution; by default the preset's (2, 2, 1).

        Small frames end at a finer level, so that its shorter side holds a patch of 8 pixels.
        """

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, clip: Clip) -> CueMaps:
        """Flow of every frame to the other one, in pixels of the clip: `b 2 2 h w`.

        Raises:
            ValueError: a clip that has not two frames, or is too small for DIS.
        """
        b, t, _, h, w = clip.frames.shape
        if t != 2:
            raise ValueError(f"flow needs clips of 2 frames, got {t}")
        if min(h, w) < SMALLEST:
            raise ValueError(f"DIS flow needs frames of at least {SMALLEST}x{SMALLEST} pixels, got {w}x{h}")
        flows = np.empty((b, 2, h, w, 2), np.float32)
        with _one_thread():
            for flow, (first, second) in zip(flows, _grey(clip.frames), strict=True):
                flow[0], flow[1] = self._flow(first, second), self._flow(second, first)
        return CueMaps(torch.from_numpy(flows).movedim(-1, 2).contiguous().to(clip.frames.device), "flow")

    def _flow(self, start: UInt8[np.ndarray, "h w"], end: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 2"]:
        # A new object for each pair: a used one would start from what it remembers.
        search = cv2.DISOpticalFlow.create(PRESETS[self.config.preset])
        finest = search.getFinestScale() if self.config.finest_scale is None else self.config.finest_scale
        # A level with a side shorter than a patch crashes OpenCV (5.0, a segmentation fault).
        largest = int(math.log2(min(start.shape) / search.getPatchSize()))
        search.setFinestScale(min(finest, largest))
        return np.asarray(search.calc(start, end, None))


def _grey(frames: Float[torch.Tensor, "b t 3 h w"]) -> UInt8[np.ndarray, "b t h w"]:
    """Luma of ITU-R BT.601, as `cv2.cvtColor` has it."""
    weights = frames.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (frames * weights).sum(2).mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV cuts the frame into one part per thread: a fixed number of them gives the same flow on every machine."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
