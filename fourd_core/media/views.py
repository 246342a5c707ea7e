"""How a frame of a video becomes a network's input, and how positions and maps find their way back.

A View resizes the whole frame and takes a window of it. Coordinates are continuous with pixel centres at +0.5 (see
`fourd_core.data`), so resizing multiplies them and the window subtracts its corner; nothing else happens.
"""

from __future__ import annotations

from typing import Literal

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Size = tuple[int, int]
Rule = Literal["short_side", "center", "resize", "original"]


@attrs.frozen
class View:
    """A resized window of a video's frames.

    Attributes:
        video_size: height and width of the video.
        resized: height and width that the whole frame is resized to.
        size: height and width of the window, the network's input.
        corner: row and column of the window's top left corner in the resized frame. A window that reaches over the
            right or lower edge is filled up with the frame's last column or row.
    """

    video_size: Size
    resized: Size
    size: Size
    corner: Size = (0, 0)

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
        values = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        if self.resized != self.video_size:
            flat = values.reshape(-1, *values.shape[-3:])
            flat = F.interpolate(flat, self.resized, mode="bilinear", align_corners=False, antialias=True)
            # A sum of weights may exceed one by a rounding error.
            values = flat.clamp(0, 1).reshape(*values.shape[:-2], *self.resized)
        return _window(values, self.corner, self.size)

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
        ends = torch.tensor([[0.0, 0.0], [self.size[1], self.size[0]]])
        (left, top), (right, bottom) = self.to_video(ends).tolist()
        return (left, top), (min(right, float(self.video_size[1])), min(bottom, float(self.video_size[0])))

    def intrinsics_to_view(self, intrinsics: Float[Tensor, "*t 3 3"]) -> Float[Tensor, "*t 3 3"]:
        """Pinhole matrices in pixels of the video as such in pixels of the view."""
        seen: Tensor = self._pixel_map(intrinsics) @ intrinsics
        return seen

    def intrinsics_to_video(self, intrinsics: Float[Tensor, "*t 3 3"]) -> Float[Tensor, "*t 3 3"]:
        """Pinhole matrices in pixels of the view as such in pixels of the video."""
        back: Tensor = torch.linalg.inv(self._pixel_map(intrinsics)) @ intrinsics
        return back

    def _pixel_map(self, like: Tensor) -> Float[Tensor, "3 3"]:
        """Homogeneous positions in the video to positions in the view."""
        (sx, sy), (top, left) = self.scale, self.corner
        return like.new_tensor([[sx, 0, -left], [0, sy, -top], [0, 0, 1]])

    def restore(self, maps: Float[Tensor, "*t c y x"], fill: float = float("nan")) -> Float[Tensor, "*t c h w"]:
        """Maps over the view as maps at the video's pixels, bilinear; `fill` where the view shows nothing.

        Numbers are carried over as they are: see `flow_to_video` for those that are measured in pixels.

        Raises:
            ValueError: maps of another size than `size`.
        """
        if tuple(maps.shape[-2:]) != self.size:
            raise ValueError(f"this view gives maps of {self.size}, got {tuple(maps.shape[-2:])}")
        xy = self.to_view(_pixel_centres(self.video_size, maps.device))
        height, width = self.size
        grid = xy * xy.new_tensor([2 / width, 2 / height]) - 1
        flat = maps.float().reshape(-1, *maps.shape[-3:])
        flat = F.grid_sample(flat, grid.expand(len(flat), -1, -1, -1), padding_mode="border", align_corners=False)
        outside = ((xy < 0) | (xy > xy.new_tensor([width, height]))).any(-1)
        return flat.masked_fill(outside, fill).reshape(*maps.shape[:-2], *self.video_size).to(maps.dtype)


def short_side(video_size: Size, pixels: int, multiple: Size = (1, 1)) -> View:
    """The whole frame with its shorter side at `pixels`, both sides rounded to the nearest multiple."""
    scale = pixels / min(video_size)
    return exact(video_size, _rounded((video_size[0] * scale, video_size[1] * scale), multiple))


def exact(video_size: Size, size: Size) -> View:
    """The whole frame at a stated height and width, whatever becomes of its proportions."""
    return View(video_size, resized=size, size=size)


def center(video_size: Size, pixels: int, multiple: Size = (1, 1)) -> View:
    """The middle square of `pixels` (rounded to the multiple) after resizing so that it just fits into the frame."""
    size = _rounded((pixels, pixels), multiple)
    scale = max(size[0] / video_size[0], size[1] / video_size[1])
    resized = max(size[0], round(video_size[0] * scale)), max(size[1], round(video_size[1] * scale))
    return View(video_size, resized, size, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2))


def original(video_size: Size, multiple: Size = (1, 1)) -> View:
    """Every pixel as it is; right and lower edges are repeated up to the multiple, so that nothing is lost."""
    size = -(-video_size[0] // multiple[0]) * multiple[0], -(-video_size[1] // multiple[1]) * multiple[1]
    return View(video_size, resized=video_size, size=size)


@attrs.frozen(kw_only=True)
class ViewConfig:
    """How a recipe says what the network sees of a frame; a part of the section `[data]`."""

    view: Rule = "short_side"
    """short_side: all of the frame, its shorter side at `pixels`; center: its middle square of `pixels`; resize: all of
    the frame at `height` by `width`, whatever becomes of its proportions; original: no resizing."""
    pixels: int = attrs.field(default=224, validator=attrs.validators.gt(0))
    """The shorter side (short_side) or the square's side (center, resize); every side is rounded to what the backbone
    accepts, which may change the proportions by a few percent."""
    height: int | None = None
    """Rows, for the view resize; none: `pixels`."""
    width: int | None = None
    """Columns, for the view resize; none: `pixels`."""

    def __attrs_post_init__(self) -> None:
        if self.view != "resize" and (self.height, self.width) != (None, None):
            raise ValueError(f'height and width belong to the view "resize", not to "{self.view}"')
        if min(self.height or 1, self.width or 1) < 1:
            raise ValueError("height and width must be above 0")

    def view_of(self, video_size: Size, multiple: Size = (1, 1)) -> View:
        """The view of a video of this size for a backbone that takes multiples of `multiple` (rows, columns).

        Raises:
            ValueError: a stated size that is no multiple.
        """
        if self.view == "short_side":
            return short_side(video_size, self.pixels, multiple)
        if self.view == "center":
            return center(video_size, self.pixels, multiple)
        if self.view == "original":
            return original(video_size, multiple)
        size = self.height or self.pixels, self.width or self.pixels
        if size != _rounded(size, multiple):
            near = _rounded(size, multiple)
            raise ValueError(f"height and width must be multiples of {multiple}: {size} is not, {near} would be")
        return exact(video_size, size)


def _rounded(size: tuple[int | float, int | float], multiple: Size) -> Size:
    height, width = (max(1, round(side / step)) * step for side, step in zip(size, multiple, strict=True))
    return height, width


def _window(values: Float[Tensor, "*t c h w"], corner: Size, size: Size) -> Float[Tensor, "*t c y x"]:
    height, width = values.shape[-2:]
    if corner == (0, 0) and size == (height, width):
        return values
    rows = torch.arange(corner[0], corner[0] + size[0], device=values.device).clamp(max=height - 1)
    columns = torch.arange(corner[1], corner[1] + size[1], device=values.device).clamp(max=width - 1)
    return values[..., rows[:, None], columns]


def _pixel_centres(size: Size, device: torch.device) -> Float[Tensor, "h w 2"]:
    y, x = (torch.arange(side, device=device, dtype=torch.float32) + 0.5 for side in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
