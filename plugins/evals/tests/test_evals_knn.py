"""Propagation of masks by nearest neighbours: the public implementations' numbers, and both protocols by loops."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fourd_evals import knn
from fourd_evals.davis_knn import compared_features
from fourd_evals.features import Features
from fourd_evals.knn import KNNConfig, decide, propagate_masks, propagate_soft, to_grid
from torch import Tensor

STORED = {key: torch.from_numpy(value) for key, value in np.load(Path(__file__).parent / "data" / "knn.npz").items()}
SMALL = KNNConfig(radius=2, context=2, neighbours=3, side=6)


def moving(frames: int = 5, channels: int = 5, size: tuple[int, int] = (6, 9), seed: int = 0) -> Tensor:
    """Features that move by one place a frame, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(channels, *size, generator=generator)
    return torch.stack(
        [torch.roll(start, t, 2) + 0.2 * torch.randn(channels, *size, generator=generator) for t in range(frames)]
    )


def first_mask(size: tuple[int, int] = (24, 36)) -> Tensor:
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[4:16, 6:20], mask[12:22, 20:31] = 1, 2
    return mask


def test_lila_numbers() -> None:
    config = KNNConfig(radius=3, context=2, side=12)
    features, first = STORED["lila/features"], STORED["lila/first"]
    masks = list(propagate_masks(features, first, config))
    assert torch.equal(masks[0], first)
    assert torch.equal(masks[1], STORED["lila/labels"][0])
    soft_first = F.interpolate(F.one_hot(first.long()).permute(2, 0, 1)[None].float(), (12, 16), mode="bilinear")[0]
    soft = propagate_soft([to_grid(maps, config) for maps in features], soft_first, config)
    torch.testing.assert_close(next(soft), STORED["lila/soft"][0], rtol=1e-5, atol=1e-6)


def test_dino_numbers() -> None:
    config = KNNConfig("dino", radius=3, context=2)
    soft = list(propagate_soft(STORED["dino/features"], STORED["dino/first"].float(), config))
    torch.testing.assert_close(torch.stack(soft), STORED["dino/soft"], rtol=1e-5, atol=1e-6)
    for answer, labels in zip(soft, STORED["dino/labels"], strict=True):
        assert torch.equal(decide(answer, (96, 128), "dino"), labels)


def by_loops(grids: Tensor, first: Tensor, config: KNNConfig) -> list[Tensor]:
    """Every pixel asks every place of its window in every remembered frame."""
    lila = config.protocol == "lila"
    features, softs = F.normalize(grids.double(), dim=1), [first.double()]
    _, _, h, w = grids.shape
    for t in range(1, len(grids)):
        frames = [0, *(s for s in range(t - config.context, t) if s > 0)]
        soft = torch.zeros_like(softs[0])
        for y in range(h):
            for x in range(w):
                found = []
                for frame in frames:
                    for row in range(y - config.radius, y + config.radius + 1):
                        for column in range(x - config.radius, x + config.radius + 1):
                            r, c = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
                            if lila or (r, c) == (row, column):
                                cosine = features[t][:, y, x] @ features[frame][:, r, c]
                                found.append((float(cosine), softs[frame][:, r, c]))
                found.sort(key=lambda item: -item[0])
                fifth = found[config.neighbours - 1][0]
                chosen = found[: config.neighbours] if lila else [item for item in found if item[0] >= fifth]
                weights = (torch.tensor([cosine for cosine, _ in chosen]).double() / config.temperature).softmax(0)
                soft[:, y, x] = sum(weight * mask for weight, (_, mask) in zip(weights, chosen, strict=True))
        softs.append(soft)
    return softs[1:]


@pytest.mark.parametrize("protocol", ["lila", "dino"])
def test_propagation_by_loops(protocol: knn.Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in strips that end within the row."""
    config = attrs.evolve(SMALL, protocol=protocol)
    grids, first = moving(), torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(1))
    wanted = by_loops(grids, first, config)
    for strip in (64, 4):
        monkeypatch.setattr(knn, "STRIP", strip)
        soft = list(propagate_soft(grids, first, config))
        torch.testing.assert_close(torch.stack(soft).double(), torch.stack(wanted), rtol=1e-5, atol=1e-6)


def test_dino_keeps_all_that_tie_with_the_fifth() -> None:
    """Equal features everywhere: each of the places counts alike, at the border those that there are."""
    first = torch.arange(12.0).view(1, 3, 4)
    soft = next(propagate_soft(torch.ones(2, 2, 3, 4), first, KNNConfig("dino", radius=1, neighbours=2)))
    assert soft[0, 0, 0].item() == pytest.approx((0 + 1 + 4 + 5) / 4)
    assert soft[0, 1, 1].item() == pytest.approx(5)


@pytest.mark.parametrize(("size", "grid"), [((476, 840), (60, 105)), ((840, 476), (105, 60)), ((60, 105), (60, 105))])
def test_the_grids_smaller_side_is_60(size: tuple[int, int], grid: tuple[int, int]) -> None:
    maps = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    assert to_grid(maps, KNNConfig()).shape[1:] == grid
    assert torch.equal(to_grid(maps, KNNConfig("dino")), maps)
    if size == grid:
        assert torch.equal(to_grid(maps, KNNConfig()), maps)


def test_lila_decides_at_full_size_and_dino_at_the_pictures() -> None:
    soft = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(2))
    large = F.interpolate(soft[None], (20, 30), mode="bilinear")[0]
    assert torch.equal(decide(soft, (20, 30), "lila").long(), large.argmax(0))
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    ids = ((large - low) / (high - low)).argmax(0)
    assert torch.equal(decide(soft, (20, 30), "dino").long(), ids)
    assert torch.equal(decide(soft, (10, 15), "dino", picture=(20, 30)).long(), ids[1::2, 1::2])
    absent = torch.stack([torch.full((4, 6), 0.2), torch.zeros(4, 6)])  # nothing to stretch, and no object
    assert not decide(absent, (4, 6), "dino").any()


def test_an_object_that_sampling_loses_keeps_its_map() -> None:
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[0, 0] = 2
    assert knn._first_soft(mask, torch.zeros(4, 4, 4), "dino").sum((1, 2)).tolist() == [16, 0, 0]


def test_an_object_is_followed() -> None:
    """Every feature finds itself one place further: after two frames the mask has moved by two places."""
    grids = moving(3, 16, (8, 24))
    mask = torch.zeros(32, 96, dtype=torch.uint8)
    mask[8:24, 20:40] = 1
    mask[0, 0] = 255
    for protocol in ("lila", "dino"):
        config = KNNConfig(protocol, radius=3, neighbours=1, side=8)
        first, _, last = propagate_masks(grids, mask, config)
        assert first[0, 0] == 0
        moved = torch.roll(first, 8, 1)
        assert ((last == 1) & (moved == 1)).sum() / ((last == 1) | (moved == 1)).sum() > 0.85


def test_only_the_frames_that_are_looked_at_are_kept() -> None:
    """Features are taken one by one, and forgotten."""
    alive: list[weakref.ref[Tensor]] = []

    def frames() -> Iterator[Tensor]:
        for maps in moving(12):
            taken = maps.clone()
            alive.append(weakref.ref(taken))
            yield taken
            del taken

    masks = propagate_masks(frames(), first_mask(), SMALL)
    for number, mask in enumerate(masks, start=1):
        assert mask.shape == (24, 36)
        assert len(alive) == number, "frames are read ahead"
        # A grid of the wanted size is the frame's own tensor, kept as it is while it is the latest.
        assert sum(reference() is not None for reference in alive) <= SMALL.context + 2
    assert len(alive) == 12
    assert list(propagate_masks([], first_mask(), SMALL)) == []


def test_both_sources_average_their_cosines() -> None:
    generator = torch.Generator().manual_seed(4)
    look = Features(torch.randn(1, 7, 3, 5, generator=generator), torch.randn(1, 4, 12, 20, generator=generator))
    config = KNNConfig(side=6)
    pixels, encoder, both = (compared_features(look, source, config) for source in ("pixels", "encoder", "both"))
    assert (pixels.shape, encoder.shape, both.shape) == ((4, 6, 10), (7, 6, 10), (11, 6, 10))

    def cosine(maps: Tensor) -> Tensor:
        return F.cosine_similarity(maps[:, 0, 0], maps[:, 3, 4], dim=0)

    torch.testing.assert_close(cosine(both), (cosine(pixels) + cosine(encoder)) / 2)
