"""What a batch of L4P's training holds, whatever a data set knows: one set of names and shapes, so that samples of a
mixture stack.

    frames                                        t 3 h w   in [0, 1]
    depth, motion                                 t 1 h w   NaN is unknown, as in all that follows
    flow                                          t 2 h w
    world_from_cam, intrinsics                    t 4 4, t 3 3
    track_xy, track_visible, track_live, track_depth    t n 2, t n, t n (bool), t n
    query_frame, query_xy                         n, n 2
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import VISIBLE, Cameras, Maps, Predictions, Tracks

SEEN = 4
"""Frames in which a track must be seen to be taken, where there are such tracks (L4P's option); of a clip of less than
16 frames a quarter."""
MAPS = {"depth": 1, "flow": 2, "motion": 1}
"""The dense truths and their channels."""


def known(
    truth: Predictions,
    frames: Float[Tensor, "b t 3 h w"],
    wanted: Collection[str],
    choice: Float[Tensor, "b m"],
    draw: Float[Tensor, "b n"],
    query_frames: int | None,
) -> dict[str, Tensor]:
    """The wanted truths of a batch of clips under the names above, without the frames.

    Args:
        wanted: of `fourd_core.interfaces.TRUTHS`.
        choice, draw, query_frames: as in `chosen`; `m` may be less than the data set has tracks, which are then not
            all considered.
    """
    b, t, _, h, w = frames.shape
    batch: dict[str, Tensor] = {}
    for name, channels in MAPS.items():
        if name in wanted:
            maps = truth.get(name)
            batch[name] = maps.values if isinstance(maps, Maps) else frames.new_full((b, t, channels, h, w), torch.nan)
    if "cameras" in wanted:
        cameras = truth.get("cameras")
        if not isinstance(cameras, Cameras):
            cameras = Cameras(frames.new_full((b, t, 4, 4), torch.nan), frames.new_full((b, t, 3, 3), torch.nan))
        batch |= {"world_from_cam": cameras.world_from_cam, "intrinsics": cameras.intrinsics}
    if "tracks" in wanted:
        tracks = truth.get("tracks")
        if not isinstance(tracks, Tracks) or not tracks.xy.shape[2]:
            tracks, choice = _unknown(frames), draw[:, :1]
        batch |= chosen(tracks, choice, draw, query_frames)
    return batch


def chosen(
    tracks: Tracks, choice: Float[Tensor, "b m"], draw: Float[Tensor, "b n"], query_frames: int | None
) -> dict[str, Tensor]:
    """`n` of the tracks, and of each a query: a frame in which it is seen, all such frames alike.

    Taken are tracks that are seen in enough frames, see `SEEN`; only where there is none, others that can be asked for;
    again from the first, where they are too few; and where there is none, none of the `n` is live.

    Args:
        choice: uniform numbers in [0, 1), the order in which tracks are taken.
        draw: uniform numbers in [0, 1), by which the queries are drawn.
        query_frames: queries are in the first so many frames; none: in any.
    """
    t, n = tracks.xy.shape[1], draw.shape[1]
    choice = choice[:, : tracks.xy.shape[2]]
    visible = tracks.live & (tracks.visibility > VISIBLE)
    visible = visible[:, :, : choice.shape[1]]
    askable = visible[:, : query_frames or t]
    rank = askable.any(1).long() * (1 + (visible.sum(1) >= min(SEEN, -(-t // 4))))
    best = rank.amax(1, keepdim=True)
    candidates = rank == best
    order = torch.where(candidates, choice, choice + 1).argsort(1)
    taken = order.gather(1, torch.arange(n, device=order.device) % candidates.sum(1, keepdim=True))

    def of(values: Tensor) -> Tensor:
        """Of the tracks taken (`b t n ...`)."""
        index = taken[:, None].expand(-1, values.shape[1], -1)
        return torch.take_along_dim(values, index.reshape(*index.shape, *[1] * (values.ndim - 3)), dim=2)

    live = of(tracks.live) & (best > 0)[:, None]
    seen = of(askable).long().cumsum(1)
    number = (draw * seen[:, -1]).long()  # of the frame among those in which it is seen
    frame = (seen > number[:, None]).long().argmax(1)
    xy = of(tracks.xy).where(live[..., None], 0.0)
    depth = tracks.depth if tracks.depth is not None else torch.full_like(tracks.visibility, torch.nan)
    return {
        "track_xy": xy,
        "track_visible": (of(tracks.visibility) > VISIBLE).to(xy.dtype),
        "track_live": live,
        "track_depth": of(depth).where(live, torch.nan),
        "query_frame": frame,
        "query_xy": torch.take_along_dim(xy, frame[:, None, :, None], dim=1)[:, 0],
    }


def _unknown(frames: Float[Tensor, "b t 3 h w"]) -> Tracks:
    """One track of which nothing is known."""
    xy = frames.new_zeros(*frames.shape[:2], 1, 2)
    return Tracks(xy, xy[..., 0], torch.zeros_like(xy[..., 0], dtype=torch.bool))


def photometric(
    frames: Float[Tensor, "b t 3 h w"], strength: float, generator: torch.Generator
) -> Float[Tensor, "b t 3 h w"]:
    """Clips in another light: contrast, brightness and a gain for each colour, each up to `strength`, one for a clip.

    Args:
        generator: on the CPU, so that every device draws alike.
    """
    draws = 2 * torch.rand(len(frames), 5, generator=generator) - 1
    contrast, brightness, gain = (strength * draws).to(frames)[:, None, :, None, None].split([1, 1, 3], 2)
    return (((frames - 0.5) * (1 + contrast) + 0.5 + brightness) * (1 + gain)).clamp(0, 1)
