"""One whole training step against a second, plain writing of it in float64: losses and the decoder's gradients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fourd_dinov2.backbone import DinoV2, Size
from fourd_dpt3d.pixel_decoder import PixelDecoder
from fourd_lila.crops import Crop
from fourd_lila.objective import LILA
from fourd_pamr import PAMR, Stage
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import Clip, CueMaps
from fourd_core.interfaces import CueProvider
from fourd_core.system import System

STORED = Path(__file__).parents[3] / "tests/data/lila/lila_tiny_model.safetensors"
STAGES = ((3, 14), (2, 28), (2, 56))
B, VIEW, BASE, POOL, KEEP = 3, 56, 96, 16, 6
QUERY = Crop(3, 7, 61, flip=True), Crop(0, 0, 95), Crop(30, 40, 53)
CONTEXT = Crop(4, 5, 86), Crop(10, 0, 86), Crop(0, 10, 86)


class Said(CueProvider):
    """A teacher whose answer is known."""

    def __init__(self, kind: str, values: Tensor) -> None:
        self.kind, self.values = kind, values

    def __call__(self, clip: Clip) -> CueMaps:
        assert clip.size == self.values.shape[-2:]
        return CueMaps(self.values, self.kind)


def smooth(*shape: int, seed: int, coarse: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(math.prod(shape[:-2]), 1, coarse, coarse, generator=generator)
    return F.interpolate(maps, shape[-2:], mode="bicubic").view(shape)


@pytest.fixture(scope="module")
def flow() -> Tensor:
    """In pixels; there and back mostly agree."""
    there = 3 * smooth(B, 2, VIEW, VIEW, seed=1)
    return torch.stack([there, -there + 0.6 * smooth(B, 2, VIEW, VIEW, seed=2)], 1)


@pytest.fixture(scope="module")
def disparity() -> Tensor:
    return (8 * smooth(B, 2, 1, VIEW, VIEW, seed=3) + 7).clamp(min=0)


@pytest.fixture(scope="module")
def views() -> Tensor:
    return (60 * smooth(B, 2, 3, VIEW, VIEW, seed=4, coarse=8) + 128).clamp(0, 255).to(torch.uint8)


def network(cues: dict[str, CueProvider]) -> System:
    """The stored encoder and decoder."""
    stored = {key.removeprefix("sd."): value for key, value in load_file(STORED).items() if key.startswith("sd.")}
    backbone = DinoV2(DinoV2.Config(size=Size(embed_dim=32, depth=4, heads=2, image_size=70)))
    head = PixelDecoder(
        PixelDecoder.Config(taps=(0, 1, 2, 3), features=16, out_channels=(8, 12, 16, 20)), backbone.spec
    )
    backbone.network.load_state_dict({k[11:]: v for k, v in stored.items() if k.startswith("pretrained.")})
    head.load_state_dict({k: v for k, v in stored.items() if not k.startswith("pretrained.")})
    return System(backbone, {"features": head}, cues=cues)


def affine(crops: tuple[Crop, ...]) -> Tensor:
    rows = []
    for crop in crops:
        scale, x, y = crop.side / BASE, (2 * crop.left + crop.side) / BASE - 1, (2 * crop.top + crop.side) / BASE - 1
        rows.append([[-scale if crop.flip else scale, 0, x], [0, scale, y]])
    return torch.tensor(rows, dtype=torch.float64)


def cut(maps: Tensor, crops: tuple[Crop, ...]) -> Tensor:
    grid = F.affine_grid(affine(crops), [B, 1, VIEW, VIEW], align_corners=False)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def trusted_flow(flow: Tensor, back: Tensor) -> Tensor:
    """1 where the two flows, in half frames, lead back to where they started."""
    y, x = torch.meshgrid(torch.arange(VIEW).double(), torch.arange(VIEW).double(), indexing="ij")
    x, y = x + flow[:, 0] * VIEW / 2, y + flow[:, 1] * VIEW / 2
    grid = torch.stack([2 * x / (VIEW - 1) - 1, 2 * y / (VIEW - 1) - 1], -1)
    met = F.grid_sample(back, grid, padding_mode="border", align_corners=True)
    return ((flow + met).square().sum(1, keepdim=True).sqrt() < 0.05 * math.log(2)).double()


def refined(maps: Tensor, guide: Tensor) -> Tensor:
    """PAMR with every neighbour side by side."""

    def around(maps: Tensor, centre: bool) -> Tensor:
        h, w = maps.shape[-2:]
        padded = F.pad(maps, (5,) * 4, mode="replicate")
        steps = [(d * i, d * j) for d in (1, 3, 5) for i in (-1, 0, 1) for j in (-1, 0, 1) if centre or i or j]
        return torch.stack([padded[..., 5 + i : 5 + i + h, 5 + j : 5 + j + w] for i, j in steps], 2)

    for iterations, side in STAGES:
        small, maps = (F.interpolate(m, (side, side), mode="bilinear", align_corners=True) for m in (guide, maps))
        contrast = (small[:, :, None] - around(small, False)).abs()
        deviation = around(small, True).std(2, keepdim=True)
        weights = (-contrast / (1e-5 + 0.05 * deviation)).mean(1).softmax(1)
        for _ in range(iterations):
            maps = (around(maps, False) * weights[:, None]).sum(2)
    return F.normalize(maps, dim=1)


def standardised(query: Tensor, context: Tensor) -> list[Tensor]:
    both = torch.stack([query, context])
    return [(maps - both.mean()) / (1e-3 + both.std()) for maps in (query, context)]


def step(system: System, views: Tensor, flow: Tensor, disparity: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The losses from what the teachers said; the decoder takes part by its parameters."""
    frames, (there, back) = views.double() / 255, (2 * flow.double() / VIEW).unbind(1)
    depth = torch.log(1 + 1 / (0.01 * disparity.double() + 0.1)) / math.log(11)
    near = (depth < 0.9).double()
    agree = trusted_flow(there, back), trusted_flow(back, there)
    trust_query = cut(torch.cat([agree[0], agree[0], near[:, 0]], 1), QUERY)
    trust_context = cut(torch.cat([agree[1], agree[1], near[:, 1]], 1), CONTEXT)

    tokens = system.encode(frames.flatten(0, 1)[:, None])
    features = system.heads["features"](tokens, Clip(frames.flatten(0, 1)[:, None])).values[:, 0]
    features = torch.cat([features, torch.ones_like(features[:, :1])], 1).unflatten(0, (B, 2))
    chosen = noise.argsort(-1)[:, None, :KEEP, None, None].expand(-1, 2, -1, VIEW // 14, VIEW // 14)
    coarse = tokens[3].as_maps()[:, 0].unflatten(0, (B, 2)).gather(2, chosen)
    distilled = [refined(coarse[:, view], frames[:, view]) for view in (0, 1)]
    flows = standardised(cut(there, QUERY), -cut(back, CONTEXT))
    depths = standardised(cut(depth[:, 0], QUERY), cut(depth[:, 1], CONTEXT))
    target, context = (torch.cat(maps, 1) for maps in zip(flows, depths, distilled, strict=True))

    x, y, c = (F.adaptive_avg_pool2d(m, POOL).flatten(2).mT for m in (features[:, 1], context, trust_context))
    c = c.prod(-1)
    c = torch.diag_embed(torch.where(c < 0.5, 0, c))
    gram = x.mT @ c @ x / POOL**2 + 0.1 * torch.eye(9).double()
    readout = torch.linalg.solve(gram, x.mT @ c @ y / POOL**2)
    predicted = torch.einsum("bdk,bdhw->bkhw", readout, features[:, 0])

    counted = torch.cat([trust_query, torch.ones_like(distilled[0])], 1) > 0
    l1, edge = (predicted - target).abs()[counted].mean(), torch.zeros(()).double()
    for axis in (-1, -2):
        found, wanted = predicted.diff(dim=axis).abs(), target.diff(dim=axis).abs()
        both = counted.narrow(axis, 0, VIEW - 1) & counted.narrow(axis, 1, VIEW - 1)
        edge = edge + ((1 - torch.exp(-wanted / 0.1)) * (found - wanted).abs())[both].mean()
    return {"loss": l1 + edge, "l1": l1, "edge": edge}


def test_a_step_is_what_the_description_says(flow: Tensor, disparity: Tensor, views: Tensor) -> None:
    pamr = PAMR.Config(stages=(*(Stage(n, (side, side)) for n, side in STAGES[:-1]), Stage(STAGES[-1][0])))
    system = network({"flow": Said("flow", flow), "depth": Said("disparity", disparity)})
    objective = LILA(LILA.Config(base_size=BASE, view_size=VIEW, pool=POOL, distill_channels=KEEP, pamr=pamr), system)
    theta = torch.stack([torch.stack([c.theta(BASE) for c in crops]) for crops in zip(QUERY, CONTEXT, strict=True)])
    batch = {"views": views, "frames": torch.zeros_like(views), "theta": theta}
    losses = objective(system, batch, torch.Generator().manual_seed(4))
    losses["loss"].backward()
    found = {name: parameter.grad for name, parameter in system.heads["features"].named_parameters()}

    pairs = objective.prepare(system, batch, torch.Generator().manual_seed(4))
    assert 0.3 < pairs.valid[:, 0, :3].float().mean() < 0.97
    system = network({}).double()
    noise = torch.rand(B, 32, generator=torch.Generator().manual_seed(4))
    expected = step(system, views, flow, disparity, noise)
    expected["loss"].backward()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=2e-6), name
    for name, parameter in system.heads["features"].named_parameters():
        if parameter.grad is None:
            assert found[name] is None and ("fnorm" in name or "refinenet4.resConfUnit1" in name)
        else:
            # The gradient of |x| is its sign, which rounding turns over at a few pixels that are explained exactly.
            assert (found[name] - parameter.grad).norm() < 1e-3 * parameter.grad.norm(), name
