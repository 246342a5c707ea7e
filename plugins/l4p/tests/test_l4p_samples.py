"""Samples: what a data set knows arrives at the right pixels, frames and tracks, and what it does not know says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fourd_l4p.example import PIXELS, AnnotatedSquares, GeneratedSquares, small_system
from fourd_l4p.objective import L4P, Names
from fourd_l4p.samples import chosen, photometric
from torch import Tensor
from torch.utils.data import default_collate

from fourd_core.data import Predictions, Tracks
from fourd_core.errors import MediaError, RecipeError
from fourd_core.geometry import project, track_points
from fourd_core.interfaces import Split, Video
from fourd_core.media.views import ViewConfig
from fourd_core.testing import check_component
from fourd_core.testing.miniature import Textures


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(**keys: Any) -> L4P:
    return L4P(L4P.Config(**{"points": 12, "frames": 8, **keys}), small_system())


def sample(
    data: AnnotatedSquares | None = None, seed: int = 0, split: Split = "train", **keys: Any
) -> dict[str, Tensor]:
    return objective(**keys).sample(data or AnnotatedSquares(), split, generator(seed))


def test_contract() -> None:
    check_component("objectives", L4P)


def at_flow(frames: Tensor, flow: Tensor) -> Tensor:
    """Of each frame but the first, what the one before shows where its flow leads (outside: NaN)."""
    h, w = flow.shape[2:]
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    to = torch.stack([x, y]) + flow
    grid = torch.stack([to[:, 0] * 2 / w - 1, to[:, 1] * 2 / h - 1], -1)
    found = F.grid_sample(frames[:-1], grid[1:], align_corners=False, padding_mode="border")
    return found.masked_fill((grid[1:].abs() > 0.97).any(-1)[:, None], torch.nan)


@pytest.mark.parametrize(
    "keys",
    [{}, {"crop": 16}, {"strides": (-1,)}, {"crop": 24, "strides": (-1, 1)}],
    ids=["plain", "crop", "back", "both"],
)
def test_truth_lies_on_the_frames(keys: dict[str, Any]) -> None:
    """By three ways: frames warped by the flow, tracks that show one place of the world, depth under the tracks."""
    for seed in range(3):
        drawn = sample(seed=seed, **keys)
        frames, flow = drawn["frames"], drawn["flow"]
        assert flow[0].isnan().all()
        errors = (at_flow(frames, flow) - frames[1:]).abs()
        still = (frames[:-1] - frames[1:]).abs()
        assert float(errors.nanmedian()) < 0.2 * float(still.median())
        world = track_points(
            drawn["track_xy"][None],
            drawn["track_depth"][None],
            drawn["intrinsics"][None],
            drawn["world_from_cam"][None],
        )[0]
        steps = world.diff(dim=0)  # of the square's points all alike, of the plane's none
        assert float((steps - steps[:1]).abs().max()) < 1e-4
        moving = steps[0].norm(dim=-1) > 1e-4
        t, n = drawn["track_visible"].nonzero().unbind(1)
        x, y = drawn["track_xy"][t, n].long().unbind(-1)
        agree = drawn["depth"][t, 0, y, x] == drawn["track_depth"][t, n]
        assert agree.float().mean() > 0.9  # the nearest pixel's centre may lie over the square's edge
        assert (drawn["motion"][t, 0, y, x] == moving[n].float())[agree].all()
        again = project(world - drawn["world_from_cam"][:, None, :3, 3], drawn["intrinsics"][:, None])
        torch.testing.assert_close(again, drawn["track_xy"], atol=1e-3, rtol=0)


def test_crops_are_windows_of_the_view_anywhere() -> None:
    whole, corners = AnnotatedSquares().videos("train"), set()
    for seed in range(12):
        drawn = sample(seed=seed, crop=8, strides=(1,))
        video, start, _ = drawn["drawn"].tolist()
        picture = whole[video].read([start])[0].float() / 255
        windows = picture.unfold(1, 8, 1).unfold(2, 8, 1)  # c y x 8 8
        error = (windows - drawn["frames"][0, :, None, None]).abs().amax((0, 3, 4))
        row, column = divmod(int(error.argmin()), error.shape[1])
        assert float(error[row, column]) == 0
        assert drawn["intrinsics"][0, :2, 2].tolist() == [PIXELS / 2 - column, PIXELS / 2 - row]
        corners.add((row, column))
        inside = ((drawn["track_xy"] >= 0) & (drawn["track_xy"] < 8)).all(-1)
        assert not drawn["track_visible"][~inside].any()
    assert len({row for row, _ in corners}) > 4
    assert len({column for _, column in corners}) > 4


def test_strides_go_through_the_video() -> None:
    for stride, seed in ((2, 0), (-3, 1), (1, 2)):
        drawn = sample(seed=seed, strides=(stride,))
        video, start, told = drawn["drawn"].tolist()
        numbers = [start + stride * i for i in range(8)]
        assert told == stride
        assert 0 <= min(numbers) <= max(numbers) < 24
        wanted = AnnotatedSquares().videos("train")[video].read(numbers)
        assert torch.equal(drawn["frames"], wanted / 255)
        assert bool(drawn["flow"][1:].isfinite().all()) == (abs(stride) == 1)
    assert {int(sample(seed=seed, strides=(1, -1))["drawn"][2]) for seed in range(8)} == {1, -1}


def test_a_short_video_goes_back_and_forth() -> None:
    drawn = sample(frames=40, heads=Names(track="track"))
    assert torch.equal(drawn["frames"][24:], drawn["frames"][7:23].flip(0))
    assert torch.equal(drawn["track_xy"][24:], drawn["track_xy"][7:23].flip(0))


def test_equal_generators_equal_samples() -> None:
    learn, data = objective(crop=16, strides=(1, -1)), AnnotatedSquares()
    for split in ("train", "held_out"):
        one, two, other = (learn.sample(data, split, generator(seed)) for seed in (3, 3, 4))
        assert all(torch.equal(one[name].nan_to_num(7.0), two[name].nan_to_num(7.0)) for name in one)
        assert not torch.equal(one["frames"], other["frames"])


class Knows(AnnotatedSquares):
    """Squares of which only some is known."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def videos(self, split: Split) -> Sequence[Video]:
        videos = super().videos(split)
        for video in videos:
            whole, names = video.truth, self.names  # type: ignore[attr-defined]

            def truth(indices: Sequence[int], whole: Any = whole, names: Any = names) -> Predictions:
                return Predictions({name: part for name, part in whole(indices).items() if name in names})

            video.truth = truth  # type: ignore[attr-defined]
        return videos


def test_samples_of_a_mixture_stack_and_teach_what_each_knows() -> None:
    learn, system = objective(), small_system().train()
    samples = [sample(Knows(*names)) for names in (("depth", "cameras"), ("flow",), ("tracks",), ())]
    batch = default_collate(samples)
    found = learn(system, batch, generator())
    assert all(value.isfinite() for value in found.values())
    for name, only in (("depth", 0), ("cameras", 0), ("flow", 1), ("track", 2), ("track_depth", 2), ("visibility", 2)):
        alone = learn(system, default_collate([samples[only]]), generator())
        torch.testing.assert_close(found[name], alone[name], rtol=1e-4, atol=1e-6)
    nothing = learn(system, default_collate([samples[3], samples[3]]), generator())
    nothing["loss"].backward()
    assert float(nothing["loss"].detach()) == 0
    gradients = [p.grad for p in system.parameters() if p.grad is not None]
    assert gradients
    assert not any(bool(g.any()) or bool(g.isnan().any()) for g in gradients)


def tracks(visible: Tensor) -> Tracks:
    """Point n in frame t at (n, t); depth 1 + n."""
    b, t, n = visible.shape
    y, x = torch.meshgrid(torch.arange(t).float(), torch.arange(n).float(), indexing="ij")
    xy = torch.stack([x, y], -1).expand(b, t, n, 2)
    return Tracks(xy, visible.float(), torch.ones_like(visible, dtype=torch.bool), 1 + xy[..., 0])


def test_which_tracks_are_taken() -> None:
    visible = torch.zeros(4, 8, 6, dtype=torch.bool)
    visible[0, 1:6, [0, 3]] = True  # two good ones
    visible[0, 2, 1] = True  # too short: a quarter of the clip is two frames
    visible[1, 2, 1] = True  # the only ones, both short
    visible[1, 5, 4] = True
    visible[2, 4:, 2] = True  # good, but never in the first frames
    visible[2, 0, 5] = True
    draw, choice = torch.rand(4, 5, generator=generator()), torch.rand(4, 6, generator=generator(1))
    got = chosen(tracks(visible), choice, draw, None)
    taken = [set(got["track_depth"][b, 0].sub(1).tolist()) for b in range(3)]
    assert taken == [{0.0, 3.0}, {1.0, 4.0}, {2.0}]
    assert got["track_live"][:3].all()
    assert not got["track_live"][3].any()
    assert got["track_depth"][3].isnan().all()
    assert got["query_xy"][3].isfinite().all()
    first = chosen(tracks(visible), choice, draw, 4)
    assert first["track_depth"][2, 0].tolist() == [6.0] * 5
    assert first["query_frame"][2].tolist() == [0] * 5


def test_queries_are_uniform_where_the_track_is_seen() -> None:
    visible = torch.zeros(1, 8, 1, dtype=torch.bool)
    visible[0, [1, 2, 5, 7]] = True
    draw = (torch.arange(400)[None] + 0.5) / 400
    got = chosen(tracks(visible), torch.zeros(1, 1), draw, None)
    assert got["query_frame"][0].bincount().tolist() == [0, 100, 100, 0, 0, 100, 0, 100]
    assert torch.equal(got["query_xy"][0, :, 1].long(), got["query_frame"][0])
    early = chosen(tracks(visible), torch.zeros(1, 1), draw, 5)
    assert early["query_frame"][0].bincount().tolist() == [0, 200, 200]


def test_generated_clips() -> None:
    """A batch names its first clip; `complete` makes that and those after it, each the same in any batch."""
    learn, data = objective(crop=16, query_frames=3), GeneratedSquares()
    samples = [learn.sample(data, "train", generator(seed)) for seed in (0, 1, 0)]
    assert [sorted(s) for s in samples] == [["number", "tracks"]] * 3
    first = int(samples[0]["number"]) // 3 * 3
    batch = learn.complete(data, default_collate(samples))
    assert batch["number"].tolist() == [first, first + 1, first + 2]
    second = {"number": torch.tensor(first + 1), "tracks": samples[1]["tracks"]}
    alone = learn.complete(data, default_collate([second]))
    clip, truth = data.generate("train", batch["number"], 8, 16, 12, torch.device("cpu"))
    assert torch.equal(batch["frames"], clip.frames)
    assert torch.equal(batch["depth"], truth.depth)
    for name, values in batch.items():
        torch.testing.assert_close(values[1:2], alone[name], equal_nan=True)
    assert not torch.equal(batch["frames"][0], batch["frames"][1])
    assert int(batch["query_frame"].max()) < 3
    picked = torch.take_along_dim(batch["track_visible"], batch["query_frame"][:, None], 1)
    assert (picked == 1)[batch["track_live"][:, :1]].all()
    assert learn.complete(data, batch) is batch
    assert learn.describe(data, batch) == f"generated clips {first} and the 2 after it"


class Short(GeneratedSquares):
    """Squares of few frames."""

    def generate(self, split: Split, numbers: Tensor, frames: int, *more: Any) -> Any:
        """Refuses longer clips."""
        raise ValueError(f"clips of {frames} frames do not fit into videos of 4: set data.frames")


def test_clips_that_the_data_cannot_make() -> None:
    learn = objective()
    drawn = default_collate([learn.sample(Short(), "train", generator())])
    with pytest.raises(
        RecipeError, match=r"do not fit: clips of 8 frames do not fit into videos of 4: set data\.frames"
    ):
        learn.complete(Short(), drawn)


def test_only_what_is_learned_is_sampled() -> None:
    system = small_system()
    del system.heads["track"], system.heads["motion"], system.heads["cameras"], system.heads["depth"]
    drawn = L4P(L4P.Config(frames=8), system).sample(AnnotatedSquares(), "train", generator())
    assert sorted(drawn) == ["drawn", "flow", "frames"]


def test_describe() -> None:
    learn, data = objective(strides=(-1,)), AnnotatedSquares()
    drawn = learn.sample(data, "train", generator())
    video, start, _ = drawn["drawn"].tolist()
    assert learn.describe(data, default_collate([drawn])) == f"square {video} from frame {start} on in steps of -1"


class Shown(AnnotatedSquares):
    """Squares in another view."""

    def __init__(self, view: ViewConfig) -> None:
        super().__init__()
        self.view = view


def test_refusals() -> None:
    with pytest.raises(MediaError, match="learns from videos with ground truth"):
        sample(Textures())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"crop of 24 pixels does not fit into square \d, which the network sees at"):
        sample(Shown(ViewConfig(view="resize", pixels=16)), crop=24)
    with pytest.raises(RecipeError, match='view = "short_side" may make inputs of several sizes'):
        sample(Shown(ViewConfig(pixels=32)))
    with pytest.raises(ValueError, match="crop = 20 is not divisible by the backbone's 8 x 8"):
        objective(crop=20)
    with pytest.raises(ValueError, match="not \\[1, 0\\]"):
        objective(strides=(1, 0))


def test_light_changes_a_clip_as_a_whole() -> None:
    frames = torch.rand(2, 3, 3, 4, 4, generator=generator()) * 0.2 + 0.4
    changed = photometric(frames, 0.3, generator(1))
    again = photometric(frames, 0.3, generator(1))
    assert torch.equal(changed, again)
    for b in range(2):
        for c in range(3):  # one line for each clip and colour, through all frames
            x, y = frames[b, :, c].flatten().double(), changed[b, :, c].flatten().double()
            slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
            assert float((y - y.mean() - slope * (x - x.mean())).abs().max()) < 1e-6
            assert 0.7**2 <= slope <= 1.3**2
    assert not torch.allclose(changed[0] - frames[0], changed[1] - frames[1], atol=1e-3)
    assert torch.equal(photometric(frames, 0.0, generator()), frames.clamp(0, 1)) or torch.allclose(
        photometric(frames, 0.0, generator()), frames, atol=1e-6
    )
