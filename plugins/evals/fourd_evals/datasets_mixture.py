"""Several data sets as one, drawn from with weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, overload

import attrs
import torch

from fourd_core.build import build_component
from fourd_core.errors import MediaError
from fourd_core.interfaces import AnnotatedVideo, Dataset, Split, Video
from fourd_core.media.dataset import VideoSlice
from fourd_core.media.views import ViewConfig
from fourd_core.recipe import ComponentConfig, Location, components
from fourd_evals.annotated import root_here


class MixedVideos(Sequence):  # type: ignore[type-arg]  # as Sequence[Video], checkers at run time would open one
    """The videos of several data sets one after the other, each opened when it is taken.

    Attributes:
        parts: the videos of each data set by its name.
        keys: `<name>/<key in the data set>`; opens nothing.
    """

    def __init__(self, parts: Mapping[str, Sequence[Video]]) -> None:
        self.parts = dict(parts)
        self._ends = list(accumulate(map(len, self.parts.values())))
        self.keys = [f"{name}/{key}" for name, videos in self.parts.items() for key in _keys(videos)]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Video]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> list[Video]: ...
    def __getitem__(self, index: int | slice) -> Video | list[Video]:
        """One video, opened now, or some of them."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        part = next(number for number, end in enumerate(self._ends) if index < end)
        name = list(self.parts)[part]
        return self.of(name, index - (self._ends[part - 1] if part else 0))

    def of(self, name: str, index: int) -> Video:
        """A video of one of the data sets."""
        video = self.parts[name][index]
        key = f"{name}/{video.key or video.name}"
        if not isinstance(video, AnnotatedVideo):
            return VideoSlice(video, 0, video.frame_count, key)  # a copy of its own would open its file again
        video = copy.copy(video)
        video.key = key
        return video


def _keys(videos: Sequence[Video]) -> Sequence[str]:
    keys: Sequence[str] | None = getattr(videos, "keys", None)
    return [video.key or video.name for video in videos] if keys is None else keys


class Mixture(Dataset):
    """Several data sets as one, drawn from with weights; what one of them does not know is left out of its truth."""

    @attrs.frozen(kw_only=True)
    class Config(ViewConfig):
        """Which data sets, how often each is drawn from, and how a network sees all of them."""

        root: Location | None = None
        """A folder with the data sets that name none themselves: each in the folder of its name, or, where there is no
        such folder, all of them here."""
        sets: dict[str, ComponentConfig] = components("datasets")
        """`[data.sets.NAME]`: the data sets. What they say of the view does not count: the mixture's does."""
        weights: dict[str, float] = attrs.field(factory=dict)
        """How often each is drawn from, compared with the others; 1 where nothing is said, however large it is."""

        @weights.validator
        def _(self, attribute: object, value: dict[str, float]) -> None:
            if unknown := [name for name in value if name not in self.sets]:
                raise ValueError(f'weights name "{unknown[0]}", and the sets are {", ".join(self.sets) or "none"}')
            if wrong := [f"{name} = {weight:g}" for name, weight in value.items() if not 0 <= weight < float("inf")]:
                raise ValueError(f"a weight is a number of at least 0, not {wrong[0]}")
            if self.sets and not any(value.get(name, 1.0) for name in self.sets):
                raise ValueError("all weights are 0: nothing would be drawn")

    @classmethod
    def example(cls) -> Config:
        """Two data sets in memory."""
        from fourd_evals.datasets_point_odyssey import PointOdyssey
        from fourd_evals.datasets_tartanair import TartanAir

        sets = {"tartanair": TartanAir, "point_odyssey": PointOdyssey}
        return cls.Config(sets={name: ComponentConfig("datasets", name, data.example()) for name, data in sets.items()})

    def __init__(self, config: Config) -> None:
        self.config = self.view = config
        if not config.sets:
            raise ValueError("no data set is named: add a section [data.sets.NAME]")
        self._splits: dict[Split, MixedVideos] = {}
        self._sets: dict[str, Dataset] | None = None

    def videos(self, split: Split) -> MixedVideos:
        """The videos of all data sets that are there, in the recipe's order.

        Raises:
            MediaError: none of them is there, or one is there and damaged.
        """
        if self._sets is None:
            self._sets = self._found()
        if split not in self._splits:
            self._splits[split] = MixedVideos({name: data.videos(split) for name, data in self._sets.items()})
        return self._splits[split]

    def draw(self, split: Split, generator: torch.Generator) -> int:
        """A video of a data set that is drawn by the weights, all of its videos alike.

        Raises:
            MediaError: no data set with a weight has a video in this split.
        """
        parts = self.videos(split).parts
        weights = [self.config.weights.get(name, 1.0) if len(part) else 0.0 for name, part in parts.items()]
        if not any(weights):
            raise MediaError(f'no data set of the mixture that has a weight has a video in "{split}"')
        chosen = int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))
        counts = [len(part) for part in parts.values()]
        return sum(counts[:chosen]) + int(torch.randint(counts[chosen], (), generator=generator))

    def _found(self) -> dict[str, Dataset]:
        """The data sets that are there; those that are not are said on the error stream."""
        found, absent = {}, []
        for name, section in self.config.sets.items():
            section, folder_named = self._rooted(name, section)
            data: Dataset = build_component(section, 0, f"data.sets.{name}")
            try:
                data.videos("all")
            except MediaError as error:
                if folder_named:
                    raise
                root = self.config.root
                wanted = "" if root is None else f"there is no folder {str(root).rstrip('/')}/{name}, and "
                absent.append(f"{name} ({wanted}{error})")
                continue
            found[name] = data
        if not found:
            raise MediaError(f"none of the mixture's data sets is there: {'; '.join(absent)}")
        for message in absent:
            sys.stderr.write(f"note: the mixture goes without {message}\n")
        return found

    def _rooted(self, name: str, section: ComponentConfig) -> tuple[ComponentConfig, bool]:
        """The section with a folder, and whether that is there and this set's own, so that it must hold it."""
        config, root = section.config, self.config.root
        if getattr(config, "root", None) is not None:
            return section, _exists(str(config.root))
        if root is None or not hasattr(config, "root") or getattr(config, "video", None) is not None:
            return section, True  # generated, or named by other keys; else it says itself that it has no folder
        inside = f"{str(root).rstrip('/')}/{name}"
        named = _exists(inside)
        rooted = attrs.evolve(config, root=Location(inside) if named else root)
        return attrs.evolve(section, config=rooted), named

    def __reduce__(self) -> tuple[type[Mixture], tuple[Any, ...]]:
        return type(self), (self.config,)


def _exists(location: str) -> bool:
    try:
        root_here(location)
    except MediaError:
        return False
    return True
