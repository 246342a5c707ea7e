"""Points that are followed through a video, from what data sets say of them."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.geometry import transform


def tracks_of_points(
    xy: Float[Tensor, "t n 2"],
    visible: Bool[Tensor, "t n"],
    valid: Bool[Tensor, "t n"],
    world: Float[Tensor, "t n 3"],
    cam_from_world: Float[Tensor, "t 4 4"],
) -> Tracks:
    """Tracks of points whose places in the pictures and in the world are known, `1 t n ...` in single precision.

    A point is live where it is valid, its numbers are finite and it is in front of the camera; elsewhere it is at 0.
    """
    camera = transform(cam_from_world[:, None], world)
    depth = camera[..., 2]
    live = valid & xy.isfinite().all(-1) & camera.isfinite().all(-1) & (depth > 0)

    def kept(values: Tensor) -> Tensor:
        mask = live.view(*live.shape, *[1] * (values.ndim - 2))
        return values.where(mask, 0.0).float()[None]

    return Tracks(
        kept(xy), kept(visible.float()), live[None], kept(depth), kept(world), kept(camera), unit="m"
    )  # fmt: skip
