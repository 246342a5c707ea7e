"""L4P's dense heads against a plain form of the decoder, and the published names and sizes.

The reference's numbers of the whole model, these heads with it, are compared by the plugin `l4p`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from fourd_dpt3d.camera_rays import CameraRays
from fourd_dpt3d.convolution import Conv3x3x3
from fourd_dpt3d.decoder3d import Decoder3D
from fourd_dpt3d.dense3d import DecoderHead, Dense3D, Depth3D, Flow3D, Motion3D
from safetensors.torch import save_file
from torch import Tensor

from fourd_core.data import Clip, Grid, Predictions, TokenMap, Tokens
from fourd_core.errors import WeightsError
from fourd_core.interfaces import BackboneSpec, Head, TapSpec
from fourd_core.stitching import Stitcher
from fourd_core.upsampling.streaming import Upsampling

DATA = Path(__file__).parent / "data"
TAPS = (2, 4, 6, 7)
NARROW: dict[str, Any] = {"taps": TAPS, "features": 16, "last": 8, "layer_dims": (8, 16, 24, 24)}
CLIP = Clip(torch.zeros(1, 16, 3, 56, 56))
UNUSED = "dpt.scratch.refinenet4.resConfUnit1."


def video_vit(dim: int = 12, depth: int = 8, stride: tuple[int, int, int] = (2, 14, 14)) -> BackboneSpec:
    return BackboneSpec((TapSpec(dim, stride),) * (depth + 1), stride, (0.5,) * 3, (0.25,) * 3, window=(16, 8))


def random_tokens(
    spec: BackboneSpec, taps: tuple[int, ...], size: tuple[int, int, int], batch: int = 1, seed: int = 0
) -> Tokens:
    layers = {}
    for tap in taps:
        grid = Grid(*(-(-n // stride) for n, stride in zip(size, spec.taps[tap].stride, strict=True)))
        shape = (batch, grid.t * grid.h * grid.w, spec.taps[tap].dim)
        layers[tap] = TokenMap(torch.randn(shape, generator=torch.Generator().manual_seed(100 * seed + tap)), grid)
    return Tokens(layers)


def window_tokens(window: int) -> Tokens:
    return random_tokens(video_vit(), TAPS, (16, 56, 56), seed=window)


def narrow(cls: type[Any], **keys: Any) -> Any:
    """A head with random weights, the same ones each time."""
    torch.manual_seed(0)
    return cls(cls.Config(**NARROW | keys), video_vit()).eval()


def official(cls: type[Any]) -> dict[str, Tensor]:
    """A checkpoint with all the names of L4P's, around a head with random weights."""
    weights = narrow(cls).state_dict()
    state = {f"l4p_model.task_heads.{cls.task}.task_head.{key}": value for key, value in weights.items()}
    for n in range(4):
        layer = f"l4p_model.task_heads.{cls.task}.task_head.dpt.scratch.layer"
        state[f"{layer}_rn.{n}.weight"] = state[f"{layer}{n + 1}_rn.weight"].clone()
    state |= {"l4p_model.task_heads.other.task_head.dpt.head1.0.bias": torch.zeros(8)}
    state |= {"l4p_model.video_encoder.norm.bias": torch.zeros(12)}
    return state


def whole(head: Head, windows: list[Predictions]) -> Tensor:
    """32 frames out of windows at 0, 8 and 16."""
    stitcher = Stitcher({"it": head.stitch})
    parts = [stitcher.add(window, 8).it[:, : 16 if n == 2 else 8] for n, window in enumerate(windows)]
    return torch.cat(parts, 1)


@torch.no_grad()
def test_flow_of_a_windows_first_frame_is_the_window_befores() -> None:
    head = narrow(Flow3D)
    windows = [head(window_tokens(n), CLIP) for n in range(3)]
    assert (windows[0].kind, windows[0].unit) == ("flow", "px")
    assert windows[0].values.shape == (1, 16, 2, 56, 56)
    joined = whole(head, [Predictions({"it": window}) for window in windows])
    assert joined[:, 0].isnan().all()  # of the video's first frame nobody tells a flow
    one, two, three = (window.values for window in windows)
    assert torch.equal(joined[:, 1:], torch.cat([one[:, 1:9], two[:, 1:9], three[:, 1:]], 1))


@torch.no_grad()
def test_motion_is_the_probability_of_the_same_decoders_logits() -> None:
    depth, motion = narrow(Depth3D), narrow(Motion3D)
    windows = [Predictions({"it": motion(window_tokens(n), CLIP)}) for n in range(3)]
    assert windows[0]["it"].kind == "mask"
    known = depth(window_tokens(0), CLIP)
    assert (known.kind, known.unit) == ("depth", "up to scale")
    torch.testing.assert_close(windows[0].it, known.values.log().sigmoid())
    joined = whole(motion, windows)
    assert torch.equal(joined[:, 8:], torch.cat([windows[1].it[:, :8], windows[2].it], 1))


ENLARGED = {
    Depth3D: {4: (2, 2, 2), 3: (2, 2, 2), 2: (1, 2, 2), 1: (1, 2, 2)},
    CameraRays: {4: (2, 2, 2), 3: (2, 1, 1), 2: (1, 1, 1), 1: (1, 1, 1)},
}
"""By how much the published heads enlarge the fused map of each level."""
LEARNED = {Depth3D: [(2, 4, 4), (2, 2, 2)], CameraRays: [(2, 1, 1), (2, 1, 1)]}
"""By how much they enlarge the tokens of the first two taps."""


def plain(head: DecoderHead, tokens: Tokens, size: tuple[int, int, int]) -> Tensor:
    """The decoder as it is described: enlarged before the 1x1 convolution, cut where a size was odd."""
    p = {key.removeprefix("dpt."): value for key, value in head.state_dict().items()}
    conv = lambda x, name, **k: F.conv3d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), **k)  # noqa: E731
    larger = lambda x, s: F.interpolate(x, scale_factor=s, mode="trilinear", align_corners=True)  # noqa: E731
    unit = lambda x, n: conv(F.relu(conv(F.relu(x), f"{n}.conv1", padding=1)), f"{n}.conv2", padding=1) + x  # noqa: E731
    levels = []
    for n, tap in enumerate(head.taps):
        x = conv(tokens[tap].as_maps().transpose(1, 2), f"act_postprocess.{n}.0")
        name = f"act_postprocess.{n}.1"
        if n < 2:
            x = F.conv_transpose3d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=LEARNED[type(head)][n])
        if n == 3:
            x = conv(x, name, stride=2, padding=1)
        levels.append(conv(x, f"scratch.layer{n + 1}_rn", padding=1))
    fused = None
    for n, factors in ENLARGED[type(head)].items():
        name, x = f"scratch.refinenet{n}", levels[n - 1]
        x = x if fused is None else fused + unit(x, f"{name}.resConfUnit1")
        fused = conv(larger(unit(x, f"{name}.resConfUnit2"), factors), f"{name}.out_conv")
        if n == 4:
            t, h, w = levels[2].shape[2:]
            fused = fused[..., :t, :h, :w]
    x = F.interpolate(conv(fused, "head1.0", padding=1), size=size, mode="trilinear", align_corners=True)
    return conv(F.relu(conv(x, "head2.0", padding=1)), "head2.2").transpose(1, 2)


def tokens_and_clip(grid: tuple[int, int, int]) -> tuple[Tokens, Clip]:
    size = (2 * grid[0], 14 * grid[1], 14 * grid[2])
    tokens = random_tokens(video_vit(), TAPS, size, batch=2)
    doubled = Tokens({tap: TokenMap(item.values.double(), item.grid) for tap, item in tokens.layers.items()})
    return doubled, Clip(torch.zeros(2, size[0], 3, *size[1:], dtype=torch.float64))


GRIDS = pytest.mark.parametrize("grid", [(8, 4, 4), (4, 7, 5), (1, 1, 3), (3, 5, 9)], ids=str)


@GRIDS
@torch.no_grad()
def test_a_grid_of_any_size(grid: tuple[int, int, int]) -> None:
    head = Depth3D(Depth3D.Config(TAPS, 6, 4, (3, 4, 5, 6)), video_vit()).double()
    tokens, clip = tokens_and_clip(grid)
    mine = head.raw(tokens, clip)
    torch.testing.assert_close(mine, plain(head, tokens, (clip.frames.shape[1], *clip.size)), rtol=0, atol=1e-13)
    assert torch.equal(head(tokens, clip).values, mine.exp())


@GRIDS
@torch.no_grad()
def test_rays_of_a_grid_of_any_size(grid: tuple[int, int, int]) -> None:
    head = CameraRays(CameraRays.Config(TAPS, 6, 4, (3, 4, 5, 6)), video_vit()).double()
    tokens, clip = tokens_and_clip(grid)
    wanted = plain(head, tokens, (clip.frames.shape[1], 16, 16))
    torch.testing.assert_close(head.rays(tokens, clip), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_of_few_channels(frames: int, batch: int) -> None:
    mine = Conv3x3x3(3, 4).double()
    x = torch.randn(batch, 3, frames, 5, 6, dtype=torch.float64, requires_grad=True)
    answer, expected = mine(x), F.conv3d(x, mine.weight, mine.bias, padding=1)
    torch.testing.assert_close(answer, expected)
    gradients = (torch.autograd.grad(y.square().sum(), [x, mine.weight, mine.bias]) for y in (answer, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_in_bfloat16_on_a_cpu(frames: int, batch: int) -> None:
    """Of two frames oneDNN's own are noise."""
    torch.manual_seed(0)
    convolution, x = Conv3x3x3(16, 16), torch.randn(batch, 16, frames, 3, 3)
    gradients = []
    for half in (False, True):
        convolution.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            convolution(x).float().square().sum().backward()
        gradients.append(convolution.weight.grad)
    exact, rounded = gradients
    assert float((rounded - exact).abs().max()) < 0.03 * float(exact.abs().max())


def test_backbones_of_single_frames_and_of_several_strides() -> None:
    pyramid = tuple(TapSpec(8, (1, stride, stride)) for stride in (4, 8, 16, 32))
    for taps, reassemble in (
        ((TapSpec(8, (1, 14, 14)),) * 4, ((1, 4, 4), (1, 2, 2), (1, 1, 1), (0.5, 0.5, 0.5))),
        (pyramid, ((1, 1, 1),) * 4),
    ):
        spec = BackboneSpec(taps, (1, 1, 1), (0.5,) * 3, (0.25,) * 3)
        config = Flow3D.Config((0, 1, -2, -1), 8, 4, (4, 4, 4, 4), reassemble=reassemble)
        head = Flow3D(config, spec)
        values = head(random_tokens(spec, head.taps, (3, 70, 98)), Clip(torch.zeros(1, 3, 3, 70, 98))).values
        assert values.shape == (1, 3, 2, 70, 98)
        assert values.isfinite().all()


@pytest.mark.parametrize("cls", [Depth3D, Flow3D, Motion3D])
def test_how_maps_reach_the_videos_pixels_is_announced(cls: type[Any]) -> None:
    """And changes nothing of the decoder, whose own factor has another name beside it."""
    plain, wishing = narrow(cls), narrow(cls, upsample="in_context", upsample_features="a.toml")
    assert plain.upsampling == Upsampling("bilinear", None)
    assert wishing.upsampling == Upsampling("in_context", "a.toml")
    assert torch.equal(plain.raw(window_tokens(0), CLIP), wishing.raw(window_tokens(0), CLIP))
    fine = narrow(cls, enlarge=(1, 1, 3))
    assert fine.dpt.factors[0] == (1, 1, 3)


COUNTS = {Depth3D: 85_845_889, Flow3D: 85_846_018, Motion3D: 85_845_889, CameraRays: 82_307_590}


@pytest.mark.parametrize("cls", COUNTS)
def test_published_names_shapes_and_counts(cls: type[Any]) -> None:
    with torch.device("meta"):
        head = cls(cls.Config(), video_vit(1408, 40))
    assert sum(p.numel() for p in head.parameters()) == COUNTS[cls]
    names = json.loads((DATA / "official_keys_l4p.json").read_text())["camray" if cls is CameraRays else "depth"]
    names["dpt.head2.2.weight"][0] = names["dpt.head2.2.bias"][0] = head.channels
    twice = [names.pop(f"dpt.scratch.layer_rn.{n}.weight") for n in range(4)]
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == names
    assert twice == [names[f"dpt.scratch.layer{n}_rn.weight"] for n in range(1, 5)]
    assert head.taps == (14, 21, 28, 36)


@pytest.mark.parametrize("cls", [Depth3D, Flow3D, Motion3D])
def test_everything_used_is_trained_and_nothing_else(cls: type[Dense3D]) -> None:
    head = cls(cls.example(), cls.example_spec())
    tokens = random_tokens(cls.example_spec(), head.taps, (4, 24, 32))
    values = head(tokens, Clip(torch.zeros(1, 4, 3, 24, 32))).values
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.requires_grad != name.startswith(UNUSED)
        assert (parameter.grad is None) == name.startswith(UNUSED)
        assert parameter.grad is None or parameter.grad.any(), name


@torch.no_grad()
def test_the_last_numbers_are_not_rounded_by_autocast() -> None:
    head = narrow(Flow3D)
    with torch.autocast("cpu", torch.bfloat16):
        values = head(window_tokens(0), CLIP).values
    assert values.dtype == torch.float32
    assert (values != values.bfloat16().float()).float().mean() > 0.9


def test_how_windows_of_depth_are_joined_can_be_chosen() -> None:
    spec = video_vit(12)
    assert Depth3D.Config().stitch == "affine_disparity"
    for name, rule in (("affine_disparity", "AffineDisparity"), ("scale", "MedianScale"), ("overwrite", "Overwrite")):
        head = Depth3D(Depth3D.Config(TAPS, 8, 4, (4, 4, 4, 4), stitch=name), spec)  # type: ignore[arg-type]
        assert type(head.stitch).__name__ == rule


@torch.no_grad()
def test_a_coarse_answer_is_enlarged() -> None:
    """The decoder's answer on fewer rows and columns, also of sides that it does not divide, bilinear between them."""
    head, tokens, clip = narrow(Flow3D, coarse=3), window_tokens(0), CLIP
    few = head.decoded(tokens, (16, 19, 19))[0]
    raw = head.raw(tokens, clip)
    assert raw.shape == (1, 16, 2, 56, 56)
    centres = (torch.arange(56) + 0.5) * 19 / 56 - 0.5
    low = centres.clamp(min=0).floor().long()
    high, part = (low + 1).clamp(max=18), centres.clamp(min=0) - low
    rows = few[..., low, :] * (1 - part)[:, None] + few[..., high, :] * part[:, None]
    torch.testing.assert_close(raw[0], rows[..., low] * (1 - part) + rows[..., high] * part)
    with pytest.raises(ValueError, match="coarse must be positive"):
        narrow(Flow3D, coarse=0)


def test_taps_that_the_backbone_lacks() -> None:
    with pytest.raises(ValueError, match="tap 36 does not exist: this backbone has taps 0 to 8"):
        Depth3D(Depth3D.Config(taps=(2, 4, 6, 36)), video_vit())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"taps": (1, 2, 3)}, "taps must have 4 entries, got 3"),
        ({"layer_dims": (8, 8)}, "layer_dims must have 4 entries, got 2"),
        ({"reassemble": ((1, 1, 1),)}, "reassemble must have 4 entries, got 1"),
        ({"features": 0}, "features must be positive"),
        ({"last": -1}, "last must be positive"),
        ({"layer_dims": (8, 0, 8, 8)}, "layer_dims must be positive"),
        ({"enlarge": (1, 0, 1)}, "enlarge must be positive"),
        ({"upsample_features": "a.toml"}, "set that too, or leave it out"),
        ({"reassemble": ((2, 4, 4), (2, 2, 2), (1, 1, 1), (0.5, 2, 2))}, "reassemble enlarges by whole numbers"),
        ({"reassemble": ((2, 4, 4), (2, 2, 2), (1.5, 1, 1), (1, 1, 1))}, "reassemble enlarges by whole numbers"),
        ({"reassemble": ((2, 4, 4), (2, 2, 2), (0, 1, 1), (1, 1, 1))}, "reassemble enlarges by whole numbers"),
        ({"reassemble": ((2, 3, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1))}, "map 1 is 1 x 3/2 x 2 times as fine as map 2"),
        ({"reassemble": ((2, 4, 4), (2, 2, 2), (1, 1, 1), (2, 1, 1))}, "map 3 is 1/2 x 1 x 1 times as fine as map 4"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_make_no_decoder(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Depth3D(Depth3D.Config(**NARROW | keys), video_vit())


@pytest.mark.parametrize("cls", COUNTS)
def test_a_head_out_of_the_whole_models_file(cls: type[Any], tmp_path: Path) -> None:
    save_file(official(cls), tmp_path / "l4p.safetensors")
    torch.manual_seed(1)
    head = cls(cls.Config(**NARROW, weights=str(tmp_path / "l4p.safetensors")), video_vit())
    wanted = narrow(cls).state_dict()
    assert not torch.equal(head.dpt.last.weight, wanted["dpt.head2.2.weight"])
    head.load_pretrained()
    assert all(torch.equal(value, wanted[key]) for key, value in head.state_dict().items())


def test_another_heads_checkpoint(tmp_path: Path) -> None:
    save_file(official(Flow3D), tmp_path / "flow.safetensors")
    config = Flow3D.Config(**NARROW, weights=str(tmp_path / "flow.safetensors"))
    for head in (
        Flow3D(attrs.evolve(config, layer_dims=(8, 16, 24, 32)), video_vit()),  # another size
        Depth3D(Depth3D.Config(**NARROW, weights=config.weights), video_vit()),  # a head that the file lacks
    ):
        before = {key: value.clone() for key, value in head.state_dict().items()}
        with pytest.raises(WeightsError, match=r"flow\.safetensors does not fit"):
            head.load_pretrained()
        assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    pretrained = Flow3D(config, video_vit()).pretrained()
    assert pretrained is not None
    assert "NC" in pretrained.licence
    assert Flow3D(attrs.evolve(config, weights=None), video_vit()).pretrained() is None


def test_a_file_of_the_head_alone(tmp_path: Path) -> None:
    head = Depth3D(Depth3D.example(), Depth3D.example_spec())
    save_file(head.state_dict(), tmp_path / "own.safetensors")
    config = attrs.evolve(Depth3D.example(), weights=str(tmp_path / "own.safetensors"))
    again = Depth3D(config, Depth3D.example_spec())
    again.load_pretrained()
    assert isinstance(again.dpt, Decoder3D)
    assert all(torch.equal(value, head.state_dict()[key]) for key, value in again.state_dict().items())
