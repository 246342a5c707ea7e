"""RAFT against the official numbers and names."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fourd_raft.checkpoints import to_raft
from fourd_raft.correlation import Storage
from fourd_raft.raft_network import SIZES, RAFTNetwork, Size
from torch import Tensor

DATA = Path(__file__).parent / "data"
TINY = Size(
    features=(8, 8, 12, 16, 24), context=(8, 8, 12, 16, 32), correlation=(24, 16), flow=(16, 8), motion=16, hidden=16,
    flow_head=16, levels=2, radius=2,
)  # fmt: skip
PLACES = [(0, 0), (3, 6), (7, 1), (5, 5)]
"""Row and column, of 8 x 8, of the stored pixels of the tiny network."""


def published(name: str) -> dict[str, Any]:
    with gzip.open(DATA / "published_keys.json.gz", "rt") as file:
        keys: dict[str, Any] = json.load(file)[name]
    return keys


def stored(name: str) -> dict[str, Tensor]:
    """The stored tensors; the second image is the first one, rolled."""
    with np.load(DATA / f"{name}.npz") as file:
        tensors = {key: torch.from_numpy(value) for key, value in file.items()}
    tensors["image2"] = tensors["image1"].roll(tuple(tensors["roll"].tolist()), (2, 3))
    return tensors


def tiny_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the tiny network; of its last layer only the rows that make the stored pixels are stored."""
    state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    rows = [64 * k + 8 * v + u for v, u in PLACES for k in range(9)]
    for key in ("mask_predictor.conv.weight", "mask_predictor.conv.bias"):
        full = torch.zeros(576, *state[key].shape[1:])
        full[rows] = state[key]
        state[key] = full
    return state


def formula_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights without a generator of random numbers: u = frac(43758.5453 sin(12.9898 j + 78.233 n + 0.5))."""
    state = {}
    for n, (name, shape) in enumerate(sorted(shapes.items())):
        j = torch.arange(math.prod(shape), dtype=torch.float64)
        u = (torch.sin(12.9898 * j + 78.233 * n + 0.5) * 43758.5453).remainder(1).view(shape)
        scale = math.sqrt(12 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
        state[name] = ((u - 0.5) * scale).float()
    return state


@pytest.mark.parametrize("storage", ["volume", "on_the_fly"])
def test_large_equals_torchvision(storage: Storage) -> None:
    tensors = stored("raft_tiny_torchvision")
    network = RAFTNetwork(TINY, "large", storage)
    network.load_state_dict(to_raft(tiny_state(tensors)))
    with torch.no_grad():
        flows = network((tensors["image1"] + 1) / 2, (tensors["image2"] + 1) / 2, 3)
    for number, flow in enumerate(flows):
        pixels = torch.stack([flow[:, :, v::8, u::8] for v, u in PLACES], 1)
        expected = tensors[f"flow{number}"]
        assert (pixels - expected).abs().max() < 1e-5 * expected.abs().max()


def test_small_equals_the_official_network() -> None:
    tensors = stored("raft_small")
    network = RAFTNetwork(SIZES["small"], "small")
    shapes = {torchvision: shape for shape, torchvision in published("raft_small").values()}
    network.load_state_dict(to_raft(formula_weights(shapes)))
    with torch.no_grad():
        flows = network(tensors["image1"] / 255, tensors["image2"] / 255, 4)
    for number, flow in enumerate(flows):
        expected = tensors[f"flow{number}"]
        assert (flow[:, :, ::4, ::4] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("variant", "count", "torchvision_count"), [("large", 179, 169), ("small", 106, 106)])
def test_published_names(variant: Any, count: int, torchvision_count: int) -> None:
    names = published(f"raft_{variant}")
    with torch.device("meta"):
        network = RAFTNetwork(SIZES[variant], variant)
    own = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: shape for key, (shape, _) in names.items()}
    assert len(own) == count
    torchvision = {name: key for key, (_, name) in names.items() if name is not None}
    assert len(torchvision) == torchvision_count
    for prefix in ("", "module.", "flow.model.", "model.flow.model.module."):
        state = {prefix + name: torch.empty(names[key][0], device="meta") for name, key in torchvision.items()}
        if "flow.model." in prefix:
            state["depth_net.weight"] = torch.empty(3, device="meta")
        translated = to_raft(state)
        assert {key: list(value.shape) for key, value in translated.items()} == own
        assert all(translated[key] is state[prefix + name] for name, key in torchvision.items())


@pytest.mark.parametrize("variant", ["large", "small"])
def test_both_ways_are_two_calls(variant: Any) -> None:
    """Also of sizes that 8 does not divide, of which the coarsest level is one place wide."""
    torch.manual_seed(0)
    size = SIZES["small"] if variant == "small" else TINY
    network = RAFTNetwork(size, variant)
    frames = torch.rand(2, 2, 3, 61, 75, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        both = network.both_ways(frames, 2)
        there, back = (network(frames[:, i], frames[:, 1 - i], 2) for i in range(2))
    assert [flow.shape for flow in there] == [(2, 2, 61, 75)] * 2
    torch.testing.assert_close(both, torch.stack([there[-1], back[-1]], 1), rtol=1e-5, atol=1e-5)
    assert both.std() > 0


def test_borders_are_repeated_around_frames_that_8_does_not_divide() -> None:
    torch.manual_seed(2)
    network = RAFTNetwork(TINY, "large")
    frames = np.random.default_rng(0).random((2, 1, 3, 61, 75), np.float32)
    padded = torch.from_numpy(np.pad(frames, ((0, 0),) * 3 + ((1, 2), (2, 3)), "edge"))
    with torch.no_grad():
        (flow,), (large,) = network(*torch.from_numpy(frames), 1), network(*padded, 1)
    torch.testing.assert_close(flow, large[:, :, 1:-2, 2:-3])


def test_further_iterations_go_on_from_the_earlier_ones() -> None:
    torch.manual_seed(1)
    network = RAFTNetwork(TINY, "large")
    frames = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        short, long = network(*frames, 2), network(*frames, 4)
    assert len(long) == 4
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=False))
    assert not torch.equal(long[2], long[3])


def test_frames_that_are_too_small() -> None:
    network = RAFTNetwork(SIZES["small"], "small")
    with torch.no_grad():
        assert network.both_ways(torch.rand(1, 2, 3, 57, 57), 1).isfinite().all()
        with pytest.raises(
            ValueError, match="4 levels of correlation needs frames of at least 57x57 pixels, got 90x56"
        ):
            network.both_ways(torch.rand(1, 2, 3, 56, 90), 1)


@pytest.mark.parametrize(("change", "message"), [
    ({"features": (8, 9, 8, 8, 8)}, "must have the same width"), ({"context": (8, 8, 8, 8, 16)}, "more channels than"),
    ({"motion": 2}, "more than 2"), ({"levels": 0}, "must be positive"),
])  # fmt: skip
def test_sizes_that_make_no_network(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Size(**change)
