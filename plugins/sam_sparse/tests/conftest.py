"""Small trackers with seeded weights, the same in the plugin and in the straightforward form."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import TrackMemory
from torch import nn

from fourd_core.data import Clip, Grid, Queries, TokenMap, Tokens
from fourd_core.interfaces import BackboneSpec, TapSpec

ROOT = Path(__file__).parents[3]


@attrs.frozen
class Case:
    """A video in windows of random tokens, and points in it."""

    dim: int = 16
    grid: Grid = attrs.field(default=(4, 3, 5), converter=lambda grid: Grid(*grid))
    patch: tuple[int, int, int] = (2, 14, 14)
    heads: int = 2
    hidden: int = 24
    dtype: torch.dtype = torch.float64

    @property
    def spec(self) -> BackboneSpec:
        """Of a backbone with one tap."""
        return BackboneSpec((TapSpec(self.dim, self.patch),), self.patch, (0.5,) * 3, (0.25,) * 3, (16, 8))

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        t, h, w = (n * step for n, step in zip(self.grid, self.patch, strict=True))
        return t, h, w

    def head(self, **config: Any) -> SamTrack:
        """With seeded weights."""
        return seeded(SamTrack(SamTrack.Config(heads=self.heads, mlp=self.hidden, **config), self.spec)).to(self.dtype)

    def memory(self, cls: type[nn.Module] = TrackMemory, **config: Any) -> Any:
        """With seeded weights."""
        return seeded(cls(cls.Config(**config), self.spec), 1).to(self.dtype)

    def tokens(self, seed: int = 0, batch: int = 1) -> Tokens:
        """Of a window."""
        t, h, w = self.grid
        values = torch.randn(batch, t * h * w, self.dim, generator=generator(seed), dtype=torch.float64)
        return Tokens({0: TokenMap(values.to(self.dtype), self.grid)})

    def clip(self, queries: Queries) -> Clip:
        """The window that has these points."""
        t, h, w = self.size
        return Clip(torch.zeros(len(queries.frame), t, 3, h, w, dtype=self.dtype), queries=queries)

    def queries(self, *frames: int, batch: int = 1) -> Queries:
        """Points named in these frames, at random places."""
        _, h, w = self.size
        xy = torch.rand(batch, len(frames), 2, generator=generator(7), dtype=torch.float64)
        frame = torch.tensor(frames).repeat(batch, 1)
        return Queries(frame, (xy * torch.tensor([w, h], dtype=torch.float64)).to(self.dtype))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(module: Any, seed: int = 0) -> Any:
    """Every parameter and the Fourier matrix random; heat maps with clear peaks."""
    random = generator(seed)
    for name, tensor in module.state_dict().items():
        scale = 20.0 if "mlps.0.layers.2.weight" in name else 0.4
        tensor.copy_(
            scale * torch.randn(tensor.shape, generator=random) + (".norm" in name and name.endswith("weight"))
        )
    return module.eval()


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.fixture(scope="session")
def baseline() -> Any:
    """The straightforward form, from the benchmarks."""
    spec = importlib.util.spec_from_file_location("l4p_baseline", ROOT / "benchmarks/l4p_baseline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StraightforwardTracker


@pytest.fixture
def straightforward(baseline: Any) -> Callable[[Case, SamTrack, TrackMemory], Any]:
    """The straightforward form with a head's and a memory's weights."""

    def build(case: Case, head: SamTrack, memory: TrackMemory) -> Any:
        tracker = baseline(case.dim, case.heads, case.hidden, case.grid, case.size).to(case.dtype)
        tracker.load_state_dict(head.state_dict() | memory.state_dict())
        return tracker.eval()

    return build
