"""What `fourd_core.precision.KEPT` promises: float32 under autocast, and what bfloat16 would cost instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from fourd_dpt3d.dense3d import Flow3D
from fourd_sam_sparse.prompts import FourierEncoding
from helpers import ROOT
from torch import Tensor

from fourd_core.data import Clip, Grid, TokenMap, Tokens
from fourd_core.geometry import project, similarity, transform
from fourd_core.kernels.gradient_matching import gradient_matching, masked_l1, matching
from fourd_core.kernels.local_affinity import local_affinity
from fourd_core.kernels.map_readout import expected_position
from fourd_core.kernels.ridge import weighted_ridge
from fourd_core.precision import KEPT

BF16 = torch.bfloat16


class Case(NamedTuple):
    """The operation; the same as autocast or a network in bfloat16 would compute it; and how far apart they are."""

    ours: Callable[[], Tensor]
    in_half: Callable[[], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]


def relative(found: Tensor, exact: Tensor) -> Tensor:
    return (found - exact).norm() / exact.norm()


def largest(found: Tensor, exact: Tensor) -> Tensor:
    return (found - exact).abs().max()


def ridge(make: torch.Generator) -> Case:
    n, d, factor = 1024, 128, 0.01
    turn = torch.linalg.qr(torch.randn(d, d, generator=make))[0]
    x = (torch.randn(1, n, d, generator=make) * (-6 * torch.arange(d) / d).exp()) @ turn
    y = x @ torch.randn(1, d, 8, generator=make) + 0.1 * torch.randn(1, n, 8, generator=make)

    def in_half() -> Tensor:
        with torch.autocast("cpu", BF16):
            gram, right = x.mT @ x / n, x.mT @ y / n
        return torch.linalg.solve(gram.float() + factor * torch.eye(d), right.float())

    return Case(lambda: weighted_ridge(x, y, torch.ones(1, n), factor), in_half, relative)


def soft_argmax(make: torch.Generator) -> Case:
    centre = torch.rand(8, 4, 1, 1, 2, generator=make) * 40 + 12
    places = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy"), -1)
    heat = -(places - centre).square().sum(-1) / 8

    def in_half() -> Tensor:
        share = (
            F.interpolate(heat.to(BF16), (224, 224), mode="bilinear").flatten(2).softmax(-1).unflatten(-1, (224, 224))
        )
        centres = (torch.arange(224) + 0.5).to(BF16)
        return torch.stack([(share.sum(-2) * centres).sum(-1), (share.sum(-1) * centres).sum(-1)], -1)

    return Case(lambda: expected_position(heat, (224, 224)), in_half, largest)


def losses(make: torch.Generator) -> Case:
    target = 0.05 * torch.randn(2, 8, 48, 48, generator=make).cumsum(-1)
    prediction = target + 0.01 * torch.randn(2, 8, 48, 48, generator=make)
    valid = torch.ones_like(target, dtype=torch.bool)

    def gradient(dtype: torch.dtype, loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = prediction.to(dtype).requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    def half(leaf: Tensor) -> Tensor:
        return masked_l1(leaf, target.to(BF16), valid) + gradient_matching(leaf, target.to(BF16), valid)

    return Case(
        lambda: gradient(torch.float32, lambda leaf: matching(leaf, target, valid).loss),
        lambda: gradient(BF16, half),
        relative,
    )


def poses(make: torch.Generator) -> Case:
    points = torch.randn(256, 3, generator=make) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 0.0, 8.0])
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.1, -0.2], [-0.1, 0.0, 0.1], [0.2, -0.1, 0.0]]))
    moved = points @ turn.mT + torch.tensor([0.3, -0.2, 0.5])
    camera = torch.tensor([[200.0, 0.0, 112.0], [0.0, 200.0, 112.0], [0.0, 0.0, 1.0]])

    def ours() -> Tensor:
        return project(transform(similarity.umeyama(points, moved).matrix(), points), camera)

    def in_half() -> Tensor:
        pose = similarity.umeyama(points, moved).matrix()
        with torch.autocast("cpu", BF16):
            found = ((points @ pose[:3, :3].mT + pose[:3, 3]) @ camera.mT).float()
        return found[:, :2] / found[:, 2:]

    return Case(ours, in_half, largest)


def affinity(make: torch.Generator) -> Case:
    guide = 0.05 * torch.rand(1, 3, 48, 48, generator=make) + torch.linspace(0.2, 0.8, 48)

    def weights(picture: Tensor) -> Tensor:
        return local_affinity(picture, (1, 2, 4), 0.1, 1e-6)

    return Case(lambda: weights(guide), lambda: weights(guide.to(BF16)), largest)


def last_layer(make: torch.Generator) -> Case:
    head = Flow3D(Flow3D.example(), Flow3D.example_spec()).requires_grad_(False)
    head.dpt.last.weight.zero_()  # what is before it may differ under autocast
    head.dpt.last.bias.copy_(torch.tensor([75.24, -70.1]))
    grid = Grid(8, 4, 4)
    tokens = Tokens({tap: TokenMap(torch.randn(1, 128, 16, generator=make), grid) for tap in head.taps})
    clip = Clip(torch.zeros(1, 16, 3, 32, 32))
    return Case(lambda: head(tokens, clip).values, lambda: head(tokens, clip).values.to(BF16), largest)


def places(make: torch.Generator) -> Case:
    encode = FourierEncoding(64)
    encode.positional_encoding_gaussian_matrix.copy_(torch.randn(3, 32, generator=make))
    where = torch.rand(500, 3, generator=make)

    def in_half() -> Tensor:
        with torch.autocast("cpu", BF16):
            angles = 2 * math.pi * ((2 * where - 1) @ encode.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], -1)

    return Case(lambda: encode(where), in_half, largest)


CASES = {
    "ridge": ridge,
    "soft_argmax": soft_argmax,
    "losses": losses,
    "poses": poses,
    "affinity": affinity,
    "last_layer": last_layer,
    "places": places,
}


def test_every_promise_has_its_case_and_its_row_in_the_docs() -> None:
    assert KEPT.keys() == CASES.keys()
    page = (ROOT / "docs" / "performance.md").read_text()
    for kept in KEPT.values():
        assert f"| {kept.operation} | {kept.error:g}: {kept.of} |" in page


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing_and_bfloat16_would_cost_what_is_said(name: str) -> None:
    case = CASES[name](torch.Generator().manual_seed(0))
    exact = case.ours()
    with torch.autocast("cpu", BF16):
        inside = case.ours()
    assert inside.dtype == exact.dtype == torch.float32
    assert torch.equal(inside, exact)
    cost = float(case.error(case.in_half().float(), exact))
    assert 0.7 < cost / KEPT[name].error < 1.4, cost
