"""What a tracked point carries from one window to the next: all that L4P carries, the point alone, or nothing.

Source: Badki et al., L4P (arXiv 2502.13078), section 3.3.2; tables 4 and 5 compare `chain` ("w/o Mem") and
`track_memory`.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fourd_core.data import Clip, Prediction, Queries, TokenMap, Tokens, Tracks
from fourd_core.errors import RecipeError
from fourd_core.interfaces import BackboneSpec, Head, Memory, PretrainedWeights, TapSpec, Use
from fourd_core.recipe import Location
from fourd_core.rewrites import Rewrite
from fourd_sam_sparse.checkpoints import load_part, pretrained
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.written import LOW_RANK, LowRank, Written

FOUND_TOGETHER = Rewrite(
    "points found together",
    saves="1.4 of 1.5 ms for 128 points on one CPU core, and on a GPU two waits for each point.",
)
KEPT_ONLY = Rewrite(
    "projection of the kept history",
    saves="4.3 of 8.7 GFLOP for each point and window where tokens are projected, 8.4 of 8.8 where ranks are.",
)
FEW_RANKS = Rewrite(
    "history of few ranks",
    saves="3.9 of 4.3 GFLOP for each point and window, 6.4 of 21.7 in the next, and 4.8 of 5.8 MB carried there.",
)

SILENT = -10.0
"""The visibility's logit of a frame about which the tracker says nothing."""

State = dict[str, Any]


@attrs.frozen
class PointConfig:
    """What all three have."""

    tap: int = -1
    """The layer that the head reads."""
    weights: Location | None = None
    """A checkpoint of L4P; none: `track_memory` starts at random, and the mask token is zero."""


@attrs.frozen
class FoundConfig(PointConfig):
    """What those have that move the query on."""

    given: Literal["any", "all", "always"] = "any"
    """When a point counts as named by the user rather than found again: "all" where it is the user's in frame, x and
    y; "any" where one of the three is equal, as in L4P's release; "always" for a head that was trained on single
    windows, where no point was ever found again."""


class Nothing(Memory):
    """Tracks end with the window of their query: nothing is carried on.

    The user's query is all that the head sees, so it speaks only in the windows that contain it. The mask token says
    "no history here" and is added to all of the video's tokens.
    """

    Config: type[Any] = PointConfig
    leaves_aside = ("prompt_feature_linear_layer.", "processed_video_features_proj.")

    def __init__(self, config: Any, backbone: BackboneSpec) -> None:
        super().__init__()
        self.config = config
        self.tap = backbone.tap(config.tap)
        self.spec: TapSpec = backbone.taps[self.tap]
        self.processed_video_mask_token = nn.Embedding(1, self.spec.dim)
        # Where nothing was learnt it changes nothing: a head from single windows goes on as it was.
        nn.init.zeros_(self.processed_video_mask_token.weight)

    @classmethod
    def example_head(cls, backbone: BackboneSpec) -> Head:
        """The head that it serves."""
        return SamTrack(SamTrack.example(), backbone)

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        return pretrained(self.config.weights)

    def load_pretrained(self) -> None:
        """Read the memory's part of the configured checkpoint.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's.
        """
        load_part(self, self.config.weights)

    def check_use(self, use: Use) -> None:
        """The layer that it marks must be one that a tracker reads."""
        if not any(head.tracks and self.tap in head.taps for head in use.heads.values()):
            raise ValueError(
                f"serves a head that follows points and reads tap {self.tap}, and there is none; set tap to that of "
                "the head of the same name"
            )

    def initial(self, tokens: Tokens, clip: Clip) -> State:
        """The user's queries.

        Raises:
            RecipeError: the head reads another layer.
        """
        if self.tap not in tokens.layers:
            raise RecipeError(f"a memory's tap must be its head's: no head reads tap {self.tap}; set tap in [memories]")
        queries = _queries(clip)
        return {"frame": queries.frame, "xy": queries.xy}

    def read(self, state: State, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        """The marked tokens, and the queries where they stand now."""
        queries = Queries(state["frame"], state["xy"], self._given(state, _queries(clip)))
        return self._marked(tokens, 0), attrs.evolve(clip, queries=queries)

    def update(self, state: State, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> State:
        """The same points, counted from the next window's first frame.

        Raises:
            RecipeError: the head does not follow points.
        """
        _tracks(prediction)
        return {**state, "frame": state["frame"] - shift}

    def _given(self, state: State, user: Queries) -> Bool[Tensor, "b n"] | None:
        """Which points the user named where they stand now; None: all."""
        return None

    def _marked(self, tokens: Tokens, known: int) -> Tokens:
        """The mask token added to all of the video's tokens but the first `known`."""
        tap = tokens[self.tap]
        mask = self.processed_video_mask_token.weight
        values = torch.cat([tap.values[:, :known], tap.values[:, known:] + mask], 1)
        return Tokens({**tokens.layers, self.tap: TokenMap(values, tap.grid)})


class Chain(Nothing):
    """Of each track the point where it is seen best is carried on, as the next window's query.

    It is looked for in the frames that both windows have, and counts where it is later than the query before.
    """

    Config = FoundConfig

    def update(self, state: State, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> State:
        """The points where they are found again; without gradient, as in the paper's training."""
        tracks = _tracks(prediction)
        logit = tracks.remembered["logit"].detach().masked_fill(~tracks.live.mT, SILENT)[..., shift:]
        if not logit.shape[-1]:
            return super().update(state, tokens, clip, prediction, shift)
        if not FOUND_TOGETHER.on:
            frame, xy = _found_one_by_one(state, logit, tracks.xy.detach(), shift)
            return {**state, "frame": frame - shift, "xy": xy}
        found = shift + logit.argmax(-1)  # the first, where several are equal
        places = found[:, None, :, None].expand(-1, -1, -1, 2)
        later = found > state["frame"]
        frame = torch.where(later, found, state["frame"])
        xy = torch.where(later[..., None], tracks.xy.detach().gather(1, places)[:, 0], state["xy"])
        return {**state, "frame": frame - shift, "xy": xy}

    def _given(self, state: State, user: Queries) -> Bool[Tensor, "b n"] | None:
        if self.config.given == "always":
            return None
        same = torch.cat([(state["frame"] == user.frame)[..., None], state["xy"] == user.xy], -1)
        return same.any(-1) if self.config.given == "any" else same.all(-1)


class TrackMemory(Chain):
    """L4P's memory: the point where it is seen best, the track's feature, and what was written on the video's tokens.

    The written tokens of the frames that both windows have are projected and added to the next window's tokens, for
    each query its own (its history); the mask token is added to the others.
    """

    leaves_aside = ()

    def __init__(self, config: Any, backbone: BackboneSpec) -> None:
        super().__init__(config, backbone)
        self.prompt_feature_linear_layer = nn.Linear(self.spec.dim, self.spec.dim)
        self.processed_video_features_proj = nn.Linear(self.spec.dim, self.spec.dim)

    def initial(self, tokens: Tokens, clip: Clip) -> State:
        """The user's queries, and nothing known of them."""
        state = super().initial(tokens, clip)
        b, n = state["frame"].shape
        feature = tokens[self.tap].values.new_zeros(b, n, self.spec.dim)
        handed = torch.zeros_like(state["frame"], dtype=torch.bool)
        return {**state, "feature": feature, "handed": handed, "history": None}

    def read(self, state: State, tokens: Tokens, clip: Clip) -> tuple[Tokens, Clip]:
        """The tokens without a history marked, the queries where they stand now, and what is recalled of each."""
        _, seen = super().read(state, tokens, clip)
        queries, history = _queries(seen), state["history"]
        recalled = {"feature": state["feature"], "handed": state["handed"]}
        if history is not None:
            recalled |= {**history, "base": history["base"].expand(-1, queries.count, -1, -1)}
        queries = attrs.evolve(queries, recalled=recalled)
        return self._marked(tokens, _known(state)), attrs.evolve(seen, queries=queries)

    def update(self, state: State, tokens: Tokens, clip: Clip, prediction: Prediction, shift: int) -> State:
        """The points where they are found again, the features of those on which the tracker spoke, and all histories.

        Raises:
            RecipeError: a shift that divides a token, or a head that does not follow points.
        """
        tracks = _tracks(prediction)
        spoke = tracks.live.any(1)
        feature = self.prompt_feature_linear_layer(tracks.remembered["feature"])
        return {
            **super().update(state, tokens, clip, prediction, shift),
            "feature": torch.where(spoke[..., None], feature.to(state["feature"].dtype), state["feature"]),
            "handed": state["handed"] | spoke,
            "history": self._kept(state, tokens, tracks, self._first_kept(tokens, shift)),
        }

    def check_use(self, use: Use) -> None:
        """Besides, windows must be apart by whole tokens."""
        super().check_use(use)
        if use.long and use.stride % self.spec.stride[0]:
            raise ValueError(self._split(use.stride))

    def _split(self, shift: int) -> str:
        frames = self.spec.stride[0]
        return (
            f"hands on whole tokens, each of {frames} frames, and with stride = {shift} windows begin within one; "
            f"set the predict stage's stride to a multiple of {frames}"
        )

    def _first_kept(self, tokens: Tokens, shift: int) -> int:
        """The first token of the frames that the next window will see too."""
        frames, grid = self.spec.stride[0], tokens[self.tap].grid
        if shift % frames:
            raise RecipeError(f"the track memory {self._split(shift)}")
        return min(shift // frames, grid.t) * grid.h * grid.w

    def _kept(self, state: State, tokens: Tokens, tracks: Tracks, start: int) -> dict[str, Tensor]:
        """What was written on the tokens from `start` on, projected: `LowRank`, and the base that it stands on.

        The base is the same for all queries and held once (`b 1 m c`), unless the windows overlap by more than half:
        then some of its tokens had a history already, and each query has its own (`b n m c`).
        """
        known, b, n = _known(state), *state["frame"].shape
        kept, start = start, start if KEPT_ONLY.on else 0
        base = self._marked(tokens, known)[self.tap].values[:, None, start:]
        if known > start:
            few = LowRank(*(state["history"][name].flatten(0, 1) for name in LOW_RANK))
            stood = state["history"]["base"].expand(-1, n, -1, -1).flatten(0, 1)
            history = few.on(stood).unflatten(0, (b, n))[:, :, start:]
            rest = base[:, :, known - start :].expand(-1, n, -1, -1)
            base = torch.cat([base[:, :, : known - start] + history, rest], 2)
        mixing, values, moments = (tracks.remembered[name].flatten(0, 1) for name in ("mixing", "values", "moments"))
        written = Written(mixing[..., start:], values, moments[..., start:], tracks.remembered["norms"][0])
        weight, bias = self.processed_video_features_proj.weight.mT, self.processed_video_features_proj.bias
        if FEW_RANKS.on:
            few, base = written.linear(weight, bias), base @ Written.through(weight, written.norms)
        else:  # the projected tokens of each query as its base, and no ranks
            base = written.on(base.expand(-1, n, -1, -1).flatten(0, 1)) @ weight + bias
            few = LowRank(torch.ones_like(base[..., :1]).mT, base.mT[:, :0], base[:, :0])
            base = base.unflatten(0, (b, n))
        few = few.part(slice(None), slice(kept - start, None))
        parts = {name: getattr(few, name).unflatten(0, (b, n)) for name in LOW_RANK}
        return {**parts, "base": base[:, :, kept - start :]}


def _found_one_by_one(
    state: State, logit: Float[Tensor, "b n t"], xy: Float[Tensor, "b f n 2"], shift: int
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n 2"]]:
    """The frames and places of the points, where they are found in the last `t` frames of this window."""
    frame, place = state["frame"].clone(), state["xy"].clone()
    for i, j in itertools.product(*map(range, frame.shape)):
        found = shift + int(logit[i, j].argmax())
        if found > int(frame[i, j]):
            frame[i, j], place[i, j] = found, xy[i, found, j]
    return frame, place


def _known(state: State) -> int:
    """How many of the window's tokens have a history."""
    return 0 if state["history"] is None else state["history"]["scale"].shape[-1]


def _queries(clip: Clip) -> Queries:
    if clip.queries is None:
        raise _no_tracker()
    return clip.queries


def _tracks(prediction: Prediction) -> Tracks:
    if not isinstance(prediction, Tracks):
        raise _no_tracker()
    return prediction


def _no_tracker() -> RecipeError:
    return RecipeError(
        'the memories "track_memory", "chain" and "none" serve a head that follows points, such as "sam_track", and '
        "this one does not; name the section [memories.NAME] after one that does"
    )
