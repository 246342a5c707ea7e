"""A generated scene with all its ground truth, as a picture or a film."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import Maps, Predictions, Tracks
from fourd_core.interfaces import Split
from fourd_core.media.panels import Size, arranged, fitted
from fourd_core.media.pictures import depth_picture, depth_range, flow_picture, grey, largest_flow, mask_picture
from fourd_core.media.trails import TRAIL, draw_tracks, point_colours
from fourd_core.media.writers import VideoWriter, write_png
from fourd_synth.dataset import Synth

PICTURES = 4
"""Frames that a PNG shows below each other."""


def preview(data: Synth, number: int, split: Split, path: Path, side: int = 224) -> None:
    """Write a video of the data set and everything that is known of it.

    Frames, depth, flow to the frame before and to the one behind, what moves, what was hidden in the frame before,
    which thing each pixel shows, and tracks, side by side.

    Args:
        path: an .mp4 shows all frames; anything else is a PNG of four of them.
        side: of each panel, in pixels.
    Raises:
        ValueError: there is no video of that number.
        RunError: the file cannot be written.
    """
    pictures = panels(data, number, split, side)
    if path.suffix == ".mp4":
        with VideoWriter(path, data.config.frame_rate) as writer:
            writer.write(pictures)
        return
    count = min(PICTURES, len(pictures))
    chosen = [round(i * (len(pictures) - 1) / max(count - 1, 1)) for i in range(count)]
    write_png(path, torch.cat([pictures[index] for index in chosen], 1))


def panels(data: Synth, number: int, split: Split, side: int) -> UInt8[Tensor, "t 3 y x"]:
    """The panels of every frame of a video as one picture.

    Raises:
        ValueError: there is no video of that number.
    """
    videos = data.videos(split)
    if not 0 <= number < len(videos):
        raise ValueError(f'there is no video {number}: "{split}" has {len(videos)}')
    video = videos[number]
    order = list(range(video.frame_count))
    behind = video.truth(order[::-1])["flow"].map(lambda tensor: tensor.flip(1))
    scene, truth = video.scene(order, 0), video.truth(order)
    frames, size = (scene.colour[0] * 255).round().byte(), (side, side)
    large = _enlarged(frames, size)
    near, far = depth_range(truth.depth) or (1.0, 1.0)
    longest = largest_flow(truth.flow[0])
    shown = {
        "frames": large,
        f"depth {near:.3g} - {far:.3g} m": _enlarged(depth_picture(truth.depth[0], near, far), size),
        f"flow to the frame before {longest:.3g} px": _enlarged(flow_picture(truth.flow[0], longest), size),
        "flow to the next frame": _enlarged(flow_picture(_values(behind)[0], longest), size),
        "moves": mask_picture(large, _nearest(truth.motion[0], size)),
        "hidden in the frame before": mask_picture(large, _nearest(scene.occluded[0, :, 0], size)),
        "things": _enlarged(_things(scene.slot[0]), size),
        "tracks": _tracks(truth, large, data.config.pixels),
    }
    return arranged(list(shown), list(shown.values()))


def _values(prediction: object) -> Float[Tensor, "b t c h w"]:
    assert isinstance(prediction, Maps)
    return prediction.values


def _enlarged(pictures: UInt8[Tensor, "t 3 h w"], size: Size) -> UInt8[Tensor, "t 3 y x"]:
    """Pictures at a panel's size; small ones keep their pixels as squares."""
    if pictures.shape[-1] >= size[1]:
        return fitted(pictures, size)
    return F.interpolate(pictures, size, mode="nearest-exact")


def _nearest(maps: Float[Tensor, "t 1 h w"], size: Size) -> Float[Tensor, "t 1 y x"]:
    return F.interpolate(maps, size, mode="nearest-exact")


def _things(slot: Tensor) -> UInt8[Tensor, "t 3 h w"]:
    """A colour for each thing; the background is dark."""
    colours = torch.cat([torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]]), point_colours(torch.arange(64.0))[::3]])
    return (colours[slot[:, 0] % len(colours)] * 255).byte().permute(0, 3, 1, 2)


def _tracks(truth: Predictions, frames: UInt8[Tensor, "t 3 h w"], pixels: int) -> UInt8[Tensor, "t 3 h w"]:
    canvas = (grey(frames) * 255).round().byte()
    if "tracks" not in truth:
        return canvas.expand(-1, 3, -1, -1)
    tracks = truth["tracks"]
    assert isinstance(tracks, Tracks)
    xy = torch.where(tracks.live[0, ..., None], tracks.xy[0], torch.nan) * (frames.shape[-1] / pixels)
    seen, colours = tracks.visibility[0] > 0.5, point_colours(xy[0, :, 1].nan_to_num(0.0))
    drawn = []
    for index, picture in enumerate(canvas):
        past = slice(max(0, index - TRAIL), index + 1)
        drawn.append(draw_tracks(picture.expand(3, -1, -1), xy[past], seen[past], colours))
    return torch.stack(drawn)
