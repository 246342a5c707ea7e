"""A whole window of L4P: ViT-g, five tasks, 128 points, 16 frames of 224 x 224, as `recipes/l4p_full.toml` has it.

Random weights, bfloat16 where autocast allows it, the first window of a longer video. The straightforward form has the
same weights: every rewrite off, plain kernels, attention with its scores in memory, the tokens of all blocks kept, and
the tracker of `benchmarks/l4p_baseline.py`. Compared is what the dense heads and the tracker say about the frames that
stitching keeps of every head; the reference is in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import attrs
import fourd_videomae.network
import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, GRAPHS, OURS, SIMPLE, Case, Form, Inputs, Size
from benchmarks.l4p_baseline import StraightforwardTracker
from benchmarks.straightforward.attention import attention
from fourd_core.build import build_system
from fourd_core.compiled import compiled
from fourd_core.data import Clip, Grid, Predictions, Queries
from fourd_core.recipe import load_recipe
from fourd_core.rewrites import Rewrite
from fourd_core.system import System

RECIPE = Path(__file__).parents[2] / "recipes/l4p_full.toml"
FRAMES, SHIFT, SIDE, POINTS = 16, 8, 224, 128
DENSE = ("depth", "flow", "motion")
TERAFLOPS = 13.7
"""Of a window with all rewrites, counted by torch's FlopCounterMode on the meta device."""
WEIGHTS = 1_419_580_330


@cache
def system_on(device: torch.device, recipe: Path = RECIPE, options: Sequence[str] = ()) -> System:
    """The recipe's system with random weights, without what belongs to its stages."""
    loaded = load_recipe(recipe, ["weights=none", *options])
    return build_system(attrs.evolve(loaded, stages={})).to(device).eval()


def tracker_of(system: System, size: tuple[int, int, int]) -> StraightforwardTracker:
    """The straightforward form of the tracking head and its memory, with their weights."""
    head, memory = system.heads["track"], system.memories["track"]
    grid = Grid(*(n // stride for n, stride in zip(size, system.backbone.spec.multiple, strict=True)))
    tracker = StraightforwardTracker(head.spec.dim, head.config.heads, head.config.mlp, grid, size)
    tracker.load_state_dict(head.state_dict() | memory.state_dict())
    return tracker.eval().to(system.device)


def whole(system: System, frames: Tensor, frame: Tensor, xy: Tensor) -> tuple[Tensor, ...]:
    """A window as predictions are made: all heads, and what their memories keep for the next."""
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.dtype != torch.float64):
        predictions, _ = system.step(Clip(frames.float(), queries=Queries(frame, xy.float())), {}, SHIFT)
    tracks = predictions["track"]
    return *dense(predictions), tracks.xy, tracks.visibility, tracks.depth


def straightforward(
    system: System, tracker: StraightforwardTracker, frames: Tensor, frame: Tensor, xy: Tensor
) -> tuple[Tensor, ...]:
    """The same; inputs in float64 ask for the reference."""
    clip = Clip(frames.float())
    others = [name for name in system.heads if name != "track"]
    places = torch.cat([frame[0, :, None] + 0.5, xy[0].float()], 1)
    labels, handed = torch.ones_like(frame[0]), torch.zeros_like(frame[0], dtype=torch.bool)
    with as_published(), torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.dtype != torch.float64):
        tokens = system.encode(clip.frames, taps=range(len(system.backbone.spec.taps)))
        with patch.object(system, "encode", lambda *_, **__: tokens):  # once for all heads
            predictions, _ = system.step(clip, {}, SHIFT, others)
        video = tokens[system.heads["track"].taps[0]].values[0]
        with frames.device:
            feature = video.new_zeros(len(places), video.shape[-1])
            answer = tracker(video, tracker.first_history(len(places)), places, labels, feature, handed)
            tracker.next_history(answer.history)
    tracks = (answer.xy[None], answer.logit.sigmoid()[None], answer.depth[None])
    return *dense(predictions), *(t.transpose(1, 2) for t in tracks)


@contextmanager
def as_published() -> Iterator[None]:
    """Without rewrites, and with attention's scores in memory."""
    with ExitStack() as stack:
        for rewrite in Rewrite.known.values():
            stack.enter_context(rewrite.off())
        stack.enter_context(patch.object(fourd_videomae.network, "attention", attention))
        yield


def dense(predictions: Predictions) -> list[Tensor]:
    """Of the frames that stitching keeps of every head."""
    return [predictions[name].values[:, :SHIFT] for name in DENSE]


def forms(device: torch.device) -> dict[str, Form]:
    """Without torch.compile."""
    system = system_on(device)
    ours = partial(whole, system)
    return {OURS: ours, EAGER: ours, SIMPLE: partial(straightforward, system, tracker_of(system, (FRAMES, SIDE, SIDE)))}


def compiled_forms(device: torch.device) -> dict[str, Form]:
    """As the predict stage's key `compile` has it: each form a copy of the networks."""
    stack, found = ExitStack(), forms(device)
    del found[EAGER]
    for name, how in ((COMPILED, "default"), (GRAPHS, "graphs")):
        system = deepcopy(system_on(device))
        stack.enter_context(compiled(system, how))
        found[name] = partial(_kept, stack, whole, system)
    return found


def _kept(_: ExitStack, form: Form, *arguments: object, **inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The contexts stay open for as long as the form is there."""
    return form(*arguments, **inputs)


def cases(size: Size) -> Iterator[Case]:
    """On a GPU alone: a CPU would take minutes."""
    if size != "gpu":
        return

    def inputs(g: torch.Generator) -> Inputs:
        at = {"generator": g, "device": g.device}
        frame = torch.randint(0, FRAMES, (1, POINTS), **at)
        return {"frames": torch.rand(1, FRAMES, 3, SIDE, SIDE, **at), "frame": frame,
                "xy": SIDE * torch.rand(1, POINTS, 2, **at)}  # fmt: skip

    for title, made in (("", forms), (", compiled", compiled_forms)):
        yield Case(
            name=f"{FRAMES} x {SIDE} x {SIDE}, five tasks, {POINTS} points, bfloat16{title}",
            inputs=inputs,
            forms=made,
            gigabytes=4 * WEIGHTS / 1e9,
            gigaflops=1000 * TERAFLOPS,
            unit="bfloat16",
            compiled=None,
        )
