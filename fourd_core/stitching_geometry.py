"""Windows whose scale or world is their own: brought onto what stands by the frames that they share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fourd_core.data import Cameras, Maps, Prediction
from fourd_core.errors import RecipeError
from fourd_core.geometry import (
    Similarity,
    aligned_in_disparity,
    closest_rotation,
    fit_affine,
    fit_scale,
    rotate,
    safe_inverse,
    sampled_points,
    similarity_between,
)
from fourd_core.geometry.numerics import accurate
from fourd_core.stitching import Stitch

EVERY = 3
"""Of the shared frames, how many there are to one whose points are compared."""
FAR = 0.98
"""Quantile of the depth that stands for the size of what is seen."""
INLIER = 0.01
"""Of that depth: how far apart two points that are the same may be."""


class AffineDisparity(Stitch):
    """Depth: scale and shift of its inverse are those of least squared error in the shared frames.

    What has no positive disparity afterwards gets depth 0. Source: L4P, inference on long videos.
    """

    needs_overlap = True

    def join(
        self, name: str, window: Mapping[str, Prediction], before: Mapping[str, Prediction]
    ) -> dict[str, Prediction]:
        """The window in the unit of what stands."""
        depth, stood = cast(Maps, window[name]), cast(Maps, before[name])
        shared = depth.frames(0, stood.frame_count)
        fit = fit_affine(safe_inverse(shared.values), safe_inverse(stood.values))
        return {name: attrs.evolve(depth, values=aligned_in_disparity(depth.values, fit))}


class MedianScale(Stitch):
    """Depth: the scale is the median of the ratios in the shared frames."""

    needs_overlap = True

    def join(
        self, name: str, window: Mapping[str, Prediction], before: Mapping[str, Prediction]
    ) -> dict[str, Prediction]:
        """The window in the unit of what stands."""
        depth, stood = cast(Maps, window[name]), cast(Maps, before[name])
        fit = fit_scale(depth.frames(0, stood.frame_count).values, stood.values)
        return {name: attrs.evolve(depth, values=fit(depth.values))}


class JointSimilarity(Stitch):
    """Cameras and depth together: one scale, rotation and translation for both, from the points of the shared frames.

    Points of every third shared frame are compared, a part of them drawn at random; the same ones whenever it is done
    again. Where too few of them agree on any similarity, scale is the median ratio of the depths, and rotation and
    translation are what brings the shared frames' cameras together. Without a depth head of the stated name the
    cameras are brought together alone, their scale too; it is then only as good as the cameras have moved.
    Source: L4P's public release, joint alignment of depth and cameras.

    Args:
        depth: name of the head that predicts depth, if any.
        share: part of the points that are compared.
    """

    needs_overlap = True

    def __init__(self, depth: str | None = "depth", share: float = 0.1) -> None:
        self.partners = () if depth is None else (depth,)
        self.share = share

    def join(
        self, name: str, window: Mapping[str, Prediction], before: Mapping[str, Prediction]
    ) -> dict[str, Prediction]:
        """The window in the world of what stands.

        Raises:
            RecipeError: the partner predicts something else than depth.
        """
        cameras, stood = cast(Cameras, window[name]), cast(Cameras, before[name])
        shared = cameras.frames(0, stood.frame_count)
        partner = next(iter(self.partners), None)
        if partner is None or partner not in window:
            similarity = similarity_of_poses(shared.world_from_cam, stood.world_from_cam)
            return {name: attrs.evolve(cameras, world_from_cam=similarity.poses(cameras.world_from_cam))}
        depth, depth_stood = _depth(window, partner), _depth(before, partner)
        similarity = self.similarity(
            shared, depth.values[:, : stood.frame_count, 0], stood, depth_stood.values[:, :, 0]
        )
        return {
            name: attrs.evolve(cameras, world_from_cam=similarity.poses(cameras.world_from_cam)),
            partner: attrs.evolve(depth, values=similarity.depth(depth.values[:, :, 0])[:, :, None]),
        }

    def similarity(
        self, cameras: Cameras, depth: Float[Tensor, "b t h w"], stood: Cameras, depth_stood: Float[Tensor, "b t h w"]
    ) -> Similarity:
        """What brings the shared frames of a window onto the same frames as they stand."""
        chosen = list(range(0, depth.shape[1], EVERY))
        index = self.points(depth[0, chosen].numel()).to(depth.device)
        mine, theirs = (
            sampled_points(z[:, chosen], c.intrinsics[:, chosen], c.world_from_cam[:, chosen], index)
            for z, c in ((depth, cameras), (depth_stood, stood))
        )
        agreement = similarity_between(mine, theirs, INLIER * quantile(depth.flatten(1), FAR))
        ratio = fit_scale(depth, depth_stood).scale
        otherwise = similarity_of_poses(cameras.world_from_cam, stood.world_from_cam, ratio)
        return _chosen(agreement.found, agreement.similarity, otherwise)

    def points(self, count: int) -> Int[Tensor, " n"]:
        """Which of `count` points are compared."""
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(count, generator=generator)[: max(1, int(count * self.share))]


def _depth(predictions: Mapping[str, Prediction], name: str) -> Maps:
    item = predictions[name]
    if not isinstance(item, Maps) or item.kind != "depth":
        raise RecipeError(
            f"[heads.{name}] shall be joined with cameras, and does not predict depth; name one that does"
        )
    return item


def similarity_of_poses(
    source: Float[Tensor, "b t 4 4"], target: Float[Tensor, "b t 4 4"], scale: Float[Tensor, " b"] | None = None
) -> Similarity:
    """The similarity that brings cameras onto the same cameras in another world.

    The rotation is the mean of the cameras' rotations, the translation brings the mean centres together.

    Args:
        scale: where it is known; none: the ratio of the spreads of the centres, 1 for cameras that stand still.
    """
    turned = accurate(target)[..., :3, :3] @ accurate(source)[..., :3, :3].mT
    rotation = closest_rotation(turned.sum(1)).to(source.dtype)
    x, y = source[..., :3, 3], target[..., :3, 3]
    x_mean, y_mean = x.mean(1), y.mean(1)
    if scale is None:
        x_spread, y_spread = ((c - m[:, None]).square().sum((1, 2)).sqrt() for c, m in ((x, x_mean), (y, y_mean)))
        tiny = 1e-6 * (1 + x_mean.norm(dim=-1) + y_mean.norm(dim=-1))
        moved = (x_spread > tiny) & (y_spread > tiny)
        scale = torch.where(moved, y_spread / torch.where(moved, x_spread, 1.0), 1.0)
    return Similarity(scale, rotation, y_mean - scale[:, None] * rotate(rotation, x_mean))


def quantile(values: Float[Tensor, "b n"], q: float) -> Float[Tensor, " b"]:
    """The quantile of each row, interpolated as by `torch.quantile`, which refuses more than 2^24 numbers."""
    place = q * (values.shape[1] - 1)
    low, high = (values.kthvalue(k + 1, dim=1).values for k in (int(place), min(int(place) + 1, values.shape[1] - 1)))
    return low + (place - int(place)) * (high - low)


def _chosen(first: Tensor, similarity: Similarity, otherwise: Similarity) -> Similarity:
    """One of two similarities for each entry of the batch."""
    return Similarity(
        torch.where(first, similarity.scale, otherwise.scale),
        torch.where(first[:, None, None], similarity.rotation, otherwise.rotation),
        torch.where(first[:, None], similarity.translation, otherwise.translation),
    )
