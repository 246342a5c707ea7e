"""How well features carry masks through a sequence: local nearest neighbours, J and F.

Every kind of features is brought to the same grid and propagates the same first masks by the same protocol
(`fourd_evals.knn`, LILA's); only the features differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import attrs
import torch
import torch.nn.functional as F
from fourd_evals.davis_metrics import SequenceScores, contour_accuracy, region_similarity, score_sequence, summarise
from fourd_evals.knn import KNNConfig, propagate_masks, to_grid
from jaxtyping import Float, UInt8
from torch import Tensor

from benchmarks.film_sequences import Filmed
from fourd_core.data import Clip, Maps
from fourd_core.interfaces import Head
from fourd_core.system import System

HEAD = "features"
COLOURS = (0, 0, 0), (230, 60, 50), (250, 220, 60), (200, 70, 220), (60, 200, 240)
Extractor = Callable[[Float[Tensor, "3 h w"]], Float[Tensor, "d gh gw"]]
"""A frame in [0, 1] -> its features on any grid."""


def head_features(system: System) -> Extractor:
    """The pixel features of a head."""

    def extract(frame: Float[Tensor, "3 h w"]) -> Float[Tensor, "d h w"]:
        clip = Clip(frame[None, None])
        maps = cast(Maps, cast(Head, system.heads[HEAD])(system.encode(clip.frames, heads=[HEAD]), clip))
        return maps.values[0, 0]

    return extract


def encoder_features(system: System, grid: KNNConfig) -> dict[str, Extractor]:
    """The frozen encoder's own features: each tap that the head reads, and all of them side by side on the grid.

    Side by side in two ways: as they are, and each tap's vectors brought to length 1 first, so that every tap has the
    same say in a cosine.
    """
    taps = cast(Head, system.heads[HEAD]).taps

    def maps(frame: Float[Tensor, "3 h w"], chosen: Sequence[int]) -> list[Float[Tensor, "_ _ _"]]:
        tokens = system.encode(frame[None, None], taps=chosen, heads=[])
        return [to_grid(tokens[tap].as_maps()[0, 0], grid) for tap in chosen]

    def one(tap: int) -> Extractor:
        return lambda frame: maps(frame, [tap])[0]

    strides = {tap: system.backbone.spec.taps[tap].stride[1] for tap in taps}
    kinds: dict[str, Extractor] = {f"encoder, stride {strides[tap]}": one(tap) for tap in taps}
    kinds["encoder, all strides"] = lambda frame: torch.cat(maps(frame, taps))
    kinds["encoder, all strides, each of length 1"] = lambda frame: torch.cat(
        [F.normalize(tap, dim=0) for tap in maps(frame, taps)]
    )
    return kinds


@torch.no_grad()
def carried(
    extract: Extractor,
    frames: Iterable[UInt8[Tensor, "3 h w"]],
    first_mask: UInt8[Tensor, "height width"],
    config: KNNConfig,
) -> list[UInt8[Tensor, "height width"]]:
    """The masks of all frames, given the first one's."""
    features = (extract(frame.float() / 255) for frame in frames)
    return list(propagate_masks(features, first_mask, config))


def score_generated(extract: Extractor, sequences: Sequence[Filmed], config: KNNConfig) -> list[SequenceScores]:
    """J and F of every object in every frame of generated sequences."""
    return [score_sequence(s.masks, carried(extract, s.frames, s.masks[0], config)) for s in sequences]


@attrs.frozen
class Score:
    """Percent, over all objects."""

    j: float
    f: float

    @property
    def jf(self) -> float:
        """J&F."""
        return (self.j + self.f) / 2

    @classmethod
    def of_sequences(cls, scores: Sequence[SequenceScores]) -> Score:
        """As the DAVIS benchmark has it: the mean over an object's frames, then over all objects."""
        summary = summarise(scores)
        return cls(100 * summary.j.mean, 100 * summary.f.mean)

    @classmethod
    def of_masks(cls, truth: UInt8[Tensor, "h w"], prediction: UInt8[Tensor, "h w"]) -> Score:
        """Of one frame: the mean over the truth's objects."""
        ids = range(1, int(truth.max()) + 1)
        pairs = [((truth == n).numpy(), (prediction == n).numpy()) for n in ids]
        j, f = (sum(measure(*pair) for pair in pairs) / len(pairs) for measure in (region_similarity, contour_accuracy))
        return cls(100 * j, 100 * f)


def overlaid(frame: UInt8[Tensor, "3 h w"], mask: UInt8[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """A frame with each object tinted in a colour of its own."""
    tint = torch.tensor(COLOURS)[mask.long() % len(COLOURS)].permute(2, 0, 1)
    mixed = torch.where(mask > 0, 0.5 * frame + 0.5 * tint, frame.float())
    return mixed.round().to(torch.uint8)
