"""Data sets of videos of which more is known than their colours: what all their readers share.

A reader is two classes: a subclass of `AnnotatedFrames`, which reads one sequence frame by frame, and a subclass of
`AnnotatedSet`, the component, which finds the sequences of a folder and opens them.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, overload

import attrs
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fourd_core.data import Cameras, MapKind, Maps, Prediction, Predictions, Tracks
from fourd_core.errors import MediaError
from fourd_core.interfaces import AnnotatedVideo, Dataset, Split
from fourd_core.media.folders import open_folder
from fourd_core.media.layouts import Collection, Names, Part
from fourd_core.media.locations import file_at, filesystem_at, read_lines
from fourd_core.media.views import ViewConfig
from fourd_core.recipe import Location
from fourd_evals.roots import Root

OPEN_VIDEOS = 64
"""So many sequences stay open: of each, the names of its files and its cameras are kept."""

Map = Float[Tensor, "c h w"]
Camera = tuple[Float[Tensor, "4 4"], Float[Tensor, "3 3"]]
"""`world_from_cam` and the intrinsics of a frame."""


def root_here(location: str) -> Root:
    """The folder of a data set as this process reads it: connections do not survive a fork.

    Raises:
        MediaError: as `Root`.
    """
    return _root(location, os.getpid())


@lru_cache(maxsize=16)
def _root(location: str, _process: int) -> Root:
    return Root(location)


class AnnotatedFrames(AnnotatedVideo):
    """A sequence that is read frame by frame; a subclass overrides `picture` and what else is `known`.

    It pickles where the subclass keeps plain values only; files are read through `root`, by their names within it.

    Args:
        location: the folder of the data set.
        key: what the sequence is called within it; a reader finds its files by `path`, which it is too, since a mixture
            gives sequences longer keys.
        known: which of `fourd_core.interfaces.TRUTHS`.
        frame_rate: frames per second.
    """

    def __init__(
        self,
        location: str,
        key: str,
        frame_count: int,
        size: tuple[int, int],
        known: frozenset[str],
        frame_rate: float,
        intrinsics: Float[Tensor, "3 3"] | None = None,
    ) -> None:
        self.location, self.path, self.key = location, key, key
        self.name = f"{location.rstrip('/')}/{key}"
        self.frame_count, self.size, self.known, self.intrinsics = frame_count, size, known, intrinsics
        self._frame_rate = frame_rate

    @property
    def root(self) -> Root:
        """The folder of the data set."""
        return root_here(self.location)

    @abstractmethod
    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """A frame, RGB."""

    def depth(self, index: int) -> Float[Tensor, "1 h w"] | None:
        """z in metres, NaN where it is not known; None: nowhere."""
        return None

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """Pixels `(x, y)` from frame `index` to its neighbour `to` (one before or one after); None: not known."""
        return None

    def motion(self, index: int) -> Float[Tensor, "1 h w"] | None:
        """1 where something moves in the world, 0 where not."""
        return None

    def camera(self, index: int) -> Camera | None:
        """`world_from_cam` in metres and the intrinsics in pixels; None: not known in this frame."""
        return None

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """Points and where they are in these frames, `1 t n ...`."""
        raise NotImplementedError(f"{type(self).__name__} says that tracks are known and does not tell them")

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`."""
        frames = torch.empty(len(indices), 3, *self.size, dtype=torch.uint8)
        for place, index in enumerate(self._within(indices)):
            frames[place] = self._of_size(self.picture(index), index, "picture")
        return frames

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds from the first frame on, at the data set's frame rate."""
        return torch.tensor([float(index) for index in indices], dtype=torch.float64) / self._frame_rate

    def truth(self, indices: Sequence[int]) -> Predictions:
        """As `AnnotatedVideo.truth`.

        Raises:
            MediaError: a file is missing, damaged, or of another size than the frames.
        """
        indices = self._within(indices)
        items: dict[str, Prediction] = {}
        if "depth" in self.known:
            items["depth"] = self._maps("depth", "m", 1, indices, [self.depth(index) for index in indices])
        if "flow" in self.known:
            before = [None, *indices[:-1]]
            flows = [
                self.flow(index, to) if to is not None and abs(index - to) == 1 else None
                for index, to in zip(indices, before, strict=True)
            ]
            items["flow"] = self._maps("flow", "px", 2, indices, flows)
        if "motion" in self.known:
            items["motion"] = self._maps("mask", "1", 1, indices, [self.motion(index) for index in indices])
        if "cameras" in self.known:
            items["cameras"] = _cameras([self.camera(index) for index in indices])
        if "tracks" in self.known:
            items["tracks"] = self.tracks(indices)
        return Predictions(items)

    def _maps(self, kind: MapKind, unit: str, channels: int, indices: list[int], maps: list[Map | None]) -> Maps:
        values = torch.full((1, len(maps), channels, *self.size), torch.nan)
        for place, (index, found) in enumerate(zip(indices, maps, strict=True)):
            if found is not None:
                values[0, place] = self._of_size(found, index, f"{kind} map")
        return Maps(values, kind=kind, unit=unit)

    def _of_size(self, values: Tensor, index: int, what: str) -> Tensor:
        if tuple(values.shape[-2:]) != self.size:
            has, wanted = (" x ".join(map(str, size)) for size in (values.shape[-2:], self.size))
            raise MediaError(f"the {what} of frame {index} of {self.name} has {has} rows and columns, not {wanted}")
        return values

    def _within(self, indices: Sequence[int]) -> list[int]:
        outside = [int(index) for index in indices if not 0 <= index < self.frame_count]
        if outside:
            raise IndexError(f"{self.name} has frames 0 to {self.frame_count - 1}, not {outside[0]}")
        return [int(index) for index in indices]


def _cameras(cameras: list[Camera | None]) -> Cameras:
    """Cameras of one video; NaN in the pose and the intrinsics of frames whose camera is not known."""
    poses = torch.full((1, len(cameras), 4, 4), torch.nan)
    intrinsics = torch.full((1, len(cameras), 3, 3), torch.nan)
    for place, camera in enumerate(cameras):
        if camera is not None:
            poses[0, place], intrinsics[0, place] = camera
    return Cameras(poses, intrinsics, unit="m")


@attrs.frozen(kw_only=True)
class AnnotatedConfig(ViewConfig):
    """What the readers' configurations share."""

    root: Location | None = None
    """The folder of the data set; none: the recipe's `data.root`, or what a mixture finds in its own."""
    list: Location | None = None
    """A text file with a sequence a line, by the end of its path: train on these alone."""
    held_out: float = attrs.field(default=0.1)
    """The share of the sequences, the last in natural order, that training does not see, where the data set comes
    without a split of its own."""

    @held_out.validator
    def _(self, attribute: object, value: float) -> None:
        if not 0 <= value < 1:
            raise ValueError(f"held_out is a share of the sequences, at least 0 and below 1, not {value}")


class AnnotatedSet(Dataset):
    """A data set of annotated sequences below one folder. Copies in other processes open their own files."""

    title: ClassVar[str]
    """Its name, for messages."""
    Config: ClassVar[type[Any]] = AnnotatedConfig

    def __init__(self, config: Any) -> None:
        self.config = self.view = config
        self._found: Collection | None = None
        self._opened: OrderedDict[str, AnnotatedVideo] = OrderedDict()
        self._lock = threading.Lock()

    @abstractmethod
    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """The names of its sequences, each the end of a path, in natural order; nothing is opened.

        Of a data set with a split of its own both parts; of others, or where one part is there alone, only that one,
        of which `held_out` splits off the last.

        Raises:
            MediaError: there are none (`Root.missing` says what was looked for).
        """

    @abstractmethod
    def open(self, root: Root, name: str) -> AnnotatedVideo:
        """A sequence by the name that `find` gave it, which becomes its key.

        Raises:
            MediaError: files are missing or damaged.
        """

    def videos(self, split: Split) -> AnnotatedVideos:
        """The sequences of a split, each opened when it is taken.

        Raises:
            MediaError: no folder is named, or it is not laid out as this data set is.
        """
        if self._found is None:
            self._found = self._collect()
        return AnnotatedVideos(self, self._found.split(split, self.config.held_out))

    def video(self, name: str) -> AnnotatedVideo:
        """A sequence by its name."""
        with self._lock:
            if name in self._opened:
                self._opened.move_to_end(name)
                return self._opened[name]
        video = self.open(root_here(str(self.config.root)), name)
        with self._lock:
            self._opened[name] = video
            while len(self._opened) > OPEN_VIDEOS:
                self._opened.popitem(last=False)
        return video

    def _collect(self) -> Collection:
        location, only = self.config.root, self.config.list
        if location is None:
            raise MediaError(f"the folder of {self.title} is not named: set root")
        found = self.find(root_here(str(location)))
        own = {part: Names(str(location), names, True) for part, names in found.items()} if len(found) == 2 else {}
        videos = [name for names in found.values() for name in names]
        collection = Collection(open_folder(str(location)), videos, own, whole_names=True)
        if only is None:
            return collection
        return collection.limited(Names(str(only), read_lines(file_at(*filesystem_at(str(only))))))

    def __reduce__(self) -> tuple[type[AnnotatedSet], tuple[Any, ...]]:
        return type(self), (self.config,)


class AnnotatedVideos(Sequence):  # type: ignore[type-arg]  # as Sequence[Video], checkers at run time would open one
    """The sequences of a split, each opened when it is taken. It pickles, and threads may share it.

    Attributes:
        keys: what each is called within the data set; opens nothing.
    """

    def __init__(self, data: AnnotatedSet, keys: Sequence[str]) -> None:
        self._data, self.keys = data, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[AnnotatedVideo]:
        return (self._data.video(key) for key in self.keys)

    @overload
    def __getitem__(self, index: int) -> AnnotatedVideo: ...
    @overload
    def __getitem__(self, index: slice) -> AnnotatedVideos: ...
    def __getitem__(self, index: int | slice) -> AnnotatedVideo | AnnotatedVideos:
        """One sequence, opened now, or some of them, not opened."""
        if isinstance(index, slice):
            return AnnotatedVideos(self._data, self.keys[index])
        return self._data.video(self.keys[index])


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Float[Tensor, "3 3"]:
    """The matrix of a camera without skew, in our pixels (the centre of the top left one is (0.5, 0.5))."""
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def known_depth(depth: Float[Tensor, "*c h w"], farthest: float) -> Float[Tensor, "*c h w"]:
    """Depth in single precision, NaN where it is not a positive number below `farthest`."""
    return depth.float().where((depth > 0) & (depth < farthest), torch.nan)
