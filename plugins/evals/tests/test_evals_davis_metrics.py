"""DAVIS-2017's J and F: the public implementations' numbers, and the definitions written out by loops."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fourd_evals.davis_metrics import (
    Measure,
    SequenceScores,
    Summary,
    contour,
    contour_accuracy,
    decay,
    region_similarity,
    score_sequence,
    summarise,
)

from fourd_core.errors import MediaError

DATA = Path(__file__).parent / "data"
MASKS = dict(np.load(DATA / "davis_masks.npz"))
NUMBERS = json.loads((DATA / "davis_numbers.json").read_text())
CASES = list(NUMBERS["lila_per_case"])


def case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(MASKS[f"{name}.gt"]), torch.from_numpy(MASKS[f"{name}.pred"])


def named(summary: Summary) -> dict[str, float]:
    j, f = summary.j, summary.f
    return {
        "JF": summary.jf, "Jm": j.mean, "Jr": j.recall, "Jd": j.decay, "Fm": f.mean, "Fr": f.recall, "Fd": f.decay,
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_lila_numbers(name: str) -> None:
    scores = score_sequence(*case(name))
    np.testing.assert_allclose(scores.j, MASKS[f"{name}.J"], rtol=1e-12)
    np.testing.assert_allclose(scores.f, MASKS[f"{name}.F"], rtol=1e-12)
    assert named(summarise([scores])) == pytest.approx(NUMBERS["lila_per_case"][name], abs=1e-12)


def test_official_numbers() -> None:
    """All cases as one data set: the mean is over objects, not over sequences."""
    wanted = NUMBERS["davis2017_official_all_cases"]
    every = {name: score_sequence(*case(name), objects="all_frames") for name in CASES}
    summary = named(summarise(list(every.values())))
    assert summary == pytest.approx({key: wanted[key] for key in summary}, abs=1e-12)
    for letter in ("J", "F"):
        means = {
            f"{name}_{number}": values.mean()
            for name, scores in every.items()
            for number, values in enumerate(getattr(scores, letter.lower()), start=1)
        }
        assert means == pytest.approx(wanted[f"per_object_{letter}"], abs=1e-12)


def random_mask(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A few rectangles, some of them at the border."""
    mask = np.zeros(size, bool)
    for _ in range(3):
        top, left = generator.integers(-2, size[0]), generator.integers(-2, size[1])
        mask[max(top, 0) : top + generator.integers(1, 12), max(left, 0) : left + generator.integers(1, 12)] ^= True
    return mask


def contour_by_loops(mask: np.ndarray) -> set[tuple[int, int]]:
    h, w = mask.shape
    found = set()
    for y, x in itertools.product(range(h), range(w)):
        if y == h - 1 and x == w - 1:
            others = []
        elif y == h - 1:
            others = [(y, x + 1)]
        elif x == w - 1:
            others = [(y + 1, x)]
        else:
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        if any(mask[y, x] != mask[place] for place in others):
            found.add((y, x))
    return found


def accuracy_by_loops(truth: np.ndarray, prediction: np.ndarray) -> float:
    sets = contour_by_loops(truth), contour_by_loops(prediction)
    if not all(sets):
        return float(len(sets[0]) == len(sets[1]))
    tolerance = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))

    def share(ours: set[tuple[int, int]], theirs: set[tuple[int, int]]) -> float:
        return sum(min(math.dist(p, q) for q in theirs) <= tolerance for p in ours) / len(ours)

    recall, precision = share(*sets), share(*sets[::-1])
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("size", [(31, 45), (170, 20), (24, 24)])
def test_contours_by_loops(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(size[0])
    for _ in range(4):
        truth, prediction = random_mask(generator, size), random_mask(generator, size)
        assert {(int(y), int(x)) for y, x in np.argwhere(contour(truth))} == contour_by_loops(truth)
        assert contour_accuracy(truth, prediction) == pytest.approx(accuracy_by_loops(truth, prediction), abs=1e-12)
        union = (truth | prediction).sum()
        assert region_similarity(truth, prediction) == pytest.approx((truth & prediction).sum() / union)


def test_empty_masks() -> None:
    empty, some = np.zeros((9, 9), bool), np.eye(9, dtype=bool)
    for measure in (region_similarity, contour_accuracy):
        assert [measure(empty, empty), measure(some, empty), measure(empty, some)] == [1, 0, 0]


def test_an_object_that_the_first_prediction_lacks_is_lost_by_lilas_count_alone() -> None:
    truth = torch.ones(4, 8, 8, dtype=torch.uint8)
    truth[:, 4:] = 2
    prediction = truth.clone()
    prediction[0] = 1
    assert score_sequence(truth, prediction, "first_frame").j.tolist() == [[1, 1], [0, 0]]
    assert score_sequence(truth, prediction, "all_frames").j.tolist() == [[1, 1], [1, 1]]


def test_too_many_objects_are_refused() -> None:
    truth = torch.ones(4, 8, 8, dtype=torch.uint8)
    for frame, objects in ((0, "first_frame"), (1, "all_frames"), (2, "all_frames")):
        prediction = truth.clone()
        prediction[frame, 0, 0] = 3
        with pytest.raises(MediaError, match="an object 3 but the truth's first frame only 1"):
            score_sequence(truth, prediction, objects)
    prediction = truth.clone()
    prediction[[0, 3], 0, 0] = 3  # frames that are not evaluated
    assert score_sequence(truth, prediction, "all_frames").j.tolist() == [[1, 1]]


def test_sequences_that_cannot_be_scored() -> None:
    with pytest.raises(MediaError, match="shows no object"):
        score_sequence(torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.ones(3, 8, 8, dtype=torch.uint8))
    two = torch.ones(2, 8, 8, dtype=torch.uint8)
    with pytest.raises(MediaError, match="three annotated"):
        score_sequence(two, two)
    with pytest.raises(ValueError, match="shorter"):
        score_sequence(torch.ones(4, 8, 8, dtype=torch.uint8), two)


def test_decay_compares_inclusive_quarters_and_wraps_beyond_256_frames() -> None:
    # Borders of 10 frames: round(linspace(1, 10, 5)) - 1 = 0, 2, 5, 7, 9 (5.5 and its 1e-10 round up).
    values = np.arange(10, dtype=np.float64)
    assert decay(values) == (0 + 1 + 2) / 3 - (7 + 8 + 9) / 3
    # 400 frames: 0, 100, .., 299, 399 in 8 bits are 0, 100, .., 43, 143.
    long = np.arange(400, dtype=np.float64)
    assert decay(long) == long[:101].mean() - long[43:144].mean()
    # 300 frames: .., 224, 299 become 224, 43: nothing is between them.
    assert math.isnan(decay(np.ones(300)))


def test_recall_is_strictly_above_one_half() -> None:
    scores = SequenceScores(np.array([[0.5, 0.6, 0.7, 0.4]]), np.array([[1.0, 1.0, 1.0, 1.0]]))
    assert summarise([scores]).j.recall == 0.5
    assert summarise([scores]).f == Measure(1, 1, 0)
