"""Which frames a training will draw, found out without decoding any of them."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
import numpy as np
import torch
from jaxtyping import Int64

from fourd_core.errors import MediaError, PluginError, RecipeError
from fourd_core.interfaces import CueProvider, Dataset, Objective, Split, Video
from fourd_core.progress import track
from fourd_core.randomness import generator_for


def sample_generator(seed: int, stage: str, number: int, place: int) -> torch.Generator:
    """The generator of one training sample: the `place`-th of batch `number`, over all processes of the training."""
    return generator_for(seed, stage, "sample", number, place)


def keys_of(videos: Sequence[Any]) -> list[str]:
    """What the videos are called within their data set; where the data set knows it beforehand, none is opened."""
    known: Sequence[str] | None = getattr(videos, "keys", None)
    return list(known) if known is not None else [video.key or video.name for video in videos]


def hash_of(key: str) -> int:
    """A positive 63-bit number for a video's key, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def digest_of(value: Any) -> str:
    """A short text that stands for plain JSON values."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


class KnownVideo(Video):
    """What a draw needs to know of a video that is closed again."""

    def __init__(self, video: Video, key: str) -> None:
        self.name, self.key, self.frame_count, self.size = video.name, key, video.frame_count, video.size

    def read(self, indices: Sequence[int]) -> NoReturn:
        """Refused: a draw decodes nothing."""
        raise PluginError(f"an objective reads frames of {self.name} in its `draw`, which must decode nothing")

    def times(self, indices: Sequence[int]) -> NoReturn:
        """Refused as `read`."""
        self.read(indices)


class KnownVideos(Sequence):  # type: ignore[type-arg]  # as Sequence[Video], checkers at run time would open one
    """A data set's videos, each opened once and let go; `last` is the number of the one that was asked for last."""

    def __init__(self, videos: Sequence[Any]) -> None:
        self._videos = videos
        self.keys = keys_of(videos)
        self.last: int | None = None
        self._known: dict[int, KnownVideo] = {}

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, number: Any) -> Any:
        self.last = int(number) % max(len(self), 1)
        if self.last not in self._known:
            self._known[self.last] = KnownVideo(self._videos[number], self.keys[self.last])
        return self._known[self.last]


class Listing(Dataset):
    """A data set as far as drawing needs it: any number of videos in little memory."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.view = data, data.view
        self._splits: dict[Split, KnownVideos] = {}

    def videos(self, split: Split) -> KnownVideos:
        """As `Dataset.videos`, without frames."""
        if split not in self._splits:
            self._splits[split] = KnownVideos(self.data.videos(split))
        return self._splits[split]


@attrs.frozen(eq=False)
class Plan:
    """What a training draws: each video and frames once, in the order of the data set.

    Attributes:
        rows: the video's number, then its frames.
        keys: of all videos.
        failed: why videos could not be opened, by key; their draws are missing.
    """

    rows: Int64[np.ndarray, "n columns"]
    keys: Sequence[str]
    failed: dict[str, str]

    def of(self, cue: CueProvider) -> Int64[np.ndarray, "m columns"]:
        """What a teacher is asked: these rows, or their single frames where it looks at each frame alone."""
        if not cue.each_frame_alone or self.rows.shape[1] == 2:
            return self.rows
        singles = [self.rows[:, [0, column]] for column in range(1, self.rows.shape[1])]
        return np.unique(np.concatenate(singles), axis=0)


def make_plan(listing: Listing, objective: Objective, seed: int, stage: str, batches: int, places: int) -> Plan:
    """Every draw of `batches` batches of `places` samples; videos that cannot be opened are collected.

    Raises:
        RecipeError: the objective does not draw in a way that can be known before.
        MediaError: the data holds no video, or none that can be drawn from.
    """
    videos, found, failed, columns = listing.videos("train"), array("q"), dict[str, str](), 0
    for number in track(range(batches), "planning", batches):
        for place in range(places):
            videos.last = None
            try:
                draw = objective.draw(listing, "train", sample_generator(seed, stage, number, place))
            except MediaError as error:
                if videos.last is None:
                    raise
                failed[videos.keys[videos.last]] = str(error)
                continue
            if draw is None:
                raise RecipeError(
                    f"[stages.{stage}] the objective {type(objective).__name__} does not say which frames it will "
                    "draw, so its cues cannot be computed before; leave cue_cache out"
                )
            columns = columns or 1 + len(draw.frames)
            if columns != 1 + len(draw.frames):
                raise PluginError(f"{type(objective).__name__} draws samples of different numbers of frames")
            found.extend((draw.video, *sorted(draw.frames)))
    rows = np.array(found, np.int64).reshape(-1, columns or 2)
    return Plan(np.unique(rows, axis=0), videos.keys, failed)
