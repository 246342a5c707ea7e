"""The contracts of what feeds and judges a system: datasets, objectives, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fourd_core.interfaces import Dataset, Metric, Objective, Result, Split, Video
from fourd_core.system import System
from fourd_core.testing import miniature
from fourd_core.testing.form import (
    check_form,
    check_gradients,
    expect,
    generator,
    no_global_randomness,
    same,
    seeded,
)  # fmt: skip


def check_dataset(cls: type[Any]) -> None:
    """Frames by number, always the same; nothing held out is trained on."""
    check_form(cls)
    data: Dataset = cls(cls.example())
    name = cls.__name__
    splits: tuple[Split, ...] = ("all", "train", "held_out")
    for split in splits:
        videos = data.videos(split)
        expect(len(videos) > 0, f'{name}.example() has no video in its part "{split}"')
        names = [video.name for video in videos]
        expect(len(set(names)) == len(names), f'{name}: videos of "{split}" share a name: {names}')
        for video in videos:
            _check_video(video)
    train, held_out = ({d for v in data.videos(s) for d in _digests(v)} for s in splits[1:])
    expect(train.isdisjoint(held_out), f"{name}: {len(train & held_out)} frames are in both train and held_out")


def _check_video(video: Video) -> None:
    who, (height, width) = f"video {video.name!r}", video.size
    expect(video.frame_count > 0, f"{who} has no frames")
    last = video.frame_count - 1
    frames = video.read([last, 0, last])
    expect(frames.dtype == torch.uint8, f"{who}: frames must be uint8, they are {frames.dtype}")
    shape = tuple(frames.shape)
    expect(shape == (3, 3, height, width), f"{who}: three frames are {shape}, not {(3, 3, height, width)} (t 3 h w)")
    expect(torch.equal(frames[0], frames[2]), f"{who}: frame {last} read twice differs")
    expect(
        torch.equal(video.read([0])[0], frames[1]), f"{who}: frame 0 read alone differs from frame 0 read after others"
    )
    times = video.times(range(video.frame_count))
    expect(times.dtype == torch.float64 and times.shape == (video.frame_count,), f"{who}: one float64 time per frame")
    expect(bool((times.diff() > 0).all()), f"{who}: times must grow from frame to frame")


def _digests(video: Video) -> Iterator[int]:
    """Frames as numbers that are equal for equal pictures, read in small portions."""
    for start in range(0, video.frame_count, 8):
        frames = video.read(range(start, min(start + 8, video.frame_count)))
        yield from (hash(frame.numpy().tobytes()) for frame in frames)


def _example_system(cls: type[Any]) -> System:
    system: System = cls.example_system() if hasattr(cls, "example_system") else miniature.Miniature()
    return system


def _example_data(cls: type[Any]) -> Dataset:
    data: Dataset = cls.example_data() if hasattr(cls, "example_data") else miniature.Textures()
    return data


def check_objective(cls: type[Objective]) -> None:
    """Samples come from the generator alone and stack; the loss is finite and reaches what is trained."""
    check_form(cls)
    system, data, name = _example_system(cls), _example_data(cls), cls.__name__
    objective = seeded(cls, 0, cls.example(), system)
    kept = [key for key, module in objective.named_modules() if module is system]
    expect(not kept, f"{name} keeps the system as its submodule {', '.join(kept)}")
    with no_global_randomness(f"{name}.sample"):
        samples = [objective.sample(data, "train", generator(seed)) for seed in (0, 0, 1)]
    for key, value in samples[0].items():
        expect(isinstance(value, Tensor), f"{name}.sample: {key} is not a tensor")
        # NaN, which stands for unknown, is equal to itself here.
        alike = torch.allclose(value, samples[1][key], rtol=0, atol=0, equal_nan=value.is_floating_point())
        expect(alike, f"{name}.sample: {key} differs for the same generator")
    objective.sample(data, "held_out", generator(0))
    batch = dict(objective.complete(data, default_collate([samples[0], samples[2]])))
    system.train()
    objective.train()
    with no_global_randomness(f"{name}.forward"):
        losses = objective(system, batch, generator(2))
    again = objective(system, batch, generator(2))
    expect("loss" in losses, f'{name} returns {", ".join(losses)} and no "loss"')
    for key, value in losses.items():
        expect(value.ndim == 0 and bool(value.isfinite()), f"{name}: {key} must be one finite number, it is {value}")
        same(again[key].detach(), value.detach(), f"{name}: {key} differs for the same generator")
    expect(losses["loss"].requires_grad, f"{name}: the loss has no gradient")
    losses["loss"].backward()
    trained = {"system": system, "objective": objective}
    parameters = {f"{w}.{k}": p for w, m in trained.items() for k, p in m.named_parameters() if p.requires_grad}
    check_gradients(name, parameters)


def check_metric(cls: type[Any]) -> None:
    """A table and its protocol, twice the same, and the system is left as it was."""
    check_form(cls)
    system, data, name = _example_system(cls), _example_data(cls), cls.__name__
    system.eval()
    before = {key: value.clone() for key, value in system.state_dict().items()}
    metric: Metric = cls(cls.example())
    with no_global_randomness(f"{name}.measure"):
        result = metric.measure(system, data)
    _check_result(name, result)
    again = metric.measure(system, data)
    expect(again == result, f"{name} measures something else the second time: {again.rows}, not {result.rows}")
    for key, value in system.state_dict().items():
        expect(torch.equal(value, before[key]), f"{name} changes the system's {key}")
    expect(not system.training, f"{name} leaves the system in training mode")


def _check_result(name: str, result: Result) -> None:
    expect(result.title and result.rows, f"{name} returns a table without title or rows")
    first = next(iter(result.rows[0]), None)
    for row in result.rows:
        expect(next(iter(row), None) == first, f"{name}: the first column of every row must be {first!r}: {row}")
        for key, value in row.items():
            fine = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            expect(fine, f"{name}: column {key!r} has {value!r}, not a text or a finite number")
    try:
        json.dumps(result.protocol, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name}: the protocol must be plain JSON values: {error}") from error
