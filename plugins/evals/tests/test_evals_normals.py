"""Normals: the loss and the numbers of the reference implementation, the protocol, and that a probe learns."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from fourd_evals.miniatures import colour_system, in_memory, nyu_files, nyu_miniature
from fourd_evals.normals_metrics import angular_loss, normal_errors
from fourd_evals.nyu_normals import NormalScores, NormalsTask, NYUNormals
from fourd_evals.probe_task import Score, Task
from fourd_evals.probes import LinearCat

from fourd_core.errors import RecipeError
from fourd_core.interfaces import Dataset, Result
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_core.testing.miniature import Miniature, Textures

DATA = Path(__file__).parent / "data"


def config(**changes: object) -> NYUNormals.Config:
    return attrs.evolve(NYUNormals.example(), **changes)


def test_the_numbers_of_the_reference() -> None:
    """One picture of google-research/lila's NormalsEval and of its loss's gradient (a batch's, so over all pixels)."""
    arrays = np.load(DATA / "normals_metrics.npz")
    pred, gt, valid, dpred = (torch.from_numpy(arrays[name])[None] for name in ("pred", "gt", "valid", "dpred"))
    pred.requires_grad_()
    angular_loss(pred, gt, valid).backward()
    assert pred.grad is not None
    share = int(valid.sum()) / int(arrays["all_valid"])
    torch.testing.assert_close(pred.grad * share, dpred, rtol=1e-5, atol=1e-8)
    errors = normal_errors(pred.detach(), gt, valid)
    torch.testing.assert_close(errors.rmse[0], torch.from_numpy(arrays["rmse"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(errors.shares[0], torch.from_numpy(arrays["shares"]), rtol=1e-6, atol=0)


def test_known_angles() -> None:
    """A quarter turn, a sixteenth, none, and a pixel that does not count, by hand; lengths do not matter."""
    angles = torch.tensor([90.0, 22.5, 0.0, 180.0]).deg2rad()
    predicted = 3 * torch.stack([angles.sin(), torch.zeros(4), angles.cos()]).view(1, 3, 2, 2)
    truth = torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 2, 2)
    errors = normal_errors(predicted, truth, valid)
    assert float(errors.rmse) == pytest.approx(math.sqrt((90**2 + 22.5**2) / 3), rel=1e-5)
    assert errors.shares[0, 0] == pytest.approx(1 / 3)
    assert errors.shares[0, 2] == pytest.approx(2 / 3)
    edge = math.acos(1 - 1e-4)  # the loss stops where its gradient would not be finite
    assert float(angular_loss(predicted, truth, valid)) == pytest.approx(
        (math.pi / 2 + math.pi / 8 + edge) / 3, rel=1e-5
    )


def test_nothing_valid() -> None:
    predicted = torch.ones(2, 3, 4, 5, requires_grad=True)
    nothing = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    loss = angular_loss(predicted, torch.ones(2, 3, 4, 5), nothing)
    loss.backward()
    assert float(loss.detach()) == 0
    errors = normal_errors(predicted.detach(), torch.ones(2, 3, 4, 5), nothing)
    assert errors.rmse.tolist() == [0, 0] and errors.shares.sum() == 0


def test_a_mirrored_sample_has_mirrored_normals() -> None:
    """Whole pictures without other changes: each sample is the first one or its mirror image, where x is negative."""
    # No crop has more than all of the area, so the ten tries fail: then all of the picture is taken.
    task = NormalsTask(config(scale=(1.2, 1.2), jitter=(0.0, 0.0, 0.0)))
    samples = [task.train_sample(0, torch.Generator().manual_seed(seed)) for seed in range(12)]
    mirrored = {key: value.flip(-1) for key, value in samples[0].items()}
    mirrored["normal"] = mirrored["normal"] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    kinds = []
    for sample in samples:
        same, other = (
            all(torch.allclose(sample[key], wanted[key], atol=1e-5) for key in sample)
            for wanted in (samples[0], mirrored)
        )
        assert same != other
        kinds.append(same)
    assert set(kinds) == {True, False}
    red, green, _ = samples[0]["picture"]
    yellow = (red > 0.85) & (green > 0.8)  # things that face one side
    assert float(samples[0]["normal"][0][yellow].mean().abs()) > 0.6


def test_the_middle_of_a_validation_picture() -> None:
    """48 x 64 to 40 x 53, then 32 x 32 from row 4 and column 10."""
    task = NormalsTask(config())
    sample = task.val_sample(0)
    assert {key: tuple(value.shape) for key, value in sample.items()} == {
        "picture": (3, 32, 32), "depth": (1, 32, 32), "normal": (3, 32, 32),
    }  # fmt: skip
    whole = torch.nn.functional.interpolate(task._val[0].depth[None], (40, 53), mode="bilinear")
    assert torch.equal(sample["depth"], whole[0, :, 4:36, 10:42])
    small = torch.nn.functional.interpolate(
        task._val[0].picture[None].float() / 255, (40, 53), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(sample["picture"], small[0, :, 4:36, 10:42])
    assert task.facts()["pictures"] == {"train": 3, "val": 2}


@pytest.mark.parametrize(("drop_last", "counted"), [(True, 4), (False, 5)])
def test_the_last_pictures_may_be_left_out(drop_last: bool, counted: int) -> None:
    root = in_memory("nyu_five", nyu_files(train=5, val=5))
    assert NormalsTask(config(root=root, drop_last=drop_last)).val == counted


@pytest.fixture(scope="module")
def learned() -> tuple[dict[str, float], dict[str, float]]:
    """First row after one epoch with next to no learning, and after some."""
    with torch.no_grad():  # as the evaluate stage calls it
        rows = [
            NYUNormals(config(lr=lr, epochs=epochs, select="last")).measure(colour_system(), Textures()).rows[0]
            for lr, epochs in ((1e-9, 1), (0.02, 15))
        ]
    return rows[0], rows[1]  # type: ignore[return-value]


def test_a_probe_learns(learned: tuple[dict[str, float], dict[str, float]]) -> None:
    """The normal of a thing is in its colour, the pixel features have the colour."""
    before, after = learned
    assert before["RMSE"] > 70
    assert after["RMSE"] < 40
    assert after["delta1"] > before["delta1"] + 30
    assert after["delta1"] <= after["delta2"] <= after["delta3"]


def test_the_table_and_what_it_says() -> None:
    result = NYUNormals(config(epochs=2)).measure(Miniature(), Textures())
    rows = {row["features"]: row for row in result.rows}
    assert rows["DINO2-S14 + LILA (paper)"]["RMSE"] == 28.53
    assert rows["DINO2-S14 + LILA (paper)"]["delta1"] == 31.14
    assert next(iter(rows)) == "this system"
    assert "3 pictures to train on and 2 to validate on instead of 795 and 654" in result.notes[0]
    assert result.notes[1].startswith("not the paper's protocol: ")
    assert "epochs = 2 instead of 30" in result.notes[1] and "root" not in result.notes[1]
    assert "best one on the very pictures" in result.notes[-1]
    assert result.score == pytest.approx(-result.rows[0]["RMSE"], abs=1e-4)
    assert result.protocol["val_resize"] == 40 and result.protocol["drop_last"] is True
    assert "root" not in result.protocol and "workers" not in result.protocol


class UpAndDown(NYUNormals):
    """The same training with a quality that is written down, epoch by epoch."""

    def task(self, system: System, data: Dataset) -> Task:
        """The usual one, with other scores."""
        qualities = iter([1.0, 3.0, 3.0, 2.0])

        class Written(NormalScores):
            def result(self) -> Score:
                columns, quality = super().result().columns, next(qualities)
                return Score({**columns, "quality": quality}, quality)

        task = super().task(system, data)
        task.scores = Written  # type: ignore[method-assign]
        return task


def test_the_best_epoch_is_reported() -> None:
    """Of equals the later one; and an epoch of a longer training is that of a shorter one."""

    def measured(cls: type[NYUNormals], **changes: object) -> Result:
        return cls(config(lr=0.05, **changes)).measure(colour_system(), Textures())

    best, last = (measured(UpAndDown, epochs=4, select=select) for select in ("best", "last"))
    assert (best.rows[0]["quality"], best.score, last.score) == (3, 3, 2)
    assert best.notes[-1].startswith("our row is epoch 3 of 4, the best one on the very pictures")
    assert last.notes[-1] == "our row is epoch 4 of 4"
    assert best.rows[0]["RMSE"] == measured(NYUNormals, epochs=3, select="last").rows[0]["RMSE"]


def test_threads_change_nothing() -> None:
    one, three = (NYUNormals(config(workers=n)).measure(Miniature(), Textures()) for n in (1, 3))
    assert one == three


def test_a_size_that_the_backbone_does_not_take() -> None:
    metric = NYUNormals(config(train_size=36))
    with pytest.raises(RecipeError, match="multiples of 8 x 8 pixels; 36 x 36 is none, 32 x 32 is"):
        metric.prepare(Miniature(), Textures())


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"no \[heads.pixels\]"):
        NYUNormals(config(head="pixels")).prepare(Miniature(), Textures())
    with pytest.raises(RecipeError, match="reads 2 taps"):
        NYUNormals(config(tap=-3)).prepare(Miniature(), Textures())


def test_the_papers_protocol_is_the_default() -> None:
    """LILA, google-research/lila eval_norml.py."""
    c = NYUNormals.Config(root=Location(nyu_miniature()))
    assert (c.lr, c.weight_decay, c.batch_size, c.epochs, c.repeats, c.kernel, c.tap) == (3e-4, 0.01, 16, 30, 10, 5, -2)
    probe = NormalsTask(config()).probe(16, 32)
    assert isinstance(probe, LinearCat)
    assert (probe.probe_dec.kernel_size, probe.probe_enc.kernel_size) == ((5, 5), (1, 1))
    assert (c.train_size, c.scale, c.jitter, c.val_resize, c.val_size) == (448, (0.5, 1.0), (0.3, 0.3, 0.2), 554, 504)
    assert (c.val_batch_size, c.drop_last, c.select, c.features) == (8, True, "best", "both")
