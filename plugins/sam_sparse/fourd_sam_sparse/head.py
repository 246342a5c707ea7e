"""L4P's tracking head behind the Head contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fourd_core.data import Clip, Queries, Tokens, Tracks
from fourd_core.geometry import pixel_centres
from fourd_core.interfaces import BackboneSpec, Direction, Head, PretrainedWeights
from fourd_core.kernels.map_readout import enlarged_mean, expected_position
from fourd_core.recipe import Location
from fourd_core.rewrites import Rewrite
from fourd_core.stitching import WhereLive
from fourd_sam_sparse.checkpoints import load_part, pretrained
from fourd_sam_sparse.mask_decoder import MASKS, MaskDecoder, Shared, at_a_time, in_parts
from fourd_sam_sparse.prompts import FOUND, NAMED, PROMPTS, PromptEncoder
from fourd_sam_sparse.two_way import DEPTH
from fourd_sam_sparse.written import LowRank

SMALL_MAPS = Rewrite("readout of the small maps", saves="19 MB of memory for each point that goes through together.")

RECALLED = ("feature", "handed", "scale", "columns", "rows", "base")
"""What a memory may say of each query: the track's `feature` (`b n c`), whether there is one (`b n`), and the history
that is added to the first `m` of the video's tokens, as the fields of `LowRank` and their base (`b n m c`)."""
REMEMBERED = ("logit", "log_depth", "feature", "mixing", "values", "moments", "norms")
"""What is left for memories and objectives: `logit` of the visibility and `log_depth` (`b n t`), the track's `feature`
(`b n c`), and the fields of `Written`, by query but for the norms (`b l 2 c`)."""


class SamTrack(Head):
    """Points followed through a clip: where each is in every frame, whether it is seen, and how deep.

    A point's tokens and the video's read each other; a heat map for each frame says where the point is (its soft
    argmax), two more maps whether it is seen and its depth. It speaks about frames from the query's on, and is silent
    in a window that begins after the query (a memory moves the query on). With its memory it agrees on RECALLED and
    REMEMBERED. Depth is in the unit of the depths that it was trained on.
    Source: Badki et al., L4P (arXiv 2502.13078), section 3.3.
    """

    tracks = True
    stitch = WhereLive()

    @attrs.frozen
    class Config:
        tap: int = -1
        """The backbone's layer to read; negative numbers count from the last."""
        heads: int = attrs.field(default=8, validator=attrs.validators.ge(1))
        """Attention heads."""
        mlp: int = attrs.field(default=2048, validator=attrs.validators.ge(1))
        """Width of the two-way transformer's MLPs."""
        direction: Direction = "forward"
        """Which way through the video: "forward" from each query's frame, "backward", or "both"."""
        chunk: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
        """Points that go through together; none: as many as suit the device. The answers are the same."""
        checkpointing: bool = False
        """Save memory in training: keep only what goes into a chunk, and compute the rest again for the gradients."""
        weights: Location | None = None
        """A checkpoint of L4P; none: random weights."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__()
        self.config = config
        self.taps = (backbone.tap(config.tap),)
        self.direction = config.direction
        self.spec = backbone.taps[self.taps[0]]
        dim = self.spec.dim
        if dim % 8 or dim % (2 * config.heads):
            raise ValueError(
                f"tap {config.tap} has {dim} channels, and they must be divisible by 8 and by 2 x heads = "
                f"{2 * config.heads}"
            )
        self.prompt_encoder = PromptEncoder(dim)
        self.mask_decoder = MaskDecoder(dim, config.heads, config.mlp, frames=self.spec.stride[0])

    @classmethod
    def example(cls) -> Any:
        """Few channels."""
        return cls.Config(heads=2, mlp=16)

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        return pretrained(self.config.weights)

    def load_pretrained(self) -> None:
        """Read the head's part of the configured checkpoint.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's.
        """
        load_part(self, self.config.weights)

    def forward(self, tokens: Tokens, clip: Clip) -> Tracks:
        """Tracks of `clip.queries` in pixels of the clip, with what a memory may keep."""
        assert clip.queries is not None, "a head that tracks is given queries"
        tap, queries = tokens[self.taps[0]], clip.queries
        positions = self.prompt_encoder.positions(tap.grid, tap.values.device)
        *own, bases = self._places(queries, clip), _labels(queries), *self._recalled(queries, tap.values)
        b, n = queries.frame.shape
        # At the transformer's busiest a chunk has its tokens before and behind a layer, with positions and without.
        most = self.config.chunk or at_a_time(4 * tap.values[0].nbytes, tap.values)
        groups = []
        for clips in in_parts(0, b, max(1, most // max(n, 1))):
            history = bases[clips]
            # Expanded where it is the same for all queries: once is enough.
            history = history[:, 0] if history.stride(1) == 0 else history.flatten(0, 1)
            shared = self.mask_decoder.shared(tap.values[clips], history, positions, tap.grid, len(bases[clips]) * n)
            answers = self._group([tensor[clips].flatten(0, 1) for tensor in own], shared, clip.size, most)
            groups.append([answer.unflatten(0, (-1, n)) for answer in answers])
        xy, logit, log_depth, *remembered = (joined(parts) for parts in zip(*groups, strict=True))
        norms = self.mask_decoder.transformer.norms.expand(b, -1, -1, -1)
        return Tracks(
            xy.transpose(1, 2),
            logit.sigmoid().transpose(1, 2),
            _live(queries.frame, clip.frames.shape[1]),
            log_depth.exp().transpose(1, 2),
            unit=self.unit,
            remembered=dict(zip(REMEMBERED, (logit, log_depth, *remembered, norms), strict=True)),
        )

    def query_bytes(self, clip: Clip) -> int:
        """The history that a query brings and what it leaves behind."""
        strides = self.spec.stride
        tokens = math.prod(n // s for n, s in zip((clip.frames.shape[1], *clip.size), strides, strict=True))
        ranks = (MASKS + PROMPTS) * self.config.heads
        left = DEPTH * (ranks * (tokens + self.spec.dim) + 2 * tokens)
        return clip.frames.element_size() * 2 * left  # a history has a few more rows, and fewer tokens

    def _group(self, own: Sequence[Tensor], shared: Shared, size: tuple[int, int], most: int) -> tuple[Tensor, ...]:
        """The points of some clips, as many as go through together, or of one clip, chunk by chunk.

        Args:
            own: what `_chunk` is given of each point.
            most: points of a chunk.
        """
        run = self._recomputed if self.config.checkpointing and torch.is_grad_enabled() else self._chunk
        chunks = in_parts(0, len(own[0]), most)
        parts = [run(*(tensor[chunk] for tensor in own), shared.part(chunk), size) for chunk in chunks]
        return tuple(joined(tensors) for tensors in zip(*parts, strict=True))

    def _chunk(
        self,
        places: Float[Tensor, "n 3"],
        labels: Int[Tensor, " n"],
        feature: Float[Tensor, "n c"],
        handed: Bool[Tensor, " n"],
        scale: Float[Tensor, "n 1 m"],
        columns: Float[Tensor, "n q m"],
        rows: Float[Tensor, "n q c"],
        shared: Shared,
        size: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        """Position, visibility's logit, logarithm of the depth, the track's feature, and what was written."""
        prompts = self.prompt_encoder(places, labels, feature, handed)
        maps, feature, written = self.mask_decoder(prompts, LowRank(scale, columns, rows), shared)
        xy, logit, log_depth = read_out(maps, size)
        return xy, logit, log_depth, feature, written.mixing, written.values, written.moments

    def _recomputed(self, *arguments: Any) -> tuple[Tensor, ...]:
        """`_chunk`, of which only the arguments are kept for the gradients."""
        # Nothing in it is random.
        done: tuple[Tensor, ...] = checkpoint(self._chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        return done

    def _places(self, queries: Queries, clip: Clip) -> Float[Tensor, "b n 3"]:
        """(t, x, y), between 0 and 1 inside the clip, in at least float32."""
        exact = torch.promote_types(queries.xy.dtype, torch.float32)
        places = torch.cat([queries.frame[..., None].to(exact) + 0.5, queries.xy.to(exact)], -1)
        height, width = clip.size
        return places / places.new_tensor([clip.frames.shape[1], width, height])

    def _recalled(self, queries: Queries, like: Float[Tensor, "b p c"]) -> list[Tensor]:
        """RECALLED; of points about which nothing is known yet, nothing."""
        b, n, c = *queries.frame.shape, self.spec.dim
        nothing = {
            "feature": like.new_zeros(b, n, c),
            "handed": torch.zeros_like(queries.frame, dtype=torch.bool),
            "scale": like.new_zeros(b, n, 1, 0),
            "columns": like.new_zeros(b, n, 0, 0),
            "rows": like.new_zeros(b, n, 0, c),
            "base": like.new_zeros(b, 1, 0, c).expand(-1, n, -1, -1),
        }
        return [queries.recalled.get(name, nothing[name]) for name in RECALLED]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts as one; a single one is not copied, for it may be large."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def read_out(
    maps: Float[Tensor, "n 3 t y x"], size: tuple[int, int]
) -> tuple[Float[Tensor, "n t 2"], Float[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Of the maps enlarged to `size` the first one's expected position and the others' means."""
    if SMALL_MAPS.on:
        return expected_position(maps[:, 0], size), *enlarged_mean(maps[:, 1:], size).unbind(1)
    enlarged = F.interpolate(maps, (maps.shape[2], *size), mode="trilinear", align_corners=False)
    likely = enlarged[:, 0].flatten(2).softmax(-1).unflatten(-1, size)[..., None]
    xy = (likely * pixel_centres(size, like=likely).to(likely)).sum((-3, -2))
    return xy, *enlarged[:, 1:].mean((-2, -1)).unbind(1)


def _labels(queries: Queries) -> Int[Tensor, "b n"]:
    if queries.given is None:
        return torch.full_like(queries.frame, NAMED)
    return torch.where(queries.given, NAMED, FOUND)


def _live(frame: Int[Tensor, "b n"], frames: int) -> Bool[Tensor, "b t n"]:
    """From the query's frame on, where the window has it or begins before it."""
    t = torch.arange(frames, device=frame.device)
    return (t[:, None] >= frame[:, None]) & (frame[:, None] >= 0)
