"""Draws that decode nothing, and cues that were computed before: the same training, whoever asked the teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import pytest
import torch
from fourd_lila.objective import LILA
from torch.utils.data import default_collate

from fourd_core.data import Clip, CueMaps
from fourd_core.errors import MediaError
from fourd_core.interfaces import CueProvider, KeptCues, Video
from fourd_core.system import System

Build = Callable[[dict[str, CueProvider]], System]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Asked(KeptCues):
    """The teachers' own answers about frames that are not mirrored, in the order of time."""

    def __init__(self, objective: LILA, system: System) -> None:
        self.objective, self.system = objective, system

    def read(self, cue: str, video: Video, frames: Sequence[int]) -> CueMaps:
        return self.system.cues[cue](Clip(self.objective.cue_frames(video, frames)[None] / 255))


@pytest.mark.parametrize("roles", ["reference", "paper", "random"])
@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_kept_cues_give_the_losses_of_teachers_that_are_asked(
    config: LILA.Config, build: Build, cues: dict[str, CueProvider], moving, roles: str, mirrored: float
) -> None:
    # The whole frame is the view's size here: nothing is resized, and the teachers commute with mirroring.
    system = build(cues)
    asking = LILA(attrs.evolve(config, roles=roles, view_size=48, flip=mirrored), system)
    keeping = LILA(asking.config, system)
    keeping.kept_cues = Asked(asking, system)
    samples = {
        "asking": [asking.sample(moving(), "train", seeded(i)) for i in range(4)],
        "keeping": [keeping.sample(moving(), "train", seeded(i)) for i in range(4)],
    }
    assert "frames" not in samples["keeping"][0] and "cue.flow.values" in samples["keeping"][0]
    losses = {
        name: objective(system, default_collate(samples[name]), seeded(9))
        for name, objective in (("asking", asking), ("keeping", keeping))
    }
    for name in ("loss", "l1", "edge"):
        torch.testing.assert_close(losses["keeping"][name], losses["asking"][name], rtol=1e-5, atol=1e-6)


def test_what_was_kept_of_the_agreement_decides_what_is_trusted(
    config: LILA.Config, build: Build, cues: dict[str, CueProvider], moving
) -> None:
    class Doubtful(Asked):
        def read(self, cue: str, video: Video, frames: Sequence[int]) -> CueMaps:
            maps = super().read(cue, video, frames)
            return attrs.evolve(maps, disagreement=torch.ones_like(maps.values[:, :, :1]))

    system = build({"flow": cues["flow"]})
    objective = LILA(config, system)
    objective.kept_cues = Doubtful(objective, system)
    batch = default_collate([objective.sample(moving(), "train", seeded(i)) for i in range(2)])
    pairs = objective.prepare(system, batch, seeded())
    assert not pairs.valid[:, :, pairs.groups["flow"]].any()


def test_a_draw_tells_the_frames_that_the_sample_takes(config: LILA.Config, build: Build, cues, moving) -> None:
    objective = LILA(attrs.evolve(config, max_gap=3), build(cues))
    for seed in range(30):
        drawn = objective.draw(moving(), "train", seeded(seed))
        sample = objective.sample(moving(), "train", seeded(seed))
        assert sample["pair"].tolist() == [drawn.video, *drawn.frames]
        assert 0 <= drawn.frames[0] < drawn.frames[1] <= 7


def test_the_reference_also_pairs_the_last_frame_with_itself(config: LILA.Config, build: Build, cues, moving) -> None:
    objective = LILA(attrs.evolve(config, last_with_itself=True), build(cues))
    drawn = {objective.draw(moving(), "train", seeded(i)).frames for i in range(200)}
    assert (7, 7) in drawn and {first for first, _ in drawn} == set(range(8))
    batch = default_collate([objective.sample(moving(), "train", seeded(i)) for i in range(20)])
    assert torch.isfinite(objective(build(cues), batch, seeded())["loss"])


def test_videos_to_be_skipped_are_never_drawn(config: LILA.Config, build: Build, cues, moving) -> None:
    class Three(moving):
        def videos(self, split: str) -> list[Video]:
            found = [moving() for _ in range(3)]
            for name, video in zip("abc", found, strict=True):
                video.key = name
            return found

    objective = LILA(config, build(cues))
    before = [objective.draw(Three(), "train", seeded(i)) for i in range(40)]
    objective.skip_videos = frozenset({"b"})
    after = [objective.draw(Three(), "train", seeded(i)) for i in range(40)]
    assert {d.video for d in before} == {0, 1, 2} and {d.video for d in after} == {0, 2}
    assert [d for d in before if d.video != 1] == [a for d, a in zip(before, after, strict=True) if d.video != 1]
    objective.skip_videos = frozenset("abc")
    with pytest.raises(MediaError, match='none of the 3 videos of the data\'s part "train" can be read'):
        objective.draw(Three(), "train", seeded())


def test_random_roles_make_either_frame_the_query(config: LILA.Config, build: Build, cues, moving) -> None:
    whole = attrs.evolve(config, roles="random", view_size=48, flip=0.0)
    objective = LILA(whole, build(cues))
    samples = [objective.sample(moving(), "train", seeded(i))["frames"][:, 0, 0, 0].tolist() for i in range(40)]
    assert {query < context for query, context in samples} == {True, False}


def test_a_batch_names_its_pairs(config: LILA.Config, build: Build, cues, moving) -> None:
    objective = LILA(config, build(cues))
    samples = [objective.sample(moving(), "train", seeded(i)) for i in range(2)]
    (_, i, j), (_, k, m) = (sample["pair"].tolist() for sample in samples)
    assert objective.describe(moving(), default_collate(samples)) == (
        f"moving frames {i} and {j}, moving frames {k} and {m}"
    )


def test_held_out_pairs_are_never_taken_from_what_was_kept(config: LILA.Config, build: Build, cues, moving) -> None:
    objective = LILA(config, build(cues))
    objective.kept_cues = Asked(objective, build(cues))
    assert "frames" in objective.sample(moving(), "held_out", seeded())
    assert "frames" not in objective.sample(moving(), "train", seeded())
