"""The points that a recipe's `[queries]` name, in frames and pixels of one video."""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from fourd_core.data import Queries
from fourd_core.errors import MediaError, RecipeError
from fourd_core.interfaces import Video
from fourd_core.media.video import open_video
from fourd_core.media.views import TiledView, View
from fourd_core.recipe.schema import QueriesConfig


class Points(NamedTuple):
    """Rows of frame, x, y, and what to call each in a message."""

    rows: Float64[Tensor, "n 3"]
    name: Callable[[int], str]


def queries_for(config: QueriesConfig | None, video: Video, view: View) -> Queries | None:
    """The points to follow through a video, `1 n`; None where the recipe names none.

    Raises:
        RecipeError: a point outside the video, or outside what the view shows of it; a file that cannot be read.
    """
    if config is None:
        return None
    groups = [Points(_rows(config.points), "point {}".format)]
    if config.file is not None:
        groups.append(_read_points(config.file))
    if config.grid is not None:
        groups.append(_grid(config, video, view))
    return _checked(groups, video, view)


def queries_from(points: Any, video: Video, view: View) -> Queries:
    """Points given in Python: rows of (frame, x, y), or an integer n for a grid of n x n in the first frame.

    Raises:
        RecipeError: as `queries_for`, or what is given is neither.
    """
    count = _grid_size(points)
    if count is None:
        return _checked([Points(_rows(points), "point {}".format)], video, view)
    if count < 1:
        raise RecipeError(f"queries = {count}: a grid has at least one point along each side")
    return _checked([_grid(QueriesConfig(grid=count), video, view)], video, view)


def _grid_size(points: Any) -> int | None:
    """The integer, of Python, numpy or torch; None where rows are given."""
    if not isinstance(points, bool) and getattr(points, "ndim", 0) == 0:  # an array of one number is no row
        with suppress(TypeError):
            return operator.index(points)
    return None


def _rows(points: Any) -> Float64[Tensor, "n 3"]:
    """Rows of frame, x, y; an array or tensor is taken as it is, without Python's numbers in between."""
    try:
        if isinstance(points, np.ndarray):
            points = torch.from_numpy(points.astype(np.float64, order="C", casting="same_kind"))
        elif not isinstance(points, Tensor):
            points = [tuple(row) for row in points]
            if any(len(row) != 3 for row in points):
                raise RecipeError("queries are rows of three numbers: frame, x, y")
        rows = torch.as_tensor(points, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        found = f"{type(points).__name__} ({error})"
        raise RecipeError(
            f"queries are rows of three numbers, frame, x, y, or an integer n for a grid of n x n; got {found}"
        ) from error
    if rows.numel() and rows.shape[1:] != (3,):
        raise RecipeError(f"queries are rows of three numbers, frame, x, y; got the shape {tuple(rows.shape)}")
    return rows.reshape(-1, 3)


def _grid(config: QueriesConfig, video: Video, view: View) -> Points:
    """The grid in each of the frames, those of its points that lie inside the mask."""
    assert config.grid is not None
    xy = _cells(config.grid, view) if config.grid_places == "cells" else _pixels(config.grid, view)
    if config.mask is not None:
        xy = xy[_inside(config.mask, xy, video)]
        if not len(xy):
            raise RecipeError(
                f"[queries] mask: {config.mask} is black at every point of the grid of {config.grid} x {config.grid}; "
                "use another mask or a finer grid"
            )
    frames = [_frame_number(frame, video) for frame in config.frames]
    rows = [torch.cat([xy.new_full((len(xy), 1), frame), xy], 1) for frame in frames]
    return Points(torch.cat(rows), "grid point {}".format)


def _frame_number(frame: int, video: Video) -> int:
    count = video.frame_count
    if not -count <= frame < count:
        raise RecipeError(
            f"[queries] frames: {frame} lies outside the video: {video.name} has the frames 0 to {count - 1} "
            f"(or -{count} to -1); -1 is the last frame of any video"
        )
    return frame % count


def _cells(count: int, view: View) -> Float64[Tensor, "n 2"]:
    """The centres of `count` x `count` equal cells over what the view shows, row by row."""
    (left, top), (right, bottom) = view.visible()
    place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(top + place * (bottom - top), left + place * (right - left)).flip(1)


def _pixels(count: int, view: View) -> Float64[Tensor, "n 2"]:
    """The pixels of the network's input nearest to the top left corners of those cells. Source: L4P's readers."""
    seen = view.whole if isinstance(view, TiledView) else view
    place = torch.arange(count, dtype=torch.float64) / count
    y, x = ((place * (side - 1)).round() + 0.5 for side in seen.size)
    xy = seen.to_video(torch.cartesian_prod(y, x).flip(1))
    return xy[(xy <= xy.new_tensor(view.video_size[::-1])).all(1)]  # the view "original" may be filled up


def _inside(mask: str, xy: Float64[Tensor, "n 2"], video: Video) -> Bool[Tensor, " n"]:
    """Which points lie where a picture of the video's frame, of any size, is brighter than black."""
    try:
        picture = open_video(mask)
        bright = picture.read([0])[0].amax(0) > 0
    except MediaError as error:
        raise RecipeError(f"[queries] mask: {mask} cannot be read as a picture ({error})") from error
    h, w = picture.size
    column = (xy[:, 0] * (w / video.size[1])).long().clamp(0, w - 1)
    row = (xy[:, 1] * (h / video.size[0])).long().clamp(0, h - 1)
    return bright[row, column]


def _read_points(location: str) -> Points:
    """Rows `frame,x,y` of a text file; a header and empty lines are skipped."""
    try:
        with fsspec.open(location, "rt", encoding="utf-8-sig") as handle:
            lines = list(csv.reader(io.StringIO(handle.read())))
    except (OSError, ValueError, ImportError, csv.Error) as error:
        raise RecipeError(
            f"[queries] file: {location} cannot be read as lines frame,x,y of three numbers ({error})"
        ) from error
    numbers: list[int] = []
    rows: list[tuple[float, ...]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and _is_header(line)):
            continue
        try:
            frame, x, y = map(float, line)
        except ValueError:
            found = ",".join(line)
            raise RecipeError(
                f"[queries] file: row {number} of {location} is {found if len(found) <= 60 else found[:57] + '...'!r}, "
                "expected three numbers: frame,x,y"
            ) from None
        numbers.append(number)
        rows.append((frame, x, y))
    return Points(_rows(rows), lambda i: f"{location}, row {numbers[i]}")


def _is_header(line: list[str]) -> bool:
    """Whether no cell is a number, whichever sign parts the cells."""
    for cell in re.split(r"[,;\s]+", ",".join(line)):
        with suppress(ValueError):
            float(cell)
            return False
    return True


def _checked(groups: list[Points], video: Video, view: View) -> Queries:
    for group in groups:
        _check(group, video, view)
    rows = torch.cat([group.rows for group in groups])
    if not len(rows):
        raise RecipeError("[queries] names no point: set grid, points or file")
    return Queries(rows[None, :, 0].long(), rows[None, :, 1:].float())


def _check(points: Points, video: Video, view: View) -> None:
    """Refuse the first point that lies where nothing can be followed. The border of the frame belongs to it."""
    frame, x, y = points.rows.unbind(1)
    count, (height, width) = video.frame_count, video.size
    (left, top), (right, bottom) = view.visible()
    faults = [
        (
            ~points.rows.isfinite().all(1) | (frame != frame.floor()),
            ": the frame must be a whole number and x and y finite",
        ),
        (
            (frame < 0) | (frame >= count),
            f" lies outside the video: {video.name} has the frames 0 to {count - 1}",
        ),
        (
            (x < 0) | (y < 0) | (x > width) | (y > height),
            f" lies outside the frame: {video.name} is {width} wide and {height} high",
        ),
        (
            (x < left) | (y < top) | (x > right) | (y > bottom),
            f" lies outside what the network sees, x {left:g} to {right:g} and y {top:g} to {bottom:g}; "
            'use data.view = "resize" to show it the whole frame',
        ),
    ]
    for wrong, sentence in faults:
        if wrong.any():
            i = int(wrong.nonzero()[0])
            t, px, py = points.rows[i].tolist()
            raise RecipeError(f"[queries] {points.name(i)} (frame {t:g}, x {px:g}, y {py:g}){sentence}")
