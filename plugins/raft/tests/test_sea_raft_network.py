"""SEA-RAFT against a plain second writing of its description in float64, and against the official names."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fourd_raft.checkpoints import to_sea_raft
from fourd_raft.correlation import Storage
from fourd_raft.sea_raft_network import SIZES, ConvNeXtBlock, SEARAFTNetwork, Size
from torch import Tensor

DATA = Path(__file__).parent / "data"
TINY = Size(stem=6, stages=(8, 10, 12), blocks=(2, 1, 2), dim=8, radius=3)

State = Mapping[str, Tensor]


class Described:
    """The network as its description has it, function by function on the state dict: no modules, no sharing."""

    def __init__(self, state: State, size: Size, training: bool) -> None:
        self.state, self.size, self.training = state, size, training

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2, **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True)
            var = (x - mean).square().mean((0, 2, 3), keepdim=True)
        else:
            mean, var = (self.state[f"{name}.running_{part}"].view(1, -1, 1, 1) for part in ("mean", "var"))
        weight, bias = (self.state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def encoder(self, name: str, x: Tensor) -> Tensor:
        x = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride=2)).relu()
        for stage, count in enumerate(self.size.blocks, start=1):
            for number in range(count):
                block, stride = f"{name}.layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
                y = self.norm(f"{block}.bn1", self.conv(f"{block}.conv1", x, stride=stride)).relu()
                y = self.norm(f"{block}.bn2", self.conv(f"{block}.conv2", y)).relu()
                if f"{block}.downsample.0.weight" in self.state:
                    x = self.norm(f"{block}.bn3", self.conv(f"{block}.downsample.0", x, stride=stride))
                x = (x + y).relu()
        return self.conv(f"{name}.final_conv", x)

    def windows(self, first: Tensor, second: Tensor, coords: Tensor) -> Tensor:
        b, c, h, w = first.shape
        r, out = self.size.radius, []
        reach = torch.linspace(-r, r, 2 * r + 1, dtype=first.dtype)
        delta = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1)
        for level in range(self.size.levels):
            volume = first.flatten(2).mT @ second.flatten(2) / math.sqrt(c)
            volume = volume.reshape(b * h * w, 1, *second.shape[2:])
            place = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) / 2**level + delta
            extent = torch.tensor([second.shape[3] - 1, second.shape[2] - 1])
            read = F.grid_sample(volume, 2 * place / extent - 1, align_corners=True)
            out.append(read.view(b, h, w, -1))
            second = F.interpolate(second, scale_factor=0.5, mode="bilinear", align_corners=False)
        return torch.cat(out, -1).permute(0, 3, 1, 2)

    def update(self, net: Tensor, context: Tensor, matches: Tensor, flow: Tensor) -> Tensor:
        name = "update_block.encoder"
        cor = self.conv(f"{name}.convc2", self.conv(f"{name}.convc1", matches).relu()).relu()
        flo = self.conv(f"{name}.convf2", self.conv(f"{name}.convf1", flow).relu()).relu()
        motion = torch.cat([self.conv(f"{name}.conv", torch.cat([cor, flo], 1)).relu(), flow], 1)
        for number in range(self.size.refinements):
            net = self.convnext(f"update_block.refine.{number}", torch.cat([net, context, motion], 1))
        return net

    def convnext(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.dwconv", x, groups=x.shape[1])
        y = y - y.mean(1, keepdim=True)
        y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt()
        y = y * self.state[f"{name}.norm.weight"][:, None, None] + self.state[f"{name}.norm.bias"][:, None, None]
        for linear in ("pwconv1", "pwconv2"):
            weight, bias = self.state[f"{name}.{linear}.weight"], self.state[f"{name}.{linear}.bias"]
            y = torch.einsum("oc,bchw->bohw", weight, y) + bias[:, None, None]
            if linear == "pwconv1":
                y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        return self.conv(f"{name}.final", x + self.state[f"{name}.gamma"][:, None, None] * y)

    def outputs(self, net: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """The new flow at an eighth of the size, and flow and mixture at the pixels."""
        head = self.conv("flow_head.2", self.conv("flow_head.0", net).relu())
        weights = 0.25 * self.conv("upsample_weight.2", self.conv("upsample_weight.0", net).relu())
        flow = flow + head[:, :2]
        b, _, h, w = flow.shape
        shares = weights.view(b, 1, 9, 8, 8, h, w).softmax(2)
        maps = torch.cat([8 * flow, head[:, 2:]], 1)
        around = F.unfold(maps, 3, padding=1).view(b, 6, 9, 1, 1, h, w)
        return flow, (shares * around).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(b, 6, 8 * h, 8 * w)

    def __call__(self, first: Tensor, second: Tensor, iterations: int) -> list[Tensor]:
        first, second = 2 * first - 1, 2 * second - 1
        state = self.conv("init_conv", self.encoder("cnet", torch.cat([first, second], 1)))
        net, context = state[:, : self.size.dim], state[:, self.size.dim :]
        flow, out = self.outputs(net, torch.zeros_like(net[:, :2]))
        f1, f2, predictions = self.encoder("fnet", first), self.encoder("fnet", second), [out]
        rows, columns = torch.meshgrid(*(torch.arange(s).double() for s in flow.shape[2:]), indexing="ij")
        for _ in range(iterations):
            matches = self.windows(f1, f2, torch.stack([columns, rows]) + flow)
            net = self.update(net, context, matches, flow)
            flow, out = self.outputs(net, flow)
            predictions.append(out)
        return predictions


def network_of(batch_statistics: bool = False, storage: Storage = "auto") -> SEARAFTNetwork:
    """The tiny network with numbers everywhere that matter, in float64."""
    torch.manual_seed(0)
    network = SEARAFTNetwork(TINY, batch_statistics, storage).double()
    for name, value in network.state_dict().items():
        if "bn" in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
        elif name.endswith(("gamma", "norm.weight", "norm.bias")):
            value.copy_(torch.randn_like(value))
    return network.requires_grad_(False)


def images(seed: int, b: int = 2, h: int = 128, w: int = 144) -> tuple[Tensor, Tensor]:
    first, second = torch.rand(2, b, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return first, 0.3 * second + 0.7 * first.roll((3, -2), (2, 3))


@pytest.mark.parametrize("training", [False, True], ids=["collected", "batch statistics"])
def test_equals_the_description(training: bool) -> None:
    network, (first, second) = network_of(training), images(0)
    found = network(first, second, 3)
    expected = Described(network.state_dict(), TINY, training)(first, second, 3)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert all((after - before)[:, :2].abs().mean() > 1e-3 for before, after in itertools.pairwise(found))


def test_convnext_block_by_itself() -> None:
    torch.manual_seed(2)
    block = ConvNeXtBlock(6, 4).double().requires_grad_(False)
    block.gamma.copy_(torch.randn(6))
    block.norm.weight.copy_(torch.randn(6))
    state = {f"block.{key}": value for key, value in block.state_dict().items()}
    x = torch.randn(2, 6, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(block(x), Described(state, TINY, False).convnext("block", x), rtol=1e-10, atol=1e-10)


def test_both_ways_are_two_calls() -> None:
    network, (first, second) = network_of(), images(3, h=93, w=126)
    both = network.both_ways(torch.stack([first, second], 1), 2)
    there, back = network(first, second, 2)[-1], network(second, first, 2)[-1]
    assert both.shape == (2, 2, 2, 93, 126)
    torch.testing.assert_close(both, torch.stack([there, back], 1)[:, :, :2], rtol=1e-9, atol=1e-9)


def test_batch_statistics_are_those_of_one_call_with_both_directions() -> None:
    """As LILA's training calls it: first the pairs one way, then the other way, in one batch."""
    network, (first, second) = network_of(True), images(4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    both = network.train().both_ways(torch.stack([first, second], 1), 2)
    stacked = network(torch.cat([first, second]), torch.cat([second, first]), 2)[-1][:, :2]
    torch.testing.assert_close(both, torch.stack(stacked.chunk(2), 1), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.eval()
    assert torch.equal(both, network.both_ways(torch.stack([first, second], 1), 2))
    assert (both - network_of().both_ways(torch.stack([first, second], 1), 2)).abs().max() > 0.1


def test_on_the_fly_gives_the_same_flow() -> None:
    first, second = images(5, b=1)
    kept, fresh = (network_of(storage=storage)(first, second, 2)[-1] for storage in ("volume", "on_the_fly"))
    torch.testing.assert_close(kept, fresh, rtol=1e-9, atol=1e-9)


def test_no_iteration_is_the_flow_that_the_context_suggests() -> None:
    network, (first, second) = network_of(), images(6, b=1)
    (only,) = network(first, second, 0)
    assert torch.equal(only, network(first, second, 1)[0])
    assert torch.equal(network.both_ways(torch.stack([first, second], 1), 0)[:, 0], only[:, :2])


def test_published_names() -> None:
    with gzip.open(DATA / "published_keys.json.gz", "rt") as file:
        names = json.load(file)["sea_raft_m"]
    with torch.device("meta"):
        medium, long, small = (SEARAFTNetwork(SIZES[variant]) for variant in ("m", "l", "s"))
    own = {key: list(value.shape) for key, value in medium.state_dict().items()}
    assert own == names
    assert len(own) == 472
    assert own == {key: list(value.shape) for key, value in long.state_dict().items()}
    beyond = [key for key in own if key not in small.state_dict()]
    assert {key.split(".")[1] for key in beyond} == {"layer1", "layer2", "layer3"}
    for lost in ("bn3", "downsample.1"):  # as in files that keep each tensor once, and in LILA's and DDP's
        state = {f"flow.model.{key}": torch.empty(shape, device="meta") for key, shape in names.items()
                 if f".{lost}." not in key}  # fmt: skip
        translated = to_sea_raft({"pamr.0.kernel": torch.empty(1), **state})
        assert {key: list(value.shape) for key, value in translated.items()} == names
    parallel = {f"module.{key}": torch.empty(shape, device="meta") for key, shape in names.items()}
    assert to_sea_raft(parallel).keys() == names.keys()


@pytest.mark.parametrize(("change", "message"), [
    ({"dim": 7}, "must be even"), ({"blocks": (1, 0, 1)}, "must be positive"), ({"radius": -1}, "not negative"),
])  # fmt: skip
def test_sizes_that_make_no_network(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Size(**change)
