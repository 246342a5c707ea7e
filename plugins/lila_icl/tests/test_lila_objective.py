"""The LILA objective on a small moving picture: samples, losses against their definition, gradients, odd inputs."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from fourd_lila.distillation import pick_channels, random_channels
from fourd_lila.in_context import pooled, solve_readout
from fourd_lila.objective import LILA
from fourd_pamr import PAMR, Stage
from torch import Tensor
from torch.utils.data import default_collate

from fourd_core.data import Clip, CueMaps
from fourd_core.errors import MediaError, PluginError
from fourd_core.interfaces import CueProvider
from fourd_core.kernels.gradient_matching import gradient_matching, masked_l1
from fourd_core.kernels.linear_matching import apply_readout
from fourd_core.system import System

Build = Callable[[dict[str, CueProvider]], System]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(objective: LILA, data, size: int = 2) -> dict[str, Tensor]:
    return default_collate([objective.sample(data, "train", seeded(i)) for i in range(size)])


@pytest.fixture
def system(build: Build, cues: dict[str, CueProvider]) -> System:
    return build(cues)


def test_samples_hold_two_frames_and_their_views(config: LILA.Config, system: System, moving) -> None:
    sample = LILA(config, system).sample(moving(), "train", seeded())
    assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items()} == {
        "pair": ((3,), torch.int64),
        "frames": ((2, 3, 32, 32), torch.uint8),
        "views": ((2, 3, 32, 32), torch.uint8),
        "theta": ((2, 2, 3), torch.float32),
    }
    again = LILA(config, system).sample(moving(), "train", seeded())
    assert all(torch.equal(sample[name], again[name]) for name in sample)


@pytest.mark.parametrize(("roles", "sign"), [("reference", 1), ("paper", -1)])
def test_pairs_are_one_to_max_gap_frames_apart_in_the_order_of_their_roles(
    config: LILA.Config, system: System, moving, roles: str, sign: int
) -> None:
    whole = attrs.evolve(config, roles=roles, view_size=48, flip=0.0, max_gap=3)
    objective = LILA(whole, system)
    numbers = [objective.sample(moving(), "train", seeded(i))["frames"][:, 0, 0, 0].long() for i in range(60)]
    gaps = [int(sign * (context - query)) for query, context in numbers]
    assert set(gaps) == {1, 2, 3}
    assert {int(min(pair)) for pair in numbers} == set(range(7)) and max(int(max(pair)) for pair in numbers) == 7


def test_query_crops_vary_and_flip_while_context_crops_keep_their_size(
    config: LILA.Config, system: System, moving
) -> None:
    objective = LILA(config, system)
    theta = torch.stack([objective.sample(moving(), "train", seeded(i))["theta"] for i in range(60)])
    query, context = theta[:, 0, 0, 0], theta[:, 1, 0, 0]
    assert 15 < (query < 0).sum() < 45 and query.abs().std() > 0.05
    assert torch.equal(context, torch.full_like(context, 43 / 48))


@pytest.mark.parametrize("frames", [0, 1])
def test_a_video_without_pairs_is_named(config: LILA.Config, system: System, moving, frames: int) -> None:
    with pytest.raises(MediaError, match=f'moving: .*"train" of this video has {frames}'):
        LILA(config, system).sample(moving(frames), "train", seeded())


def test_no_video_is_reported(config: LILA.Config, system: System, moving) -> None:
    class Nothing(moving):
        def videos(self, split: str) -> list[object]:
            return []

    with pytest.raises(MediaError, match='no video in its part "held_out"'):
        LILA(config, system).sample(Nothing(), "held_out", seeded())


def test_losses_follow_their_definition(config: LILA.Config, system: System, moving) -> None:
    objective = LILA(attrs.evolve(config, edge_weight=0.7), system)
    batch = batch_of(objective, moving())
    losses = objective(system, batch, seeded(5))
    pairs = objective.prepare(system, batch, seeded(5))
    features = objective.features(system, pairs)

    l1, edges_x, edges_y = [], [], []
    for i in range(2):
        pooled = [
            torch.nn.functional.avg_pool2d(m[i, 1], 4).flatten(1).T for m in (features, pairs.cues, pairs.confidence)
        ]
        x = torch.cat([pooled[0], torch.ones(64, 1)], 1)
        c = pooled[2].prod(1)
        c = torch.where(c < 0.5, 0, c)
        gram = x.T @ torch.diag(c) @ x / 64 + 0.01 * torch.eye(9)
        readout = torch.linalg.solve(gram, x.T @ torch.diag(c) @ pooled[1] / 64)
        prediction = torch.einsum("dk,dhw->khw", readout[:-1], features[i, 0]) + readout[-1][:, None, None]
        target, valid = pairs.cues[i, 0], pairs.valid[i, 0]
        l1.append((prediction - target).abs()[valid])
        for axis, found in ((-1, edges_x), (-2, edges_y)):
            step, wanted = prediction.diff(dim=axis).abs(), target.diff(dim=axis).abs()
            both = valid.narrow(axis, 0, 31) & valid.narrow(axis, 1, 31)
            found.append(((1 - torch.exp(-wanted / 0.1)) * (step - wanted).abs())[both])
    expected_edge = torch.cat(edges_x).mean() + torch.cat(edges_y).mean()
    torch.testing.assert_close(losses["l1"], torch.cat(l1).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["edge"], expected_edge, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.7 * losses["edge"])


@pytest.mark.parametrize("form", ["absolute", "signed"])
@pytest.mark.parametrize("mode", ["in_context", "erm"])
def test_losses_and_gradients_are_those_of_the_whole_prediction(
    config: LILA.Config, system: System, moving, mode: str, form: str
) -> None:
    objective = LILA(attrs.evolve(config, mode=mode, edge_form=form, edge_weight=0.7), system)
    batch = batch_of(objective, moving())
    learning = [*objective.parameters(), *(p for p in system.heads.parameters() if p.requires_grad)]
    losses = objective(system, batch, seeded())
    given = torch.autograd.grad(losses["loss"], learning, allow_unused=True)

    pairs = objective.prepare(system, batch, seeded())
    features = objective.features(system, pairs)
    if mode == "erm":
        predictions = [apply_readout(view, objective.trained_readout(pairs)) for view in features.unbind(1)]
    else:
        predictions = [apply_readout(features[:, 0], objective.solved_readout(features[:, 1], pairs))]
    views = len(predictions)
    maps = torch.stack(predictions, 1).flatten(0, 1), *(m[:, :views].flatten(0, 1) for m in (pairs.cues, pairs.valid))
    l1, edge = masked_l1(*maps), gradient_matching(*maps, config.edge_sigma, form)
    expected = torch.autograd.grad(l1 + 0.7 * edge, learning, allow_unused=True)
    torch.testing.assert_close(losses["l1"], l1.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(losses["edge"], edge.detach(), rtol=1e-6, atol=0)
    assert [slope is None for slope in given] == [slope is None for slope in expected]
    mine, right = (torch.cat([s.flatten() for s in slopes if s is not None]) for slopes in (given, expected))
    assert (mine - right).norm() < 1e-6 * right.norm()


def test_gradients_reach_the_head_through_both_views_and_nothing_else(
    config: LILA.Config, system: System, moving
) -> None:
    objective = LILA(config, system)
    batch = batch_of(objective, moving())
    objective(system, batch, seeded())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in system.heads.parameters())
    assert all(p.grad is None for p in system.backbone.parameters())
    assert not list(objective.parameters())

    pairs = objective.prepare(system, batch, seeded())
    features = objective.features(system, pairs).detach().requires_grad_()
    readout = objective.solved_readout(features[:, 1], pairs)
    apply_readout(features[:, 0], readout).abs().mean().backward()
    assert features.grad[:, 0].abs().max() > 0 and features.grad[:, 1].abs().max() > 0


def test_features_that_hold_the_cue_explain_the_other_frame() -> None:
    generator = seeded()
    features = torch.randn(2, 2, 5, 16, 16, generator=generator)
    readout = torch.randn(2, 6, 3, generator=generator)
    cues = torch.stack([apply_readout(view, readout) for view in features.unbind(1)], 1)
    solved = solve_readout(features[:, 1], cues[:, 1], torch.ones(2, 0, 16, 16), pool=16, ridge=1e-6)
    torch.testing.assert_close(apply_readout(features[:, 0], solved), cues[:, 0], rtol=0, atol=1e-3)


def test_untrusted_places_do_not_take_part_in_the_solve() -> None:
    generator = seeded()
    features, cues = torch.randn(1, 3, 8, 8, generator=generator), torch.randn(1, 2, 8, 8, generator=generator)
    confidence = torch.ones(1, 2, 8, 8)
    confidence[:, :, 4:] = 0.7  # the product, 0.49, is below one half
    spoiled = cues.clone()
    spoiled[:, :, 4:] = 1e4
    first, second = (solve_readout(features, c, confidence, pool=8) for c in (cues, spoiled))
    assert torch.equal(first, second)


def test_the_draw_depends_on_the_generator_alone(config: LILA.Config, system: System, moving) -> None:
    objective = LILA(config, system)
    batch = batch_of(objective, moving())
    losses = [objective(system, batch, seeded(seed))["loss"].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_each_pair_distils_its_own_channels_the_same_in_both_frames() -> None:
    chosen = random_channels(50, 10, 4, seeded())
    assert all(len(set(row)) == 4 for row in chosen.tolist()) and len(set(map(tuple, chosen.tolist()))) > 40
    assert random_channels(1, 3, 4, seeded()).shape == (1, 3)
    maps = torch.randn(50, 2, 10, 3, 2)
    picked = pick_channels(maps, chosen)
    for sample in range(50):
        assert torch.equal(picked[sample], maps[sample][:, chosen[sample]])


def test_a_batch_without_a_trusted_place_gives_a_finite_loss(
    config: LILA.Config, build: Build, untrusted: CueProvider, moving
) -> None:
    for distilled in (0, 4):
        system = build({"colours": untrusted})
        objective = LILA(attrs.evolve(config, distill_channels=distilled), system)
        losses = objective(system, batch_of(objective, moving()), seeded())
        losses["loss"].backward()
        assert all(value.isfinite() for value in losses.values())
        assert all(p.grad.isfinite().all() for p in system.heads.parameters())
        assert distilled or losses["loss"].item() == 0


def test_self_distillation_alone_teaches(config: LILA.Config, build: Build, moving) -> None:
    system = build({})
    objective = LILA(config, system)
    batch = batch_of(objective, moving())
    optimizer = torch.optim.Adam(system.heads.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(system, batch, seeded())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_erm_trains_the_rows_of_its_read_out_that_it_used(config: LILA.Config, system: System, moving) -> None:
    objective = LILA(attrs.evolve(config, mode="erm"), system)
    assert objective.readout.weight.shape == (2 + 3 + 10, 8)
    batch = batch_of(objective, moving(), size=1)
    pairs = objective.prepare(system, batch, seeded())
    assert pairs.channels[0, :5].tolist() == [0, 1, 2, 3, 4] and pairs.channels.min() >= 0
    before = objective(system, batch, seeded())["loss"]
    before.backward()
    used = objective.readout.weight.grad.abs().sum(1) > 0
    assert set(used.nonzero().flatten().tolist()) == set(pairs.channels[0].tolist())
    assert all(p.grad.abs().max() > 0 for p in system.heads.parameters())
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    optimizer.step()
    assert objective(system, batch, seeded())["loss"] < before


def test_erm_predicts_each_frame_from_its_own_features(config: LILA.Config, system: System, moving) -> None:
    objective = LILA(attrs.evolve(config, mode="erm", edge_weight=0.0), system)
    batch = batch_of(objective, moving())
    pairs = objective.prepare(system, batch, seeded())
    features = objective.features(system, pairs)
    errors = []
    for sample in range(2):
        weight, bias = (p[pairs.channels[sample]] for p in (objective.readout.weight, objective.readout.bias))
        for frame in range(2):
            prediction = torch.einsum("kd,dhw->khw", weight, features[sample, frame]) + bias[:, None, None]
            errors.append((prediction - pairs.cues[sample, frame]).abs()[pairs.valid[sample, frame]])
    torch.testing.assert_close(objective(system, batch, seeded())["l1"], torch.cat(errors).mean())


def test_autocast_leaves_the_loss_nearly_as_it_is(config: LILA.Config, system: System, moving) -> None:
    objective = LILA(config, system)
    batch = batch_of(objective, moving())
    exact = objective(system, batch, seeded())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(system, batch, seeded())["loss"]
    assert rough.dtype == torch.float32 and abs(rough - exact) < 0.05 * exact


class Blurred(CueProvider):
    """A learned teacher in miniature: the picture through a convolution, and how much of it is known."""

    kind = "map"

    def __init__(self, channels: int, known: float = 1.0, declared: int | None = None) -> None:
        self.weight = torch.randn(channels, 3, 3, 3, generator=seeded())
        self.known, self.channels = known, declared

    def __call__(self, clip: Clip) -> CueMaps:
        values = torch.nn.functional.conv2d(clip.frames.flatten(0, 1), self.weight, padding=1).unflatten(0, (-1, 2))
        known = torch.rand(values[:, :, :1].shape, generator=seeded()) < self.known
        return CueMaps(values, "map", known)


def test_teachers_answer_in_single_precision_under_autocast(config: LILA.Config, build: Build, moving) -> None:
    system = build({"blurred": Blurred(5)})
    objective = LILA(config, system)
    batch = batch_of(objective, moving())
    exact = objective.prepare(system, batch, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective.prepare(system, batch, seeded())
    assert torch.equal(rough.cues[:, :, :5], exact.cues[:, :, :5])


def test_distilled_features_are_refined_in_single_precision_under_autocast(
    config: LILA.Config, system: System, moving
) -> None:
    objective = LILA(config, system)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = objective.prepare(system, batch_of(objective, moving()), seeded())
    tokens = pairs.tokens[1].as_maps()[:, 0]
    assert tokens.dtype == torch.bfloat16
    coarse = pick_channels(tokens.float().unflatten(0, (2, 2)), pairs.channels[:, 5:] - 5).flatten(0, 1)
    fine = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    torch.testing.assert_close(pairs.cues[:, :, 5:].flatten(0, 1), torch.nn.functional.normalize(fine, dim=1))


def test_many_channels_are_trusted_as_one_but_flow_twice(
    config: LILA.Config, build: Build, cues: dict[str, CueProvider], moving
) -> None:
    system = build({"blurred": Blurred(32, known=0.95), "flow": cues["flow"]})
    objective = LILA(config, system)
    pairs = objective.prepare(system, batch_of(objective, moving()), seeded())
    assert pairs.confidence.shape[2] == 1 + 2 and pairs.valid.shape == pairs.cues.shape
    assert torch.equal(pairs.valid[:, :, :32], (pairs.confidence[:, :, :1] > 0).expand(-1, -1, 32, -1, -1))
    assert torch.equal(pairs.valid[:, :, 32:34], pairs.confidence[:, :, 1:] > 0)
    readout = objective.solved_readout(objective.features(system, pairs)[:, 1], pairs)
    assert readout[..., :32].abs().amax() > 0.01  # 0.95 to the power of 32 would be no trust at all


@pytest.mark.parametrize("mode", ["in_context", "erm"])
def test_a_teacher_with_other_channels_than_declared_is_named(
    config: LILA.Config, build: Build, moving, mode: str
) -> None:
    system = build({"blurred": Blurred(5, declared=4)})
    objective = LILA(attrs.evolve(config, mode=mode), system)
    with pytest.raises(PluginError, match=r"\[cues.blurred\]: Blurred gave maps of 5 channels where it declares 4"):
        objective(system, batch_of(objective, moving()), seeded())


def test_a_cue_cannot_take_the_distillations_name(config: LILA.Config, build: Build) -> None:
    with pytest.raises(ValueError, match="give it another name"):
        LILA(config, build({"self-distillation": Blurred(2)}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"head": "depth"}, 'head = "depth" is no head of this recipe, which has: features'),
        ({"view_size": 30}, "view_size = 30 is not divisible"),
        ({"distill_tap": 2}, "tap 2 does not exist"),
    ],
)
def test_a_configuration_that_does_not_fit_the_system_is_refused(
    config: LILA.Config, system: System, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        LILA(attrs.evolve(config, **change), system)


def test_nothing_to_learn_is_refused(config: LILA.Config, build: Build) -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        LILA(attrs.evolve(config, distill_channels=0), build({}))


def test_distilled_features_are_refined_along_the_views_edges(config: LILA.Config, system: System, moving) -> None:
    pamr = PAMR.Config(stages=(Stage(3, (16, 16)), Stage(2)))
    objective = LILA(attrs.evolve(config, pamr=pamr), system)
    batch = batch_of(objective, moving())
    pairs = objective.prepare(system, batch, seeded())
    views = batch["views"].flatten(0, 1) / 255
    coarse = pairs.tokens[1].as_maps()[:, 0].unflatten(0, (2, 2))
    coarse = pick_channels(coarse, pairs.channels[:, 5:] - 5)
    refined = torch.nn.functional.normalize(PAMR(pamr)(coarse.flatten(0, 1), views), dim=1)
    torch.testing.assert_close(pairs.cues[:, :, 5:].flatten(0, 1), refined)


def test_refinement_must_end_at_the_views_size() -> None:
    with pytest.raises(ValueError, match="the view's own size"):
        LILA.Config(view_size=64, pamr=PAMR.Config(stages=(Stage(3, (32, 32)),)))


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.2)])
def test_impossible_crop_areas_are_refused(area: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="query_area must be two shares"):
        LILA.Config(query_area=area)


def test_a_teacher_that_cannot_take_the_views_is_named(config: LILA.Config, build: Build) -> None:
    class Picky(CueProvider):
        kind = "disparity"

        def check_size(self, size: tuple[int, int]) -> None:
            raise ValueError(f"{size[0]} rows are not divisible by 14")

        def __call__(self, clip: Clip) -> CueMaps:
            raise AssertionError

    with pytest.raises(ValueError, match=r"\[cues.depth\] cannot work on views of 32 pixels: 32 rows are not"):
        LILA(config, build({"depth": Picky()}))


def test_where_no_place_is_trusted_it_is_said(
    config: LILA.Config, build: Build, cues: dict[str, CueProvider], untrusted: CueProvider, moving
) -> None:
    for colours, share in ((cues["colours"], 1.0), (untrusted, 0.0)):
        system = build({"colours": colours})
        objective = LILA(config, system)
        losses = objective(system, batch_of(objective, moving()), seeded())
        assert losses["trusted"] == share
        losses["loss"].backward()
        moved = sum(float(p.grad.abs().sum()) for p in system.heads.parameters() if p.grad is not None)
        assert (moved > 0) is (share > 0)


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 4)])
def test_pooling_divides_rows_and_columns_evenly(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(maps, 4), torch.nn.functional.adaptive_avg_pool2d(maps, 4))
