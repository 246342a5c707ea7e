"""Depth and flow from frozen features: errors by hand, what is fed, what is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from fourd_evals.cue_metrics import depth_errors, flow_errors
from fourd_evals.depth_probe import DepthProbe, DepthTask
from fourd_evals.features import FeatureExtractor
from fourd_evals.flow_pairs import CuePairs, SintelPairs
from fourd_evals.flow_probe import FlowProbe, FlowTask
from fourd_evals.miniatures import colour_system, in_memory, sintel_miniature
from fourd_evals.roots import Root
from fourd_evals.transforms import input_size
from torch.utils.data import default_collate

from fourd_core.data import Clip, CueMaps
from fourd_core.errors import MediaError, RecipeError
from fourd_core.interfaces import CueProvider, Video
from fourd_core.testing.miniature import Miniature, MovingTexture, Textures


def test_depth_errors_by_hand() -> None:
    """Twice as far, right, and exactly a quarter too far, which is no longer within a factor of 1.25."""
    errors = depth_errors(torch.tensor([4.0, 3.0, 5.0]), torch.tensor([2.0, 3.0, 4.0]), (1e-3, 10.0))
    assert errors.tolist() == pytest.approx(
        [(1 + 0 + 0.25) / 3, math.sqrt((4 + 0 + 1) / 3), 100 / 3, 200 / 3, 200 / 3], rel=1e-6
    )
    clipped = depth_errors(torch.tensor([50.0]), torch.tensor([5.0]), (1e-3, 10.0))
    assert float(clipped[1]) == 5


def test_depth_errors_after_alignment() -> None:
    truth = torch.tensor([1.0, 2.0, 5.0, 7.0])
    assert float(depth_errors(3 * truth - 1, truth, (1e-3, 10.0), align=True)[1]) < 1e-5
    assert float(depth_errors(3 * truth - 1, truth, (1e-3, 10.0))[1]) > 1
    flat = depth_errors(torch.full((4,), 2.0), truth, (1e-3, 10.0), align=True)
    assert float(flat[1]) == pytest.approx(float(truth.std(correction=0)), rel=1e-5)


def test_flow_errors_by_hand() -> None:
    """3-4-5 triangles; an error of exactly 1 pixel is not below 1 pixel."""
    truth = torch.zeros(2, 4)
    predicted = torch.tensor([[3.0, 1.0, 0.5, 0.0], [4.0, 0.0, 0.0, 2.0]])
    assert flow_errors(predicted, truth).tolist() == pytest.approx([(5 + 1 + 0.5 + 2) / 4, 25, 75, 75])


def test_sizes_that_a_backbone_takes() -> None:
    assert input_size((480, 640), 476, (1, 14, 14)) == (476, 630)
    assert input_size((436, 1024), 448, (1, 14, 14)) == (448, 1050)
    assert input_size((64, 48), 32, (1, 8, 8)) == (40, 32)


# ---- depth


def test_depth_loss() -> None:
    """Metres for l1; the scale-invariant loss of an answer that is off by one factor is half of its square."""
    task = DepthTask(DepthProbe.example(), (1, 8, 8))
    depth = torch.tensor([2.0, 4.0, 0.0, 20.0]).view(1, 1, 2, 2)  # the last two do not count
    answer = (2 * depth.clamp(min=1)).log()
    assert float(task.loss(answer, {"depth": depth})) == pytest.approx(3.0, rel=1e-6)
    other = DepthTask(attrs.evolve(DepthProbe.example(), loss="scale_invariant"), (1, 8, 8))
    assert float(other.loss(answer, {"depth": depth})) == pytest.approx(0.5 * math.log(2) ** 2, rel=1e-5)


def test_the_crop_of_the_measured_pixels() -> None:
    task = DepthTask(DepthProbe.example(), (1, 8, 8))
    measured = task.measured({"depth": torch.ones(1, 1, 480, 640)})[0, 0]
    rows, columns = measured.any(1).nonzero(), measured.any(0).nonzero()
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (45, 470, 41, 600)
    assert int(measured.sum()) == 426 * 560
    whole = DepthTask(attrs.evolve(DepthProbe.example(), crop=False), (1, 8, 8))
    assert bool(whole.measured({"depth": torch.ones(1, 1, 480, 640)}).all())


@pytest.mark.parametrize("loss", ["l1", "scale_invariant"])
def test_a_probe_learns_depth(loss: Any) -> None:
    config = attrs.evolve(DepthProbe.example(), lr=0.03, epochs=25, loss=loss, align="scale_shift", select="last")
    start = attrs.evolve(config, lr=1e-9, epochs=1)
    with torch.no_grad():
        before, after = (DepthProbe(c).measure(colour_system(), Textures()) for c in (start, config))
    assert after.rows[0]["AbsRel"] < 0.75 * before.rows[0]["AbsRel"]
    assert after.rows[0]["delta1"] > before.rows[0]["delta1"] + 10
    assert "instead of 795 and 654" in after.notes[0]
    assert after.protocol["unit"] == "m"


def test_filled_depth_is_other_depth() -> None:
    raw, filled = (
        DepthTask(attrs.evolve(DepthProbe.example(), depth=depth), (1, 8, 8)).val_sample(0)["depth"]
        for depth in ("raw", "filled")
    )
    assert float(raw[:, :4].max()) == 0 and float(filled[:, :4].min()) > 0
    assert torch.equal(raw[:, 4:], filled[:, 4:])


# ---- flow


def test_sintel_parts() -> None:
    root = Root(sintel_miniature())
    train, val = (SintelPairs(root, "final", part) for part in ("train", "val"))
    assert train.chosen == ["alley_1", "bamboo_1", "cave_2"] and val.chosen == ["market_2"]
    pair = val[0]
    assert pair["frames"].shape == (2, 3, 48, 64) and pair["flow"].shape == (2, 48, 64)
    assert bool(pair["flow"][:, :2].isnan().all()) and float(pair["flow"][0, 10, 10]) == 2
    assert float(pair["flow"][1, 10, 10]) == 4
    assert torch.equal(pair["frames"][0].roll((4, 2), (-2, -1)), pair["frames"][1])


def test_a_root_that_is_not_sintel() -> None:
    config = attrs.evolve(FlowProbe.example(), root=in_memory("not_sintel", {"notes.txt": b""}))
    with pytest.raises(MediaError, match=r"looked for training/final/alley_1/frame_0001.png .*; found notes.txt"):
        FlowProbe(config).prepare(Miniature(), Textures())


def test_a_probe_learns_flow() -> None:
    """Red pictures move by (2, 4) pixels, or (-2, 4) where they are mirrored, which no colour tells: (0, 4) is best."""
    config = attrs.evolve(FlowProbe.example(), lr=0.02, epochs=30, select="last", unit=2.0, features="pixels")
    result = FlowProbe(config).measure(colour_system(), Textures())
    ours, still = result.rows
    assert still["features"] == "no motion" and still["EPE"] == pytest.approx(math.hypot(2, 4), rel=1e-6)
    assert still["px1"] == still["px3"] == 0 and still["px5"] == 100
    assert ours["EPE"] < 3
    assert "4 sequences instead of 23" in result.notes[0]


def test_a_mirrored_pair_has_mirrored_flow() -> None:
    """Each sample is the first one or its mirror image, where x is negative."""
    task = FlowTask(FlowProbe.example(), Miniature(), Textures())
    samples = [task.train_sample(1, torch.Generator().manual_seed(seed)) for seed in range(8)]
    turned = {float(sample["flow"][0, 10, 10]) for sample in samples}
    assert turned == {2.0, -2.0}
    for sample in samples:
        assert bool(sample["flow"][:, :2].isnan().all()) and float(sample["flow"][1, 10, 10]) == 4
        alike = sample["flow"][0, 10, 10] == samples[0]["flow"][0, 10, 10]
        assert torch.equal(sample["frames"], samples[0]["frames"] if alike else samples[0]["frames"].flip(-1))


class Wander(CueProvider):
    """The flow of `MovingTexture`, known from how it is made, at any scale; not known on the left."""

    kind = "flow"

    def __call__(self, clip: Clip) -> CueMaps:
        """Forward (3, -2), backward (-3, 2) pixels of a frame of 96 rows."""
        b, _, _, h, w = clip.frames.shape
        flow = torch.tensor([[3.0, -2.0], [-3.0, 2.0]]).view(1, 2, 2, 1, 1).expand(b, 2, 2, h, w) * (h / 96)
        valid = torch.ones(b, 2, 1, h, w, dtype=torch.bool)
        valid[..., : w // 4] = False
        return CueMaps(flow, "flow", valid)


def test_flow_of_a_cue() -> None:
    """The middle square at half size: a flow of (1.5, -1) pixels, where it is known."""
    system = colour_system({"flow": Wander()})
    config = attrs.evolve(FlowProbe.example(), root=None, pixels=48, pairs=4, lr=0.02, epochs=10, unit=1.0)
    result = FlowProbe(config).measure(system, Textures())
    ours, still = result.rows
    assert still["EPE"] == pytest.approx(math.hypot(1.5, 1), rel=1e-4)
    assert ours["EPE"] < 0.5
    assert "a flow cue says" in result.notes[0]
    assert result.protocol["samples"] == {"train": 4, "val": 1}


def test_the_truth_of_a_cue_leads_to_the_next_frame() -> None:
    system = colour_system({"flow": Wander()})
    task = FlowTask(attrs.evolve(FlowProbe.example(), root=None, pixels=48, pairs=4), system, Textures())
    batch = task.on_device({key: value[None] for key, value in task.val_sample(0).items()})
    assert bool(batch["flow"][..., :12].isnan().all())
    assert batch["flow"][0, :, 20, 30].tolist() == [1.5, -1.0]


def test_both_frames_are_read() -> None:
    """The first frame's features, then the second one's."""
    system = colour_system()
    task, extractor = FlowTask(FlowProbe.example(), system, Textures()), FeatureExtractor(system)
    batch = default_collate([task.val_sample(0), task.train_sample(0, torch.Generator().manual_seed(0))])
    both = task.encode(extractor, batch)
    for n in (0, 1):
        alone = extractor(batch["frames"][:, n])
        assert torch.equal(both.pixels[:, 16 * n : 16 * (n + 1)], alone.pixels)
        assert torch.equal(both.encoder[:, 32 * n : 32 * (n + 1)], alone.encoder)


def test_no_more_videos_than_pairs_are_opened() -> None:
    opened: list[int] = []

    class Many(Sequence[Video]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, number: Any) -> Any:
            opened.append(number)
            return Textures().videos("train")[0]

    assert len(CuePairs(Many(), 4, 32)) == 4
    assert {0, 250, 500, 750} <= set(opened)
    assert len(opened) < 10  # the checker of types takes one or two of its own


def test_what_a_flow_probe_needs() -> None:
    config = attrs.evolve(FlowProbe.example(), root=None, cue="colours")
    with pytest.raises(RecipeError, match=r"\[cues.colours\] is not a flow"):
        FlowProbe(config).prepare(Miniature(), Textures())
    with pytest.raises(RecipeError, match=r"no \[cues.flow\]"):
        FlowProbe(attrs.evolve(config, cue="flow")).prepare(Miniature(), Textures())
    with pytest.raises(MediaError, match="no two successive frames"):
        CuePairs(single(), 4, 32)


def single() -> Sequence[MovingTexture]:
    return [MovingTexture(0, 1)]


def test_pairs_are_spread_over_the_videos() -> None:
    pairs = CuePairs([MovingTexture(0, 5), MovingTexture(5, 5)], 4, 32)
    assert pairs._pairs == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert len(CuePairs([MovingTexture(0, 3)], 10, 32)) == 2
    frames = pairs[3]["frames"]
    assert torch.equal(frames, MovingTexture(5, 5).read([2, 3])[..., 16:112])
