"""EfficientNet-Lite0 against the published network, its weights and a real photo."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from fourd_effnet.backbone import PUBLISHED, EffNet
from torch import Tensor

from fourd_core.errors import WeightsError
from fourd_core.recipe import Location
from fourd_core.weights import read_state_dict, sha256_of

CHEST, CRATE = 492, 519  # ImageNet classes
TAPS = range(5)


@pytest.fixture(scope="module")
def backbone() -> EffNet:
    model = EffNet(EffNet.Config())
    model.load_pretrained()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A wooden box on a table, `3 224 288` in [0, 1]."""
    with av.open(str(Path(__file__).parent / "data" / "box.png")) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def published() -> EfficientNet:
    """The whole classifier, loaded as its own package says."""
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(read_state_dict(PUBLISHED), strict=True)
    return network.requires_grad_(False)


def test_the_file_is_the_published_one(backbone: EffNet) -> None:
    named = backbone.pretrained()
    assert named is not None
    assert named.sha256 == sha256_of(named.location)
    assert named.licence == "Apache-2.0"


def test_every_tensor_is_the_files(backbone: EffNet) -> None:
    given = read_state_dict(PUBLISHED)
    state = backbone.network.state_dict()
    assert given.keys() - state.keys() == {
        "_conv_head.weight", "_bn1.weight", "_bn1.bias", "_bn1.running_mean", "_bn1.running_var",
        "_bn1.num_batches_tracked", "_fc.weight", "_fc.bias",
    }  # fmt: skip
    assert all(torch.equal(value, given[key]) for key, value in state.items())


def test_spec(backbone: EffNet) -> None:
    assert [tap.dim for tap in backbone.spec.taps] == [16, 24, 40, 112, 320]
    assert [tap.stride for tap in backbone.spec.taps] == [(1, s, s) for s in (2, 4, 8, 16, 32)]
    assert backbone.spec.multiple == (1, 32, 32)
    assert backbone.spec.mean == backbone.spec.std == (0.5, 0.5, 0.5)


def test_equals_the_published_network_at_every_stride(backbone: EffNet, published: EfficientNet, photo: Tensor) -> None:
    maps: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: maps.append(call[2])) for block in published._blocks]
    published(2 * photo[None, :, :, 64:] - 1)
    for hook in hooks:
        hook.remove()
    tokens = backbone(photo[None, None, :, :, 64:], TAPS)
    for tap in TAPS:
        last = next(m for m in reversed(maps) if m.shape[-1] == 224 // 2 ** (tap + 1))
        torch.testing.assert_close(tokens[tap].as_maps()[:, 0], last, rtol=1e-5, atol=1e-5)


def test_the_deepest_tap_still_knows_a_box(backbone: EffNet, published: EfficientNet, photo: Tensor) -> None:
    features = backbone(photo[None, None, :, :, 64:], [4])[4].as_maps()[:, 0]
    head = F.relu6(published._bn1(published._conv_head(features))).mean((2, 3))
    probability = published._fc(head).softmax(-1)[0]
    assert probability.topk(2).indices.tolist() == [CHEST, CRATE]
    assert probability[CHEST] > 0.5


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 288)])
def test_padding_is_tensorflows_at_any_size(backbone: EffNet, size: tuple[int, int], photo: Tensor) -> None:
    """The package fixes its padding for 224 x 224; SAME is computed here from each map's own size."""
    frame = photo[None, None, :, : size[0], : size[1]]
    tokens = backbone(frame, TAPS)
    network, maps = backbone.network, {}
    x = F.relu6(network._bn0(same_conv(network._conv_stem, 2 * frame[:, 0] - 1)))
    for block in network._blocks:
        y = F.relu6(block._bn0(same_conv(block._expand_conv, x))) if hasattr(block, "_expand_conv") else x
        y = F.relu6(block._bn1(same_conv(block._depthwise_conv, y)))
        y = block._bn2(same_conv(block._project_conv, y))
        x = x + y if x.shape == y.shape else y
        maps[x.shape[-1]] = x
    for tap, last in zip(TAPS, maps.values(), strict=True):
        assert tuple(tokens[tap].grid) == (1, size[0] >> (tap + 1), size[1] >> (tap + 1))
        torch.testing.assert_close(tokens[tap].as_maps()[:, 0], last, rtol=1e-5, atol=1e-5)


def same_conv(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in total)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), conv.weight, None, stride, groups=conv.groups)


@pytest.mark.parametrize(("tap", "stride"), [(2, 8), (3, 16)])
def test_tokens_belong_to_the_middle_of_their_cells(backbone: EffNet, tap: int, stride: int, photo: Tensor) -> None:
    """Mirroring moves a feature by twice its distance from the middle; the padding alone would make that stride - 1."""

    def features(left: int, mirrored: bool) -> Tensor:
        window = photo[None, None, :, :, left : left + 256]
        maps = backbone(window.flip(-1) if mirrored else window, [tap])[tap].as_maps()[:, 0]
        maps = (maps.flip(-1) if mirrored else maps)[..., 2:-2, 2:-2]
        return maps - maps.mean((2, 3), keepdim=True)

    straight = features(0, mirrored=False)
    middle, padding = (
        F.cosine_similarity(straight, features(shift, mirrored=True), dim=1).mean() for shift in (0, stride - 1)
    )
    assert middle > padding + 0.1


def test_time_and_batch_are_only_stacked(backbone: EffNet, photo: Tensor) -> None:
    frames = photo[:, :192].unfold(2, 96, 96).permute(2, 0, 1, 3).unflatten(1, (1, 3))[None, :, 0]
    frames = torch.cat([frames, frames.flip(1)])
    together = backbone(frames, [3])[3]
    assert tuple(together.grid) == (3, 12, 6)
    alone = backbone(frames[1:, :1], [3])[3].as_maps()[0, 0]
    torch.testing.assert_close(together.as_maps()[1, 0], alone, rtol=1e-4, atol=1e-5)
    assert (together.as_maps()[1, 1] - alone).abs().max() > 0.1


def test_training_mode_changes_nothing(backbone: EffNet, photo: Tensor) -> None:
    before = backbone(photo[None, None], [4])[4].values
    statistics = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(backbone(photo[None, None], [4])[4].values, before)
    assert all(torch.equal(value, statistics[key]) for key, value in backbone.state_dict().items())


def test_only_what_is_asked_for_is_computed(backbone: EffNet) -> None:
    ran: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(backbone.network._blocks)
    ]
    tokens = backbone(torch.zeros(1, 1, 3, 32, 32), [2, 0])
    for hook in hooks:
        hook.remove()
    assert sorted(tokens.layers) == [0, 2]
    assert ran == [0, 1, 2, 3, 4]


def test_the_random_baseline_is_another_network(photo: Tensor) -> None:
    model = EffNet(EffNet.Config(pretrained=False))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_pretrained()
    assert model.pretrained() is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = EffNet(EffNet.Config())
    tokens = model(torch.empty(2, 3, 3, 224, 320, device="meta"), [-1 % 5])
    assert tokens[4].values.shape == (2, 3 * 7 * 10, 320)


def test_what_does_not_fit(backbone: EffNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 x 48 are not divisible by the backbone's 1 x 32 x 32"):
        backbone(torch.zeros(1, 1, 3, 32, 48), [0])
    torch.save({"_conv_stem.weight": torch.zeros(48, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"1 different \(_conv_stem.weight is 48x3x3x3 in the file and 32x3x3x3 here"
    ):
        EffNet(EffNet.Config(weights=Location(str(tmp_path / "other.pth")))).load_pretrained()
