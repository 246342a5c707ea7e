"""The published sizes of VideoMAE's encoders, and the record that describes any other."""

from __future__ import annotations

import attrs


@attrs.frozen
class Size:
    """The shape of a video transformer."""

    embed_dim: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; they divide the channels among them."""
    patch: tuple[int, int, int] = (2, 16, 16)
    """Frames, rows and columns that become one token."""
    mlp_ratio: float = 4.0
    """How many times as wide as a token an MLP is inside; rounded down to a whole number of channels."""
    grid: tuple[int, int, int] | None = None
    """The tokens along frames, rows and columns that positions are counted in: a smaller clip stands in the middle of
    it, and in training anywhere in it, so that small clips teach all positions. None: the clip's own, as published."""

    def __attrs_post_init__(self) -> None:
        if min(self.embed_dim, self.depth, self.heads) < 1 or self.embed_dim % self.heads:
            raise ValueError("embed_dim, depth and heads must be positive, and embed_dim divisible by heads")
        if min(self.patch) < 1:
            raise ValueError("patch must be three positive numbers: frames, rows, columns")
        if self.mlp_dim < 1:
            raise ValueError("mlp_ratio must leave an MLP at least one channel")

    @property
    def mlp_dim(self) -> int:
        """Channels inside an MLP."""
        return int(self.embed_dim * self.mlp_ratio)


SIZES = {
    "tiny": Size(192, 12, 3),
    "s": Size(384, 12, 6),
    "b": Size(768, 12, 12),
    "l": Size(1024, 24, 16),
    "h": Size(1280, 32, 16),
    "g": Size(1408, 40, 16, patch=(2, 14, 14), mlp_ratio=48 / 11),
}
