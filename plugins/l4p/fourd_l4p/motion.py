"""What moves by itself, learned from masks: the objective behind L4P's motion-based segmentation.

Windows of the videos go through the frozen backbone and one head, whose logits are compared with given masks. L4P added
this head last, to a network that was finished.
Source: Badki et al., L4P (arXiv 2502.13078), section 4.6: encoder frozen, dense head, binary cross entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import attrs
import fsspec
import torch
import torch.nn.functional as F
from attrs.validators import ge, optional
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.data import Clip, Tokens
from fourd_core.errors import MediaError, RecipeError
from fourd_core.interfaces import BackboneSpec, Dataset, Objective, Sample, Split, Video
from fourd_core.media.dataset import VideoFiles
from fourd_core.media.views import TiledView, View, ViewConfig
from fourd_core.media.writers import encode_png
from fourd_core.recipe import Location
from fourd_core.streaming import mirrored, view_of
from fourd_core.system import System

WHITE = 128
"""A pixel of a mask says "moving" where its brightest colour is at least this, of 255."""
ALIKE = 0.02
"""By how much of the width a mask's proportions may differ from the frame's."""


class TellsLogits(Protocol):
    """A head that can learn here: `kind = "mask"`, and a prediction that is the sigmoid of `raw`."""

    def raw(self, tokens: Tokens, clip: Clip) -> Float[Tensor, "b t 1 h w"]:
        """The logit of each pixel of the clip."""


class MotionMask(Objective):
    """Masks of what moves by itself, learned by binary cross entropy (L4P, motion-based segmentation)."""

    @attrs.frozen
    class Config:
        """Where the masks are, and which head learns them."""

        masks: Location
        """A video, a folder of pictures or a pattern: frame for frame what `data.video` is, white where something moves
        by itself. Of several videos in the same order; of any size with the same proportions."""
        head: str = "motion"
        """The head that learns."""
        frames: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """Length of a sample; none: the window that suits the backbone."""

    @classmethod
    def example(cls) -> Any:
        """Ten generated masks in memory."""
        memory = fsspec.filesystem("memory")
        for number in range(10):
            picture = torch.zeros(3, 48, 64, dtype=torch.uint8)
            picture[:, 8:40, 4 * number : 4 * number + 24] = 255
            memory.pipe_file(f"/fourd-example-masks/{number}.png", encode_png(picture))
        return cls.Config(masks=Location("memory://fourd-example-masks"))

    @classmethod
    def example_system(cls) -> System:
        """A small backbone and L4P's dense head."""
        from fourd_dpt3d.dense3d import Motion3D

        from fourd_core.testing import miniature

        return miniature.Miniature(heads={"motion": Motion3D(Motion3D.example(), miniature.Patches.spec)})

    @classmethod
    def example_data(cls) -> Dataset:
        """As many small frames as there are masks."""
        return VideoFiles(attrs.evolve(VideoFiles.example(), pixels=32))

    def __init__(self, config: Config, system: System) -> None:
        super().__init__()
        self.config = config
        self.spec = system.backbone.spec
        self.frames = config.frames or self.spec.window[0]
        self._masks: VideoFiles | None = None
        self._checked: set[Split] = set()
        if config.head not in system.heads:
            raise ValueError(f'head = "{config.head}" is no head of this recipe, which has: {", ".join(system.heads)}')
        head = system.heads[config.head]
        if getattr(head, "kind", None) != "mask" or not hasattr(head, "raw"):
            raise ValueError(
                f'head = "{config.head}" cannot learn masks: that takes a head of the kind "mask" with a method `raw` '
                'that tells its logits, such as "motion3d"'
            )
        if self.frames % self.spec.multiple[0]:
            raise ValueError(f"frames = {self.frames} is no multiple of the backbone's {self.spec.multiple[0]} frames")

    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        """A window of a video as the network sees it, `frames` in [0, 1] (t 3 h w), and `moving` (t h w).

        Of a view in tiles it is the whole frame; a video shorter than the window goes back and forth, as in prediction.
        `drawn` says which it is: the video's number, and the first frame.

        Raises:
            MediaError: the masks are not the videos' own, or there is no video.
            RecipeError: a view that does not fit, or data that is not split by frames as the masks are.
        """
        videos, masks = self._videos(data, split)
        number = _draw(len(videos), generator)
        video = videos[number]
        view = _one_view(data.view, video, self.spec)
        start = _draw(max(video.frame_count - self.frames, 0) + 1, generator)
        indices = [mirrored(start + i, video.frame_count) for i in range(self.frames)]
        return {
            "frames": view.apply(video.read(indices)),
            "moving": seen_masks(masks[number], indices, view),
            "drawn": torch.tensor([number, start]),
        }

    def describe(self, data: Dataset, batch: Mapping[str, Tensor]) -> str:
        """The windows of a batch: each video with the first frame."""
        videos = data.videos("train")
        return ", ".join(f"{videos[number].name} from frame {start} on" for number, start in batch["drawn"].tolist())

    def forward(self, system: System, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """`loss` is the mean binary cross entropy of all pixels, `iou` what the mask has in common with the given one.

        The latter counts pixels above a probability of 0.5, over the whole batch.
        """
        clip, name = Clip(batch["frames"]), self.config.head
        head = cast(TellsLogits, system.heads[name])
        logits = head.raw(system.encode(clip.frames, heads=(name,)), clip)[:, :, 0].float()
        moving = batch["moving"]
        loss = F.binary_cross_entropy_with_logits(logits, moving.float())
        return {"loss": loss, "iou": intersection_over_union(logits > 0, moving)}

    def _videos(self, data: Dataset, split: Split) -> tuple[Sequence[Video], Sequence[Video]]:
        """The videos of a split and their masks, frame for frame; all are looked at once, and not for every sample."""
        if self._masks is None:
            self._masks = _masks_of(data, self.config.masks)
        videos, masks = data.videos(split), self._masks.videos(split)
        if split not in self._checked:
            self._check_views(data, videos, split)
            self._checked.add(split)
        return videos, masks

    def _check_views(self, data: Dataset, videos: Sequence[Video], split: Split) -> None:
        if not videos:
            raise MediaError(f'the data has no video in its part "{split}"; set data.held_out above 0')
        views = (_one_view(data.view, video, self.spec) for video in videos)
        sizes = {f"{view.size[0]} x {view.size[1]}" for view in views}
        if len(sizes) > 1:
            raise RecipeError(
                f'[data] view = "{data.view.view}" makes inputs of {len(sizes)} sizes of these videos '
                f'({", ".join(sorted(sizes))}), and a batch needs one; set data.view to "resize" or "center"'
            )


def seen_masks(masks: Video, indices: list[int], view: View) -> Bool[Tensor, "t h w"]:
    """What moves, at the pixels of a view; a pixel of the view moves where most of what it covers does."""
    moving = masks.read(indices).amax(1, keepdim=True) >= WHITE
    view = attrs.evolve(view, video_size=masks.size, resampling="antialias")
    return view.apply(moving.float())[:, 0] > 0.5


def intersection_over_union(predicted: Bool[Tensor, "..."], given: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """The share of what either calls moving that both do; 1 where nothing moves and nothing is said to."""
    both, either = (predicted & given).sum().float(), (predicted | given).sum().float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def _masks_of(data: Dataset, location: Location) -> VideoFiles:
    """The masks as a data set that is split as the videos are.

    Raises:
        MediaError: another number of videos or of frames, or other proportions, than the videos have.
        RecipeError: the data is no files of videos, or a data set of which whole videos are held out.
    """
    if not isinstance(data, VideoFiles):
        raise RecipeError('masks can be learned from [data] use = "video" alone: they are split as its frames are')
    if data.config.root is not None:
        raise RecipeError(
            "masks are split by frames as the videos of data.video are, and data.root holds out whole videos; leave it "
            "out and name the videos, or a pattern for their folders, by data.video"
        )
    dataset = VideoFiles(attrs.evolve(data.config, video=location, more=(), intrinsics=None))
    videos, masks = data.videos("all"), dataset.videos("all")
    if len(videos) != len(masks):
        raise MediaError(
            f"{location} holds masks of {len(masks)} videos and data.video names {len(videos)}; give one set of masks "
            "for each, in the same order"
        )
    for video, mask in zip(videos, masks, strict=True):
        if video.frame_count != mask.frame_count:
            raise MediaError(
                f"the masks {mask.name} have {mask.frame_count} frames and the video {video.name} has "
                f"{video.frame_count}; give one mask for each frame"
            )
        (height, width), (rows, columns) = video.size, mask.size
        if abs(rows * width / height - columns) > ALIKE * columns:
            raise MediaError(
                f"the masks {mask.name} are {columns}x{rows} and the video {video.name} is {width}x{height}; give "
                "masks of the whole frame, in its proportions"
            )
    return dataset


def _one_view(rule: ViewConfig, video: Video, backbone: BackboneSpec) -> View:
    """How the network sees a frame at once: of a view in tiles, the whole."""
    view = view_of(rule, video.size, backbone)
    return view.whole if isinstance(view, TiledView) else view


def _draw(count: int, generator: torch.Generator) -> int:
    """A uniform number below `count`."""
    return int(torch.randint(count, (), generator=generator))
