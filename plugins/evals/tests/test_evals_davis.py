"""The DAVIS-2017 metrics on a generated miniature: what is trained, propagated, scored and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fourd_evals.davis import DAVIS
from fourd_evals.davis_knn import DAVISkNN
from fourd_evals.davis_metrics import SequenceScores, score_sequence, summarise
from fourd_evals.davis_miniature import davis_miniature
from fourd_evals.davis_probe import QUICK, DAVISProbe, DAVISQuickProbe
from fourd_evals.davis_protocol import DAVISMetric, patch_resample, table_row
from fourd_evals.features import FeatureExtractor
from fourd_evals.probes import LinearCat
from torch import Tensor, nn

from fourd_core.data import Clip, Maps, Tokens
from fourd_core.errors import MediaError, RecipeError
from fourd_core.interfaces import Backbone, BackboneSpec, Head, Result
from fourd_core.randomness import seeded
from fourd_core.system import System
from fourd_core.testing.miniature import Miniature, Patches, Textures

DATA = Textures()
METRICS: list[type[DAVISMetric]] = [DAVISkNN, DAVISProbe, DAVISQuickProbe]


class Colour(Head):
    """Each pixel's own colour: all that a miniature's objects differ in."""

    @attrs.frozen
    class Config:
        """No keys."""

    channels = 3

    def __init__(self, backbone: BackboneSpec, scale: float = 4.0) -> None:
        super().__init__()
        self.taps = (backbone.tap(0), backbone.tap(-1))
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        return Maps((clip.frames - 0.4) * self.scale)


def colours() -> System:
    return Miniature({"features": Colour(Patches.spec)})


def measured(metric: type[DAVISMetric], system: System | None = None, **changes: Any) -> Result:
    made = metric(attrs.evolve(metric.example(), **changes))
    made.prepare(system or colours(), DATA)
    return made.measure(system or colours(), DATA)


def scored(masks: dict[str, list[Tensor]], objects: Any = "first_frame") -> float:
    """J&F in percent of masks of the miniature's sequences, at their own size."""
    scores: list[SequenceScores] = []
    for sequence in DAVIS.open(davis_miniature()).sequences:
        truth = [mask for number in range(len(sequence)) if (mask := sequence.mask(number)) is not None]
        scores.append(score_sequence(truth, masks[sequence.name], objects))
    return 100 * summarise(scores).jf


@pytest.mark.parametrize("protocol", ["lila", "dino"])
def test_knn_follows_objects_by_their_colour(protocol: str) -> None:
    result = measured(DAVISkNN, protocol=protocol, resolution=40, side=20, radius=6, context=7)
    assert result.score is not None
    assert result.score > 90
    assert result.rows[0]["J&F"] == pytest.approx(result.score, abs=1e-4)
    assert measured(DAVISkNN, protocol=protocol, features="encoder").score != result.score


def test_linear_probe_is_lilas_training_step_by_step() -> None:
    """AdamW on the whole first frame, bilinear answers at the size of the masks, argmax."""
    davis, system = DAVIS.open(davis_miniature()), colours()
    extractor = FeatureExtractor(system)
    masks = {}
    for sequence in davis.sequences:
        frames = torch.stack([sequence.frame(number) for number in range(5)]).float() / 255
        looks = [extractor(F.interpolate(frame[None], (32, 48), mode="bilinear")) for frame in frames]
        with seeded(7, "davis probe", sequence.name):
            probe = LinearCat(3, 32, 3)
        optimiser = torch.optim.AdamW(probe.parameters(), lr=0.05, weight_decay=0.3)
        truth = sequence.mask(0)
        assert truth is not None
        for _ in range(15):
            optimiser.zero_grad()
            F.cross_entropy(probe(looks[0], (40, 56)), truth.long()[None]).backward()
            optimiser.step()
        masks[sequence.name] = [probe(look, (40, 56))[0].argmax(0).to(torch.uint8) for look in looks]
    with torch.no_grad():  # as the job calls it
        result = measured(DAVISProbe, iterations=15, lr=0.05, weight_decay=0.3, seed=7)
    assert result.score == pytest.approx(scored(masks), abs=1e-6)
    assert measured(DAVISProbe, iterations=15, lr=0.05, weight_decay=0.3, seed=8).score != result.score


def test_quick_probe_sees_the_middle_only_and_the_pixel_features_only() -> None:
    size, crop = (64, 96), 48
    root = davis_miniature("memory://davis-larger", QUICK, 4, size)
    spoiled = colours()
    for parameter in spoiled.backbone.parameters():
        parameter.data.fill_(torch.nan)
    result = measured(DAVISQuickProbe, spoiled, root=root, sequences=QUICK, crop=crop, iterations=150, lr=0.05)
    assert result.score is not None
    assert result.score > 90
    assert result.protocol["frames seen at (rows x columns)"] == {"64 x 96": "48 x 48"}
    metric = DAVISQuickProbe(attrs.evolve(DAVISQuickProbe.example(), crop=crop))
    sequence = DAVIS.open(root).sequences[0]
    assert torch.equal(metric.seen(sequence.frame(1)), sequence.frame(1)[:, 8:56, 24:72])
    look = metric.look(FeatureExtractor(colours()), sequence, 1)
    assert torch.equal(look.pixels[0], (sequence.frame(1)[:, 8:56, 24:72].float() / 255 - 0.4) * 4)


def test_quick_probe_leaves_out_crops_without_an_object() -> None:
    names, size = ("dog", "india", "shooting"), (96, 128)
    root = davis_miniature("memory://davis-aside", names, 4, size)  # dog's disks stand to the left and to the right
    changes: dict[str, Any] = {"root": root, "sequences": names, "iterations": 2, "lr": 0.05}
    result = measured(DAVISQuickProbe, **changes, crop=16)
    assert list(result.protocol["data"]["sequences"]) == ["india", "shooting"]
    assert result.notes[0] == "left out, since their first frame shows no object in the middle: dog"
    assert "missing" not in result.notes[1]
    assert not any("left out" in note for note in measured(DAVISQuickProbe, **changes, crop=96).notes)
    with pytest.raises(MediaError, match="no sequence shows an object in the middle"):
        measured(DAVISQuickProbe, **changes | {"sequences": ("dog",)}, crop=16)


def test_what_names_its_root_is_available_and_a_wrong_root_an_error(tmp_path: Path) -> None:
    system = colours()
    root = davis_miniature(str(tmp_path / "DAVIS"), QUICK[:5])
    for metric in (DAVISkNN, DAVISProbe, DAVISQuickProbe):
        assert not metric(metric.Config()).available(system, DATA)
        assert metric(metric.Config(root="memory://elsewhere")).available(system, DATA)
    quick = DAVISQuickProbe(DAVISQuickProbe.Config(root=root))
    assert quick.available(system, DATA)
    with pytest.raises(MediaError, match=QUICK[5]):  # training does not validate by something else instead
        quick.prepare(system, DATA)


def test_the_papers_protocol_is_the_default() -> None:
    probe, quick, nearest = DAVISProbe.Config(), DAVISQuickProbe.Config(), DAVISkNN.Config()
    assert (probe.lr, probe.weight_decay, probe.iterations, probe.features) == (5e-4, 1e-4, 2000, "both")
    assert (quick.lr, quick.weight_decay, quick.iterations, quick.features) == (3e-4, 1e-4, 2000, "pixels")
    assert (DAVISProbe.optimiser, DAVISQuickProbe.optimiser) == (torch.optim.AdamW, torch.optim.Adam)
    assert DAVISQuickProbe(quick).settings()["optimiser"] == "Adam"
    assert (nearest.radius, nearest.neighbours, nearest.context, nearest.temperature) == (12, 5, 7, 0.1)
    settings = DAVISkNN(nearest).settings()
    assert (settings["protocol"], settings["side"], settings["resolution"], settings["features"]) == (
        "lila", 60, 476, "pixels",
    )  # fmt: skip
    assert DAVISkNN(DAVISkNN.Config(protocol="dino")).resolution == 480


@pytest.mark.parametrize(
    ("size", "step", "seen"),
    [
        ((480, 854), 14, (476, 840)),
        ((854, 480), 14, (840, 476)),
        ((480, 910), 14, (476, 896)),  # 902.4: 902 of 64.43 patches
        ((480, 854), 16, (480, 848)),
        ((480, 855), 1, (476, 847)),  # 847.9, cut off
        ((480, 480), 32, (480, 480)),
        ((100, 2000), 14, (476, 9520)),
    ],
)
def test_frames_are_resized_to_the_nearest_patches(size: tuple[int, int], step: int, seen: tuple[int, int]) -> None:
    assert patch_resample(size, 476, (step, step)) == seen


class Steps(Patches):
    """Patches of another size, and perhaps several frames at once."""

    def __init__(self, frames: int, step: int) -> None:
        super().__init__()
        self.spec = attrs.evolve(Patches.spec, multiple=(frames, step, step))


def stepped(frames: int, step: int) -> System:
    backbone: Backbone = Steps(frames, step)
    return System(backbone, {"features": Colour(backbone.spec)})


def test_dino_cuts_the_longer_side_off_to_64_pixels() -> None:
    metric = DAVISkNN(DAVISkNN.Config(protocol="dino"))
    assert metric.picture_size((480, 870), stepped(1, 16)) == (480, 832)
    assert metric.picture_size((1080, 607), stepped(1, 8)) == (832, 480)
    assert metric.picture_size((480, 854), stepped(1, 14)) == (476, 854)


def test_the_table_and_what_stands_beside_it() -> None:
    result = measured(DAVISProbe, each_sequence=True, table="5")
    names = [row["features"] for row in result.rows]
    assert names[:3] == ["this system", "this system: dog", "this system: india"]
    assert names[3:5] == ["(A) ERM distillation (paper, table 5)", "(B) no PAMR (paper, table 5)"]
    assert list(result.rows[0]) == [
        "features", "J&F", "J", "J recall", "J decay", "F", "F recall", "F decay",
    ]  # fmt: skip
    assert result.rows[3]["J&F"] == 63.2
    ours, parts = result.rows[0], result.rows[1:3]
    assert ours["J"] == pytest.approx(sum(float(row["J"]) for row in parts) / 2, abs=1e-4)
    assert result.notes[0].startswith("this is not the published validation set of DAVIS-2017")
    assert result.notes[1] == (
        "not the paper's protocol: resolution = 32 instead of 476, iterations = 3 instead of 2000, "
        "lr = 0.05 instead of 0.0005"
    )
    assert result.protocol["data"]["sequences"] == {"dog": 5, "india": 5}
    assert "root" not in result.protocol
    rows = {row["features"]: row["J&F"] for row in measured(DAVISkNN).rows}
    assert (rows["DINO2-S14 (paper)"], rows["DINO2-S14 + LILA (paper)"]) == (65.1, 73.9)


def test_frames_without_annotation_are_predicted_but_not_scored(tmp_path: Path) -> None:
    root = davis_miniature(str(tmp_path), ("dog",), frames=8)
    whole = measured(DAVISkNN, root=root)
    for number in (2, 5):
        (tmp_path / f"Annotations/480p/dog/{number:05}.png").unlink()
    thinned = measured(DAVISkNN, root=root)
    assert "2 of 8 frames have no annotation and are not scored" in thinned.notes
    assert thinned.score != whole.score
    for number in (1, 3, 4, 6):
        (tmp_path / f"Annotations/480p/dog/{number:05}.png").unlink()
    with pytest.raises(MediaError, match=r"the sequence dog: .* three annotated ones are needed"):
        measured(DAVISkNN, root=root)


def test_long_sequences_say_that_decay_is_not_meaningful() -> None:
    metric, davis = DAVISkNN(DAVISkNN.example()), DAVIS.open(davis_miniature())
    scores = {name: SequenceScores(np.ones((1, n)), np.ones((1, n))) for name, n in (("dog", 257), ("india", 300))}
    assert any("more than 256 frames are evaluated of dog, india" in note for note in metric.notes(davis, scores))
    assert not any("256" in note for note in metric.notes(davis, {"dog": SequenceScores(*2 * [np.ones((1, 256))])}))
    assert list(table_row("x", summarise(list(scores.values())))) == [
        "features",
        "J&F",
        "J",
        "J recall",
        "F",
        "F recall",
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_mistakes_are_found_before_anything_runs(metric: type[DAVISMetric]) -> None:
    example = metric.example()

    def prepare(system: System | None = None, **changes: Any) -> None:
        metric(attrs.evolve(example, **changes)).prepare(system or colours(), DATA)

    prepare()
    with pytest.raises(RecipeError, match="`root` is not set"):
        prepare(root=None)
    with pytest.raises(MediaError, match="does not exist"):
        prepare(root="memory://nowhere-at-all")
    with pytest.raises(RecipeError, match=r"no \[heads\.pixels\]"):
        prepare(head="pixels")
    with pytest.raises(RecipeError, match="tap = -3 does not exist"):
        prepare(tap=-3)
    with pytest.raises(RecipeError, match="the backbone takes 2 at once"):
        prepare(stepped(2, 8))


def test_crops_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match="crop = 36 is not divisible by the backbone's 8 x 8"):
        measured(DAVISQuickProbe, crop=36)
    with pytest.raises(RecipeError, match="crop = 48 does not fit into frames of 40 x 56"):
        measured(DAVISQuickProbe, crop=48)
