"""The contracts of what makes a system: backbones, heads, memories, cues."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from fourd_core.data import Cameras, Clip, CueMaps, Grid, Maps, Prediction, Queries, TokenMap, Tokens, Tracks
from fourd_core.interfaces import Backbone, BackboneSpec, CueProvider, Head, Memory
from fourd_core.testing import miniature
from fourd_core.testing.form import (
    build,
    check_form,
    check_gradients,
    example_clip,
    expect,
    generator,
    no_global_randomness,
    same,
)  # fmt: skip


def check_backbone(cls: type[Backbone]) -> None:
    """Taps, grids and sizes are as announced; samples of a batch do not see each other."""
    check_form(cls)
    net = build(cls, cls.example())
    spec, name = net.spec, cls.__name__
    expect(min(spec.std) > 0 and len(spec.mean) == len(spec.std) == 3, f"{name}.spec: three means, three positive stds")
    t, h, w = spec.multiple
    clip = example_clip(2, 2 * t, 3 * h, 5 * w)
    frames, last = clip.frames.clone(), len(spec.taps) - 1
    with torch.no_grad():
        try:
            whole = net(frames, [0, last])
        except ValueError as error:
            raise AssertionError(f"{name} refuses a size that spec.multiple allows: {error}") from error
        expect(torch.equal(frames, clip.frames), f"{name} changes the frames that it is given")
        _check_tokens(name, whole, spec, sorted({0, last}), frames)
        alone = net(frames, [0])
        _check_tokens(name, alone, spec, [0], frames)
        same(alone[0].values, whole[0].values, f"{name}: tap 0 asked for alone is not tap 0 asked for with tap {last}")
        single = torch.cat([net(frames[i : i + 1], [last])[last].values for i in range(2)])
        same(whole[last].values, single, f"{name}: a batch of two is not two batches of one")
        again = net(frames, [last])[last].values
        same(again, whole[last].values, f"{name} answers differently when asked again")
        for axis, extra in enumerate(spec.multiple):
            if extra > 1:
                size = [*frames.shape[1:2], *frames.shape[3:]]
                size[axis] += 1
                _check_refusal(net, example_clip(1, *size).frames, spec)


def _check_tokens(name: str, tokens: Tokens, spec: BackboneSpec, taps: list[int], frames: Tensor) -> None:
    found = sorted(tokens.layers)
    expect(found == taps, f"{name} was asked for the taps {taps} and returned {found}")
    for tap in taps:
        item = tokens[tap]
        grid = _grid(spec, tap, frames)
        expect(item.grid == grid, f"{name}: tap {tap} stands on the grid {tuple(item.grid)}, announced {tuple(grid)}")
        shape = (len(frames), math.prod(grid), spec.taps[tap].dim)
        expect(item.values.shape == shape, f"{name}: tap {tap} is {tuple(item.values.shape)}, announced {shape}")
        expect(item.values.dtype == frames.dtype, f"{name}: tap {tap} is {item.values.dtype}, frames {frames.dtype}")
        expect(item.values.isfinite().all(), f"{name}: tap {tap} has numbers that are not finite")


def _grid(spec: BackboneSpec, tap: int, frames: Tensor) -> Grid:
    size = (frames.shape[1], *frames.shape[-2:])
    t, h, w = (n // stride for n, stride in zip(size, spec.taps[tap].stride, strict=True))
    return Grid(t, h, w)


def _check_refusal(net: Backbone, frames: Tensor, spec: BackboneSpec) -> None:
    try:
        net(frames, [0])
    except ValueError:
        return
    name, size = type(net).__name__, (frames.shape[1], *frames.shape[-2:])
    raise AssertionError(f"{name} must raise a ValueError for {size} (t h w), not divisible by {spec.multiple}")


def _example_spec(cls: type[Any]) -> BackboneSpec:
    spec: BackboneSpec = cls.example_spec() if hasattr(cls, "example_spec") else miniature.Patches.spec
    return spec


def _example_tokens(spec: BackboneSpec, taps: tuple[int, ...], clip: Clip) -> Tokens:
    layers = {}
    for tap in taps:
        grid = _grid(spec, tap, clip.frames)
        shape = (len(clip.frames), math.prod(grid), spec.taps[tap].dim)
        layers[tap] = TokenMap(torch.randn(shape, generator=generator(tap)), grid)
    return Tokens(layers)


def _part(tokens: Tokens, clip: Clip, i: int) -> tuple[Tokens, Clip]:
    """Sample `i` as a batch of one."""
    layers = {tap: TokenMap(item.values[i : i + 1], item.grid) for tap, item in tokens.layers.items()}
    times = None if clip.times is None else clip.times[i : i + 1]
    queries = None if clip.queries is None else clip.queries.map(lambda tensor: tensor[i : i + 1])
    return Tokens(layers), Clip(clip.frames[i : i + 1], times, queries=queries)


def _with_queries(clip: Clip) -> Clip:
    """Three points in each sample, named in different frames."""
    b, t, _, h, w = clip.frames.shape
    xy = torch.rand(b, 3, 2, generator=generator(5)) * torch.tensor([w, h])
    return attrs.evolve(clip, queries=Queries(torch.tensor([0, t // 2, t - 1]).expand(b, -1), xy))


def check_head(cls: type[Head]) -> None:
    """One prediction of the announced channels and unit for each frame; gradients reach what can be trained."""
    check_form(cls)
    spec, name = _example_spec(cls), cls.__name__
    head = build(cls, cls.example(), spec)
    expect(head.taps, f"{name}.taps is empty: which layers does it read?")
    inside = all(0 <= tap < len(spec.taps) for tap in head.taps)
    expect(inside, f"{name}.taps = {head.taps}: non-negative numbers below {len(spec.taps)} (BackboneSpec.tap helps)")
    t, h, w = spec.multiple
    clip = example_clip(2, 2 * t, 3 * h, 4 * w)
    clip = _with_queries(clip) if head.tracks else clip
    tokens = _example_tokens(spec, head.taps, clip)
    prediction = head(tokens, clip)
    _check_prediction(name, head, prediction, clip)
    with torch.no_grad():
        single = [head(*_part(tokens, clip, i)).tensors() for i in range(2)]
    for field, tensor in prediction.tensors().items():
        parts = torch.cat([part[field] for part in single])
        same(tensor.detach(), parts, f"{name}: a batch of two is not two batches of one")
    trainable = {key: p for key, p in head.named_parameters() if p.requires_grad}
    numbers = [tensor for tensor in prediction.tensors().values() if tensor.requires_grad]
    if trainable:
        sum((tensor.square().sum() for tensor in numbers), torch.zeros(())).backward()
        check_gradients(name, trainable)


def _check_prediction(name: str, head: Head, prediction: Prediction, clip: Clip) -> None:
    b, t, _, h, w = clip.frames.shape
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(prediction, Maps):
        shapes = {"values": (b, t, head.channels, h, w)}
    elif isinstance(prediction, Cameras):
        shapes = {"world_from_cam": (b, t, 4, 4), "intrinsics": (b, t, 3, 3)}
    elif isinstance(prediction, Tracks):
        n = clip.queries.count if clip.queries is not None else 0
        shapes = {"xy": (b, t, n, 2), "visibility": (b, t, n), "live": (b, t, n), "depth": (b, t, n)}
    tensors = prediction.tensors()
    for field, shape in shapes.items():
        if field not in tensors:  # a tracker need not know depth
            continue
        found = tuple(tensors[field].shape)
        expect(found == shape, f"{name} returns {field} {found} for a clip of {h} x {w} pixels, not {shape} (b t ...)")
        expect(tensors[field].isfinite().all(), f"{name} returns numbers that are not finite")
    expect(head.tracks == isinstance(prediction, Tracks), f"{name}.tracks says whether it answers with Tracks")
    expect(prediction.unit == head.unit, f"{name} announces the unit {head.unit!r} and returns {prediction.unit!r}")


def check_memory(cls: type[Memory]) -> None:
    """Tokens keep their taps and shapes; the state keeps its form from window to window."""
    check_form(cls)
    spec, name = _example_spec(cls), cls.__name__
    memory = build(cls, cls.example(), spec)
    t, h, w = spec.multiple
    clip = _with_queries(example_clip(2, 4 * t, 3 * h, 4 * w))
    head = _head_of(cls, spec)
    tokens = _example_tokens(spec, (0, len(spec.taps) - 1), clip)
    with torch.no_grad():
        state = memory.initial(tokens, clip)
        expect(_form(state), f"{name}.initial returns no tensors: {state!r}")
        form = None  # at the start there may be less to remember
        for shift in (2 * t, 2 * t, 2 * t):
            seen, shown = memory.read(state, tokens, clip)
            expect(sorted(seen.layers) == sorted(tokens.layers), f"{name}.read changes the taps")
            for tap, item in tokens.layers.items():
                same = seen[tap].values.shape == item.values.shape and seen[tap].grid == item.grid
                expect(same, f"{name}.read changes the shape of tap {tap}")
                expect(seen[tap].values.isfinite().all(), f"{name}.read: tap {tap} has numbers that are not finite")
            state = memory.update(state, tokens, clip, head(seen, shown), shift)
            form = form or _form(state)
            expect(_form(state) == form, f"{name}.update changes the state's form: {form} became {_form(state)}")


def _head_of(cls: type[Any], spec: BackboneSpec) -> Head:
    """The head that the memory serves: of its own making, or one of the contract tests' heads."""
    head: Head = (
        cls.example_head(spec) if hasattr(cls, "example_head") else miniature.Pixels(miniature.Pixels.Config(), spec)
    )
    return head.eval()


def _form(state: Any) -> list[tuple[Any, ...]]:
    """Shapes, types and devices of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return [(tuple(state.shape), state.dtype, state.device)]
    items = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return [entry for item in items for entry in _form(item)]


def check_cue(cls: type[Any]) -> None:
    """Maps of the clip's own size and device, without gradient, twice the same."""
    check_form(cls)
    config, name = cls.example(), cls.__name__
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        cue: CueProvider = cls(config)
    clip = example_clip(2, 2, 67, 90)
    frames = clip.frames.clone().requires_grad_()
    maps = cue(Clip(frames, clip.times))
    expect(torch.equal(frames, clip.frames), f"{name} changes the frames that it is given")
    _check_maps(cue, maps, clip)
    with no_global_randomness(name):
        again = cue(clip)
    expect(torch.equal(maps.values, again.values), f"{name} answers differently when asked again")
    parts = [cue(Clip(clip.frames[i : i + 1])) for i in range(2)]
    same(maps.values, torch.cat([part.values for part in parts]), f"{name}: a batch of two is not two batches of one")
    if cue.kind != "flow":
        _check_maps(cue, cue(example_clip(1, 1, 67, 90)), example_clip(1, 1, 67, 90))


def _check_maps(cue: CueProvider, maps: CueMaps, clip: Clip) -> None:
    name, (b, t, _, h, w) = type(cue).__name__, clip.frames.shape
    expect(maps.kind == cue.kind, f"{name}.kind is {cue.kind!r} and its maps say {maps.kind!r}")
    found = tuple(maps.values.shape)
    fits = found[:2] + found[3:] == (b, t, h, w)
    expect(fits, f"{name} returns maps {found} for a clip of {t} frames of {h} x {w} pixels (b t c h w)")
    expect(not maps.values.requires_grad, f"{name} must not carry a gradient: compute under torch.no_grad()")
    expect(maps.values.is_floating_point(), f"{name} returns {maps.values.dtype}, not floating point numbers")
    expect(maps.values.device == clip.frames.device, f"{name} must answer on the device of the clip")
    channels = cue.channels or found[2]
    expect(channels == found[2], f"{name}.channels is {channels} and its maps have {found[2]}")
    known = maps.values.isfinite() if maps.valid is None else maps.values.isfinite() | ~maps.valid
    expect(known.all(), f"{name} returns numbers that are not finite and not marked as invalid")
    expect(maps.kind != "disparity" or known.min() >= 0, f"{name} returns negative disparities")
    if maps.valid is not None:
        expect(maps.valid.dtype == torch.bool, f"{name}: `valid` must be bool, it is {maps.valid.dtype}")
        shape = tuple(maps.valid.shape)
        expect(shape == (b, t, 1, h, w), f"{name}: `valid` must be {(b, t, 1, h, w)}, it is {shape}")
