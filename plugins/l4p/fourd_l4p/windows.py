"""Points followed through the windows of a training clip as in prediction, with gradients through what is handed on.

Source: Badki et al., L4P (arXiv 2502.13078), section 3.3.2: unrolled-window training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import attrs
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from fourd_core.data import Clip, Queries, TokenMap, Tokens, Tracks
from fourd_core.geometry.numerics import at_least_single
from fourd_core.interfaces import Head, Memory

SURE = 1e-6
"""How near to 0 and 1 a probability may come of which no logit is told."""


@attrs.frozen
class Windows:
    """Windows of `frames` frames, each `stride` frames after the one before; the last ends where the clip does."""

    clip: int
    """Frames of the clip."""
    frames: int
    stride: int

    def __attrs_post_init__(self) -> None:
        if self.clip < self.frames or (self.clip - self.frames) % self.stride:
            raise ValueError(
                f"a clip of {self.clip} frames is not filled by windows of {self.frames} frames that begin "
                f"{self.stride} frames apart; set frames to {self.frames} plus a multiple of {self.stride}"
            )

    @property
    def starts(self) -> range:
        """The first frame of each."""
        return range(0, self.clip - self.frames + 1, self.stride)

    def of(self, values: Shaped[Tensor, "b t ..."]) -> Shaped[Tensor, "b v ..."]:
        """What belongs to the clip's frames, window after window (`v` = windows x frames)."""
        if len(self.starts) == 1:
            return values
        return torch.cat([values[:, start : start + self.frames] for start in self.starts], 1)

    def cut(self, values: Shaped[Tensor, "b t ..."]) -> Shaped[Tensor, "k ..."]:
        """The windows as clips of their own: `k` = batch x windows, a clip's windows side by side."""
        return self.of(values).unflatten(1, (len(self.starts), self.frames)).flatten(0, 1)

    def tokens(self, whole: Tokens) -> list[Tokens]:
        """Each window's tokens (`b n c`), of those of `cut` frames."""
        if len(self.starts) == 1:
            return [whole]
        layers = {tap: (layer.values.unflatten(0, (-1, len(self.starts))), layer.grid) for tap, layer in _items(whole)}
        return [
            Tokens({tap: TokenMap(values[:, i], grid) for tap, (values, grid) in layers.items()})
            for i in range(len(self.starts))
        ]


def _items(tokens: Tokens) -> list[tuple[int, TokenMap]]:
    return list(tokens.layers.items())


@attrs.frozen(eq=False)
class Followed:
    """A tracker's answers, window after window."""

    xy: Float[Tensor, "b v n 2"]
    logit: Float[Tensor, "b v n"]
    """Of the visibility."""
    log_depth: Float[Tensor, "b v n"] | None
    live: Bool[Tensor, "b v n"]


def follow(
    head: Head,
    memory: Memory | None,
    tokens: Sequence[Tokens],
    frames: Float[Tensor, "b t 3 h w"],
    queries: tuple[Int[Tensor, "b n"], Float[Tensor, "b n 2"]],
    windows: Windows,
) -> Followed:
    """What a head and its memory say of the points, in every window.

    All points go through as one group (`fourd_core.tracking` splits them by the memory at hand, which a training may
    not depend on). The head decides how many it takes at a time, and whether what gradients need is kept or recomputed.

    Args:
        tokens: of each window.
        queries: frame in the clip, and position.
    """
    frame, xy = queries
    parts: list[Followed] = []
    state = None
    for start, own in zip(windows.starts, tokens, strict=True):
        clip = Clip(frames[:, start : start + windows.frames], queries=Queries(frame - start, xy))
        seen = own, clip
        if memory is not None:
            state = memory.initial(own, clip) if start == 0 else state
            seen = memory.read(state, own, clip)
        tracks = cast(Tracks, head(*seen))
        parts.append(_followed(tracks))
        if memory is not None and start != windows.starts[-1]:
            state = memory.update(state, own, clip, tracks, windows.stride)
    return parts[0] if len(parts) == 1 else _joined(parts)


def _followed(tracks: Tracks) -> Followed:
    """In at least float32; logits as the head remembers them (`b n t`), where it does."""
    logit, log_depth = (tracks.remembered.get(name) for name in ("logit", "log_depth"))
    logit = tracks.visibility.logit(SURE) if logit is None else logit.mT
    if log_depth is not None:
        log_depth = log_depth.mT
    elif tracks.depth is not None:
        log_depth = tracks.depth.clamp(min=torch.finfo(tracks.depth.dtype).tiny).log()
    exact = at_least_single(tracks.xy)
    return Followed(
        tracks.xy.to(exact), logit.to(exact), None if log_depth is None else log_depth.to(exact), tracks.live
    )


def _joined(parts: Sequence[Followed]) -> Followed:
    depths = [part.log_depth for part in parts if part.log_depth is not None]
    return Followed(
        torch.cat([part.xy for part in parts], 1),
        torch.cat([part.logit for part in parts], 1),
        torch.cat(depths, 1) if depths else None,
        torch.cat([part.live for part in parts], 1),
    )
