"""The objective against a second writing of it: one window, windows through the memory, and what may not change."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fourd_l4p import losses
from fourd_l4p.example import PIXELS, AnnotatedSquares, GeneratedSquares, small_system
from fourd_l4p.objective import L4P, Names, Weights
from fourd_l4p.windows import Windows, follow
from fourd_sam_sparse.memory import Chain
from torch import Tensor
from torch.utils.data import default_collate

from fourd_core.data import Clip, Grid, Queries, TokenMap, Tokens
from fourd_core.geometry import first_from_cam, rays_from_cameras
from fourd_core.recipe import load_recipe
from fourd_core.system import System

ROOT = Path(__file__).parents[3]
PLAIN = 0.85


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_for(learn: L4P, count: int = 2, double: bool = True) -> dict[str, Tensor]:
    data = GeneratedSquares()
    batch = learn.complete(data, default_collate([learn.sample(data, "train", generator(i)) for i in range(count)]))
    return {name: x.double() if double and x.is_floating_point() else x for name, x in batch.items()}


def system(**parts: Any) -> System:
    """With a visible spread of visibilities, so that queries are found again; float64."""
    made = small_system(**parts).double().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "hypernetworks_mlps.0.layers.2.weight" in name or "hypernetworks_mlps.1.layers.2.weight" in name:
                parameter *= 40
            if "mask_token" in name:
                parameter += 0.3
    return made


def pixel_values(maps: Tensor) -> list[float]:
    return [float(x) for x in maps.detach().flatten()]


def silog(pairs: list[tuple[float, float]]) -> float:
    """Of (logarithm of the prediction, depth)."""
    d = torch.tensor([p - float(torch.tensor(z, dtype=torch.float64).log()) for p, z in pairs], dtype=torch.float64)
    return float((d.square().mean() - PLAIN * d.mean().square()).sqrt())


def test_one_window() -> None:
    """The public predictions of the system, compared with the truth by plain means, weighed by L4P's weights."""
    whole = system()
    learn = L4P(L4P.Config(points=5, frames=8), whole)
    batch = batch_for(learn)
    found = {name: float(value.detach()) for name, value in learn(whole, batch, generator()).items()}
    queries = Queries(batch["query_frame"], batch["query_xy"])
    with torch.no_grad():
        told, _ = whole.step(Clip(batch["frames"], queries=queries), {}, None)
        rays = whole.heads["cameras"].rays(whole.encode(batch["frames"]), Clip(batch["frames"]))
    depths = batch["depth"]
    unit = depths.flatten(1).log().mean(1).exp()
    wanted: dict[str, float] = {}
    wanted["depth"] = (
        sum(
            silog(list(zip(pixel_values(told.depth[b].log()), pixel_values(depths[b] / unit[b]), strict=True)))
            for b in range(2)
        )
        / 2
    )
    error = (told.flow - batch["flow"])[:, 1:]  # of the first frame nothing is known
    wanted["flow"] = float(error.abs().sum(2).mean())
    wanted["epe"] = float(error.square().sum(2).sqrt().mean())
    p, m = told.motion, batch["motion"]
    wanted["motion"] = float(-(m * p.log() + (1 - m) * (1 - p).log()).mean())
    poses = first_from_cam(batch["world_from_cam"]).clone()
    poses[..., :3, 3] /= unit[:, None, None]
    true = rays_from_cameras(batch["intrinsics"], poses, (PIXELS, PIXELS), (4, 4))
    wanted["cameras"] = float((rays - true).abs().sum(2).mean())
    wanted |= tracked(told["track"], batch, unit)
    weights = {"depth": 20, "flow": 20, "motion": 1, "cameras": 1, "track": 1, "track_depth": 20, "visibility": 15}
    wanted["loss"] = sum(weight * wanted[name] for name, weight in weights.items())
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-7), name  # a probability of 1 - 1e-9 has few digits


def tracked(tracks: Any, batch: dict[str, Tensor], unit: Tensor) -> dict[str, float]:
    """The losses of one window's tracks, point by point, frame by frame."""
    errors, entropies, depths = [], [], []
    for b in range(len(unit)):
        pairs = []
        for n in range(batch["query_frame"].shape[1]):
            for t in range(int(batch["query_frame"][b, n]), batch["frames"].shape[1]):
                errors.append(float((tracks.xy[b, t, n] - batch["track_xy"][b, t, n]).abs().sum()))
                seen = batch["track_visible"][b, t, n] > 0
                v = float(tracks.visibility[b, t, n])
                entropies.append(-float(torch.tensor(v if seen else 1 - v).double().log()))
                pairs.append((float(tracks.depth[b, t, n].log()), float(batch["track_depth"][b, t, n] / unit[b])))
        depths.append(silog(pairs))
    return {
        "track": sum(errors) / len(errors),
        "visibility": sum(entropies) / len(entropies),
        "track_depth": sum(depths) / len(depths),
    }


@pytest.fixture(scope="module")
def straightforward() -> Any:
    """The straightforward form of the tracker, from the benchmarks."""
    spec = importlib.util.spec_from_file_location("l4p_baseline", ROOT / "benchmarks/l4p_baseline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StraightforwardTracker


LONG = {"frames": 16, "window": 8, "stride": 4, "query_frames": 6, "points": 5}


def unrolled(tracker: Any, whole: System, batch: dict[str, Tensor]) -> Tensor:
    """Windows one after another, every query with its own copy of the video's tokens; the weighted loss.

    What is found again is a place without a gradient; features and histories are handed on with theirs.
    """
    frames, errors, entropies, depth_terms = batch["frames"], [], [], []
    for b in range(len(frames)):
        count = batch["query_frame"].shape[1]
        frame, xy = batch["query_frame"][b].clone(), batch["query_xy"][b]
        history, given = tracker.first_history(count), torch.ones(count, dtype=torch.bool)
        feature, handed = torch.zeros(count, 16).double(), torch.zeros(count, dtype=torch.bool)
        pairs = []
        for start in (0, 4, 8):
            video = whole.encode(frames[b : b + 1, start : start + 8])[5].values[0]
            points = torch.cat([frame[:, None] + 0.5, xy], 1)
            answer = tracker(video, history, points, torch.where(given, 1, 2), feature, handed)
            live = (torch.arange(8) >= frame[:, None]) & (frame[:, None] >= 0)
            for n, t in live.nonzero().tolist():
                truth = batch["track_xy"][b, start + t, n]
                errors.append((answer.xy[n, t] - truth).abs().sum())
                sign = 2 * batch["track_visible"][b, start + t, n] - 1
                entropies.append(-torch.nn.functional.logsigmoid(sign * answer.logit[n, t]))
                pairs.append(answer.depth[n, t].log() - batch["track_depth"][b, start + t, n].log())
            spoke = live.any(1)
            feature, handed = torch.where(spoke[:, None], answer.feature, feature), handed | spoke
            history = tracker.next_history(answer.history)
            logit = answer.logit.detach().masked_fill(~live, -10.0)[:, 4:]
            found = 4 + logit.argmax(1)
            later = found > frame
            xy = torch.where(later[:, None], answer.xy.detach()[torch.arange(count), found], xy)
            frame = torch.where(later, found, frame) - 4
            user = batch["query_frame"][b] - start - 4
            given = (frame == user) | (xy == batch["query_xy"][b]).any(1)
        d = torch.stack(pairs) + batch["depth"][b].log().mean()
        depth_terms.append((d.square().mean() - PLAIN * d.mean().square()).sqrt())
    mean = [torch.stack(part).mean() for part in (errors, entropies, depth_terms)]
    return mean[0] + 15 * mean[1] + 20 * mean[2]


def test_windows_through_the_memory(straightforward: Any) -> None:
    """Loss and gradients of head, memory and backbone as those of the straightforward form."""
    whole = system()
    whole.learn_backbone(-1)
    learn = L4P(L4P.Config(**LONG), whole)
    assert learn.tasks == {"track": "track"}
    batch = batch_for(learn)
    assert int(batch["query_frame"].max()) > 0
    found = learn(whole, batch, generator())
    assert sorted(found) == ["loss", "seen", "track", "track_depth", "track_px", "visibility"]
    parts = {"heads.track.": whole.heads["track"], "memories.track.": whole.memories["track"]}
    own = {name: p for part in parts.values() for name, p in part.named_parameters() if p.requires_grad}
    own |= {f"backbone.{name}": p for name, p in whole.backbone.named_parameters()}
    gradients = dict(zip(own, torch.autograd.grad(found["loss"], own.values(), allow_unused=True), strict=True))
    tracker = straightforward(16, 2, 16, Grid(4, 4, 4), (8, PIXELS, PIXELS)).double()
    tracker.load_state_dict(whole.heads["track"].state_dict() | whole.memories["track"].state_dict())
    wanted = unrolled(tracker, whole, batch)
    assert float(found["loss"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    theirs = {name: p for name, p in tracker.named_parameters() if name in own}
    theirs |= {name: p for name, p in own.items() if name.startswith("backbone.")}
    assert theirs.keys() == own.keys()
    expected = dict(zip(theirs, torch.autograd.grad(wanted, theirs.values(), allow_unused=True), strict=True))
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in gradients.items():
        zero = torch.zeros_like(own[name])  # of what takes no part, the keys' biases by algebra
        mine, other = (zero if g is None else g for g in (gradient, expected[name]))
        assert float((mine - other).abs().max()) < 1e-8 * largest, name
    for name in ("prompt_feature_linear_layer.weight", "processed_video_features_proj.weight"):
        assert float(gradients[name].abs().max()) > 1e-6 * largest  # the memory learns


def test_what_is_learned_later_reaches_earlier_windows_through_the_memory_alone() -> None:
    whole = system()
    windows, track = Windows(12, 8, 4), whole.heads["track"]
    frames = torch.zeros(1, 12, 3, PIXELS, PIXELS).double()
    queries = torch.tensor([[0, 2, 3]]), torch.full((1, 3, 2), 9.0).double()
    values = [torch.randn(1, 64, 16, generator=generator(i)).double().requires_grad_() for i in range(2)]
    tokens = [Tokens({5: TokenMap(x, Grid(4, 4, 4))}) for x in values]
    chain = Chain(Chain.Config(), whole.backbone.spec).double()
    for memory, reached in ((whole.memories["track"], True), (chain, False)):
        later = follow(track, memory, tokens, frames, queries, windows).xy[:, 8:]
        (gradient,) = torch.autograd.grad(later.sum(), values[:1], allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) is reached


def test_gradcheck_over_two_windows() -> None:
    """Of points that are named in the last frame of the first window, which nothing later replaces."""
    whole = system()
    windows, track, memory = Windows(12, 8, 4), whole.heads["track"], whole.memories["track"]
    frames = torch.zeros(1, 12, 3, 16, 16).double()
    queries = torch.tensor([[7, 7]]), torch.tensor([[[3.0, 9.0], [11.0, 5.0]]]).double()

    def run(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        tokens = [Tokens({5: TokenMap(x, Grid(4, 2, 2))}) for x in (first, second)]
        followed = follow(track, memory, tokens, frames, queries, windows)
        assert followed.log_depth is not None
        return followed.xy[:, 7:], followed.logit[:, 7:], followed.log_depth[:, 7:]

    values = [torch.randn(1, 16, 16, generator=generator(i)).double().requires_grad_() for i in range(2)]
    assert torch.autograd.gradcheck(run, values, fast_mode=True)


def test_recomputing_changes_nothing() -> None:
    whole = system()
    learn = L4P(L4P.Config(**LONG), whole)
    batch, results = batch_for(learn), []
    for recompute in (False, True):
        track = whole.heads["track"]
        track.config = attrs.evolve(track.config, checkpointing=recompute, chunk=2 if recompute else None)
        loss = learn(whole, batch, generator())["loss"]
        parameters = [p for p in track.parameters() if p.requires_grad]
        results.append((loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-9, atol=1e-10)


def train(whole: System, learn: L4P, batch: dict[str, Tensor], steps: int) -> None:
    """As a stage with `learn = ["track"]`: head, memory, and what of the backbone was set free."""
    trained = [whole.backbone, whole.heads["track"], whole.memories["track"]]
    parameters = [p for part in trained for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    whole.train()
    for step in range(steps):
        optimizer.zero_grad()
        learn(whole, batch, generator(step))["loss"].backward()
        optimizer.step()
    whole.eval()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_second_stage_leaves_dense_outputs_as_they_are(checkpointing: bool) -> None:
    """Blocks behind the deepest dense tap learn; each frozen one runs once for all windows of a step."""
    whole = small_system(checkpointing=checkpointing).eval()
    learn = L4P(L4P.Config(**LONG), whole)
    batch = batch_for(learn, double=False)
    clip = Clip(batch["frames"][:, :8], queries=Queries(batch["query_frame"], batch["query_xy"]))
    with torch.no_grad():
        before = whole(clip)
    whole.learn_backbone(2)  # of five; the dense heads read taps 0 to 3
    runs: Counter[int] = Counter()
    for number, block in enumerate(whole.backbone.network.blocks):  # type: ignore[union-attr, arg-type]
        block.norm1.register_forward_hook(lambda *_, number=number: runs.update([number]))
    train(whole, learn, batch, steps=2)
    assert dict(runs) == {n: 2 * (2 if checkpointing and n >= 3 else 1) for n in range(5)}
    with torch.no_grad():
        after = whole(clip)
    for name in ("depth", "flow", "motion"):
        assert torch.equal(before[name].values, after[name].values), name
    assert torch.equal(before["cameras"].world_from_cam, after["cameras"].world_from_cam)
    assert not torch.equal(before["track"].xy, after["track"].xy)


def test_only_the_taps_of_what_is_learned_are_encoded() -> None:
    whole = small_system()
    asked: list[tuple[int, ...]] = []
    whole.backbone.register_forward_hook(lambda _m, arguments, _o: asked.append(tuple(arguments[1])))
    for keys in (
        {**LONG},
        {"frames": 8, "points": 2},
        {"frames": 8, "points": 2, "weights": Weights(0, 1, 0, 0, 0, 0, 0)},
    ):
        learn = L4P(L4P.Config(**keys), whole)
        learn(whole, batch_for(learn, double=False), generator())
    assert asked == [(5,), (0, 1, 2, 3, 5), (0, 1, 2, 3)]


def test_light_changes_in_training_only() -> None:
    whole = small_system().eval()
    plain, changed = (L4P(L4P.Config(points=3, frames=8, photometric=p), whole) for p in (0.0, 0.5))
    batch = batch_for(plain, double=False)

    def loss(learn: L4P, seed: int = 0) -> float:
        with torch.no_grad():
            return float(learn(whole, batch, generator(seed))["loss"])

    assert loss(changed.eval()) == loss(plain.train())
    assert loss(changed.train()) == loss(changed) != loss(plain)
    assert loss(changed, 1) != loss(changed)


def test_metres_or_the_clips_own_unit() -> None:
    whole = small_system().eval()
    told = {}
    for scale in ("clip", "metres"):
        learn = L4P(L4P.Config(points=3, frames=8, scale=scale, variance_focus=0.5), whole)
        batch = batch_for(learn, double=False)
        for factor in (1.0, 7.0):
            scaled = {**batch, "depth": factor * batch["depth"], "track_depth": factor * batch["track_depth"]}
            scaled["world_from_cam"] = batch["world_from_cam"].clone()
            scaled["world_from_cam"][..., :3, 3] *= factor
            with torch.no_grad():
                told[scale, factor] = learn(whole, scaled, generator())
    for name in ("depth", "track_depth", "cameras"):
        torch.testing.assert_close(told["clip", 1.0][name], told["clip", 7.0][name], rtol=1e-4, atol=1e-6)
        assert not torch.isclose(told["metres", 1.0][name], told["metres", 7.0][name], rtol=1e-2)


def refused(match: str, change: Callable[[System], None] = lambda _: None, **keys: Any) -> None:
    whole = small_system()
    change(whole)
    with pytest.raises(ValueError, match=match):
        L4P(L4P.Config(**keys), whole)


def test_refusals() -> None:
    refused("nothing to learn", heads=Names(*["none"] * 5))
    refused("a clip of 40 frames teaches tracks alone", frames=40, heads=Names(track="none"))
    refused("set frames to 16 plus a multiple of 8", frames=30)
    refused('heads.depth = "cameras" cannot learn here: it has no method `raw`', heads=Names(depth="cameras"))
    refused('heads.track = "depth" follows no points', heads=Names(track="depth"))
    refused("stride = 3 windows begin within one", frames=22, stride=3)
    refused("windows of 3 frames are no multiple of the backbone's 2", frames=3)


@pytest.mark.parametrize("name", ["l4p_full", "l4p_tiny", "l4p_small"])
def test_no_stage_of_the_recipes_learns_from_a_head_that_does_not_learn(name: str) -> None:
    """Its error would change the backbone all the same."""
    stages = [s.config for s in load_recipe(ROOT / f"recipes/{name}.toml").stages.values() if s.job == "train"]
    assert stages
    for config in stages:
        objective = config.objective.config
        long = (objective.frames or 16) > 16
        dense = () if long else ("depth", "flow", "motion", "cameras")
        taught = {task for task in (*dense, "track") if getattr(objective.weights, task) > 0}
        assert taught <= set(config.learn or taught)


def test_the_unit_of_a_sample_that_knows_no_depth() -> None:
    """Then it is the tracks' and the cameras'; `losses.clip_scale` is asked with what there is."""
    whole = small_system()
    learn = L4P(L4P.Config(points=3, frames=8), whole)
    batch = default_collate([learn.sample(AnnotatedSquares(), "train", generator())])
    batch["depth"] = torch.full_like(batch["depth"], torch.nan)
    wanted = losses.clip_scale(None, batch["track_depth"], None)
    torch.testing.assert_close(learn._scale(batch), wanted)
