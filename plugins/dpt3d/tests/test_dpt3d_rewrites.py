"""Each rewrite of the decoders against the form that it replaces, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import attrs
import pytest
import torch
from fourd_dpt3d.blocks import EARLY_PROJECTION, FeatureFusion, frames_read, resized
from fourd_dpt3d.convolution import Conv3x3x3
from fourd_dpt3d.dense3d import LEADING_FRAMES, Depth3D, Flow3D, Motion3D
from fourd_dpt3d.enlarged_convolution import ENLARGED_CONVOLUTION, enlarged_convolution, pays
from fourd_dpt3d.pixel_decoder import CHUNK_BYTES, FRUGAL_BACKWARD, PixelDecoder
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourd_core.data import Clip, Grid, Predictions, TokenMap, Tokens
from fourd_core.interfaces import Backbone, BackboneSpec, Head, TapSpec, Video
from fourd_core.media.views import ViewConfig
from fourd_core.rewrites import Rewrite
from fourd_core.sinks import MemorySink
from fourd_core.streaming import StreamConfig, stream
from fourd_core.system import System

TAPS = (0, 1, 2, 3)
SPEC = BackboneSpec((TapSpec(5, (2, 8, 8)),) * 4, (2, 8, 8), (0.5,) * 3, (0.25,) * 3, window=(8, 4))
PYRAMIDS = {
    "L4P": ((2, 4, 4), (2, 2, 2), (1, 1, 1), (0.5, 0.5, 0.5)),
    "tiny": ((2, 2, 2), (2, 1, 1), (1, 1, 1), (0.5, 0.5, 0.5)),
}
# A failing example is not made smaller: that took minutes.
small = settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])


def head_of(cls: type[Any], pyramid: str = "L4P", **keys: Any) -> Any:
    torch.manual_seed(0)
    keys = {"taps": TAPS, "features": 4, "last": 3, "layer_dims": (3, 4, 5, 6)} | keys
    return cls(cls.Config(reassemble=PYRAMIDS[pyramid], **keys), SPEC).double().eval()


def tokens_of(grid: Sequence[int], batch: int = 1) -> Tokens:
    shape = (batch, prod(grid), 5)
    torch.manual_seed(1)
    return Tokens({tap: TokenMap(torch.randn(shape, dtype=torch.float64), Grid(*grid)) for tap in TAPS})


def same(answer: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-12)


# ---- the projection before the enlargement


@pytest.mark.parametrize("dims", [2, 3])
def test_projecting_first_changes_neither_numbers_nor_gradients(dims: Any) -> None:
    torch.manual_seed(0)
    block, size = FeatureFusion(4, dims=dims).double(), (3, 4, 5)[:dims]
    level, coarser = torch.randn(2, 2, 4, *size, dtype=torch.float64, requires_grad=True)
    seen = []
    for off in (False, True):
        EARLY_PROJECTION.on = not off
        answer = block(level, coarser, [2 * side + 1 for side in size])
        seen.append([answer, *torch.autograd.grad(answer.sin().sum(), [level, *block.parameters()])])
    EARLY_PROJECTION.on = True
    for mine, published in zip(*seen, strict=True):
        same(mine, published)


# ---- the leading frames


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@small
def test_which_frames_the_first_ones_come_from(whole: int, frames: int, count: int) -> None:
    video = torch.randn(1, 1, whole, 1, 1, dtype=torch.float64)
    count = min(count, frames)
    read = frames_read(count, whole, frames)
    assert 1 <= read <= whole
    expected = resized(video, (frames, 1, 1))[:, :, :count]
    same(resized(video[:, :, :read], (frames, 1, 1), whole, count), expected)
    changed = resized(torch.cat([video[:, :, : read - 1], video[:, :, read - 1 :] + 1], 2), (frames, 1, 1))
    assert frames == 1 or not torch.equal(changed[:, :, :count], expected)  # none is read in vain


@given(
    st.sampled_from(list(PYRAMIDS)), st.tuples(st.integers(1, 11), st.integers(1, 3), st.integers(1, 3)),
    st.integers(-1, 1), st.integers(1, 2), st.integers(1, 16),
)  # fmt: skip
@settings(small, max_examples=25)
def test_the_leading_frames_are_those_of_the_whole_window(
    pyramid: str, grid: tuple[int, int, int], more: int, batch: int, wanted: int
) -> None:
    head, tokens = head_of(Flow3D, pyramid, coarse=2), tokens_of(grid, batch)
    clip = Clip(torch.zeros(batch, 2 * grid[0] + more, 3, 8 * grid[1], 8 * grid[2], dtype=torch.float64))
    with torch.no_grad():
        expected = head(tokens, clip).values
        answer = head(tokens, attrs.evolve(clip, wanted=wanted)).values
    assert answer.shape == expected.shape
    same(answer[:, :wanted], expected[:, :wanted])
    assert answer[:, wanted:].isnan().all()


def test_gradients_of_the_leading_frames() -> None:
    head, tokens = head_of(Flow3D), tokens_of((5, 2, 2))
    clip = Clip(torch.zeros(1, 10, 3, 16, 16, dtype=torch.float64))
    maps = [item.values.requires_grad_() for item in tokens.layers.values()]
    learned = maps + [p for name, p in head.named_parameters() if "refinenet4.resConfUnit1" not in name]
    seen = []
    for wanted in (None, 3):
        answer = head(tokens, attrs.evolve(clip, wanted=wanted)).values[:, :3]
        seen.append(torch.autograd.grad(answer.sin().sum(), learned))
    for whole, leading in zip(*seen, strict=True):
        same(leading, whole)


@pytest.mark.parametrize("wanted", [1, 5])
@torch.no_grad()
def test_the_leading_frames_in_half_precision(wanted: int) -> None:
    """Rounded elsewhere than the whole window's, they are as far from exact ones."""
    head, tokens = head_of(Flow3D).float(), tokens_of((6, 3, 3))
    tokens = Tokens({tap: TokenMap(item.values.float(), item.grid) for tap, item in tokens.layers.items()})
    clip = Clip(torch.zeros(1, 12, 3, 24, 24))
    exact = head(tokens, clip).values[:, :wanted]
    with torch.autocast("cpu", torch.bfloat16):
        whole = head(tokens, clip).values[:, :wanted]
        leading = head(tokens, attrs.evolve(clip, wanted=wanted)).values[:, :wanted]
    assert leading.dtype == whole.dtype
    assert (leading - exact).norm() < 1.2 * (whole - exact).norm()


@torch.no_grad()
def test_fewer_frames_are_less_work() -> None:
    """What each layer computes for 9 of 16 frames, as counted by hand: one frame more per convolution behind it."""
    head, clip = head_of(Flow3D), Clip(torch.zeros(1, 16, 3, 16, 16, dtype=torch.float64), wanted=9)
    frames = {}
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda _m, _i, out, name=name: frames.__setitem__(name, out.shape[2]))
    head(tokens_of((8, 2, 2)), clip)
    assert (frames["dpt.head2.2"], frames["dpt.head2.0"], frames["dpt.head1.0"]) == (9, 9, 10)
    finest = [frames[f"dpt.scratch.refinenet1.{name}"] for name in ("out_conv", "resConfUnit2.conv2")]
    finest += [frames[f"dpt.scratch.refinenet1.resConfUnit{name}"] for name in ("2.conv1", "1.conv2", "1.conv1")]
    assert finest == [11, 11, 12, 13, 14]
    head(tokens_of((8, 2, 2)), attrs.evolve(clip, wanted=None))
    assert {frames[name] for name in frames if "head" in name or "refinenet1" in name} == {16}


def test_depth_is_told_of_every_frame() -> None:
    head, clip = head_of(Depth3D), Clip(torch.zeros(1, 8, 3, 16, 16, dtype=torch.float64), wanted=4)
    assert head(tokens_of((4, 2, 2)), clip).values.isfinite().all()


class Shades(Backbone):
    """Every layer is the same random projection of the patches."""

    spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.project = nn.Conv3d(3, 5, (2, 8, 8), (2, 8, 8))

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        maps = self.project(frames.transpose(1, 2).to(self.project.weight.dtype)).transpose(1, 2)
        return Tokens({tap: TokenMap.from_maps(maps) for tap in taps})


class Noise(Video):
    """Random frames."""

    def __init__(self, frame_count: int, size: tuple[int, int]) -> None:
        self.name, self.frame_count, self.size = "noise", frame_count, size

    def read(self, indices: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        frames = torch.randint(0, 256, (self.frame_count, 3, *self.size), dtype=torch.uint8, generator=generator)
        return frames[list(indices)]

    def times(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "stride"), [("original", 2), ("original", 6), ("tiles", 4)])
def test_a_video_of_several_windows(kind: Any, stride: int) -> None:
    """As the view shows it, and tile by tile, where what a window leaves unknown meets the tiles' answers."""
    heads: dict[str, Head] = {"flow": head_of(Flow3D), "motion": head_of(Motion3D)}
    heads["depth"] = head_of(Depth3D, stitch="overwrite")
    system, video = System(Shades(), heads).double().eval(), Noise(11, (24, 32))
    config = ViewConfig(view=kind, pixels=16, tile_side=24) if kind == "tiles" else ViewConfig(view=kind)
    view = config.view_of(video.size, (8, 8))

    def predicted() -> Predictions:
        sink = MemorySink(view, "video", video.frame_count, 2**24)
        for part in stream(system, video, view, StreamConfig(window=8, stride=stride)):
            sink.put(part)
        return Predictions(sink.whole)

    mine = predicted()
    with LEADING_FRAMES.off():
        published = predicted()
    for name in heads:
        torch.testing.assert_close(mine[name].values, published[name].values, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert mine[name].values[:, 1:].isfinite().all()


# ---- enlargement and convolution in one


@given(
    st.sampled_from([(2, 4, 4), (2, 2, 2), (1, 3, 5), (2, 1, 1)]), st.tuples(*[st.integers(1, 4)] * 3),
    st.booleans(), st.integers(1, 9),
)  # fmt: skip
@small
def test_two_layers_in_one(strides: tuple[int, int, int], grid: tuple[int, int, int], biased: bool, count: int) -> None:
    torch.manual_seed(0)
    enlarge = nn.ConvTranspose3d(3, 4, strides, stride=strides, bias=biased).double()
    convolve = Conv3x3x3(4, 5, bias=False).double()
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    with torch.no_grad():
        same(enlarged_convolution(x, enlarge, convolve, count), convolve(enlarge(x), count))


@torch.no_grad()
def test_the_decoder_with_and_without() -> None:
    head, tokens = head_of(Motion3D), tokens_of((4, 3, 2), batch=2)
    clip = Clip(torch.zeros(2, 8, 3, 24, 16, dtype=torch.float64))
    calls: list[Tensor] = []
    head.dpt.act_postprocess[0][1].register_forward_hook(lambda *seen: calls.append(seen[2]))
    mine = head.raw(tokens, clip)
    assert not calls  # the enlarged map is never made
    with ENLARGED_CONVOLUTION.off():
        same(mine, head.raw(tokens, clip))
    assert len(calls) == 1
    head.dpt.act_postprocess[0][1].weight.mul_(2)  # kernels are composed anew
    with ENLARGED_CONVOLUTION.off():
        published = head.raw(tokens, clip)
    same(head.raw(tokens, clip), published)
    assert not torch.allclose(published, mine)


def test_where_two_layers_in_one_are_used() -> None:
    enlarge, flat = nn.ConvTranspose3d(2, 2, 2, stride=2), nn.ConvTranspose3d(2, 2, (2, 1, 1), stride=(2, 1, 1))
    x = torch.zeros(1, 2, 1, 1, 1)
    assert not pays(x, enlarge)  # with gradient
    with torch.no_grad():
        assert pays(x, enlarge)
        assert not pays(x, flat)
        assert not pays(x.bfloat16(), enlarge) and not pays(x.half(), enlarge)
        assert not pays(x.to("meta"), enlarge)
        with torch.autocast("cpu", torch.bfloat16):
            assert not pays(x, enlarge)


# ---- what the pixel decoder keeps for its backward pass


def pixel_decoder() -> tuple[PixelDecoder, Tokens, Clip]:
    torch.manual_seed(0)
    spec = BackboneSpec((TapSpec(5, (1, 8, 8)),) * 4, (1, 8, 8), (0.5,) * 3, (0.25,) * 3)
    head = PixelDecoder(PixelDecoder.Config(TAPS, 8, (3, 4, 5, 6)), spec).double()
    return head, tokens_of((3, 3, 2), batch=2), Clip(torch.zeros(2, 3, 3, 25, 16, dtype=torch.float64))


@pytest.mark.parametrize("bytes_each", [1, 2 * 4 * 25 * 16 * 8, CHUNK_BYTES])
def test_computing_again_changes_neither_numbers_nor_gradients(
    bytes_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of one picture, of two, and of all six."""
    monkeypatch.setattr("fourd_dpt3d.pixel_decoder.CHUNK_BYTES", bytes_each)
    head, tokens, clip = pixel_decoder()
    taps = {tap: TokenMap(item.values.requires_grad_(), item.grid) for tap, item in tokens.layers.items()}
    learned = [parameter for name, parameter in head.named_parameters() if "refinenet4.resConfUnit1" not in name]
    learned = [parameter for parameter in learned if parameter.requires_grad]
    seen = []
    for off in (False, True):
        FRUGAL_BACKWARD.on = not off
        answer = head(Tokens(taps), clip).values
        loss = (answer * torch.linspace(-1, 1, answer.numel(), dtype=torch.float64).view_as(answer)).sum()
        seen.append([answer, *torch.autograd.grad(loss, [*learned, *(item.values for item in taps.values())])])
    FRUGAL_BACKWARD.on = True
    for mine, published in zip(*seen, strict=True):
        same(mine, published)


def test_of_maps_at_full_size_one_is_kept() -> None:
    head, tokens, clip = pixel_decoder()

    def kept() -> int:
        """Different maps at full size that the graph holds; the answer is none of them."""
        held: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: held.setdefault(x.data_ptr(), x), lambda x: x):
            answer = head(tokens, clip).values
        return sum(x.numel() == answer.numel() for x in held.values())

    assert kept() == 1
    with FRUGAL_BACKWARD.off():
        assert kept() == 3


def test_each_rewrite_says_what_it_saves() -> None:
    for rewrite in (EARLY_PROJECTION, LEADING_FRAMES, ENLARGED_CONVOLUTION, FRUGAL_BACKWARD):
        assert Rewrite.known[rewrite.name] is rewrite
        assert any(letter.isdigit() for letter in rewrite.saves)
