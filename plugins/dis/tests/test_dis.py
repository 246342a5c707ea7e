"""DIS flow of pictures that were moved by a known amount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from fourd_dis.cue import DIS
from torch import Tensor

from fourd_core import registry
from fourd_core.data import Clip
from fourd_core.media.video import open_video
from fourd_core.media.views import short_side

BUNNY = Path(__file__).parents[3] / "examples" / "bigbuckbunny.mp4"


def texture(height: int, width: int) -> Tensor:
    """Smooth noise `3 h w` in [0, 1]."""
    noise = torch.rand(1, 3, height // 6, width // 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def moved(x: int, y: int, height: int = 96, width: int = 128, margin: int = 16) -> Clip:
    """Two frames; what stands at (a, b) in the first stands at (a + x, b + y) in the second."""
    big = texture(height + 2 * margin, width + 2 * margin)
    first = big[:, margin : margin + height, margin : margin + width]
    second = big[:, margin - y : margin - y + height, margin - x : margin - x + width]
    return Clip(torch.stack([first, second])[None])


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize(("x", "y"), [(5, 0), (0, 4), (-3, 2)])
def test_translation_has_the_right_sign_size_and_direction(preset: str, x: int, y: int) -> None:
    cue = DIS(DIS.Config(preset=preset))(moved(x, y))  # type: ignore[arg-type]
    assert (cue.kind, cue.values.shape, cue.values.dtype) == ("flow", (1, 2, 2, 96, 128), torch.float32)
    inside = cue.values[0, :, :, 12:-12, 12:-12]
    expected = torch.tensor([[x, y], [-x, -y]]).float()
    assert (inside.flatten(2).median(-1).values - expected).abs().max() < 0.25
    error = (inside - expected[:, :, None, None]).norm(dim=1)
    assert error.mean() < (0.25 if preset == "medium" else 0.6)


def warped(flow: Tensor, frame: Tensor) -> Clip:
    """A first frame that is `frame` seen through the flow from it to `frame`."""
    _, height, width = frame.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    place = torch.stack([(x + flow[0]) * 2 / width - 1, (y + flow[1]) * 2 / height - 1], dim=-1)
    first = F.grid_sample(frame[None], place[None], mode="bicubic", padding_mode="reflection", align_corners=False)[0]
    return Clip(torch.stack([first.clamp(0, 1), frame])[None])


@pytest.mark.parametrize(("config", "limit"), [(DIS.Config(), 0.35), (DIS.Config(finest_scale=0), 0.15)])
def test_known_flow_of_a_real_frame(config: DIS.Config, limit: float) -> None:
    video = open_video(str(BUNNY))
    frame = short_side(video.size, 224).apply(video.read([20]))[0]
    coarse = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(1)) * 4
    flow = F.interpolate(coarse, frame.shape[1:], mode="bicubic", align_corners=True)[0]
    assert flow.norm(dim=0).mean() > 2
    found = DIS(config)(warped(flow, frame)).values[0, 0]
    error = (found - flow).norm(dim=0)[16:-16, 16:-16]
    assert error.mean() < limit


def test_forward_and_backward_agree_on_the_real_clip() -> None:
    """Following the flow forward and back leads home, for most pixels of two neighbouring frames."""
    video = open_video(str(BUNNY))
    frames = short_side(video.size, 180).apply(video.read([60, 61]))
    forward, backward = DIS(DIS.Config())(Clip(frames[None])).values[0]
    height, width = forward.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    place = torch.stack([(x + forward[0]) * 2 / width - 1, (y + forward[1]) * 2 / height - 1], dim=-1)
    home = forward + F.grid_sample(backward[None], place[None], align_corners=False, padding_mode="border")[0]
    assert (home.norm(dim=0) < 0.5).float().mean() > 0.9


def test_runs_are_equal_to_the_bit_whatever_the_threads() -> None:
    clip = moved(3, 1)
    before = cv2.getNumThreads()
    try:
        flows = []
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            flows.append(DIS(DIS.Config())(clip).values)
            assert cv2.getNumThreads() == threads, "the user's setting comes back"
    finally:
        cv2.setNumThreads(before)
    assert torch.equal(flows[0], flows[1])
    assert torch.equal(flows[0], flows[2])


def test_every_clip_of_a_batch_stands_alone() -> None:
    clips = [moved(4, 0), moved(0, -2)]
    together = DIS(DIS.Config())(Clip(torch.cat([clip.frames for clip in clips]))).values
    for number, clip in enumerate(clips):
        assert torch.equal(together[number], DIS(DIS.Config())(clip).values[0])


def test_rest_is_zero() -> None:
    assert DIS(DIS.Config())(moved(0, 0)).values.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 32, 32), "clips of 2 frames, got 3"),
        ((1, 2, 3, 15, 40), "at least 16x16 pixels, got 40x15"),
    ],
)
def test_what_it_cannot_do_is_said(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DIS(DIS.Config())(Clip(torch.rand(shape)))


SIZES = """
import torch
from fourd_core.data import Clip
from fourd_dis.cue import DIS

for preset in ("ultrafast", "medium"):
    for scale in (None, 0, 4):
        cue = DIS(DIS.Config(preset=preset, finest_scale=scale))
        for short in (16, 17, 31, 40):
            for long in (16, 48, 100, 200, 900, 3000):
                for size in ((short, long), (long, short)):
                    flow = cue(Clip(torch.rand(1, 2, 3, *size))).values
                    assert flow.isfinite().all(), (preset, scale, size)
"""


def test_small_and_narrow_frames_do_not_crash() -> None:
    """In a process of its own: where the pyramid is too deep OpenCV ends the whole process."""
    result = subprocess.run([sys.executable, "-c", SIZES], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or f"signal {-result.returncode}"


def test_config() -> None:
    with pytest.raises(ValueError, match="finest_scale"):
        DIS.Config(finest_scale=5)


def test_the_entry_point_names_it() -> None:
    assert registry.load("cues", "dis") is DIS
