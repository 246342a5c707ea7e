"""A batch of pairs of views with their tokens and cues, as the loss sees it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import attrs
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fourd_core.data import Clip, TokenMap, Tokens


@attrs.frozen(eq=False)
class Pairs:
    """A batch of pairs as the loss sees it; along the axis of length 2 the query comes first, then the context.

    Attributes:
        tokens: the encoder's, of all views as single frames in the order (sample, frame).
        clip: these single frames.
        cues: the cue maps of the views, side by side.
        valid: which of their numbers the loss counts.
        confidence: how far the teachers can be trusted: one channel per teacher, two equal ones for flow, none for the
            distilled channels (the solve weights a place by the product, and the reference squares flow's).
        channels: which of all cue channels these are; only the distilled ones are a choice.
        groups: where each cue's channels lie, by name.
    """

    tokens: Tokens
    clip: Clip
    cues: Float[Tensor, "b 2 k h w"]
    valid: Bool[Tensor, "b 2 k h w"]
    confidence: Float[Tensor, "b 2 c h w"]
    channels: Int[Tensor, "b k"]
    groups: dict[str, slice]

    def __len__(self) -> int:
        return len(self.cues)

    def __getitem__(self, sample: int) -> Pairs:
        """One pair, as a batch of its own."""
        one, views = slice(sample, sample + 1), slice(2 * sample, 2 * sample + 2)
        layers = {tap: TokenMap(layer.values[views], layer.grid) for tap, layer in self.tokens.layers.items()}
        return Pairs(
            Tokens(layers), Clip(self.clip.frames[views]), self.cues[one], self.valid[one], self.confidence[one],
            self.channels[one], self.groups,
        )  # fmt: skip


def slices(widths: Mapping[str, int]) -> dict[str, slice]:
    """Where groups of channels lie that stand side by side."""
    ends = list(accumulate(widths.values()))
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
