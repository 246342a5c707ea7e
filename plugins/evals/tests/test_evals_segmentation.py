"""Segmentation: the reference's numbers, how pictures reach the probe, and that a probe learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import cv2
import numpy as np
import pytest
import torch
from fourd_evals.coco import coarse_table
from fourd_evals.labelled import Labelled, center_view, random_view
from fourd_evals.miniatures import coco_miniature, colour_system
from fourd_evals.segmentation_metrics import confusion, scores
from fourd_evals.semantic import ADE20K, COCOStuff, cross_entropy
from fourd_evals.transforms import colour_jitter, random_crop

from fourd_core.errors import RecipeError, RunError
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_core.testing.miniature import Miniature, Pixels, Textures

DATA = Path(__file__).parent / "data"


def test_the_numbers_of_the_reference() -> None:
    """google-research/lila's CocoEval: class 5 is nowhere, class 6 only in the prediction, 255 does not count."""
    arrays = np.load(DATA / "segmentation_metrics.npz")
    pred, gt = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("pred", "gt"))
    halves = confusion(pred[:2], gt[:2], 7) + confusion(pred[2:], gt[2:], 7)
    found = scores(halves)
    for name, value in (
        ("miou", found.miou), ("pacc", found.pixel_accuracy), ("macc", found.mean_accuracy),
        ("fwiou", found.weighted_iou),
    ):  # fmt: skip
        assert value == pytest.approx(float(arrays[name]), rel=1e-6), name
    np.testing.assert_allclose(found.iou.numpy(), arrays["iou"], rtol=1e-6)


def test_scores_of_some_classes() -> None:
    """By hand: class 0 has 3 of 4 pixels right, class 1 one of two; class 2's pixels were given class 0."""
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    given = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0])
    matrix = confusion(given, truth, 3)
    assert matrix.tolist() == [[3, 1, 0], [1, 1, 0], [2, 0, 0]]
    found = scores(matrix, torch.tensor([0, 1]))
    assert found.miou == pytest.approx((3 / 7 + 1 / 3) / 2)
    assert found.pixel_accuracy == pytest.approx(4 / 6)
    assert scores(matrix, torch.tensor([2])).miou == 0
    assert scores(torch.zeros(3, 3, dtype=torch.long)).miou == 0


def test_coarse_classes() -> None:
    """A person is class 9, a bicycle a vehicle (11), a cat an animal (7), as IIC and STEGO have them."""
    table = coarse_table()
    assert table[[0, 1, 16, 181, 182, 255]].tolist() == [9, 11, 7, 24, 255, 255]
    assert sorted(set(table[:182].tolist())) == list(range(27))


def test_cross_entropy_leaves_out_what_does_not_count() -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[0, 2], [255, 255]]])
    wanted = -(logits.log_softmax(1)[0, 0, 0, 0] + logits.log_softmax(1)[0, 2, 0, 1]) / 2
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(wanted), rel=1e-6)
    assert float(cross_entropy(logits, torch.full_like(labels, 255))) == 0


# ---- how pictures reach the probe


def item(height: int, width: int) -> Labelled:
    """Labels that are the picture's red."""
    random = np.random.default_rng(1).integers(0, 255, (height, width), dtype=np.uint8)
    red = torch.from_numpy(cv2.GaussianBlur(random, (0, 0), 6))
    return Labelled(torch.stack([red, red, red]), red.long())


@pytest.mark.parametrize(("size", "resized", "corner"), [((60, 90), (40, 60), (0, 10)), ((104, 50), (83, 40), (21, 0))])
def test_the_middle_of_a_picture(size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]) -> None:
    """The smaller side becomes 40; half a pixel is cut off."""
    whole = item(*size)
    sample = center_view(whole, 40)
    small = cv2.resize(whole.labels.numpy().astype(np.uint8), resized[::-1], interpolation=cv2.INTER_NEAREST)
    picture = cv2.resize(whole.picture[0].numpy(), resized[::-1], interpolation=cv2.INTER_LINEAR)
    window = np.s_[corner[0] : corner[0] + 40, corner[1] : corner[1] + 40]
    assert torch.equal(sample["labels"], torch.from_numpy(small[window]).long())
    assert torch.equal(sample["picture"][0], torch.from_numpy(picture[window]) / 255)


def test_random_views_keep_labels_on_their_pixels() -> None:
    whole = item(64, 96)
    for seed in range(8):
        sample = random_view(whole, 32, (0.5, 1.0), (0.75, 1.33), torch.Generator().manual_seed(seed))
        difference = (sample["picture"][0] * 255 - sample["labels"]).abs()
        assert float(difference.mean()) < 3  # half a pixel of a smooth picture


def test_random_crops_have_the_stated_area_and_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = [random_crop((480, 640), (0.5, 1.0), (0.75, 1.33), generator) for _ in range(400)]
    areas = np.array([c.height * c.width / (480 * 640) for c in crops])
    ratios = np.array([c.width / c.height for c in crops])
    assert 0.495 < areas.min() < 0.55 and areas.max() < 1.0
    assert areas.mean() == pytest.approx(0.68, abs=0.05)  # large ones often do not fit
    assert 0.74 < ratios.min() < 0.9 and 1.2 < ratios.max() < 1.34
    assert all(0 <= c.top <= 480 - c.height and 0 <= c.left <= 640 - c.width for c in crops)
    assert len({c.top for c in crops}) > 50 and len({c.left for c in crops}) > 100


def test_a_crop_that_never_fits_is_the_middle() -> None:
    """A strip: the widest crop of the allowed ratio."""
    crop = random_crop((10, 100), (1.0, 1.0), (0.5, 2.0), torch.Generator().manual_seed(0))
    assert crop == (0, 40, 10, 20)


def test_colour_jitter() -> None:
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    generator = torch.Generator().manual_seed(1)
    assert torch.allclose(colour_jitter(picture, (0.0, 0.0, 0.0), generator), picture, atol=1e-6)
    bright = colour_jitter(picture, (0.3, 0.0, 0.0), generator)
    ratio = bright / picture
    assert float(ratio.std()) < 1e-5 and 0.7 <= float(ratio.mean()) <= 1.3 and abs(float(ratio.mean()) - 1) > 1e-3
    contrast = colour_jitter(picture, (0.0, 0.3, 0.0), generator)
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    mean = (picture * weights).sum(0).mean()
    assert float(((contrast - mean) / (picture - mean)).std()) < 1e-3
    grey = (picture * weights).sum(0)
    saturated = colour_jitter(picture, (0.0, 0.0, 0.2), generator)
    factor = (saturated - grey) / (picture - grey)
    assert float(factor.median()) == pytest.approx(float(factor.flatten()[0]), abs=1e-3)
    assert torch.allclose((saturated * weights).sum(0), grey, atol=1e-3)


# ---- learning


@pytest.mark.parametrize("features", ["both", "pixels", "encoder"])
def test_a_probe_learns_coco(features: Any) -> None:
    """Four things of four colours; the encoder's grid of 8 x 8 pixels is the things' own."""
    config = attrs.evolve(COCOStuff.example(), features=features, lr=0.02, epochs=15, probe="linear", size=48)
    with torch.no_grad():
        result = COCOStuff(config).measure(colour_system(), Textures())
    assert result.rows[0]["pAcc"] > 65
    assert result.rows[0]["mIoU"] > 45
    start = COCOStuff(attrs.evolve(config, lr=1e-9, epochs=1)).measure(colour_system(), Textures())
    assert start.rows[0]["pAcc"] < 40


def test_the_attention_probe_learns() -> None:
    config = attrs.evolve(COCOStuff.example(), features="pixels", lr=0.02, epochs=25)
    result = COCOStuff(config).measure(colour_system(), Textures())
    assert result.rows[0]["pAcc"] > 50
    paper = {row["features"]: row for row in result.rows}["DINO2-S14 + LILA (paper)"]
    assert (paper["mIoU"], paper["pAcc"]) == (59.6, 79.8)
    assert "3 pictures instead of 118287" in result.notes[0] and "2 pictures instead of 5000" in result.notes[1]
    assert result.score == pytest.approx(result.rows[0]["mIoU"] / 100, abs=1e-6)


def test_ade() -> None:
    """One of the four things does not count."""
    config = attrs.evolve(ADE20K.example(), probe="linear", lr=0.02, epochs=10)
    result = ADE20K(config).measure(colour_system(), Textures())
    assert result.rows[0]["pAcc"] > 70
    assert "instead of 20210 and 2000" in result.notes[0]
    assert result.protocol["classes"] == 150


def test_features_that_the_attention_probe_cannot_divide() -> None:
    miniature = Miniature()
    system = System(miniature.backbone, {"features": Pixels(Pixels.Config(channels=12), miniature.backbone.spec)})
    with pytest.raises(RecipeError, match="8 heads: 12 channels"):
        COCOStuff(COCOStuff.example()).prepare(system, Textures())


def test_a_loss_that_is_not_finite_is_named() -> None:
    config = attrs.evolve(COCOStuff.example(), probe="linear", lr=1e30, epochs=3)
    with pytest.raises(RunError, match=r"COCO-Stuff-27: the loss is .* in epoch .*; choose a smaller lr"):
        COCOStuff(config).measure(colour_system(), Textures())


def test_the_papers_protocol_is_the_default() -> None:
    """LILA, google-research/lila eval_seg.py."""
    c = COCOStuff.Config(root=Location(coco_miniature()))
    assert (c.lr, c.weight_decay, c.batch_size, c.epochs, c.size, c.scale) == (3e-4, 0.01, 64, 30, 224, (0.5, 1.0))
    assert (c.probe, c.tap, c.select, c.train_pictures) == ("attention", -1, "best", "curated")
