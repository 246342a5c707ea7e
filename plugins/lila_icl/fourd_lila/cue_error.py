"""How well pixel features explain the next frame's cues: the LILA objective's L1 error on held-out pairs.

Every row is measured on the same pairs with the same cues; only the features, or for ERM the read-out, differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, cast

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import ge
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import default_collate

from fourd_core.cues.plan import keys_of
from fourd_core.errors import RunError
from fourd_core.files import as_json
from fourd_core.interfaces import Component, Dataset, Head, Metric, Result, Video
from fourd_core.kernels.linear_matching import apply_readout
from fourd_core.progress import track
from fourd_core.randomness import generator_for
from fourd_core.system import System
from fourd_lila.objective import LILA
from fourd_lila.pairs import Pairs

START = "at initialisation"
LISTED = 20
"""Of more videos the protocol holds a digest of the names; they are not opened for it."""
Predictor = Callable[[Pairs], Float[Tensor, "1 k v v"]]
"""One pair -> the query's predicted cues."""


class LILACueError(Metric):
    """L1 error of the query frame's cues on held-out pairs: trained, at initialisation, encoder features alone."""

    @attrs.frozen
    class Config:
        """Which pairs, and the objective that says how they are drawn."""

        stage: str = "train"
        """The training stage whose objective says how pairs are drawn and read-outs solved."""
        objective: LILA.Config | None = None
        """The same for a recipe without such a stage."""
        pairs: int = attrs.field(default=48, validator=ge(1))
        """How many held-out pairs."""
        batch_size: int = attrs.field(default=4, validator=ge(1))
        """Pairs whose cues are standardised together, as in training."""
        seed: int = 0
        """Which pairs."""

    @classmethod
    def example(cls) -> Any:
        """Two pairs, for a system without a training stage."""
        return cls.Config(objective=LILA.example(), pairs=2)

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, system: System, data: Dataset) -> None:
        """Read the teachers' weights and draw the first pairs, so that what is missing is found before training."""
        system.load_cues()
        self._batch(self._objective(system), data, 0, torch.device("cpu"))

    @torch.no_grad()
    def measure(self, system: System, data: Dataset) -> Result:
        """The table of errors, in standardised units of the cues; the last column compares with the start.

        Raises:
            RunError: the system has no LILA objective and the recipe names none.
            MediaError: the data has no held-out pairs.
        """
        objective = self._objective(system)
        system.eval()
        predictors = _predictors(system, objective)
        errors = {name: _Errors() for name in predictors}
        starts = range(0, self.config.pairs, self.config.batch_size)
        for start in track(starts, "cue error", len(starts)):
            batch = self._batch(objective, data, start, system.device)
            pairs = objective.prepare(system, batch, generator_for(self.config.seed, "cue error channels", start))
            for pair in (pairs[sample] for sample in range(len(pairs))):
                for name, predictor in predictors.items():
                    errors[name].add(predictor(pair), pair)
        rows = tuple({"features": name, **error.row(errors[START])} for name, error in errors.items())
        learned = next(iter(errors.values())).mean
        protocol = self._protocol(objective, system, data)
        return Result("LILA: error of the query frame's cues (L1)", rows, protocol, score=-learned)

    def _objective(self, system: System) -> LILA:
        """The trained objective, or one made for measuring."""
        if self.config.stage in system.objectives:
            trained = system.objectives[self.config.stage]
            if isinstance(trained, LILA):
                return trained
        if self.config.objective is None:
            raise RunError(
                f'lila_cue_error: this recipe has no training stage "{self.config.stage}" with use = "lila"; '
                "name it by `stage`, or say by `objective` how pairs are drawn"
            )
        return LILA(attrs.evolve(self.config.objective, mode="in_context"), system).to(system.device)

    def _batch(self, objective: LILA, data: Dataset, start: int, device: torch.device) -> dict[str, Tensor]:
        numbers = range(start, min(start + self.config.batch_size, self.config.pairs))
        seed = self.config.seed
        samples = [objective.sample(data, "held_out", generator_for(seed, "cue error pair", n)) for n in numbers]
        return {name: value.to(device) for name, value in default_collate(samples).items()}

    def _protocol(self, objective: LILA, system: System, data: Dataset) -> dict[str, Any]:
        """Everything the numbers depend on except how the features were trained."""
        settings = attrs.asdict(objective.config)
        for about_training in ("mode", "edge_weight", "edge_sigma", "edge_form"):
            del settings[about_training]
        protocol = {
            "split": "held_out",
            "videos": _named(data.videos("held_out")),
            "backbone": _described(system.backbone),
            "cues": {name: _described(cue) for name, cue in system.cues.items()},
            "pairs": self.config.pairs,
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            **settings,
        }
        plain: dict[str, Any] = as_json(protocol)
        return plain


def _named(videos: Sequence[Video]) -> list[str]:
    """The files' names without their folders: the same clips elsewhere give the same numbers."""
    if len(videos) <= LISTED:
        return [f"{PurePath(video.name).name}, {video.frame_count} frames" for video in videos]
    digest = hashlib.sha256("\n".join(keys_of(videos)).encode()).hexdigest()
    return [f"{len(videos)} videos", f"names {digest[:16]}"]


def _described(component: Component) -> dict[str, Any]:
    """A component's class and what it was configured with, weights by their file's name."""
    config = getattr(component, "config", None)
    settings = attrs.asdict(config) if config is not None else {}
    if "weights" in settings:
        settings["weights"] = PurePath(str(settings["weights"])).name
    return {"class": type(component).__name__, **settings}


@attrs.define
class _Errors:
    """Sums of absolute errors and how many numbers they are of, by cue."""

    sums: dict[str, float] = attrs.field(factory=dict)
    counts: dict[str, int] = attrs.field(factory=dict)

    def add(self, prediction: Float[Tensor, "1 k v v"], pair: Pairs) -> None:
        error, valid = (prediction - pair.cues[:, 0]).abs(), pair.valid[:, 0]
        for name, channels in pair.groups.items():
            counted = error[:, channels][valid[:, channels]]
            self.sums[name] = self.sums.get(name, 0.0) + float(counted.sum())  # not all devices have float64
            self.counts[name] = self.counts.get(name, 0) + counted.numel()

    @property
    def mean(self) -> float:
        return sum(self.sums.values()) / max(sum(self.counts.values()), 1)

    def row(self, start: _Errors) -> dict[str, str | float]:
        by_cue = {name: round(self.sums[name] / max(self.counts[name], 1), 5) for name in self.sums}
        change = "" if self is start else f"{100 * (self.mean / start.mean - 1):+.1f} %"
        return {"L1": round(self.mean, 5), **by_cue, "against the start": change}


def _predictors(system: System, objective: LILA) -> dict[str, Predictor]:
    """The rows of the table."""

    def in_context(features: Callable[[Pairs], Float[Tensor, "1 2 d v v"]]) -> Predictor:
        def predictor(pair: Pairs) -> Float[Tensor, "1 k v v"]:
            query, context = features(pair).unbind(1)
            return apply_readout(query, objective.solved_readout(context, pair))

        return predictor

    head, untrained = cast(Head, system.heads[objective.config.head]), system.untrained().eval()
    rows: dict[str, Predictor] = {}
    if objective.config.mode == "erm":
        rows["trained by ERM, solved in context"] = in_context(lambda pair: objective.features(system, pair))
        rows["trained by ERM, own read-out"] = lambda pair: apply_readout(
            objective.features(system, pair)[:, 0], objective.trained_readout(pair)
        )
    else:
        rows["trained in context"] = in_context(lambda pair: objective.features(system, pair))
    rows[START] = in_context(lambda pair: objective.features(untrained, pair))
    rows["encoder features, bilinear"] = in_context(lambda pair: encoder_features(pair, head.taps))
    return rows


def encoder_features(pairs: Pairs, taps: tuple[int, ...]) -> Float[Tensor, "b 2 d v v"]:
    """The encoder's own features at these taps, upsampled bilinearly, side by side, LayerNorm per pixel."""
    size = pairs.clip.size
    maps = [
        F.interpolate(pairs.tokens[tap].as_maps()[:, 0], size, mode="bilinear", align_corners=False) for tap in taps
    ]
    pixels = torch.cat(maps, dim=1)
    mean, variance = pixels.mean(1, keepdim=True), pixels.var(1, keepdim=True, correction=0)
    normalised: Tensor = ((pixels - mean) / (variance + 1e-5).sqrt()).unflatten(0, (-1, 2))
    return normalised
