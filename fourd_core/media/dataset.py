"""The data set that needs no preparation: any videos."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import fsspec
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.interfaces import Dataset, Split, Video
from fourd_core.media.cache import FrameCache
from fourd_core.media.locations import find
from fourd_core.media.video import open_source
from fourd_core.media.views import ViewConfig
from fourd_core.media.writers import encode_png
from fourd_core.progress import track
from fourd_core.recipe import Location


class VideoSlice(Video):
    """Frames `start .. stop - 1` of a video, as a video of its own."""

    def __init__(self, video: Video, start: int, stop: int) -> None:
        self.name = f"{video.name}[{start}:{stop}]"
        self.frame_count = stop - start
        self.size = video.size
        self.intrinsics = video.intrinsics
        self._video = video
        self._start = start

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`."""
        return self._video.read(self._in_video(indices))

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds from the start of the whole video."""
        return self._video.times(self._in_video(indices))

    def _in_video(self, indices: Sequence[int]) -> list[int]:
        outside = [int(index) for index in indices if not 0 <= index < self.frame_count]
        if outside:
            raise IndexError(f"{self.name} has frames 0 to {self.frame_count - 1}, not {outside[0]}")
        return [self._start + int(index) for index in indices]


class VideoFiles(Dataset):
    """Video files, folders of frames and glob patterns; the last part of each video is held out."""

    @attrs.frozen(kw_only=True)
    class Config(ViewConfig):
        """Which videos, how they are split, and how a network sees them."""

        video: Location
        """A video file, a folder of pictures (one video) or of videos, or a glob pattern of files or such folders.

        Pictures of several folders are several videos; a folder with both pictures and videos is refused.
        """
        more: tuple[Location, ...] = ()
        """Further locations of the same kinds."""
        held_out: float = attrs.field(default=0.2)
        """The share of each video, at its end, that training does not see."""
        gap: int = attrs.field(default=0, validator=attrs.validators.ge(0))
        """Frames before the held-out part that belong to neither split."""
        frame_rate: float = attrs.field(default=25.0, validator=attrs.validators.gt(0))
        """Frames per second of pictures; video files state their own."""
        cache_mb: int = attrs.field(default=512, validator=attrs.validators.ge(0))
        """Megabytes of decoded frames that each process may keep."""
        intrinsics: tuple[float, float, float, float] | None = attrs.field(default=None)
        """fx, fy, cx, cy of every video's camera where they are known, in pixels; the centre of the top left pixel is
        (0.5, 0.5), so that a centred camera has cx = width / 2."""

        @intrinsics.validator
        def _(self, attribute: object, value: tuple[float, ...] | None) -> None:
            if value is not None and not (all(map(math.isfinite, value)) and min(value[:2]) > 0):
                raise ValueError(
                    f"intrinsics are fx, fy, cx, cy: finite numbers, fx and fy positive, not {list(value)}"
                )

        @property
        def pinhole(self) -> Float[Tensor, "3 3"] | None:
            """`intrinsics` as a matrix."""
            if self.intrinsics is None:
                return None
            fx, fy, cx, cy = self.intrinsics
            return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

        @held_out.validator
        def _(self, attribute: object, value: float) -> None:
            if not 0 <= value < 1:
                raise ValueError(f"held_out is a share of the video, at least 0 and below 1, not {value}")

    @classmethod
    def example(cls) -> Config:
        """Ten generated frames in memory."""
        generator = torch.Generator().manual_seed(0)
        memory = fsspec.filesystem("memory")
        for number in range(10):
            picture = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=generator)
            memory.pipe_file(f"/fourd-example/{number}.png", encode_png(picture))
        return cls.Config(video=Location("memory://fourd-example"))

    def __init__(self, config: Config) -> None:
        self.config = self.view = config
        self._cache = FrameCache(config.cache_mb * 2**20)
        self._splits: dict[Split, list[Video]] = {}

    def videos(self, split: Split) -> Sequence[Video]:
        """The videos of a split, opened at the first call; none are held out where `held_out` is 0.

        Raises:
            MediaError: a video that cannot be opened, or is too short to be split.
        """
        if split not in self._splits:
            self._splits[split] = self._open() if split == "all" else self._parts(split)
        return self._splits[split]

    def _open(self) -> list[Video]:
        sources = [source for location in (self.config.video, *self.config.more) for source in find(location)]
        opened = track(sources, "indexing videos", len(sources)) if len(sources) > 1 else sources
        videos = [open_source(source, self._cache, self.config.frame_rate) for source in opened]
        for video in videos:
            video.intrinsics = self.config.pinhole
        return videos

    def _parts(self, split: Split) -> list[Video]:
        if split == "held_out" and self.config.held_out == 0:
            return []
        return [self._part(video, split) for video in self.videos("all")]

    def _part(self, video: Video, split: Split) -> Video:
        held_out = round(video.frame_count * self.config.held_out)
        first = video.frame_count - held_out
        start, stop = (0, first - self.config.gap * (held_out > 0)) if split == "train" else (first, video.frame_count)
        if stop <= start:
            raise MediaError(
                f"{video.name} has {video.frame_count} frames, too few to hold out {self.config.held_out:g} of them "
                f"with a gap of {self.config.gap}; use a longer video or change data.held_out or data.gap"
            )
        return VideoSlice(video, start, stop)
