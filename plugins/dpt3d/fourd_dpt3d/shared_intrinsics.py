"""One pinhole for a whole video: the first window's."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from fourd_core.data import Cameras, Clip, Prediction, Tokens
from fourd_core.errors import RecipeError
from fourd_core.interfaces import BackboneSpec, Head, Memory, State
from fourd_dpt3d.camera_rays import CameraRays


class SharedIntrinsics(Memory):
    """The intrinsics of a video's first frame, handed to the windows after the first; stated ones are left alone.

    Source: L4P's public release, fixed intrinsics.
    """

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()

    @classmethod
    def example_head(cls, backbone: BackboneSpec) -> Head:
        """A head that predicts cameras, for the contract tests."""
        return CameraRays(attrs.evolve(CameraRays.example(), taps=(0, 0, -1, -1)), backbone)

    @classmethod
    def example_spec(cls) -> BackboneSpec:
        """That of the head."""
        return CameraRays.example_spec()

    def initial(self, tokens: Tokens, clip: Clip) -> dict[str, Any]:
        """Nothing is known yet."""
        return {"known": 0, "intrinsics": torch.zeros(len(clip.frames), 3, 3, device=clip.frames.device)}

    def read(self, state: State, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        """The clip with the remembered intrinsics, once there are any."""
        if clip.intrinsics is not None or not state["known"]:
            return tokens, clip
        every_frame = state["intrinsics"][:, None].expand(-1, clip.frames.shape[1], -1, -1)
        return tokens, attrs.evolve(clip, intrinsics=every_frame)

    def update(self, state: State, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> dict[str, Any]:
        """Remember the first window's; of one in which none can be found (a black leader, say), nothing.

        Raises:
            RecipeError: the head predicts no cameras.
        """
        if not isinstance(prediction, Cameras):
            raise RecipeError(
                'the memory "shared_intrinsics" serves a head that predicts cameras, and this one does not'
            )
        if state["known"]:
            return dict(state)
        first = prediction.intrinsics[:, 0].detach().float()
        return {"known": int(first.is_meta or bool(first.isfinite().all())), "intrinsics": first}
