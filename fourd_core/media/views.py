"""How a frame of a video becomes a network's input, and how positions and maps find their way back.

A View resizes the whole frame and takes a window of it. Coordinates are continuous with pixel centres at +0.5 (see
`fourd_core.data`), so resizing multiplies them and the window subtracts its corner; nothing else happens. A TiledView
shows the frame larger than the network's input, which then sees it in overlapping tiles (`fourd_core.tiles`).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.geometry import cropped_intrinsics, pixel_centres, resized_intrinsics

Size = tuple[int, int]
Rule = Literal["short_side", "center", "resize", "tiles", "original"]
Resampling = Literal["antialias", "bilinear", "round_trip"]
OVERLAP = 0.25


@attrs.frozen
class View:
    """A resized window of a video's frames.

    Attributes:
        video_size: height and width of the video.
        resized: height and width that the whole frame is resized to.
        size: height and width of the window, the network's input.
        corner: row and column of the window's top left corner in the resized frame. A window that reaches over the
            right or lower edge is filled up with the frame's last column or row.
        resampling: how the frame is resized, see `ViewConfig`.
    """

    video_size: Size
    resized: Size
    size: Size
    corner: Size = (0, 0)
    resampling: Resampling = "antialias"

    @property
    def network_size(self) -> Size:
        """Height and width of what the network sees at a time."""
        return self.size

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the view per pixel of the video, along x and y."""
        return self.resized[1] / self.video_size[1], self.resized[0] / self.video_size[0]

    def apply(self, frames: UInt8[Tensor, "*t c h w"] | Float[Tensor, "*t c h w"]) -> Float[Tensor, "*t c y x"]:
        """Frames of the video as the network sees them, in [0, 1]; 8-bit frames are divided by 255.

        Raises:
            ValueError: frames of another size than `video_size`.
        """
        if tuple(frames.shape[-2:]) != self.video_size:
            raise ValueError(f"this view is made for frames of {self.video_size}, got {tuple(frames.shape[-2:])}")
        flat = frames.reshape(-1, *frames.shape[-3:])
        dtype = torch.float32 if frames.dtype == torch.uint8 else frames.dtype
        seen = torch.empty(*flat.shape[:2], *self.size, dtype=dtype, device=frames.device)
        # One frame after the other: at the video's pixels every copy of a window counts.
        for i in range(len(flat)):
            whole = _resample(flat[i : i + 1], self.resized, self.resampling)
            seen[i] = _window(whole, self.corner, self.size)[0]
        return seen.reshape(*frames.shape[:-2], *self.size)

    def to_view(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Positions `(x, y)` in the video as positions in the view."""
        return xy * xy.new_tensor(self.scale) - xy.new_tensor(self.corner[::-1])

    def to_video(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Positions `(x, y)` in the view as positions in the video."""
        return (xy + xy.new_tensor(self.corner[::-1])) / xy.new_tensor(self.scale)

    def flow_to_video(self, flow: Float[Tensor, "*t 2 y x"]) -> Float[Tensor, "*t 2 y x"]:
        """Flow in pixels of the view as flow in pixels of the video, on the same grid."""
        return flow / flow.new_tensor(self.scale).view(2, 1, 1)

    def visible(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The part of the video's frame that the view shows: its corners (x, y), top left and bottom right."""
        ends = torch.tensor([[0, 0], [self.size[1], self.size[0]]], dtype=torch.float64)
        (left, top), (right, bottom) = self.to_video(ends).tolist()
        return (left, top), (min(right, float(self.video_size[1])), min(bottom, float(self.video_size[0])))

    def intrinsics_to_view(self, intrinsics: Float[Tensor, "*t 3 3"]) -> Float[Tensor, "*t 3 3"]:
        """Pinhole matrices in pixels of the video as such in pixels of the view."""
        return cropped_intrinsics(resized_intrinsics(intrinsics, self.video_size, self.resized), self.corner)

    def intrinsics_to_video(self, intrinsics: Float[Tensor, "*t 3 3"]) -> Float[Tensor, "*t 3 3"]:
        """Pinhole matrices in pixels of the view as such in pixels of the video."""
        whole = cropped_intrinsics(intrinsics, (-self.corner[0], -self.corner[1]))
        return resized_intrinsics(whole, self.resized, self.video_size)

    def restore(self, maps: Float[Tensor, "*t c y x"], fill: float = float("nan")) -> Float[Tensor, "*t c h w"]:
        """Maps over the view as maps at the video's pixels, bilinear; `fill` where the view shows nothing.

        Numbers are carried over as they are: see `flow_to_video` for those that are measured in pixels. Those that are
        not finite are unknown: they do not count, and where they had more than half of the weight there is NaN.

        Raises:
            ValueError: maps of another size than `size`.
        """
        if tuple(maps.shape[-2:]) != self.size:
            raise ValueError(f"this view gives maps of {self.size}, got {tuple(maps.shape[-2:])}")
        if self.video_size == self.resized == self.size and self.corner == (0, 0):
            return maps
        xy = self.to_view(pixel_centres(self.video_size).to(maps.device))
        extent = xy.new_tensor(self.size[::-1])
        grid, outside = (xy * (2 / extent) - 1)[None], ((xy < 0) | (xy > extent)).any(-1)
        restored = maps.new_empty(*maps.shape[:-2], *self.video_size)
        # One frame after the other: at the video's pixels every copy of a window counts.
        flat, targets = maps.reshape(-1, *maps.shape[-3:]), restored.view(-1, *restored.shape[-3:])
        for i in range(len(flat)):
            targets[i] = _sampled(flat[i : i + 1].float(), grid)[0].masked_fill_(outside, fill)
        return restored


@attrs.frozen(kw_only=True)
class TiledView(View):
    """The whole frame at `size`, which the network sees in overlapping tiles, and once as a whole.

    Attributes:
        tile: height and width of the network's input.
        overlap: the least share of its side that a tile has in common with the next one.
    """

    tile: Size
    overlap: float = OVERLAP

    @property
    def network_size(self) -> Size:
        """Height and width of what the network sees at a time."""
        return self.tile

    @property
    def whole(self) -> View:
        """The whole frame of the video at the network's size."""
        return View(self.video_size, self.tile, self.tile, resampling=self.resampling)

    @property
    def starts(self) -> tuple[list[int], list[int]]:
        """The rows and the columns of the frame at `size` in which tiles begin: all their pairs are corners."""
        rows, columns = (_starts(*sides, self.overlap) for sides in zip(self.size, self.tile, strict=True))
        return rows, columns

    @property
    def tiles(self) -> list[View]:
        """The tiles, each as a view of the frame at `size`."""
        rows, columns = self.starts
        return [View(self.size, self.size, self.tile, (row, column)) for row in rows for column in columns]


def short_side(video_size: Size, pixels: int, multiple: Size = (1, 1)) -> View:
    """The whole frame with its shorter side at `pixels`, both sides rounded to the nearest multiple."""
    scale = pixels / min(video_size)
    return exact(video_size, _rounded((video_size[0] * scale, video_size[1] * scale), multiple))


def exact(video_size: Size, size: Size) -> View:
    """The whole frame at a stated height and width, whatever becomes of its proportions."""
    return View(video_size, resized=size, size=size)


def center(
    video_size: Size, pixels: int, multiple: Size = (1, 1), height: int | None = None, width: int | None = None
) -> View:
    """The middle square of `pixels` (rounded to the multiple) after resizing.

    Args:
        height: of the resized frame; none: so that the square just fits into it.
        width: likewise.
    Raises:
        ValueError: the square is larger than the resized frame.
    """
    size = _rounded((pixels, pixels), multiple)
    scale = max(size[0] / video_size[0], size[1] / video_size[1])
    fitting = max(size[0], round(video_size[0] * scale)), max(size[1], round(video_size[1] * scale))
    resized = height or fitting[0], width or fitting[1]
    if resized[0] < size[0] or resized[1] < size[1]:
        raise ValueError(f"a square of {size[0]} pixels does not fit into frames of {_by(resized)} (height x width)")
    return View(video_size, resized, size, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2))


def original(video_size: Size, multiple: Size = (1, 1)) -> View:
    """Every pixel as it is; right and lower edges are repeated up to the multiple, so that nothing is lost."""
    size = -(-video_size[0] // multiple[0]) * multiple[0], -(-video_size[1] // multiple[1]) * multiple[1]
    return View(video_size, resized=video_size, size=size)


def tiled(video_size: Size, tile: Size, side: int, overlap: float = OVERLAP) -> View:
    """Tiles over the frame with its shorter side at `side`, or at its own size where that is smaller.

    A side of the frame that is shorter than the tile's is stretched to it. A video that has no more pixels than a tile
    is shown as a whole only.
    """
    scale = min(side / min(video_size), 1)
    size = max(tile[0], round(video_size[0] * scale)), max(tile[1], round(video_size[1] * scale))
    if size == tile:
        return exact(video_size, tile)
    return TiledView(video_size, size, size, tile=tile, overlap=overlap)


@attrs.frozen(kw_only=True)
class ViewConfig:
    """How a recipe says what the network sees of a frame; a part of the section `[data]`."""

    view: Rule = "short_side"
    """short_side: all of the frame, its shorter side at `pixels`; center: its middle square of `pixels`; resize: all of
    the frame at `height` by `width`, whatever becomes of its proportions; tiles: resize, and overlapping tiles of the
    same size over a larger frame, which sharpen maps and tracks; original: no resizing."""
    pixels: int = attrs.field(default=224, validator=attrs.validators.gt(0))
    """The shorter side (short_side) or the square's side (center, resize, tiles); every side is rounded to what the
    backbone accepts, which may change the proportions by a few percent."""
    height: int | None = None
    """Rows of the network's input (resize, tiles; none: `pixels`), or of the frame before its middle is taken (center;
    none: as few as will do)."""
    width: int | None = None
    """Columns, likewise."""
    tile_side: int | None = None
    """The shorter side of the frame over which tiles are laid; none: twice the network's. A video is not enlarged."""
    tile_overlap: float = OVERLAP
    """The least share of its side that a tile has in common with the next one."""
    resampling: Resampling = "antialias"
    """antialias: a pixel is the mean of what it covers; bilinear: of the nearest four, which aliases where much is left
    out; round_trip: antialias in 8 bits to the network's size and back, then bilinear. The published weights of L4P
    have seen round_trip."""

    def __attrs_post_init__(self) -> None:
        if self.view not in ("resize", "center", "tiles") and (self.height, self.width) != (None, None):
            raise ValueError(f'height and width belong to the views "resize", "center" and "tiles", not "{self.view}"')
        if any(side is not None and side < 1 for side in (self.height, self.width)):
            raise ValueError("height and width must be above 0")
        if self.view != "tiles" and (self.tile_side, self.tile_overlap) != (None, OVERLAP):
            raise ValueError(f'tile_side and tile_overlap belong to the view "tiles", not to "{self.view}"')
        if self.tile_side is not None and self.tile_side <= min(self._stated):
            raise ValueError(f"tile_side = {self.tile_side} is no more than the network sees: {_by(self._stated)}")
        if not 0 < self.tile_overlap <= 0.75:
            raise ValueError(f"tile_overlap is a share of a tile's side, above 0 and at most 0.75: {self.tile_overlap}")

    @property
    def _stated(self) -> Size:
        return self.height or self.pixels, self.width or self.pixels

    def view_of(self, video_size: Size, multiple: Size = (1, 1)) -> View:
        """The view of a video of this size for a backbone that takes multiples of `multiple` (rows, columns).

        Raises:
            ValueError: a stated size that is no multiple; a video smaller than one patch.
        """
        if video_size[0] < multiple[0] or video_size[1] < multiple[1]:
            raise ValueError(
                f"frames of {_by(video_size)} (height x width) are smaller than one patch of the backbone, "
                f"{_by(multiple)}; name a larger data.video"
            )
        return attrs.evolve(self._plain_view(video_size, multiple), resampling=self.resampling)

    def _plain_view(self, video_size: Size, multiple: Size) -> View:
        if self.view == "short_side":
            return short_side(video_size, self.pixels, multiple)
        if self.view == "center":
            return center(video_size, self.pixels, multiple, self.height, self.width)
        if self.view == "original":
            return original(video_size, multiple)
        size, near = self._stated, _rounded(self._stated, multiple)
        if size != near:
            raise ValueError(f"height x width must be multiples of {_by(multiple)}: {_by(size)} is not, {_by(near)} is")
        if self.view == "resize":
            return exact(video_size, size)
        return tiled(video_size, size, self.tile_side or 2 * min(size), self.tile_overlap)


def _rounded(size: tuple[int | float, int | float], multiple: Size) -> Size:
    height, width = (max(1, round(side / step)) * step for side, step in zip(size, multiple, strict=True))
    return height, width


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where the fewest tiles begin that cover a side and overlap by at least this share, evenly."""
    step = max(1, int(tile * (1 - overlap)))
    last = -(-(side - tile) // step)
    return [i * (side - tile) // last for i in range(last + 1)] if last else [0]


def _resample(
    frames: UInt8[Tensor, "t c h w"] | Float[Tensor, "t c h w"], size: Size, resampling: Resampling
) -> Float[Tensor, "t c y x"]:
    own = frames.shape[-2], frames.shape[-1]
    if resampling == "round_trip" and size != own:
        # In the frames' own type: torch's rounding of 8-bit frames is within 1 of Pillow's, which L4P's readers use.
        frames = _averaged(_averaged(frames, size), own)
    values = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    if size == own:
        return values
    if resampling == "antialias":
        return _averaged(values, size).clamp(0, 1)  # a sum of weights may exceed one by a rounding error
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def _averaged(frames: Tensor, size: Size) -> Tensor:
    return F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)


def _sampled(maps: Float[Tensor, "1 c y x"], grid: Float[Tensor, "1 h w 2"]) -> Float[Tensor, "1 c h w"]:
    """Bilinear, over the numbers that are known; NaN where those have less than half of the weight."""
    sample = partial(F.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    known = maps.isfinite().all(1, keepdim=True)
    if known.all():
        return sample(maps)
    weight = sample(known.float())
    # Half of the weight may come out as a little less.
    return sample(maps.where(known, 0.0)).div_(weight).masked_fill_(weight < 0.4999, torch.nan)


def _window(values: Float[Tensor, "*t c h w"], corner: Size, size: Size) -> Float[Tensor, "*t c y x"]:
    height, width = values.shape[-2:]
    if corner == (0, 0) and size == (height, width):
        return values
    rows = torch.arange(corner[0], corner[0] + size[0], device=values.device).clamp(max=height - 1)
    columns = torch.arange(corner[1], corner[1] + size[1], device=values.device).clamp(max=width - 1)
    return values[..., rows[:, None], columns]
