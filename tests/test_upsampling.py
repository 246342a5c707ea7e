"""A coarse map at full resolution: what the read-outs must find, and where they must not be led astray."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage import data
from torch import Tensor

from fourd_core.errors import RunError
from fourd_core.media.views import View, center, exact
from fourd_core.upsampling import guide, in_context, upsample_in_context
from fourd_core.upsampling.guides import SHARE, guide_rows, standardised

LINE = torch.tensor([1.5, -2.0, 0.25]).view(1, 3, 1, 1)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def averaged(maps: Tensor, cell: int = 8) -> Tensor:
    return F.avg_pool2d(maps, cell)


def bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def plain(values: Tensor, features: Tensor, ridge: float) -> Tensor:
    """The definition for one map that is known everywhere: a loop over cells, normal equations, no limits."""
    _, _, h, w = values.shape
    high, wide = features.shape[-2:]
    coarse = F.adaptive_avg_pool2d(features, (h, w))
    scale = coarse.flatten(2).var(2, correction=0).sum() ** -0.5
    coarse, features = coarse * scale, features * scale
    fields = torch.zeros(features.shape[1] + 1, values.shape[1], h, w, dtype=values.dtype)
    for i in range(h):
        for j in range(w):
            around = (slice(max(i - 1, 0), i + 2), slice(max(j - 1, 0), j + 2))
            x, y = coarse[0][(..., *around)].flatten(1).T, values[0][(..., *around)].flatten(1).T
            mean_x, mean_y = x.mean(0), y.mean(0)
            gram = (x - mean_x).T @ (x - mean_x) / 9 + ridge * torch.eye(x.shape[1], dtype=x.dtype)
            weight = torch.linalg.inv(gram) @ (x - mean_x).T @ (y - mean_y) / 9
            fields[:-1, :, i, j], fields[-1, :, i, j] = weight, mean_y - mean_x @ weight
    fields = bilinear(fields.flatten(0, 1)[None], (high, wide)).view(*fields.shape[:2], high, wide)
    return torch.einsum("dchw,dhw->chw", fields[:-1], features[0])[None] + fields[-1][None]


@pytest.mark.parametrize(("size", "channels"), [((40, 48), 4), ((37, 50), 4), ((37, 50), 20)])
def test_the_definition_by_a_loop(size: tuple[int, int], channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of whole pixels and others, more features than cells; blocks of a few rows give the same numbers."""
    features = noise(1, channels, *size, dtype=torch.float64).cumsum(-1)
    values = noise(1, 2, 5, 6, seed=1, dtype=torch.float64)
    wanted = plain(values, features, 0.01)

    def raw() -> Tensor:
        return upsample_in_context(values, features, ridge=0.01, keep_average=False, keep_range=False)

    whole = raw()
    torch.testing.assert_close(whole, wanted, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(in_context, "BLOCK", 1500)
    torch.testing.assert_close(raw(), whole, rtol=1e-12, atol=1e-12)


def test_what_is_linear_in_the_features_comes_back() -> None:
    """Averages of cells tell the numbers of pixels."""
    features = noise(2, 3, 64, 96, dtype=torch.float64)
    truth = (LINE.double() * features).sum(1, keepdim=True) + 7
    found = upsample_in_context(averaged(truth), features, ridge=1e-12, keep_range=False)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-6)


def test_the_average_of_each_cell_and_the_range_of_its_neighbours() -> None:
    features, values = noise(1, 3, 64, 80), noise(1, 1, 8, 10, seed=1)
    loose = upsample_in_context(values, features, keep_average=False)
    low, high = -F.max_pool2d(-values, 3, 1, 1), F.max_pool2d(values, 3, 1, 1)
    for answer in (loose, upsample_in_context(values, features)):
        assert (answer >= F.interpolate(low, scale_factor=8)).all()
        assert (answer <= F.interpolate(high, scale_factor=8)).all()
    free = upsample_in_context(values, features, keep_range=False, keep_average=False)
    assert (free.amax() > values.amax()) and (free.amin() < values.amin())
    before = (averaged(loose) - values).abs().mean()
    assert (averaged(upsample_in_context(values, features)) - values).abs().mean() < 0.7 * before


def steps() -> tuple[Tensor, Tensor]:
    """Colours and a map of two sides with a slanted edge, each with a pattern of its own; cells of 8 pixels."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    side = (x > 40 + 0.3 * y).float()
    pattern = 0.1 * ((x // 3 + y // 3) % 2)
    frame = torch.stack([0.2 + 0.6 * side + pattern, 0.5 - 0.3 * side + pattern, 0.4 + pattern])[None]
    return frame, (1 + 3 * side)[None, None]


def test_an_edge_is_where_the_colours_have_it() -> None:
    frame, truth = steps()
    coarse = averaged(truth)
    found = upsample_in_context(coarse, guide(frame))
    smooth = bilinear(coarse, (64, 96))
    assert (found - truth).abs().mean() < 0.15 * (smooth - truth).abs().mean()
    assert (found - truth).abs().max() < 0.75
    several = upsample_in_context(torch.cat([coarse, -2 * coarse], 1), guide(frame))
    torch.testing.assert_close(several, torch.cat([found, -2 * found], 1), rtol=1e-4, atol=1e-4)


def test_features_beside_colours_decide_where_colours_are_alike() -> None:
    frame, truth = steps()
    grey = frame[:, 2:].expand(-1, 3, -1, -1)
    coarse, deep = averaged(truth), torch.cat([truth, noise(1, 5, 64, 96)], 1)
    blind, seeing = (upsample_in_context(coarse, guide(grey, features)) for features in (None, deep))
    assert (seeing - truth).abs().mean() < 0.2 * (blind - truth).abs().mean()


@pytest.mark.parametrize("view", [exact((40, 56), (16, 24)), center((40, 56), 16)], ids=["whole", "crop"])
def test_features_of_a_view_row_by_row(view: View) -> None:
    """As the whole frame at once; beyond a crop its border goes on."""
    frame, features = noise(1, 3, 40, 56), noise(1, 6, *view.size, seed=1)
    rows = guide_rows(frame, features, view)
    whole = torch.cat([rows(0, 7), rows(7, 33), rows(33, 40)], 2)
    deep = view.restore(standardised(features))
    seen = deep.isfinite()
    torch.testing.assert_close(whole[:, :3], standardised(frame))
    torch.testing.assert_close(whole[:, 3:][seen], SHARE * deep[seen])
    assert whole.isfinite().all()


def test_few_labels_fill_the_frame() -> None:
    """What is near and looks alike gets the label; nothing known is NaN, and what is unknown has no say."""
    frame, truth = steps()
    labels = torch.full((2, 1, 8, 12), torch.nan)
    labels[0, 0, 2, 1], labels[0, 0, 5, 10], labels[0, 0, 6, 2], labels[0, 0, 1, 9] = 1.0, 4.0, 1.0, 4.0
    found = upsample_in_context(labels, guide(frame).expand(2, -1, -1, -1))
    assert ((found[0] > 2.5) == (truth[0] > 2.5)).float().mean() > 0.97
    assert found[1].isnan().all()
    garbage = labels[:1].nan_to_num(1e6)
    weights = labels[:1].isfinite().float()
    torch.testing.assert_close(upsample_in_context(garbage, guide(frame), weights), found[:1])


def along(values: list[float], known: list[bool]) -> list[float]:
    """A row of cells without features: means of windows of 3, where fewer are known mixed with those of pairs."""
    count = len(values)
    windows = [[j for j in (i - 1, i, i + 1) if 0 <= j < count] for i in range(count)]
    inside = [[j for j in window if known[j]] for window in windows]
    own = [sum(values[j] for j in js) / len(js) if js else 0.0 for js in inside]
    if count == 1:
        return own
    pairs = [[j for j in (2 * i, 2 * i + 1) if j < count and known[j]] for i in range((count + 1) // 2)]
    means = [sum(values[j] for j in pair) / max(len(pair), 1) for pair in pairs]
    wide = along(means, [bool(pair) for pair in pairs])
    mixed = []
    for i in range(count):
        other = min(max(i // 2 + (1 if i % 2 else -1), 0), len(wide) - 1)
        share = min(len(inside[i]) / min(len(windows[i]), 3), 1)
        mixed.append(share * own[i] + (1 - share) * (0.75 * wide[i // 2] + 0.25 * wide[other]))
    return mixed


@pytest.mark.parametrize("count", [5, 8, 11])
def test_cells_of_twice_the_size_by_a_loop(count: int) -> None:
    known = [i in (1, 2, 3, count - 1) for i in range(count)]
    values = [float(i * i) if k else math.nan for i, k in enumerate(known)]
    row = torch.tensor(values).view(1, 1, 1, count)
    found = upsample_in_context(row, torch.zeros(1, 1, 1, count), keep_average=False, keep_range=False)
    torch.testing.assert_close(found.flatten(), torch.tensor(along(values, known)))


def test_windows_stand_on_their_own_from_three_known_cells() -> None:
    """However many cells there are around them."""
    features = noise(1, 1, 6, 6)
    values = (2 * features + 1).masked_fill(torch.arange(6).view(6, 1) > 0, torch.nan)
    found = upsample_in_context(values, features, ridge=1e-9, keep_average=False, keep_range=False)
    torch.testing.assert_close(found[..., :2, 1:-1], (2 * features + 1)[..., :2, 1:-1], rtol=0, atol=1e-3)


def test_larger_cells_keep_what_is_linear() -> None:
    features, trust = noise(2, 3, 5, 7), noise(2, 1, 5, 7, seed=1).clamp(min=0)
    values, weights, x = in_context._halved((LINE * features).sum(1, keepdim=True), trust, features)
    known = weights > 0
    assert values.shape == (2, 1, 3, 4) and known.any()
    torch.testing.assert_close(values[known], (LINE * x).sum(1, keepdim=True)[known], rtol=0, atol=1e-5)


def test_a_hole_is_filled_and_changes_nothing_elsewhere() -> None:
    frame, truth = steps()
    coarse = averaged(truth)
    holed = coarse.clone()
    holed[0, 0, 3, 2] = torch.nan
    whole, filled = (upsample_in_context(maps, guide(frame)) for maps in (coarse, holed))
    torch.testing.assert_close(filled, whole, rtol=0, atol=0.02)
    assert torch.equal(filled[..., 48:], whole[..., 48:])


@pytest.mark.parametrize("window", [1, 3])
def test_many_features_and_few_cells_are_the_same_regression(window: int) -> None:
    """Weights and unknown cells too: a channel twice is a channel of twice the variance."""
    features, values, weights = (
        noise(1, 5, 24, 30).double(),
        noise(1, 1, 6, 6).double(),
        noise(1, 1, 6, 6).double().abs(),
    )
    weights[0, 0, 2, 2] = 0
    few = upsample_in_context(values, features, weights, window=window)
    many = upsample_in_context(values, features.repeat(1, 4, 1, 1), weights, window=window)
    torch.testing.assert_close(many, few, rtol=1e-9, atol=1e-9)


def test_a_weight_says_how_far_a_cell_is_trusted() -> None:
    frame, truth = steps()
    wrong = averaged(truth)
    wrong[0, 0, 4, 2] = 9.0
    errors = []
    for weight in (1.0, 0.01):
        weights = torch.ones(1, 1, 8, 12)
        weights[0, 0, 4, 2] = weight
        found = upsample_in_context(wrong, guide(frame), weights, keep_average=False)
        errors.append((found - truth)[..., 24:48, 8:32].abs().mean())
    assert errors[1] < 0.1 * errors[0]


def test_gradients_of_many_features_and_of_weights_with_zeros() -> None:
    values, features = noise(1, 1, 2, 3).double(), noise(1, 10, 4, 6, seed=1).double().requires_grad_()
    weights = torch.tensor([[[[1.0, 0.5, 2.0], [0.0, 1.0, 1.0]]]], dtype=torch.float64, requires_grad=True)
    upsample_in_context(values, features, weights, window=3).square().sum().backward()
    assert features.grad is not None and features.grad.isfinite().all() and features.grad.abs().max() > 0
    assert weights.grad is not None and weights.grad.isfinite().all()


def test_gradients_reach_map_and_features() -> None:
    values = noise(1, 1, 2, 3, dtype=torch.float64).requires_grad_()
    features = noise(1, 2, 4, 6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, f: upsample_in_context(v, f, ridge=0.1), (values, features))


@pytest.mark.parametrize(
    ("values", "features", "keys", "says"),
    [
        ((1, 1, 9, 4), (1, 3, 8, 8), {}, "9 x 4 cells is finer than the features, 8 x 8"),
        ((2, 1, 4, 4), (1, 3, 8, 8), {}, "got 2 and 1"),
        ((1, 1, 4, 4), (1, 3, 8, 8), {"window": 4}, "odd number of cells, got 4"),
        ((1, 1, 4, 4), (1, 3, 8, 8), {"weights": torch.ones(1, 1, 4, 5)}, "do not fit a map"),
        ((1, 1, 4, 4), (1, 3, 8, 8), {"weights": -torch.ones(1, 1, 4, 4)}, "must not be below 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit(
    values: tuple[int, ...], features: tuple[int, ...], keys: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        upsample_in_context(torch.zeros(values), torch.zeros(features), **keys)  # type: ignore[arg-type]


def test_features_that_are_not_finite() -> None:
    with pytest.raises(RunError, match="upsampled by features that are not finite"):
        upsample_in_context(torch.zeros(1, 1, 4, 4), torch.full((1, 3, 8, 8), torch.nan))


def test_flat_features_give_the_smooth_map() -> None:
    """Nothing to lean on: near to bilinear, no division by 0."""
    coarse = averaged(steps()[1])
    found = upsample_in_context(coarse, guide(torch.full((1, 3, 64, 96), 0.5)))
    assert (found - bilinear(coarse, (64, 96))).abs().mean() < 0.1


def test_depth_of_a_real_photograph_near_its_edges() -> None:
    """A part of scikit-image's stereo pair: within 4 pixels of true depth edges, against bilinear."""
    left, _, disparity = data.stereo_motorcycle()
    here = (slice(60, 380), slice(60, 700))
    depth = torch.from_numpy(994.978 * 0.193001 / (disparity[here] + 31.086)).float()[None, None]
    depth = depth.where(depth > 0.1, torch.nan)
    frame = torch.from_numpy(left[here].copy()).permute(2, 0, 1)[None].float() / 255
    known = depth.isfinite()
    coarse = averaged(depth.where(known, 0)) / averaged(known.float())
    nearest = ndimage.distance_transform_edt(~known[0, 0].numpy(), return_distances=False, return_indices=True)
    log = depth[0, 0][tuple(nearest)].log()
    jump = torch.zeros(log.shape, dtype=torch.bool)
    jump[1:] |= log.diff(dim=0).abs() > 0.05
    jump[:, 1:] |= log.diff(dim=1).abs() > 0.05
    near = torch.from_numpy(ndimage.distance_transform_edt(~jump.numpy()) <= 4) & known[0, 0]
    found = upsample_in_context(coarse.log(), guide(frame)).exp()
    smooth = bilinear(coarse.nan_to_num(float(coarse.nanmean())), (320, 640))
    ours, theirs = (((maps - depth).abs() / depth)[0, 0][near].mean() for maps in (found, smooth))
    assert ours < 0.65 * theirs
