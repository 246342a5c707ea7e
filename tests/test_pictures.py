"""Pictures: colours worked out by hand, one basis for a clip, files that read back."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.errors import RunError
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.pca import SAMPLES, FeaturePCA
from fourd_core.media.pictures import (
    colours,
    depth_picture,
    depth_range,
    flow_picture,
    largest_flow,
    mask_picture,
)
from fourd_core.media.row import CHUNK, Panel, Scene, _panels
from fourd_core.media.video import open_video
from fourd_core.media.views import View, exact
from fourd_core.media.writers import VideoWriter, encode_png, write_png

DATA = Path(__file__).parent / "data"

# --- flow ------------------------------------------------------------------------------------------------------------


def one_flow(x: float, y: float) -> Tensor:
    return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1)


DIRECTIONS = {
    # The wheel has 55 steps: 15 red to yellow, 6 to green, 4 to cyan, 11 to blue, 13 to magenta, 6 to red.
    "right: step 0, red": ((1, 0), (255, 0, 0)),
    "down: step 13.5, between 221 and 238 of green": ((0, 1), (255, 229.5, 0)),
    "left: step 27, 2 of 11 from cyan to blue": ((-1, 0), (0, 255 - 46, 255)),
    "up: step 40.5, between 4 and 5 of 13 from blue to magenta": ((0, -1), (88, 0, 255)),
    "down right: step 6.75, between 102 and 119 of green": ((math.sqrt(0.5), math.sqrt(0.5)), (255, 114.75, 0)),
}


@pytest.mark.parametrize(("direction", "rgb"), DIRECTIONS.values(), ids=DIRECTIONS.keys())
def test_flow_directions_by_hand(direction: tuple[float, float], rgb: tuple[float, float, float]) -> None:
    seen = flow_picture(one_flow(*direction), largest=1.0001).flatten().float()
    assert (seen - torch.tensor(rgb)).abs().max() <= 0.6


def test_flow_lengths() -> None:
    """Rest is white, half the length is half as saturated, longer than the largest is darker."""
    assert flow_picture(one_flow(0, 0), largest=2.0).flatten().tolist() == [255, 255, 255]
    assert flow_picture(one_flow(1, 0), largest=2.0).flatten().tolist() == [255, 128, 128]
    assert flow_picture(one_flow(5, 0), largest=2.0).flatten().tolist() == [191, 0, 0]
    assert flow_picture(one_flow(math.nan, 0), largest=2.0).flatten().tolist() == [0, 0, 0]


def test_largest_flow() -> None:
    flow = torch.zeros(1, 2, 10, 10)
    flow[0, 0] = torch.arange(100).view(10, 10)
    flow[0, 1, 9, 9] = math.inf
    assert largest_flow(flow) == pytest.approx(98 * 0.99, rel=1e-6)  # 99 finite lengths 0 to 98
    assert largest_flow(torch.zeros(1, 2, 4, 4)) == 1


def test_flow_has_the_colours_of_the_field() -> None:
    """Stored numbers of L4P's drawing: radius 25, components cut off at 25 / sqrt(2), 8-bit colours rounded down."""
    stored = load_file(DATA / "l4p_vis.safetensors")
    flow, expected = stored["in/flow"][0].movedim(1, 0), stored["out/flow_rgb"][0].movedim(1, 0) * 255
    limit = 25 / math.sqrt(2)
    seen = flow_picture(flow.clamp(-limit, limit), largest=25.0).float()
    assert seen.shape == expected.shape == (3, 3, 24, 28)
    assert (seen - expected).min() >= -1e-3
    assert (seen - expected).max() <= 1 + 1e-3


# --- depth -----------------------------------------------------------------------------------------------------------


def lightness(rgb: Tensor) -> Tensor:
    """CIE 1976 L* of sRGB colours `n 3`, from their relative luminance."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=rgb.dtype)
    return 116 * luminance ** (1 / 3) - 16


def test_equal_steps_look_equal() -> None:
    """Lightness by another formula than the table's own grows in steps between half and twice the mean."""
    table = colours(torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 64))[0, :, 0].T
    assert table.min() >= 0
    assert table.max() <= 1
    steps = lightness(table).diff()
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 2 * steps.mean()


def test_depth_picture() -> None:
    depth = torch.tensor([1, 2, 4, 100, 0.5, 0, -1, math.nan, math.inf]).view(1, 1, 1, 9)
    picture = depth_picture(depth, near=1.0, far=4.0)[0, :, 0].T
    end, start = (colours(torch.full((1, 1, 1), v)).flatten().mul(255).round().to(torch.uint8) for v in (1.0, 0.0))
    third = colours(torch.full((1, 1, 1), 1 / 3)).flatten().mul(255).round().to(torch.uint8)
    assert torch.equal(picture[0], end)
    assert torch.equal(picture[1], third)  # (1/2 - 1/4) / (1 - 1/4)
    assert torch.equal(picture[2], start)
    assert torch.equal(picture[3], start)
    assert torch.equal(picture[4], end)
    assert picture[5:].sum() == 0


def test_depth_range_ignores_outliers_and_holes() -> None:
    depth = torch.arange(1, 102).float()
    depth = torch.cat([depth, torch.tensor([math.nan, math.inf, 0, -5])])
    assert depth_range(depth, 0.1, 0.9) == pytest.approx((11, 91))
    assert depth_range(torch.zeros(4)) is None


def panel(store: ArrayStore, view: View, side: int = 384) -> Panel:
    """That of a store's only map."""
    _, one = _panels(Scene(store, view, "video", side), None)
    return one


@pytest.mark.parametrize("valid", [range(CHUNK), range(CHUNK, 2 * CHUNK), range(0)])
def test_the_depth_of_a_clip_with_holes(tmp_path: Path, valid: range) -> None:
    """Frames without any depth are black and leave the colours of the others as they are."""
    depth = torch.full((2 * CHUNK, 1, 8, 8), math.nan)
    ramp = torch.linspace(1, 5, 64).view(8, 8)
    depth[list(valid)] = ramp
    store = ArrayStore(tmp_path / "a.zarr")
    store.append("depth", depth, kind="depth")
    store.commit()
    picture = panel(store, exact((8, 8), (8, 8))).paint(range(2 * CHUNK), torch.zeros(8, 3, 8, 8, dtype=torch.uint8))
    black = [number for number in range(2 * CHUNK) if number not in valid]
    assert picture[black].sum() == 0
    if valid:
        alone = depth_range(depth[list(valid)])
        assert alone is not None
        assert torch.equal(picture[list(valid)], depth_picture(depth[list(valid)], *alone))


# --- masks -----------------------------------------------------------------------------------------------------------


def test_mask_picture() -> None:
    """Grey where nothing is probable or known, warm where it is, a line inside the border of what exceeds 0.85."""
    frames = torch.tensor([10, 200, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 9, 12)
    share = torch.zeros(1, 1, 9, 12)
    share[..., 2:7, 2:7] = 0.9
    share[..., 0, 9] = 0.5
    share[..., 8, 11] = math.nan
    picture = mask_picture(frames, share)[0]
    luma = round(0.2126 * 10 + 0.7152 * 200 + 0.0722 * 30)
    assert picture[:, 0, 0].tolist() == [luma] * 3
    assert picture[:, 8, 11].tolist() == [luma] * 3
    red, green, blue = picture[:, 0, 9].tolist()
    assert red > luma > green > blue
    yellow = (picture == torch.tensor([255, 230, 51], dtype=torch.uint8).view(3, 1, 1)).all(0)
    expected = torch.zeros(9, 12, dtype=torch.bool)
    expected[2:7, 2:7] = True
    expected[3:6, 3:6] = False
    assert torch.equal(yellow, expected)
    assert mask_picture(frames, share, threshold=0.95)[0, :, 4, 4].tolist() == picture[:, 4, 4].tolist()


# --- features --------------------------------------------------------------------------------------------------------


def clip_features(frames: int = 6, channels: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(channels, channels, generator=generator) * torch.logspace(0, -2, channels)
    values = torch.randn(frames, 16, 24, channels, generator=generator) @ mixing.T + 40
    return values.permute(0, 3, 1, 2).contiguous()


def fitted(features: Tensor, *, window: int) -> FeaturePCA:
    pca = FeaturePCA(features.shape[1])
    for start in range(0, len(features), window):
        pca.update(features[start : start + window])
    pca.finish()
    return pca


def test_the_basis_is_that_of_a_singular_value_decomposition() -> None:
    features = clip_features()
    pca = fitted(features, window=2)
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    expected = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False).Vh[:3].T.float()
    assert (pca._basis * expected).sum(0).abs().min() > 1 - 1e-5
    torch.testing.assert_close(pca._mean, vectors.mean(0).float())


def test_windows_do_not_change_the_picture() -> None:
    features = clip_features()
    one, many = fitted(features, window=6), fitted(features, window=1)
    assert (one.picture(features).int() - many.picture(features).int()).abs().float().mean() < 1.5
    torch.testing.assert_close(one._basis, many._basis, rtol=1e-4, atol=1e-5)


def test_colours_do_not_flicker() -> None:
    """The same feature has the same colour in every frame, whatever stands around it."""
    features = clip_features()
    features[1:, :, 5, 7] = features[0, :, 5, 7]
    picture = fitted(features, window=2).picture(features)
    assert (picture[:, :, 5, 7] == picture[0, :, 5, 7]).all()


def test_signs_are_fixed() -> None:
    """Mirroring the features mirrors the basis' sign choice away: the largest entry stays positive."""
    for features in (clip_features(), 80 - clip_features()):
        basis = fitted(features, window=3)._basis
        assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_most_pixels_are_inside_the_range_and_an_outlier_is_not() -> None:
    features = clip_features()
    features[0, :, 0, 0] += 1000
    picture = fitted(features, window=2).picture(features)
    inside = ((picture > 0) & (picture < 255)).float().mean()
    assert inside > 0.95


def test_memory_does_not_grow() -> None:
    pca = FeaturePCA(2)
    values = torch.arange(64 * 64).float().view(1, 1, 64, 64).expand(1, 2, 64, 64)
    for _ in range(20):
        pca.update(values + torch.rand(1, 2, 64, 64))
    assert SAMPLES / 2 <= len(pca._sample) <= SAMPLES
    # A sample of every column, not of one only: the values are about uniform in 0 .. 4096.
    assert abs(float(pca._sample.mean()) - 2048) < 60


def test_fewer_channels_than_colours() -> None:
    features = clip_features(channels=2)
    assert fitted(features, window=2).picture(features).shape == (6, 3, 16, 24)


def test_features_of_a_part_of_the_frame(tmp_path: Path) -> None:
    """What the network did not see is black, whatever the numbers there; a NaN that it did predict is not hidden."""
    view = View((16, 24), (16, 24), (8, 12), (4, 6))
    features = clip_features(CHUNK, 5)
    inside = torch.zeros(16, 24, dtype=torch.bool)
    inside[4:12, 6:18] = True
    store = ArrayStore(tmp_path / "a.zarr")
    store.append("features", features.masked_fill(~inside, math.nan), kind="features")
    store.commit()
    blank = torch.zeros(CHUNK, 3, 16, 24, dtype=torch.uint8)
    picture = panel(store, view).paint(range(CHUNK), blank)
    assert picture[..., ~inside].sum() == 0
    alone = fitted(features[..., 4:12, 6:18], window=CHUNK).picture(features[..., 4:12, 6:18])
    assert torch.equal(picture[..., 4:12, 6:18], alone)
    with pytest.raises(RunError, match="hold NaN or infinite"):
        panel(store, exact((16, 24), (16, 24)))
    # At a third of the size: every third pixel, 1, 4, 7 ..., of which rows 4 to 10 and columns 7 to 16 are inside.
    small = panel(store, view, side=8).paint(range(CHUNK), blank[..., ::3, ::3][..., :5, :8])
    known = (small.sum((0, 1)) > 0).nonzero()
    assert (known.amin(0).tolist(), known.amax(0).tolist()) == ([1, 2], [3, 5])


def test_nan_features_are_refused() -> None:
    with pytest.raises(RunError, match="hold NaN or infinite"):
        FeaturePCA(3).update(torch.full((1, 3, 2, 2), math.nan))


# --- files -----------------------------------------------------------------------------------------------------------


def test_png_reads_back_to_the_bit(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 13, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "a.png", picture)
    assert torch.equal(open_video(str(tmp_path / "a.png")).read([0])[0], picture)
    data = encode_png(picture)
    assert data[-12:] == b"\x00\x00\x00\x00IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_video_reads_back(tmp_path: Path, height: int, width: int) -> None:
    frames = torch.zeros(9, 3, height, width, dtype=torch.uint8)
    for number in range(9):
        frames[number] = torch.tensor([200, 10 + 20 * number, 60], dtype=torch.uint8).view(3, 1, 1)
    with VideoWriter(tmp_path / "a.mp4", fps=30000 / 1001) as writer:
        writer.write(frames[:4])
        writer.write(frames[4:])
        assert not (tmp_path / "a.mp4").exists(), "it appears when it is whole"
    video = open_video(str(tmp_path / "a.mp4"))
    assert (video.frame_count, video.size) == (9, (48, 64))
    assert video.times([8]).item() == pytest.approx(8 * 1001 / 30000, abs=1e-4)
    assert (video.read(range(9)).int()[..., :height, :width] - frames.int()).abs().max() <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_frame_in_an_hour(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=1 / 3600) as writer:
        writer.write(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert open_video(str(tmp_path / "a.mp4")).times([1]).item() == pytest.approx(1001)


def test_a_video_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", fps=25.0) as writer:
        writer.write(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="no frame was written"), VideoWriter(tmp_path / "b.mp4", fps=25.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"has frames of \(16, 16\), not \(16, 18\)"),
        VideoWriter(tmp_path / "a.mp4", fps=25.0) as writer,
    ):
        writer.write(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
        writer.write(torch.zeros(1, 3, 16, 18, dtype=torch.uint8))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="a file, not a folder"):
        write_png(tmp_path / "file" / "a.png", torch.zeros(3, 2, 2, dtype=torch.uint8))
    with (
        pytest.raises(RunError, match="a file, not a folder"),
        VideoWriter(tmp_path / "file" / "a.mp4", 25.0),
    ):
        pass


FULL = """
import resource, sys, torch
from pathlib import Path
from fourd_core.errors import RunError
from fourd_core.media.writers import VideoWriter, write_png

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = torch.randint(0, 256, (40, 3, 160, 160), dtype=torch.uint8)
for name in ("a.png", "a.mp4"):
    try:
        if name == "a.png":
            write_png(Path(sys.argv[1]) / name, noise[0])
        else:
            with VideoWriter(Path(sys.argv[1]) / name, 25) as writer:
                writer.write(noise)
        sys.exit("nothing went wrong")
    except RunError as error:
        sys.stdout.write(f"{error}\\n")
"""


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A file size limit stands for a full disk: the same call fails in the same way."""
    assert resource.RLIMIT_FSIZE
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("a.png", "a.mp4"), strict=True):
        assert line == f"cannot write {tmp_path / name}: the file grew over the size limit of this system or user"
    assert list(tmp_path.iterdir()) == []


def test_uniform_flow_has_one_colour() -> None:
    """Every pixel is the longest, by a rounding error more or less."""
    flow = torch.tensor([0.3, 0.7]).view(1, 2, 1, 1).expand(1, 2, 9, 9) * (1 + 1e-6 * torch.rand(1, 1, 9, 9))
    picture = flow_picture(flow, largest_flow(flow)).int()
    assert (picture - picture[..., :1, :1]).abs().max() <= 1
