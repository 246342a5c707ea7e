"""Similarity transforms (scale, rotation, translation) between point sets, also where many points are wrong."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fourd_core.geometry.cameras import rigid, rotate
from fourd_core.geometry.numerics import accurate, at_least_single, closest_rotation, draw

HYPOTHESES = 256
"""Samples of three points: at 50 % (70 %) outliers one of them is clean but for a chance of 1e-15 (1e-3)."""
SCORED = 1024
"""Points by which hypotheses are compared; the winner is refined on all."""
REFITS = 20
"""Rounds in which the inliers may change; two or three are usual."""


@attrs.frozen(eq=False)
class Similarity:
    """`x -> scale * rotation x + translation`, one for each entry of a batch."""

    scale: Float[Tensor, "*b"]
    rotation: Float[Tensor, "*b 3 3"]
    translation: Float[Tensor, "*b 3"]

    def points(self, points: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*#b n 3"]:
        """Points where the transform takes them."""
        turned = rotate(self.rotation[..., None, :, :], points)
        return self.scale[..., None, None] * turned + self.translation[..., None, :]

    def poses(self, world_from_cam: Float[Tensor, "*b t 4 4"]) -> Float[Tensor, "*b t 4 4"]:
        """Cameras that stand in the transformed world as they did in the old one, where depths are times `scale`."""
        rotation = rotate(self.rotation[..., None, None, :, :], world_from_cam[..., :3, :3].mT).mT
        return rigid(rotation, self.points(world_from_cam[..., :3, 3]))

    def depth(self, depth: Float[Tensor, "*b t h w"]) -> Float[Tensor, "*b t h w"]:
        """Depth in the unit of the transformed world."""
        return depth * self.scale[..., None, None, None]

    def matrix(self) -> Float[Tensor, "*b 4 4"]:
        """The same as one matrix; its upper left block is `scale * rotation`."""
        return rigid(self.scale[..., None, None] * self.rotation, self.translation)

    def to(self, dtype: torch.dtype) -> Similarity:
        """The same in another precision."""
        return Similarity(self.scale.to(dtype), self.rotation.to(dtype), self.translation.to(dtype))


def umeyama(
    source: Float[Tensor, "*b n 3"],
    target: Float[Tensor, "*b n 3"],
    weights: Float[Tensor, "*b n"] | Bool[Tensor, "*b n"] | None = None,
) -> Similarity:
    """The similarity that brings `source` onto `target` with the least weighted squared distance.

    Pairs with a coordinate that is not finite do not count. Where all points agree, scale and rotation stay 1; where
    there are none, the answer is the identity. Source: Umeyama, Least-squares estimation of transformation parameters
    (PAMI 1991).

    Args:
        weights: >= 0, or a mask; none: all points count alike.
    """
    valid = _finite(source, target)
    w = valid.to(accurate(source)) if weights is None else torch.where(valid, accurate(weights), 0.0)
    x, y = (torch.where(valid[..., None], accurate(points), 0.0) for points in (source, target))
    total = w.sum(-1)
    share = (w / torch.where(total > 0, total, 1.0)[..., None])[..., None]
    x_mean, y_mean = (share * x).sum(-2, keepdim=True), (share * y).sum(-2, keepdim=True)
    x, y = x - x_mean, y - y_mean
    covariance = (share * y).mT @ x
    rotation = closest_rotation(covariance)
    variance = (share * x * x).sum((-1, -2))
    size = (x_mean * x_mean).sum((-1, -2)).detach() + variance.detach()
    spread = variance > (16 * torch.finfo(x.dtype).eps) ** 2 * size
    scale = torch.where(spread, (rotation * covariance).sum((-1, -2)), 1.0) / torch.where(spread, variance, 1.0)
    translation = (y_mean - scale[..., None, None] * rotate(rotation[..., None, :, :], x_mean))[..., 0, :]
    return Similarity(scale, rotation, translation).to(at_least_single(source))


def _finite(source: Float[Tensor, "*b n 3"], target: Float[Tensor, "*b n 3"]) -> Bool[Tensor, "*b n"]:
    return (source.isfinite() & target.isfinite()).all(-1)


@attrs.frozen(eq=False)
class Agreement:
    """A similarity that many pairs of points agree on.

    Attributes:
        similarity: the identity where none was found.
        inliers: the pairs that it brings together.
        found: whether there are enough of them.
    """

    similarity: Similarity
    inliers: Bool[Tensor, "b n"]
    found: Bool[Tensor, " b"]


def similarity_between(
    source: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b n 3"],
    threshold: Float[Tensor, " b"] | float,
    generator: torch.Generator | None = None,
    least: int = 10,
    least_share: float = 0.1,
) -> Agreement:
    """The similarity that brings most of `source` onto `target`, whatever the other points do.

    RANSAC on samples of three points, all tried at once and scored by truncated squared distance (MSAC), then refits to
    all inliers until these stay the same. Pairs with a coordinate that is not finite are ignored. Nothing is raised for
    hopeless points: see `found`. Sources: Fischler and Bolles 1981; Torr and Zisserman, MLESAC (CVIU 2000).

    Args:
        threshold: distance in the target below which a pair is an inlier.
        generator: draws the samples; none: a new one with seed 0, so that equal points give equal answers.
        least: how many inliers are needed, in number and as a share of the finite pairs.
    """
    valid = _finite(source, target)
    x, y = (torch.where(valid[..., None], accurate(points), 0.0) for points in (source, target))
    limit = torch.as_tensor(threshold, dtype=x.dtype, device=x.device).expand(len(x))
    with torch.no_grad():
        inliers = _stable_inliers(x, y, valid, _best_inliers(x, y, valid, limit, generator), limit)
        needed = (least_share * valid.sum(-1)).clamp(min=least)
        found = (inliers.sum(-1) >= needed) & _spans_a_plane(x, inliers) & _spans_a_plane(y, inliers)
        inliers = inliers & found[:, None]
    return Agreement(umeyama(x, y, inliers).to(at_least_single(source)), inliers, found)


def _best_inliers(
    x: Float[Tensor, "b n 3"],
    y: Float[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    limit: Float[Tensor, " b"],
    generator: torch.Generator | None,
) -> Bool[Tensor, "b n"]:
    """The inliers of the best of many hypotheses."""
    generator = generator or torch.Generator().manual_seed(0)
    samples = draw(valid, (HYPOTHESES, 3), generator)
    scored = draw(valid, (1, min(SCORED, x.shape[1])), generator)
    hypotheses = umeyama(_pick(x, samples), _pick(y, samples))
    distance = (hypotheses.points(_pick(x, scored)) - _pick(y, scored)).square().sum(-1)
    cost = torch.minimum(distance, limit.square()[:, None, None]).sum(-1)
    best = cost.argmin(-1)
    batch = torch.arange(len(x), device=x.device)
    winner = Similarity(
        hypotheses.scale[batch, best], hypotheses.rotation[batch, best], hypotheses.translation[batch, best]
    )
    return _within(winner, x, y, valid, limit)


def _pick(points: Float[Tensor, "b n 3"], index: Int[Tensor, "b h k"]) -> Float[Tensor, "b h k 3"]:
    return points[torch.arange(len(points), device=points.device)[:, None, None], index]


def _within(
    similarity: Similarity,
    x: Float[Tensor, "b n 3"],
    y: Float[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    limit: Float[Tensor, " b"],
) -> Bool[Tensor, "b n"]:
    distance: Tensor = torch.linalg.vector_norm(similarity.points(x) - y, dim=-1)
    return valid & (distance < limit[:, None])


def _stable_inliers(
    x: Float[Tensor, "b n 3"],
    y: Float[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    inliers: Bool[Tensor, "b n"],
    limit: Float[Tensor, " b"],
) -> Bool[Tensor, "b n"]:
    """Fit to the inliers, take the fit's inliers, and so on."""
    for _ in range(REFITS):
        before, inliers = inliers, _within(umeyama(x, y, inliers), x, y, valid, limit)
        if torch.equal(before, inliers):
            break
    return inliers


def _spans_a_plane(points: Float[Tensor, "b n 3"], chosen: Bool[Tensor, "b n"]) -> Bool[Tensor, " b"]:
    """Whether points lie on no line: about a line they could be turned."""
    w = chosen.to(points)[..., None]
    centred = (points - (w * points).sum(1, keepdim=True) / w.sum(1, keepdim=True).clamp(min=1)) * w
    spread = centred.mT @ centred
    trace = spread.diagonal(dim1=-2, dim2=-1).sum(-1)
    minors = (trace.square() - spread.square().sum((-1, -2))) / 2  # of the eigenvalues: ab + bc + ca
    return minors > 1e-5 * trace.square()  # broader than 0.3 % of their length
