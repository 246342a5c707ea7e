"""Features of a whole clip as colours: one basis and one range for all frames, so that nothing flickers."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import RunError

SAMPLES = 8192
"""At most this many feature vectors are kept to find the colours' ranges."""


class FeaturePCA:
    """The three main directions of features that are seen once, in memory that does not grow with the clip.

    `update` with every frame, `finish`, then `picture` of any frame; the second pass needs the features again.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._origin = torch.zeros(channels, dtype=torch.float64)
        self._sample = torch.zeros(0, channels)
        self._every = 1
        self._offset = 0
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "t c h w"]) -> None:
        """Take in frames.

        Raises:
            RunError: a feature is NaN or infinite.
        """
        vectors = features.detach().movedim(1, -1).flatten(0, -2).cpu()
        if not torch.isfinite(vectors).all():
            raise RunError("the features hold NaN or infinite numbers, so no picture of them can be made")
        if self._count == 0:
            # Sums of squares around a point near the mean keep their digits.
            self._origin = vectors.double().mean(0)
        self._keep_some(vectors)
        for first in range(0, len(vectors), 65536):
            centred = vectors[first : first + 65536].double() - self._origin
            self._sum += centred.sum(0)
            self._products += centred.T @ centred
            self._count += len(centred)

    def finish(self) -> None:
        """Fix the basis and the ranges: the 1 % and 99 % quantiles along each direction."""
        if self._count == 0:
            raise ValueError("FeaturePCA.finish before any update")
        mean = self._sum / self._count
        covariance = self._products / self._count - torch.outer(mean, mean)
        _, directions = torch.linalg.eigh(covariance)
        basis = directions.flip(1)[:, :3]
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        largest = basis.abs().argmax(0, keepdim=True)
        basis = basis * basis.gather(0, largest).sign()
        self._mean = (mean + self._origin).float()
        self._basis = torch.nn.functional.pad(basis, (0, 3 - basis.shape[1])).float()
        shares = (self._sample - self._mean) @ self._basis
        low, high = torch.quantile(shares, torch.tensor([0.01, 0.99]), dim=0)
        self._low, self._span = low, (high - low).clamp(min=1e-12)

    @torch.no_grad()
    def picture(self, features: Float[Tensor, "t c h w"]) -> UInt8[Tensor, "t 3 h w"]:
        """Frames in colours: the first direction is red, the second green, the third blue."""
        vectors = features.movedim(1, -1).float()
        mean, basis, low, span = (part.to(vectors.device) for part in (self._mean, self._basis, self._low, self._span))
        shares = ((vectors - mean) @ basis - low) / span
        return (shares.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-1, 1)

    def _keep_some(self, vectors: Float[Tensor, "n c"]) -> None:
        """Every `_every`-th vector, shuffled lest they lie in one column; where they get too many, half of them go."""
        order = torch.randperm(len(vectors), generator=self._generator)
        picked = vectors[order[self._offset :: self._every]].float()
        self._offset = (self._offset - len(vectors)) % self._every
        self._sample = torch.cat([self._sample, picked])
        while len(self._sample) > SAMPLES:
            seen = len(self._sample)
            self._sample = self._sample[::2]
            self._offset += self._every * (seen % 2)
            self._every *= 2
