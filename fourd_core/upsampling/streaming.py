"""Predictions of a video whose heads want their maps upsampled in context: at the video's pixels, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import attrs
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core import streaming
from fourd_core.build import load
from fourd_core.data import MapKind, Maps, Prediction, Predictions, Queries
from fourd_core.errors import FourdError, RecipeError
from fourd_core.interfaces import Head, Video
from fourd_core.media.views import View, ViewConfig
from fourd_core.recipe import Location
from fourd_core.streaming import Finished, Position, StreamConfig, view_of
from fourd_core.system import System
from fourd_core.tiles import Shot, look
from fourd_core.upsampling.guides import guide_rows
from fourd_core.upsampling.in_context import Rows, upsample_by_rows
from fourd_core.weights.cache import shown

Upsample = Literal["bilinear", "in_context"]


@attrs.frozen
class Upsampling:
    """How a head wants its maps carried from the network's view to the video's pixels; its attribute `upsampling`."""

    how: Upsample = "bilinear"
    features: Location | None = None
    """A recipe or run folder whose pixel features show where edges are; None: those of the head's own system, if it has
    some, beside the colours."""


class Upsampler:
    """`stream` for a system whose heads may want their maps upsampled in context; for others it is `stream` itself.

    Raises:
        RecipeError: a head names features that are none.
        FourdError: the features' recipe cannot be loaded.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._features: dict[str, _Features | None] = {}
        named: dict[str, _Features] = {}
        for name, head in system.heads.items():
            wish: Upsampling = getattr(head, "upsampling", Upsampling())
            if wish.how == "bilinear":
                continue
            if wish.features is None:
                own = _features_head(system)
                self._features[name] = None if own is None else _Features(system, own)
            else:
                if wish.features not in named:
                    named[wish.features] = _named_features(wish.features, f"heads.{name}", system.device)
                self._features[name] = named[wish.features]

    def check(self, video: Video, config: StreamConfig) -> None:
        """Find what would fail once a video is predicted.

        Raises:
            RecipeError: which head, and which key mends it.
        """
        for name, features in self._features.items():
            if config.pixels == "view":
                raise RecipeError(
                    f'[heads.{name}] upsample = "in_context" is for the pixels of the video, and the stage keeps maps '
                    'on the grid of the network\'s view: set pixels = "video" there, or upsample = "bilinear" here'
                )
            if features is not None and features.system is not self._system:
                try:
                    features.view(video.size)
                except RecipeError as error:
                    raise RecipeError(f"[heads.{name}] upsample_features: {error}") from error

    def stream(
        self,
        video: Video,
        view: View,
        config: StreamConfig,
        queries: Queries | None = None,
        position: Position | None = None,
    ) -> Iterator[Finished]:
        """Predictions of a whole video as they become final, as by `fourd_core.streaming.stream`.

        Raises:
            RecipeError: as `check`.
        """
        if not self._features:
            yield from streaming.stream(self._system, video, view, config, queries, position)
            return
        self.check(video, config)
        held, small = _Held(video), attrs.evolve(config, pixels="view")
        for part in streaming.stream(self._system, held, view, small, queries, position):
            with torch.inference_mode():
                shots = held.take(part.first, 0 if part.reverse else part.frames)  # a reverse part has no maps
                carried = self._carried(part.predictions, view, shots)
            yield part._replace(predictions=carried)

    def _carried(self, predictions: Predictions, view: View, shots: Sequence[Shot]) -> Predictions:
        """Maps that are in the video's units, on the grid of the view, at the video's pixels.

        Args:
            shots: their frames, one each.
        """
        coarse = view.resized[0] < view.video_size[0] and view.resized[1] < view.video_size[1]
        carried: dict[str, Prediction] = {}
        sharp: dict[str, list[Tensor]] = {}
        for name, item in predictions.items():
            if coarse and name in self._features:
                sharp[name] = []
            else:
                carried[name] = attrs.evolve(item, values=view.restore(item.values)) if isinstance(item, Maps) else item
        for t, shot in enumerate(shots):
            guides: dict[_Features | None, Rows] = {}  # of heads that want the same
            for name, maps in sharp.items():
                features, item = self._features[name], cast(Maps, predictions[name])
                if features not in guides:
                    guides[features] = self._guide(features, predictions, t, shot, view)
                values = item.values[:, t].to(self._system.device)
                maps.append(_sharpened(values, item.kind, view, guides[features]).cpu())
        for name, maps in sharp.items():
            carried[name] = predictions[name].with_tensors({"values": torch.stack(maps, 1)})
        return Predictions({name: carried[name] for name in predictions})

    def _guide(self, features: _Features | None, predictions: Predictions, t: int, shot: Shot, view: View) -> Rows:
        colours = shot.frames.to(self._system.device).float() / 255
        if features is None:
            return guide_rows(colours, None, view)
        if features.system is self._system:
            own = cast(Maps, predictions[features.head]).values[:, t]
            return guide_rows(colours, own.to(colours.device), view)
        their_view = features.view(view.video_size)
        return guide_rows(colours, features.of(shot, their_view), their_view)


def _sharpened(values: Float[Tensor, "1 c y x"], kind: MapKind, view: View, rows: Rows) -> Float[Tensor, "1 c h w"]:
    """One frame's map at the video's pixels; unknown where it would be without features too."""
    plain = view.restore(values)
    (top, left), (height, width) = view.corner, view.resized
    seen = values[..., : height - top, : width - left]  # the rest repeats the frame's border
    whole = values.new_full((*values.shape[:2], height, width), torch.nan)
    whole[..., top : top + seen.shape[-2], left : left + seen.shape[-1]] = seen.log() if kind == "depth" else seen
    fine = upsample_by_rows(whole, rows, view.video_size)
    return (fine.exp() if kind == "depth" else fine).where(plain.isfinite(), plain)


@attrs.frozen
class _Features:
    """The head of a system whose maps show where edges are."""

    system: System
    head: str

    def view(self, video_size: tuple[int, int]) -> View:
        """How the system sees the frames of a video.

        Raises:
            RecipeError: frames that do not fit its backbone.
        """
        rule = self.system.recipe.data.config if self.system.recipe is not None else None
        return view_of(rule if isinstance(rule, ViewConfig) else ViewConfig(), video_size, self.system.backbone.spec)

    def of(self, shot: Shot, view: View) -> Float[Tensor, "1 d y x"]:
        """The features of a single frame, on the grid of the view."""
        half = self.system.recipe is not None and self.system.recipe.precision == "bf16"
        with torch.autocast(self.system.device.type, torch.bfloat16, enabled=half):
            predictions, _ = look(self.system, view, shot, {}, None, [self.head])
        return cast(Maps, predictions[self.head]).values[:, 0].float()


def _features_head(system: System) -> str | None:
    """The first head that predicts features."""
    return next((name for name, head in system.heads.items() if cast(Head, head).kind == "features"), None)


def _named_features(location: str, where: str, device: torch.device) -> _Features:
    """The features of a recipe or run folder.

    Raises:
        RecipeError: it has none, or none of single frames.
    """
    try:
        system = load(location)
    except FourdError as error:
        raise type(error)(f"[{where}] upsample_features: {error}") from error
    head = _features_head(system)
    if head is None:
        raise RecipeError(
            f"[{where}] upsample_features: {shown(location)} has no head that predicts features (it has: "
            f"{', '.join(system.heads) or 'none'}); name a recipe or run folder that has one"
        )
    if (frames := system.backbone.spec.multiple[0]) > 1:
        raise RecipeError(
            f"[{where}] upsample_features: the backbone of {shown(location)} sees {frames} frames at a time; name a "
            "recipe or run folder whose backbone sees each frame by itself"
        )
    return _Features(system.to(device).eval(), head)


class _Held(Video):
    """A video that keeps the frames it has read until they are taken, so that each is decoded once."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._frames: dict[int, UInt8[Tensor, "3 h w"]] = {}
        self.name, self.key, self.frame_count, self.size = video.name, video.key, video.frame_count, video.size
        self.intrinsics = video.intrinsics

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`."""
        frames = self._video.read(indices)
        self._frames |= dict(zip(indices, frames, strict=True))
        return frames

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """As `Video.times`."""
        return self._video.times(indices)

    def take(self, first: int, count: int) -> list[Shot]:
        """These frames, one by one; they are forgotten with all before them, all are where none is wanted."""
        taken = [
            Shot(self._frames[index][None], self.times([index]), self.intrinsics, None, real=1)
            for index in range(first, first + count)
        ]
        kept = [index for index in self._frames if count and index >= first + count]
        self._frames = {index: self._frames[index] for index in kept}
        return taken
