"""Components and a job for the recipe tests: real attrs Configs, found by a table instead of installed plugins."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import attrs

from fourd_core.errors import PluginError
from fourd_core.recipe import ComponentConfig, Location, component, components


class Grid:
    @attrs.frozen
    class Config:
        patch: int = attrs.field(default=14, validator=attrs.validators.ge(1))
        size: tuple[int, int] = (224, 224)


@attrs.frozen
class Window:
    frames: int = 16
    overlap: int = attrs.field(default=8)

    @overlap.validator
    def _check(self, _field: object, value: int) -> None:
        if value >= self.frames:
            raise ValueError(f"{value} frames of overlap do not fit into a window of {self.frames}")


class Decoder:
    @attrs.frozen
    class Config:
        taps: tuple[int, ...]
        features: int = 64
        dropout: float = 0.0
        bias: bool = True
        mode: Literal["bilinear", "nearest"] = "bilinear"
        label: str | None = None
        order: Literal[1, 2] = 1
        window: Window = Window()
        scales: dict[str, float] = attrs.field(factory=dict)


class Linear:
    @attrs.frozen
    class Config:
        rank: int = 4


class Video:
    @attrs.frozen
    class Config:
        video: Location
        more: tuple[Location, ...] = ()
        fps: float | None = 25.0


class Regression:
    @attrs.frozen
    class Config:
        weight: float = 1.0


class Careless:
    @attrs.frozen
    class Config:
        anything: Any = None


@attrs.frozen
class Train:
    objective: ComponentConfig = component("objectives")
    other: ComponentConfig | None = component("objectives", None)
    metrics: dict[str, ComponentConfig] = components("metrics")
    steps: int = attrs.field(default=10, validator=attrs.validators.ge(1))
    betas: tuple[float, float] = (0.9, 0.999)


@attrs.frozen
class Predict:
    window: Window = Window()


PARTS: dict[str, dict[str, type[Any]]] = {
    "backbones": {"grid": Grid},
    "heads": {"decoder": Decoder, "other_decoder": Decoder, "linear": Linear, "careless": Careless},
    "memories": {"linear": Linear},
    "cues": {"linear": Linear},
    "datasets": {"video": Video, "linear": Linear},
    "objectives": {"regression": Regression, "linear": Linear},
    "metrics": {"linear": Linear},
}
JOBS: dict[str, type[Any]] = {"train": Train, "predict": Predict}


@attrs.frozen
class Parts:
    """A resolver over tables like the ones above."""

    parts: dict[str, dict[str, type[Any]]] = PARTS
    jobs: dict[str, type[Any]] = JOBS

    def component(self, kind: str, name: str) -> type[Any]:
        return self._pick(self.parts[kind], name, f'unknown name "{name}" in {kind}')

    def job(self, name: str) -> type[Any]:
        return self._pick(self.jobs, name, f'unknown job "{name}"')

    def _pick(self, table: dict[str, type[Any]], name: str, problem: str) -> type[Any]:
        if name in table:
            return table[name]
        near = difflib.get_close_matches(name, table, n=1)
        raise PluginError(f'{problem}; did you mean "{near[0]}"?' if near else problem)
