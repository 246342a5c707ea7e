"""One window of a video through a system: as the view shows it, or the whole first and then tile by tile.

Tiles see the frame larger than the network's input, but none of them sees the scene. So the whole says what holds for
all of it (memories, cameras, visibility, the scale of depth, motion across a tile's edge) and the tiles say where
things are. Tiles go through the network one at a time and are blended before the window is stitched to the others; the
answer is in the pixels of the frame at the view's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fourd_core.data import VISIBLE, Clip, Maps, Prediction, Predictions, Queries, Tokens, Tracks
from fourd_core.geometry import fit_affine_robust, pixel_centres, safe_inverse
from fourd_core.interfaces import Head, Memory
from fourd_core.media.views import TiledView, View
from fourd_core.placement import in_video
from fourd_core.system import States, System
from fourd_core.tracking import track

FAINT = 0.1
"""Blend weight of the tiles below which the whole joins in, and takes over where it is 0."""
COARSE = 8
"""Side in pixels of the squares whose means are compared to find a tile's scale and shift: pixel by pixel the whole is
too blurred to be compared."""
INNER = 0.25
"""How far inside the tile a refined point must stay, in overlaps."""
REACH = 3.0
"""Network pixels that a refined point may be away from where the whole saw it."""

PATHS = "the tiles' paths"
"""Key among the memories' states: no head can have such a name."""


class Path(NamedTuple):
    """Where tracked points are, and whether a tile has shown it."""

    xy: Float[Tensor, "b t n 2"]
    sharp: Bool[Tensor, "b t n"]


class Shot(NamedTuple):
    """A window of a video as it was taken: in the video's own pixels, on the CPU.

    `intrinsics` hold for all frames; the frames of `queries` count from the window's first. The video has the first
    `real` frames; the others go back from its end.
    """

    frames: UInt8[Tensor, "t 3 h w"]
    times: Float[Tensor, " t"]
    intrinsics: Float[Tensor, "3 3"] | None
    queries: Queries | None
    real: int

    def clip(self, view: View) -> Clip:
        """The window as a view shows it."""
        intrinsics, queries = self.intrinsics, self.queries
        if intrinsics is not None:
            intrinsics = view.intrinsics_to_view(intrinsics).expand(1, len(self.frames), 3, 3)
        if queries is not None:
            queries = attrs.evolve(queries, xy=view.to_view(queries.xy))
        return Clip(view.apply(self.frames)[None], self.times[None].float(), intrinsics, queries)


def look(
    system: System, view: View, shot: Shot, states: States, shift: int | None, heads: Sequence[str]
) -> tuple[Predictions, States]:
    """One window of a video, in the pixels of the view; otherwise as `System.step`."""
    seen = shot.clip(view.whole if isinstance(view, TiledView) else view).to(system.device)
    predictions, kept = system.step(seen, states, shift, heads)
    if not isinstance(view, TiledView):
        return predictions, kept
    predictions, sharp = _refined(system, view, shot, predictions, states.get(PATHS, {}))
    if shift is not None:
        kept[PATHS] = {name: [tensor[:, shift:] for tensor in path] for name, path in sharp.items()}
    return predictions, kept


def _refined(
    system: System, view: TiledView, shot: Shot, whole: Predictions, before: Mapping[str, Sequence[Tensor]]
) -> tuple[Predictions, dict[str, Path]]:
    """What the whole gave, in the pixels of the frame at the view's size, sharpened by the tiles.

    Args:
        before: the paths of the window before, from this window's first frame on.
    """
    clip = shot.clip(view)
    small = attrs.evolve(view.whole, video_size=view.size)
    coarse = {name: in_video(item.in_fp32(), small, "video") for name, item in whole.items()}
    blends = {name: _Blend(view, item) for name, item in coarse.items() if isinstance(item, Maps)}
    trails: dict[str, _Trails] = {}
    for name, item in coarse.items():
        if isinstance(item, Tracks):
            assert clip.queries is not None
            points = clip.queries.map(lambda tensor: tensor.to(system.device))
            trails[name] = _Trails(view, item, points, shot.real, Path(*before[name]) if name in before else None)
    for number, tile in enumerate(view.tiles):
        queries = {name: chosen for name, trail in trails.items() if (chosen := trail.queries(number)) is not None}
        names = [*blends, *queries]
        if not names:
            continue
        part = _tile_of(clip, tile).to(system.device)
        tokens = system.encode(part.frames, heads=names)
        for name in names:
            answer = _afresh(system, name, tokens, attrs.evolve(part, queries=queries.get(name))).in_fp32()
            if isinstance(answer, Maps):
                blends[name].add(tile, answer)
            else:
                trails[name].add(number, cast(Tracks, answer))
    finished: dict[str, Prediction] = {name: blend.finish() for name, blend in blends.items()}
    finished |= {name: trail.finish() for name, trail in trails.items()}
    return Predictions({**coarse, **finished}), {name: trail.path for name, trail in trails.items()}


def _tile_of(clip: Clip, tile: View) -> Clip:
    intrinsics = None if clip.intrinsics is None else tile.intrinsics_to_view(clip.intrinsics)
    return Clip(tile.apply(clip.frames), clip.times, intrinsics)


def _afresh(system: System, name: str, tokens: Tokens, clip: Clip) -> Prediction:
    """One head's answer to a window that stands alone: its memory, if any, is at its beginning."""
    head = cast(Head, system.heads[name])
    memory = cast(Memory, system.memories[name]) if name in system.memories else None
    if head.tracks:
        return track(name, head, memory, tokens, clip, [], None)[0]
    if memory is not None:
        tokens, clip = memory.read(memory.initial(tokens, clip), tokens, clip)
    answer: Prediction = head(tokens, clip)
    return answer


def inside(view: TiledView, tile: View, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
    """How far inside a tile positions of the frame lie, along x and y, in overlaps: 0 at its edge, 1 where the overlap
    with the next tile ends. The frame's own border is no edge."""
    along = []
    for axis in (1, 0):  # x belongs to columns, the second of every size
        starts, start, side = view.starts[axis], tile.corner[axis], tile.size[axis]
        overlap = side - max((b - a for a, b in pairwise(starts)), default=0)
        p = xy[..., 1 - axis]
        before = (p - start) / overlap if start > 0 else torch.full_like(p, torch.inf)
        behind = (start + side - p) / overlap if start + side < view.size[axis] else torch.full_like(p, torch.inf)
        along.append(torch.minimum(before, behind))
    return torch.stack(along, -1)


def feather(view: TiledView, tile: View, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, " *n"]:
    """A tile's say at positions of the frame: 0 at its edge and beyond, rising to 1 over the overlap."""
    return inside(view, tile, xy).clamp(0, 1).prod(-1)


class _Blend:
    """Maps of a window, tile by tile: a mean weighted by `feather`, of depth's inverse where they are depth.

    Depth of a tile is first brought to the whole's scale and shift, which one tile cannot know. Flow counts where it
    leads to a place inside the tile; where no tile sees both ends, the whole's stands.
    """

    def __init__(self, view: TiledView, coarse: Maps) -> None:
        if coarse.kind == "depth":  # unknown is 0 between windows, as in a window that was not tiled
            coarse = attrs.evolve(coarse, values=coarse.values.nan_to_num(0.0))
        self._view, self._coarse = view, coarse
        self._base = safe_inverse(coarse.values) if coarse.kind == "depth" else coarse.values
        self._sum = torch.zeros_like(self._base)
        self._weight = torch.zeros_like(self._base[:, :, :1])
        self._places = pixel_centres(view.size, like=self._base)
        self._feathers = torch.stack([feather(view, tile, self._places) for tile in view.tiles]).sum(0)

    def add(self, tile: View, answer: Maps) -> None:
        """Another tile's maps."""
        (top, left), (height, width) = tile.corner, tile.size
        here = (..., slice(top, top + height), slice(left, left + width))
        base, values, places = self._base[here], answer.values, self._places[here[1:]]
        share = (feather(self._view, tile, places) / self._feathers[here[1:]]).expand(base[:, :, :1].shape)
        if answer.kind == "depth":
            values, trust = _aligned(safe_inverse(values), base)
            share = share * trust
        if answer.kind == "flow":
            share = share * feather(self._view, tile, places + base.movedim(2, -1)).unsqueeze(2)
        self._sum[here] += share * values
        self._weight[here] += share

    def finish(self) -> Maps:
        """The window's maps over the whole frame."""
        rest = (FAINT - self._weight).clamp(min=0)
        values = (self._sum + rest * self._base) / (self._weight + rest)
        if self._coarse.kind == "depth":
            values = torch.where(values > 0, safe_inverse(values), self._coarse.values)
        return attrs.evolve(self._coarse, values=values)


def _aligned(
    source: Float[Tensor, "b t 1 h w"], target: Float[Tensor, "b t 1 h w"]
) -> tuple[Float[Tensor, "b t 1 h w"], Float[Tensor, "b 1 1 1 1"]]:
    """A tile's disparity at the scale and shift of the whole's, and its say: 0 if it contradicts the whole, else 1."""
    known = _means(((source > 0) & (target > 0)).float()) == 1
    fit = fit_affine_robust(_means(source), _means(target), known.float())
    return fit(source), (fit.scale > 0).float().view(-1, 1, 1, 1, 1)


def _means(maps: Float[Tensor, "b t 1 h w"]) -> Float[Tensor, "b t 1 y x"]:
    side = min(COARSE, *maps.shape[-2:])
    means: Tensor = F.avg_pool2d(maps.flatten(0, 1), side).unflatten(0, maps.shape[:2])
    return means


class _Trails:
    """Tracks of a window, of one video: each point is followed again in the tile that suits it, from one sure place.

    The place is the user's, if it lies in this window; else the last one that a tile of the window before has shown, or
    where the point is seen best. Only the first `real` frames count, those that the video has.
    """

    def __init__(self, view: TiledView, coarse: Tracks, queries: Queries, real: int, before: Path | None) -> None:
        self._view, self._coarse = view, coarse
        self._unit = coarse.xy.new_tensor(view.size[::-1]) / coarse.xy.new_tensor(view.tile[::-1])
        self.path = Path(coarse.xy.clone(), torch.zeros_like(coarse.live))
        if before is not None:
            count = before.xy.shape[1]
            first = coarse.xy[:, :count]
            self.path.sharp[:, :count] = kept = before.sharp & self._near(before.xy, first)
            self.path.xy[:, :count] = torch.where(kept[..., None], before.xy, first)
        sure = torch.where(coarse.live, coarse.visibility, -1.0)
        sure[:, real:] = -1.0
        late = 1 + torch.arange(sure.shape[1], device=sure.device)[:, None] / sure.shape[1]
        sure += late * (self.path.sharp & (sure > VISIBLE))
        self._frame, self._place, self._tile = self._starts(sure, queries)

    def _near(self, xy: Float[Tensor, "b t n 2"], other: Float[Tensor, "b t n 2"]) -> Bool[Tensor, "b t n"]:
        near: Tensor = ((xy - other) / self._unit).norm(dim=-1) <= REACH
        return near

    def _starts(
        self, sure: Float[Tensor, "1 t n"], queries: Queries
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 2"], Int[Tensor, " n"]]:
        """For each point a frame, its place there, and the number of the tile that sees it there and shows most of its
        way, or -1 where nothing is sure."""
        best, frame = sure[0].max(0)
        place = self.path.xy[0].gather(0, frame[None, :, None].expand(-1, -1, 2))[0]
        named = (queries.frame[0] >= 0) & (queries.frame[0] < sure.shape[1])
        frame = torch.where(named, queries.frame[0], frame)
        place = torch.where(named[:, None], queries.xy[0].to(place.dtype), place)
        in_frame = ((place >= 0) & (place <= place.new_tensor(self._view.size[::-1]))).all(-1)
        usable = in_frame & (named | (best > VISIBLE))
        fitness = torch.stack([self._fitness(tile, frame, place) for tile in self._view.tiles])
        return frame, place, torch.where(usable, fitness.argmax(0), -1)

    def _fitness(self, tile: View, frame: Int[Tensor, " n"], place: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """How many frames of a point's way from its place on a tile shows; of equal tiles, how centrally the place."""
        way = inside(self._view, tile, self.path.xy[0]).amin(-1) > INNER
        way &= torch.arange(len(way), device=way.device)[:, None] >= frame
        central = inside(self._view, tile, place).amin(-1)
        return torch.where(central > INNER, way.sum(0) + central.sigmoid(), central.sigmoid() - 1)

    def queries(self, number: int) -> Queries | None:
        """The points to be followed in a tile, in its pixels; None where there are none."""
        chosen = self._tile == number
        if not chosen.any():
            return None
        return Queries(self._frame[None, chosen], self._view.tiles[number].to_view(self._place[None, chosen]))

    def add(self, number: int, answer: Tracks) -> None:
        """Take over a tile's tracks where they can be trusted."""
        tile, chosen = self._view.tiles[number], self._tile == number
        coarse, xy = self._coarse.xy[:, :, chosen], tile.to_video(answer.xy)
        trusted = answer.live & self._near(xy, coarse) & (inside(self._view, tile, xy).amin(-1) > INNER)
        self.path.xy[:, :, chosen] = torch.where(trusted[..., None], xy, self.path.xy[:, :, chosen])
        self.path.sharp[:, :, chosen] |= trusted

    def finish(self) -> Tracks:
        """The window's tracks: places from the tiles where they are sharp, all else from the whole."""
        return attrs.evolve(self._coarse, xy=self.path.xy)
