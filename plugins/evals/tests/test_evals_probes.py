"""The probes' arithmetic, written out by hand; both ways gave google-research/lila's own logits once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fourd_evals.features import Features
from fourd_evals.probes import ALPHAS, AttentionProbe, LinearCat, LinearZeroShot
from torch import Tensor, nn

SIZE = (22, 30)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(samples: int = 2) -> Features:
    return Features(encoder=normal(samples, 12, 4, 5, seed=1), pixels=normal(samples, 16, 21, 27, seed=2))


def filled(probe: nn.Module) -> nn.Module:
    """Other numbers than the initial ones, all of them different from zero."""
    for number, parameter in enumerate(probe.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=10 + number)
    return probe.double().eval()


def double(given: Features) -> Features:
    return Features(given.encoder.double(), given.pixels.double())


def resized(maps: Tensor) -> Tensor:
    return F.interpolate(maps, SIZE, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("kernel", [1, 5])
def test_linear_cat_is_two_convolutions_added_at_the_size_of_the_labels(kernel: int) -> None:
    given, probe = double(features()), filled(LinearCat(16, 12, 4, kernel, alphas=(0.5, 2.0)))
    named = dict(probe.named_parameters())
    assert {name: tuple(p.shape) for name, p in named.items()} == {
        "probe_dec.weight": (4, 16, kernel, kernel),
        "probe_dec.bias": (4,),
        "probe_enc.weight": (4, 12, 1, 1),
        "probe_enc.bias": (4,),
    }
    side = kernel // 2
    padded = F.pad(given.pixels, (side,) * 4)
    pixels = named["probe_dec.bias"][:, None, None].expand(2, 4, 21, 27)
    for row in range(kernel):
        for column in range(kernel):
            weight = named["probe_dec.weight"][:, :, row, column]
            pixels = pixels + torch.einsum("kc,bchw->bkhw", weight, padded[:, :, row : row + 21, column : column + 27])
    encoder = torch.einsum("kc,bchw->bkhw", named["probe_enc.weight"][:, :, 0, 0], given.encoder)
    encoder = encoder + named["probe_enc.bias"][:, None, None]
    torch.testing.assert_close(probe(given, SIZE), 0.5 * resized(pixels) + 2 * resized(encoder))


def test_attention_probe_by_loops() -> None:
    given, probe = double(features(1)), filled(AttentionProbe(16, 12, 3))
    named = dict(probe.named_parameters())
    assert set(named) == {
        "probe_dec.queries", "probe_dec.cross_attn.projq.weight", "probe_dec.cross_attn.projk.weight",
        "probe_dec.cross_attn.projv.weight", "probe_dec.cross_attn.proj.weight", "probe_dec.cross_attn.proj.bias",
        "probe_enc.weight", "probe_enc.bias",
    }  # fmt: skip
    weight = {name.split(".")[-2]: p for name, p in named.items() if name.endswith("weight")}
    pixels = given.pixels[0].clamp(min=0)
    tokens = F.interpolate(pixels[None], (5, 6), mode="bilinear")[0].flatten(1).T  # 21 // 4, 27 // 4
    logits = torch.zeros(3, 21, 27, dtype=torch.float64)
    for number, query in enumerate(named["probe_dec.queries"][0]):
        q, keys, values = weight["projq"] @ query, tokens @ weight["projk"].T, tokens @ weight["projv"].T
        heads = []
        for head in range(8):
            part = slice(2 * head, 2 * head + 2)
            share = (keys[:, part] @ q[part] / math.sqrt(2)).softmax(0)
            heads.append(share @ values[:, part])
        updated = weight["proj"] @ torch.cat(heads) + named["probe_dec.cross_attn.proj.bias"]
        logits[number] = torch.einsum("c,chw->hw", updated, pixels)
    encoder = F.conv2d(given.encoder, named["probe_enc.weight"], named["probe_enc.bias"])
    torch.testing.assert_close(probe(given, SIZE), resized(logits[None]) + resized(encoder))


def test_zero_shot_logits_are_scaled_cosines_with_the_text() -> None:
    given, text = double(features()), F.normalize(normal(5, 7, seed=3).double(), dim=1)
    probe = filled(LinearZeroShot(16, 12, text)).train()
    assert isinstance(probe, LinearZeroShot)
    logits = probe(given, SIZE)
    mean = given.encoder.mean((0, 2, 3), keepdim=True)
    deviation = given.encoder.var((0, 2, 3), keepdim=True, correction=0)
    normalisation, projection = probe.probe_enc
    encoder = (given.encoder - mean) / (deviation + 1e-5).sqrt()
    encoder = encoder * normalisation.weight[:, None, None] + normalisation.bias[:, None, None]
    encoder = torch.einsum("ec,bchw->behw", projection.weight[:, :, 0, 0], encoder)
    pixels = torch.einsum("ec,bchw->behw", probe.probe_dec.weight[:, :, 0, 0], given.pixels)
    both = sum(
        resized(torch.einsum("behw,ke->bkhw", maps / maps.norm(dim=1, keepdim=True), text))
        for maps in (encoder, pixels)
    )
    torch.testing.assert_close(logits, probe.logit_scale.exp() * both)
    assert LinearZeroShot(16, 12, text).logit_scale.exp().item() == pytest.approx(100, rel=1e-4)
    assert "text" not in dict(probe.named_parameters())


@pytest.mark.parametrize("source", ["pixels", "encoder"])
def test_one_source_alone_does_not_look_at_the_other(source: str) -> None:
    given = features()
    for probe in (
        LinearCat(16, 12, 3, alphas=ALPHAS[source]),
        AttentionProbe(16, 12, 3, ALPHAS[source]),
        LinearZeroShot(16, 12, torch.eye(3), ALPHAS[source]),
    ):
        other = "encoder" if source == "pixels" else "pixels"
        spoiled = Features(**{source: getattr(given, source), other: getattr(given, other) * torch.nan})
        answer = probe(spoiled, SIZE)
        assert answer.shape == (2, 3, *SIZE)
        assert torch.equal(answer, probe(given, SIZE))


def test_channels_that_eight_heads_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="12 channels cannot be divided"):
        AttentionProbe(12, 12, 3)
