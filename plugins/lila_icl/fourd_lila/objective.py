"""The LILA objective: a linear read-out solved on one frame must explain another frame's cues.

Per pair of frames: pixel features of two differently cropped views; cue maps of the same views; the ridge regression
from features to cues on the context view; its error on the query view, as L1 and at edges. In mode "erm" the read-out
is trained like any other layer and each frame predicts its own cues: the paper's ablation (A).
Source: LILA paper, method; google-research/lila, dpt_lila.py `forward_cross` and dataload.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import ge, gt
from fourd_pamr import PAMR, Stage
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fourd_core.data import Clip, CueKind, Prediction, Tokens
from fourd_core.errors import MediaError, PluginError
from fourd_core.interfaces import CueProvider, Dataset, Draw, Head, Objective, Sample, Split, Video
from fourd_core.kernels.gradient_matching import GradientForm
from fourd_core.kernels.linear_matching import linear_matching
from fourd_core.precision import at_least_float32, own_precision
from fourd_core.system import System
from fourd_lila import kept
from fourd_lila.crops import Crop, base_frames, random_crop, random_flip, resize
from fourd_lila.cues import PairCue, cut_cue, pair_cue, stack_cues
from fourd_lila.distillation import pick_channels, random_channels
from fourd_lila.draws import draw_below, draw_video
from fourd_lila.in_context import row_weights, solve_readout
from fourd_lila.pairs import Pairs, slices

DISTILLATION = "self-distillation"
CHANNELS: dict[CueKind, int] = {"flow": 2, "disparity": 1}


def _share(instance: object, attribute: attrs.Attribute[tuple[float, float]], value: tuple[float, float]) -> None:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError(
            f"{attribute.name} must be two shares of the frame's area, 0 < least <= most <= 1, got {value}"
        )


class LILA(Objective):
    """Linear in-context learning of pixel features from pairs of video frames (LILA, arXiv 2604.26488)."""

    @attrs.frozen
    class Config:
        """How pairs are drawn, which cues are learned, and how read-outs are solved and judged."""

        head: str = "features"
        """The head that learns; its prediction is the pixel features."""
        mode: Literal["in_context", "erm"] = "in_context"
        """Solve the read-out on the context frame, or train one and let each frame predict its own cues."""
        roles: Literal["reference", "paper", "random"] = "reference"
        """The context is the later frame (as the reference code has it), the earlier one (as the paper says), or
        either (as where the reference code reads video files)."""
        base_size: int = attrs.field(default=480, validator=gt(0))
        """Frames are resized and cut to this square before views are drawn, in pixels."""
        view_size: int = attrs.field(default=224, validator=gt(1))
        """Side of the views, and of the full frames that the teachers see, in pixels."""
        max_gap: int = attrs.field(default=5, validator=ge(1))
        """The later frame of a pair is 1 to this many frames later (fewer at the end of the video)."""
        last_with_itself: bool = False
        """Let the video's last frame be the first of a pair too, which is then paired with itself: no motion, and
        nothing to learn from it; the reference code does."""
        query_area: tuple[float, float] = attrs.field(default=(0.3, 1.0), validator=_share)
        """Range of the query view's share of the frame's area."""
        context_area: tuple[float, float] = attrs.field(default=(0.8, 0.8), validator=_share)
        """Range of the context view's share of the frame's area."""
        flip: float = attrs.field(default=0.5, validator=ge(0.0))
        """Probability of mirroring: once for both frames, and once more for the query view."""
        correct_flow: bool = False
        """Express flow relative to the view, mirrored and scaled with it; the reference does not."""
        temperature: float = attrs.field(default=0.05, validator=gt(0.0))
        """How far forward and backward flow may disagree, in half frames (times ln 2)."""
        pool: int = attrs.field(default=32, validator=ge(1))
        """The read-out is solved on maps averaged to this many rows and columns."""
        min_confidence: float = attrs.field(default=0.5, validator=ge(0.0))
        """Pooled places below this confidence do not take part in the solve."""
        ridge: float = attrs.field(default=0.1, validator=gt(0.0))
        """Weight of the read-out's norm."""
        edge_weight: float = attrs.field(default=1.0, validator=ge(0.0))
        """Weight of the gradient-matching loss beside the L1 loss."""
        edge_sigma: float = attrs.field(default=0.1, validator=gt(0.0))
        """Step of a cue at which an edge counts with weight 1 - 1/e."""
        edge_form: GradientForm = "absolute"
        """Compare absolute differences of neighbours (as the reference code) or signed ones (as the paper says)."""
        distill_channels: int = attrs.field(default=32, validator=ge(0))
        """How many of the encoder's channels, another random choice for every pair, are a cue; 0: none."""
        distill_tap: int = -1
        """The encoder's layer they are taken from."""
        pamr: PAMR.Config | None = attrs.field(factory=PAMR.Config)
        """How they are refined to the pixels of the view; None: bilinear upsampling."""

        def __attrs_post_init__(self) -> None:
            last = self.pamr.stages[-1].size if self.pamr is not None else None
            if last is not None and tuple(last) != (self.view_size, self.view_size):
                raise ValueError("the last of pamr's stages must have the view's own size: leave out its `size`")

    @classmethod
    def example(cls) -> Any:
        """Small views, few channels."""
        pamr = PAMR.Config(stages=(Stage(2, (16, 16)), Stage(1)))
        return cls.Config(base_size=48, view_size=32, pool=8, distill_channels=4, pamr=pamr)

    def __init__(self, config: Config, system: System) -> None:
        super().__init__()
        self.config = config
        spec = system.backbone.spec
        if config.head not in system.heads:
            raise ValueError(f'head = "{config.head}" is no head of this recipe, which has: {", ".join(system.heads)}')
        if spec.multiple[0] != 1:
            raise ValueError("LILA learns from single frames, but this backbone needs several frames at a time")
        if config.view_size % spec.multiple[1] or config.view_size % spec.multiple[2]:
            rows, columns = spec.multiple[1:]
            raise ValueError(
                f"view_size = {config.view_size} is not divisible by the backbone's {rows} x {columns} pixels"
            )
        for name, cue in system.cues.items():
            try:
                cue.check_size((config.view_size, config.view_size))
            except ValueError as error:
                raise ValueError(f"[cues.{name}] cannot work on views of {config.view_size} pixels: {error}") from error
        if not (config.distill_channels or system.cues):
            raise ValueError("there is nothing to learn: add a section [cues.NAME] or set distill_channels above 0")
        if DISTILLATION in system.cues:
            raise ValueError(
                f'[cues.{DISTILLATION}]: a cue may not be called "{DISTILLATION}", which is what the encoder\'s own '
                "features are called in tables; give it another name"
            )
        self.cue_names = tuple(system.cues)
        self.distill_tap = spec.tap(config.distill_tap)
        self.pamr = PAMR(config.pamr) if config.pamr is not None else None
        self.readout = (
            nn.Linear(cast(Head, system.heads[config.head]).channels, self._all_channels(system))
            if config.mode == "erm"
            else None
        )

    def _all_channels(self, system: System) -> int:
        """How many channels all cues have together."""
        total = system.backbone.spec.taps[self.distill_tap].dim if self.config.distill_channels else 0
        for name, cue in system.cues.items():
            channels = _declared_channels(cue)
            if channels is None:
                raise ValueError(
                    f'mode = "erm" needs to know how many channels [cues.{name}] has: its class lacks `channels`'
                )
            total += channels
        return total

    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        """A pair of frames and a view of each, query first: `frames`, `views` (uint8), and the views' `theta`.

        Where teachers were asked about the part "train" before, what they said stands instead of the `frames`. They saw
        frames that were not mirrored then: a mirrored pair gets their maps mirrored, where otherwise they see it
        mirrored, as in the reference.

        Raises:
            MediaError: no video, or one of fewer than two frames.
        """
        config = self.config
        drawn = self.draw(data, split, generator)
        video = data.videos(split)[drawn.video]
        later_is_query = config.roles == "paper" or (config.roles == "random" and random_flip(generator, 0.5))
        frames = base_frames(video.read(drawn.frames), config.base_size)
        mirrored = random_flip(generator, config.flip)
        crops = self._crops(generator)
        if later_is_query:
            frames = frames.flip(0)
        if mirrored:
            frames = frames.flip(-1)
        sample = {
            "pair": torch.tensor([drawn.video, *drawn.frames]),
            "views": torch.stack([c.cut(f, config.view_size) for c, f in zip(crops, frames, strict=True)]),
            "theta": torch.stack([crop.theta(config.base_size) for crop in crops]),
        }
        if self.kept_cues is None or split != "train":
            return sample | {"frames": self._seen(frames)}
        for name in self.cue_names:
            maps = self.kept_cues.read(name, video, drawn.frames)
            sample |= kept.as_sample(name, kept.turned(maps, later_is_query, mirrored))
        return sample

    def _crops(self, generator: torch.Generator) -> tuple[Crop, Crop]:
        config = self.config
        query = random_crop(config.base_size, config.query_area, generator)
        query = attrs.evolve(query, flip=random_flip(generator, config.flip))
        return query, random_crop(config.base_size, config.context_area, generator)

    def _seen(self, frames: UInt8[Tensor, "t 3 base base"]) -> UInt8[Tensor, "t 3 v v"]:
        return resize(frames, (self.config.view_size, self.config.view_size))

    def draw(self, data: Dataset, split: Split, generator: torch.Generator) -> Draw:
        """A video, a frame of it, and a later one: the first of the random choices of `sample`.

        Raises:
            MediaError: as `sample`.
        """
        number, video = draw_video(data, split, self.skip_videos, generator)
        if video.frame_count < 2:
            raise MediaError(
                f'{video.name}: LILA needs pairs of frames, and part "{split}" of this video has {video.frame_count}; '
                "take a longer video or leave it out"
            )
        last = video.frame_count - 1
        first = draw_below(last + self.config.last_with_itself, generator)
        return Draw(number, (first, min(first + 1 + draw_below(self.config.max_gap, generator), last)))

    def cue_frames(self, video: Video, frames: Sequence[int]) -> UInt8[Tensor, "t 3 v v"]:
        """The whole frames as the teachers see them, not mirrored."""
        return self._seen(base_frames(video.read(frames), self.config.base_size))

    def cue_view(self) -> dict[str, Any]:
        """The sizes to which frames are brought."""
        return {"base_size": self.config.base_size, "view_size": self.config.view_size}

    def describe(self, data: Dataset, batch: Mapping[str, Tensor]) -> str:
        """The pairs of a batch: each video with its two frames."""
        videos = data.videos("train")
        return ", ".join(f"{videos[v].name} frames {i} and {j}" for v, i, j in batch["pair"].tolist())

    def forward(self, system: System, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """`loss` = `l1` + edge_weight * `edge`; `trusted` is no loss: which share of the context was solved on."""
        pairs = self.prepare(system, batch, generator)
        features = self.features(system, pairs)
        if self.config.mode == "erm":
            features, readout = features.flatten(0, 1), self.trained_readout(pairs).repeat_interleave(2, dim=0)
            cues, valid = pairs.cues.flatten(0, 1), pairs.valid.flatten(0, 1)
        else:
            features, context = features.unbind(1)
            readout, cues, valid = self.solved_readout(context, pairs), pairs.cues[:, 0], pairs.valid[:, 0]
        config = self.config
        matched = linear_matching(
            features, readout, cues, valid, config.edge_sigma, config.edge_form, config.edge_weight
        )
        losses = matched._asdict()
        return losses if self.config.mode == "erm" else losses | {"trusted": self._trusted(pairs)}

    def _trusted(self, pairs: Pairs) -> Float[Tensor, ""]:
        """The share of the context's places that the solve counts; at 0 nothing can be learned."""
        weights = row_weights(pairs.confidence[:, 1], self.config.pool, self.config.min_confidence)
        return (weights > 0).float().mean()

    @torch.no_grad()
    def prepare(self, system: System, batch: Mapping[str, Tensor], generator: torch.Generator) -> Pairs:
        """Everything of a batch that does not learn: the views' tokens and their cues."""
        views = batch["views"] / 255
        clip = Clip(views.flatten(0, 1)[:, None])
        tokens = system.encode(clip.frames, taps=(self.distill_tap,) if self.config.distill_channels else ())
        with own_precision(views.device):  # teachers and geometry in float32, as the reference
            return self._pairs(tokens, clip, self._cues(system, batch), generator)

    def _cues(self, system: System, batch: Mapping[str, Tensor]) -> dict[str, PairCue]:
        """What every teacher says, or said, about the whole frames, cut to the views.

        Raises:
            PluginError: a teacher's maps have another number of channels than its class says.
        """
        config, cues = self.config, {}
        for name, provider in system.cues.items():
            maps, declared = kept.from_batch(name, provider.kind, batch), _declared_channels(provider)
            if maps is None:
                maps = provider(Clip(batch["frames"] / 255))
            if declared not in (None, maps.values.shape[2]):
                raise PluginError(
                    f"[cues.{name}]: {type(provider).__name__} gave maps of {maps.values.shape[2]} channels where it "
                    f"declares {declared}; correct its `kind`, its `channels` or its maps"
                )
            cues[name] = cut_cue(
                pair_cue(maps, config.temperature), batch["theta"], config.view_size, config.correct_flow
            )
        return cues

    def _pairs(self, tokens: Tokens, clip: Clip, cues: Mapping[str, PairCue], generator: torch.Generator) -> Pairs:
        """Teachers' cues and distilled channels side by side."""
        views = clip.frames[:, 0].unflatten(0, (-1, 2))
        widths = {name: cue.values.shape[2] for name, cue in cues.items()}
        channels = torch.arange(sum(widths.values())).expand(len(views), -1)
        valid = [(cue.valid > 0).expand_as(cue.values) for cue in cues.values()]
        distilled = None
        if self.config.distill_channels:
            maps = tokens[self.distill_tap].as_maps().unflatten(0, (-1, 2)).squeeze(2)
            chosen = random_channels(len(maps), maps.shape[2], self.config.distill_channels, generator)
            distilled = self._refine(pick_channels(at_least_float32(maps), chosen.to(maps.device)), views)
            widths[DISTILLATION] = chosen.shape[1]
            channels = torch.cat([channels, channels.shape[1] + chosen], dim=1)
            valid.append(torch.ones_like(distilled, dtype=torch.bool))
        trust = [cue.valid.expand_as(cue.values) if cue.is_flow else cue.valid for cue in cues.values()]
        return Pairs(
            tokens, clip, stack_cues(tuple(cues.values()), distilled), torch.cat(valid, dim=2),
            torch.cat([views[:, :, :0], *trust], dim=2), channels.to(views.device), slices(widths),
        )  # fmt: skip

    def _refine(
        self, maps: Float[Tensor, "b 2 c h w"], views: Float[Tensor, "b 2 3 v v"]
    ) -> Float[Tensor, "b 2 c v v"]:
        coarse, guide = maps.flatten(0, 1), views.flatten(0, 1)
        if self.pamr is not None:
            fine = self.pamr(coarse, guide)
        else:
            fine = F.interpolate(coarse, guide.shape[-2:], mode="bilinear", align_corners=False)
        refined: Tensor = fine.unflatten(0, (-1, 2))
        return refined

    def features(self, system: System, pairs: Pairs) -> Float[Tensor, "b 2 d v v"]:
        """The head's pixel features of both views."""
        prediction = cast(Prediction, system.heads[self.config.head](pairs.tokens, pairs.clip))
        features: Tensor = prediction.values[:, 0].unflatten(0, (-1, 2))
        return features

    def solved_readout(self, features: Float[Tensor, "b d v v"], pairs: Pairs) -> Float[Tensor, "b d_plus_1 k"]:
        """The read-out that the context frame's features and cues give."""
        config = self.config
        return solve_readout(
            features, pairs.cues[:, 1], pairs.confidence[:, 1], config.pool, config.min_confidence, config.ridge
        )

    def trained_readout(self, pairs: Pairs) -> Float[Tensor, "b d_plus_1 k"]:
        """The rows of mode "erm"'s own read-out that belong to the cues of each pair."""
        assert self.readout is not None
        weight, bias = self.readout.weight[pairs.channels], self.readout.bias[pairs.channels]
        return torch.cat([weight, bias[..., None]], dim=-1).mT


def _declared_channels(cue: CueProvider) -> int | None:
    """How many channels a teacher's maps have, by its kind or by its own word; None where neither says it."""
    return CHANNELS.get(cue.kind) or cue.channels
