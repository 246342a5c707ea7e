"""L4P's cameras: a decoder of rays, and the cameras whose rays they are."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.data import Cameras, Clip, Tokens
from fourd_core.errors import RecipeError
from fourd_core.geometry import assumed_intrinsics, cameras_from_rays
from fourd_core.interfaces import BackboneSpec, Use
from fourd_core.stitching import Overwrite
from fourd_core.stitching_geometry import JointSimilarity
from fourd_dpt3d.decoder3d import Factors
from fourd_dpt3d.dense3d import UP_TO_SCALE, DecoderHead, HeadConfig

UNKNOWN = (
    'has intrinsics = "known", and nobody states them: give data.intrinsics = [fx, fy, cx, cy], or have them estimated '
    'by intrinsics = "shared"'
)


class CameraRays(DecoderHead):
    """Cameras of a video's frames, from the rays that a decoder predicts on a coarse grid: L4P's head `camray`.

    The world is about the frame of the window's first camera: its own pose is predicted too, and near the identity.
    Source: Badki et al., L4P (arXiv 2502.13078), camera pose estimation.
    """

    task, kind, channels, unit = "camray", "cameras", 6, UP_TO_SCALE

    @attrs.frozen
    class Config(HeadConfig):
        """The defaults are L4P's."""

        reassemble: tuple[Factors, Factors, Factors, Factors] = (
            (2.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5),
        )  # fmt: skip
        """How each tap's tokens are resampled along frames, rows and columns: whole numbers enlarge, 0.5 halves."""
        upsample: tuple[int, int, int] = (1, 1, 1)
        """By how much the fused map is enlarged before the last layers."""
        ray_grid: int = attrs.field(default=16, validator=attrs.validators.ge(4))
        """Rays along each side of a frame."""
        intrinsics: Literal["shared", "per_frame", "known"] = "shared"
        """Where neither the data nor a memory state them: estimated from the window's first frame for all its frames
        ("shared"), for each frame by itself, or not at all: then the data must."""
        later_poses: Literal["estimate", "assumed"] = "estimate"
        """The intrinsics with which rotations are found in the windows after the first, for which a memory states some:
        those, or, as in L4P's release, a guess (the shorter side as focal length, the axis through the middle)."""
        stitch: Literal["joint", "overwrite"] = "joint"
        """Bring each window's cameras and depth into the first one's world, or leave each window in its own."""
        depth: str | None = "depth"
        """Name of the depth head that is stitched jointly with this one; none: the cameras are joined alone."""
        point_share: float = attrs.field(default=0.1, validator=[attrs.validators.gt(0), attrs.validators.le(1)])
        """Part of the points of some shared frames by which two windows are joined."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__(config, backbone)
        self.camera_config = config
        # A fresh decoder's rays look ahead: what is found of rays in all directions is noise.
        bias = self.dpt.last.bias
        assert bias is not None
        nn.init.zeros_(bias).data[2] = 1.0
        self.stitch = JointSimilarity(config.depth, config.point_share) if config.stitch == "joint" else Overwrite()

    @classmethod
    def example(cls) -> Any:
        """A narrow decoder of few rays; the cameras of a fresh decoder's rays shake less the fewer they are."""
        return attrs.evolve(super().example(), ray_grid=4)

    def check_use(self, use: Use) -> None:
        """The depth head must be there; intrinsics that shall be known, stated; and stated ones, used."""
        name = self.camera_config.depth if self.camera_config.stitch == "joint" else None
        if name is not None and (name not in use.heads or use.heads[name].kind != "depth"):
            raise ValueError(
                f'is stitched jointly with a depth head "{name}", and the recipe has none of that name; name one by '
                'depth = "...", or join the cameras alone by depth = "none"'
            )
        if self.camera_config.intrinsics == "known" and not use.intrinsics:
            raise ValueError(UNKNOWN)
        if self.camera_config.later_poses == "assumed" and use.intrinsics:
            raise ValueError(
                'has later_poses = "assumed", which finds rotations with made-up intrinsics, and the data states some; '
                "leave later_poses or data.intrinsics out"
            )

    def forward(self, tokens: Tokens, clip: Clip) -> Cameras:
        """A camera for every frame, with the clip's intrinsics where it states them.

        Raises:
            RecipeError: the intrinsics must be known and are not.
        """
        rays, intrinsics = self.rays(tokens, clip), clip.intrinsics
        if intrinsics is not None and self.camera_config.later_poses == "assumed":
            return self.cameras(rays, clip.size, intrinsics, self._assumed(clip))
        if intrinsics is None and self.camera_config.intrinsics == "known":
            if not clip.frames.is_meta:  # a recipe that is being checked
                raise RecipeError(f"a camera_rays head {UNKNOWN}")
            intrinsics = self._assumed(clip)
        return self.cameras(rays, clip.size, intrinsics)

    def rays(self, tokens: Tokens, clip: Clip) -> Float[Tensor, "b t 6 g g"]:
        """Directions and moments (`fourd_core.geometry.rays`) in the frame of the first camera, not normalised."""
        grid = self.camera_config.ray_grid
        return self.decoded(tokens, (clip.frames.shape[1], grid, grid))

    def cameras(
        self,
        rays: Float[Tensor, "b t 6 g g"],
        size: tuple[int, int],
        intrinsics: Float[Tensor, "b t 3 3"] | None = None,
        assumed: Float[Tensor, "b t 3 3"] | None = None,
    ) -> Cameras:
        """The cameras of these rays.

        Args:
            size: height and width of the frames to which the intrinsics belong.
            intrinsics: where they are known; none: they are estimated as configured.
            assumed: the intrinsics with which the rotations are found, in place of the known ones.
        """
        estimate: Literal["shared", "per_frame"] = (
            "per_frame" if self.camera_config.intrinsics == "per_frame" else "shared"
        )
        used = intrinsics if assumed is None else assumed
        found = cameras_from_rays(rays, size, estimate if used is None else used)
        return Cameras(found.ref_from_cam, found.intrinsics if intrinsics is None else intrinsics, unit=self.unit)

    def _assumed(self, clip: Clip) -> Float[Tensor, "b t 3 3"]:
        return assumed_intrinsics(clip.size, clip.frames.device).expand(*clip.frames.shape[:2], 3, 3)
