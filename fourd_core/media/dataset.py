"""The data set that needs no preparation: any videos, or the folder of a public data set."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import attrs
import fsspec
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.interfaces import Dataset, Split, Video
from fourd_core.media.cache import FrameCache
from fourd_core.media.layouts import Collection, Layout, read_collection
from fourd_core.media.locations import Source, find
from fourd_core.media.video import open_source
from fourd_core.media.views import ViewConfig
from fourd_core.media.writers import encode_png
from fourd_core.recipe import Location

OPEN_VIDEOS = 256
"""So many videos stay open: of each, the places of its frames are kept, some kilobytes."""


class VideoSlice(Video):
    """Frames `start .. stop - 1` of a video, as a video of its own."""

    def __init__(self, video: Video, start: int, stop: int, key: str = "") -> None:
        self.name = f"{video.name}[{start}:{stop}]"
        self.key = key
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


class _Opened:
    """Videos by key, the ones that were taken last kept open; a copy in another process starts with none."""

    def __init__(self, source_of: Callable[[str], Source], config: VideoFiles.Config, cache: FrameCache) -> None:
        self._source_of, self._config, self._cache = source_of, config, cache
        self._videos: OrderedDict[str, Video] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, key: str) -> Video:
        with self._lock:
            if key in self._videos:
                self._videos.move_to_end(key)
                return self._videos[key]
        video = open_source(self._source_of(key), self._cache, self._config.frame_rate)
        video.key, video.intrinsics = key, self._config.pinhole
        with self._lock:
            self._videos[key] = video
            while len(self._videos) > OPEN_VIDEOS:
                self._videos.popitem(last=False)
        return video

    def __reduce__(self) -> tuple[type[_Opened], tuple[Any, ...]]:
        return _Opened, (self._source_of, self._config, self._cache)


class Videos(Sequence):  # type: ignore[type-arg]  # as Sequence[Video], checkers of types at run time would open one
    """The videos of a split, each opened when it is taken. It pickles, and threads may share it.

    Attributes:
        keys: what each video is called within the data set (`Video.key`), the same on every machine; opens nothing.
    """

    def __init__(self, names: Sequence[str], opened: _Opened, part: _Part | None = None) -> None:
        self._names, self._opened, self._part = names, opened, part
        self.keys = names if part is None else [part.key_of(name) for name in names]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Video]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> Videos: ...
    def __getitem__(self, index: int | slice) -> Video | Videos:
        """One video, opened now, or some of them, not opened.

        Raises:
            MediaError: it cannot be opened, or is too short to be split.
        """
        if isinstance(index, slice):
            return Videos(self._names[index], self._opened, self._part)
        video = self._opened[self._names[index]]
        return video if self._part is None else self._part.of(video)


@attrs.frozen
class _Part:
    """The first or the last frames of each video."""

    held_out: bool
    share: float
    gap: int

    def key_of(self, key: str) -> str:
        """Frame n of the first part is frame n of the video; of the last part it depends on the share."""
        return f"{key}[-{self.share:g}:]" if self.held_out else key

    def of(self, video: Video) -> Video:
        first = video.frame_count - round(video.frame_count * self.share)
        before = first - self.gap * (first < video.frame_count)
        start, stop = (first, video.frame_count) if self.held_out else (0, before)
        if stop <= start:
            raise MediaError(
                f"{video.name} has {video.frame_count} frames, too few to hold out {self.share:g} of them with a gap "
                f"of {self.gap}; use a longer video or change data.held_out or data.gap"
            )
        return VideoSlice(video, start, stop, self.key_of(video.key))


class VideoFiles(Dataset):
    """Videos by their places, the last part of each held out; or a whole data set, some of its videos held out."""

    @attrs.frozen(kw_only=True)
    class Config(ViewConfig):
        """Which videos, how they are split, and how a network sees them."""

        video: Location | None = None
        """A video file, a folder of pictures (one video) or of videos, or a glob pattern of files or such folders.

        Pictures of several folders are several videos; a folder with both pictures and videos is refused.
        """
        more: tuple[Location, ...] = ()
        """Further locations of the same kinds."""
        root: Location | None = attrs.field(default=None)
        """The folder of a data set; where it is set, its videos are meant and not those of `video` and `more`."""
        layout: Layout = "auto"
        """How the root is laid out: "davis", "youtube_vos", "kinetics", or "videos" for files and folders of frames at
        any depth (folders called annotations left out); "auto" looks at what is there."""
        list: Location | None = None
        """A text file with a video a line, by the end of its path: of the root, train on these alone."""
        held_out: float = attrs.field(default=0.2)
        """The share of each video, at its end, that training does not see. Of a root, the share of its videos, the last
        in natural order; one that comes with a split (DAVIS, YouTube-VOS, Kinetics) is split so instead."""
        gap: int = attrs.field(default=0, validator=attrs.validators.ge(0))
        """Frames before the held-out part of a video that belong to neither split; of a root there are none."""
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

        @root.validator
        def _(self, attribute: object, value: Location | None) -> None:
            if value is None and self.video is None:
                raise ValueError("no video is named: set video (files or patterns) or root (the folder of a data set)")
            if value is None and (self.list, self.layout) != (None, "auto"):
                raise ValueError("list and layout are about the folder of a data set: set root too")

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
        self._collection: Collection | None = None
        self._opened: _Opened | None = None
        self._splits: dict[Split, Videos] = {}

    def videos(self, split: Split) -> Videos:
        """The videos of a split: found at the first call, opened as they are taken; a single one is opened at once.

        Where `held_out` is 0, none are held out, except of a root that comes with a split.

        Raises:
            MediaError: nothing is there, or not what the layout promises; a single video that cannot be opened or is
                too short to be split.
        """
        if split not in self._splits:
            self._splits[split] = self._of_root(split) if self.config.root else self._of_places(split)
        return self._splits[split]

    @property
    def layout(self) -> Layout | None:
        """As what the root was read, once its videos were asked for; None of single videos."""
        return None if self._collection is None else self._collection.layout

    def _of_root(self, split: Split) -> Videos:
        config = self.config
        if self._collection is None or self._opened is None:
            self._collection = read_collection(str(config.root), config.layout, config.list)
            self._opened = _Opened(self._collection.source, config, self._cache)
        return Videos(self._collection.split(split, config.held_out), self._opened)

    def _of_places(self, split: Split) -> Videos:
        config = self.config
        if self._opened is None:
            places = [place for place in (config.video, *config.more) if place is not None]
            sources = [source for place in places for source in find(place)]
            self._keys = _keys([source.name for source in sources])
            by_key = dict(zip(self._keys, sources, strict=True))
            self._opened = _Opened(by_key.__getitem__, config, self._cache)
        if split == "held_out" and config.held_out == 0:
            return Videos((), self._opened)
        part = None if split == "all" else _Part(split == "held_out", config.held_out, config.gap)
        videos = Videos(self._keys, self._opened, part)
        if len(videos) == 1:
            videos[0]
        return videos


def _keys(names: Sequence[str]) -> list[str]:
    """As much of the end of each path as tells them all apart."""
    paths = {name: _path_parts(name) for name in names}
    for count in range(1, max(map(len, paths.values()), default=0) + 1):
        keys = {name: "/".join(parts[-count:]) for name, parts in paths.items()}
        if len(set(keys.values())) == len(keys):
            return [keys[name] for name in names]
    return list(names)


def _path_parts(location: str) -> list[str]:
    """A path in parts; of a URL without its protocol and query, of a chained one the file first that holds the rest."""
    chain = [part.split("://")[-1] for part in location.split("::")]
    if location.startswith(("http://", "https://")):
        chain[0] = chain[0].partition("?")[0]
    return [part for place in reversed(chain) for part in place.split("/") if part]
