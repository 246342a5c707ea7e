"""The folder of a data set: which of its files and folders are videos, and which of them are held out.

Layouts as their publishers lay them out: DAVIS-2017 (davischallenge.org), YouTube-VOS and Ref-YouTube-VOS
(youtube-vos.org), Kinetics (DeepMind's lists, file names as its downloaders write them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import attrs

from fourd_core.errors import MediaError, some
from fourd_core.interfaces import Split
from fourd_core.media.folders import Folder, open_folder
from fourd_core.media.locations import (
    VIDEO_SUFFIXES,
    Source,
    file_at,
    filesystem_at,
    is_picture,
    natural_key,
    of_known_kind,
    read_lines,
    sources_among,
)

Layout = Literal["auto", "davis", "youtube_vos", "kinetics", "videos"]
Part = Literal["train", "held_out"]


class Names(NamedTuple):
    """A list of videos, and where it stands."""

    where: str
    names: Sequence[str]
    exact: bool = False
    """Whether these are the videos themselves, not names that must be looked for."""


@attrs.frozen(eq=False)
class Collection:
    """The videos below a folder, by name: paths relative to it, of files and of folders of frames."""

    folder: Folder
    videos: Sequence[str]
    """In natural order."""
    own: Mapping[Part, Names] = attrs.field(factory=dict)
    """The split that the data set comes with; where it names one part only, the rest is the other."""
    whole_names: bool = False
    """Whether two videos may differ in their folders only, so that a list must name these too."""
    counted: bool = False
    """Whether the frames of a video are published with numbers that leave none out."""
    layout: Layout = "auto"
    """As what it was read."""

    def split(self, split: Split, share: float) -> Sequence[str]:
        """The videos of a part: as the data set comes split, else its last `share` is held out, whole videos.

        Raises:
            MediaError: a list names videos that are not there; too few videos.
        """
        if split == "all":
            return self.videos
        if split in self.own:
            return self.chosen(self.own[split])
        if self.own:
            (other,) = self.own.values()
            taken = set(self.chosen(other))
            return [name for name in self.videos if name not in taken]
        held_out = max(1, round(len(self.videos) * share)) if share else 0
        if held_out >= len(self.videos):
            raise MediaError(
                f"{self.folder.location} holds {len(self.videos)} video(s), too few to hold out whole ones; set "
                "data.held_out = 0, or name a video in data.video, of which the last part is held out"
            )
        first = len(self.videos) - held_out
        return self.videos[:first] if split == "train" else self.videos[first:]

    def limited(self, names: Names) -> Collection:
        """Of the videos to train on (or, where the data set comes without a split, of all) those that a list names.

        Raises:
            MediaError: the list names videos that are not there, or none.
        """
        chosen = self.chosen(names)
        if "held_out" not in self.own:
            return attrs.evolve(self, videos=chosen, own={})
        taken = set(chosen)
        held_out = [name for name in self.split("held_out", 0) if name not in taken]
        both = taken.union(held_out)
        return attrs.evolve(
            self,
            videos=[name for name in self.videos if name in both],
            own={"train": Names(names.where, chosen, True), "held_out": Names(names.where, held_out, True)},
        )

    def chosen(self, names: Names) -> Sequence[str]:
        """The videos that a list names by the end of their paths, in natural order.

        Raises:
            MediaError: they are not there, or a name fits several.
        """
        if names.exact:
            return names.names
        by_end: dict[str, list[str]] = {}
        for video in self.videos:
            by_end.setdefault(video.rpartition("/")[2], []).append(video)
        chosen: set[str] = set()
        missing: list[str] = []
        for name in names.names:
            found = self._fitting(name, by_end.get(name.rstrip("/").rpartition("/")[2], []))
            if len(found) > 1:
                raise MediaError(f"{names.where}: {name} may be {some(found)}; write more of its path")
            chosen.update(found)
            if not found:
                missing.append(name)
        if missing:
            raise MediaError(
                f"{names.where} names {len(missing)} video(s) that are not below {self.folder.location}: "
                f"{some(missing)}; copy them there, or leave them out (data.list names a list of your own)"
            )
        return [video for video in self.videos if video in chosen]

    def _fitting(self, name: str, candidates: Sequence[str]) -> Sequence[str]:
        """The videos that agree with a name in the largest number of parts, from the last one on."""
        wanted = [part for part in name.split("/") if part not in ("", ".")]
        agreeing: dict[int, list[str]] = {}
        for video in candidates:
            parts = video.split("/")
            same = 0
            while same < min(len(parts), len(wanted)) and parts[-1 - same] == wanted[-1 - same]:
                same += 1
            if not self.whole_names or same in (len(parts), len(wanted)):
                agreeing.setdefault(same, []).append(video)
        return agreeing[max(agreeing)] if agreeing else []

    def source(self, name: str) -> Source:
        """The files of a video.

        Raises:
            MediaError: they are not there, or a frame is missing among them.
        """
        source = self.folder.video(name)
        if self.counted:
            _check_numbers(source)
        return source


class _Listed:
    """A folder, of which all files are listed at most once."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> list[str]:
        """All pictures and videos, folder by folder in natural order; none below hidden folders."""
        by_folder: dict[str, list[str]] = {}
        for name in of_known_kind(self.folder.files()):
            by_folder.setdefault(name.rpartition("/")[0], []).append(name)
        # Not all at once: the sorting keys of half a million names would take most of a gigabyte.
        folders = sorted((name for name in by_folder if "/." not in f"/{name}"), key=natural_key)
        return [name for folder in folders for name in sorted(by_folder.pop(folder), key=natural_key)]


def _davis(listed: _Listed) -> Collection | None:
    folder = listed.folder
    frames = _first(folder, DAVIS_FRAMES)
    if frames is None:
        return None
    lists: dict[Part, str] = {"train": "ImageSets/2017/train.txt", "held_out": "ImageSets/2017/val.txt"}
    read = {part: (folder.place(name), folder.lines(name)) for part, name in lists.items()}
    own: dict[Part, Names] = {part: Names(where, lines) for part, (where, lines) in read.items() if lines is not None}
    return Collection(folder, _folders(folder, frames), own, counted=True)


def _youtube_vos(listed: _Listed) -> Collection | None:
    folder = listed.folder
    train = _first(folder, ("train_all_frames/JPEGImages", "train/JPEGImages"))
    held_out = _first(folder, ("valid_all_frames/JPEGImages", "valid/JPEGImages"))
    if train is None and held_out is None:
        if _first(folder, DAVIS_FRAMES) or not folder.has("JPEGImages"):
            return None
        train = "JPEGImages"  # one part, on its own
    parts: dict[Part, str | None] = {"train": train, "held_out": held_out}
    return _in_parts(folder, {part: _folders(folder, name) for part, name in parts.items() if name})


def _kinetics(listed: _Listed) -> Collection | None:
    videos = [name for name in listed.files if CLIP_PLACE.match(name) and name.lower().endswith(VIDEO_SUFFIXES)]
    if not any(CLIP_NAME.search(name) for name in videos):
        return None
    found: dict[str, list[str]] = {}
    for video in videos:
        found.setdefault(video.partition("/")[0], []).append(video)
    by_part: dict[Part, Sequence[str]] = {}
    for name, part in KINETICS_PARTS.items():
        if name in found:
            by_part.setdefault(part, found[name])
    collection = _in_parts(listed.folder, by_part)
    return attrs.evolve(collection, videos=videos)


def _videos(listed: _Listed) -> Collection | None:
    by_folder: dict[str, list[str]] = {}
    for name in listed.files:
        if "annotations" not in name.lower().split("/")[:-1]:  # masks, which look like frames
            by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    videos: list[str] = []
    for folder, names in by_folder.items():
        if folder:
            sources_among(listed.folder.made, listed.folder.place(folder), names)  # refuses pictures beside videos
        if not is_picture(names[0]) or not folder:
            videos += [name for name in names if not is_picture(name)]
        else:
            videos.append(folder)
    return Collection(listed.folder, videos, whole_names=True) if videos else None


DAVIS_FRAMES = ("JPEGImages/480p", "JPEGImages/Full-Resolution")
KINETICS_PARTS: dict[str, Part] = {
    "train": "train", "val": "held_out", "valid": "held_out", "validate": "held_out", "validation": "held_out",
    "test": "held_out",
}  # fmt: skip
"""The folders of a Kinetics and their use; of several that could be held out, the first one is."""
CLIP_PLACE = re.compile(rf"^({'|'.join(KINETICS_PARTS)})/")
CLIP_NAME = re.compile(r"_\d{6}_\d{6}\.\w+$")

LAYOUTS: dict[Layout, tuple[str, Callable[[_Listed], Collection | None]]] = {
    "davis": (" or ".join(DAVIS_FRAMES), _davis),
    "youtube_vos": ("train_all_frames/JPEGImages, train/JPEGImages or JPEGImages", _youtube_vos),
    "kinetics": ("train/LABEL/ID_000001_000011.mp4", _kinetics),
    "videos": ("videos or folders of pictures at any depth", _videos),
}
"""What tells each layout, and what reads it; "auto" takes the first that is there."""


def read_collection(location: str, layout: Layout = "auto", only: str | None = None) -> Collection:
    """The videos of a data set, found by their names; none is opened.

    Args:
        location: the root folder, a path or URL.
        only: a text file with a video a line, see `Collection.limited`.
    Raises:
        MediaError: no such layout there, no video, or a list that does not fit.
    """
    folder = open_folder(location)
    listed = _Listed(folder)
    tried = {name: item for name, item in LAYOUTS.items() if layout in ("auto", name)}
    for name, (_, read) in tried.items():
        collection = read(listed)
        if collection is not None:
            collection = attrs.evolve(collection, layout=name)
            break
    else:
        looked_for = "; ".join(f"{name} ({telltale})" for name, (telltale, _) in tried.items())
        raise MediaError(
            f"{location} is no data set that can be read: looked for {looked_for}; found "
            f"{some([name for name, _ in folder.inside()]) or 'nothing'}; name the right folder in data.root, or "
            f"{'single videos in data.video' if layout == 'auto' else 'leave data.layout out'}"
        )
    if not collection.videos:
        raise MediaError(f"{location} has the folders of its layout, and no video in them")
    if only is None:
        return collection
    names = read_lines(file_at(*filesystem_at(only)))
    if not names:
        raise MediaError(f"the list {only} names no video")
    return collection.limited(Names(only, names))


def _in_parts(folder: Folder, by_part: Mapping[Part, Sequence[str]]) -> Collection:
    """A data set whose parts are folders; a single part is split as if it came without."""
    own = {part: Names(folder.location, videos, True) for part, videos in by_part.items()} if len(by_part) == 2 else {}
    return Collection(folder, [video for videos in by_part.values() for video in videos], own)


def _first(folder: Folder, names: Iterable[str]) -> str | None:
    return next((name for name in names if folder.has(name)), None)


def _folders(folder: Folder, name: str) -> list[str]:
    return [f"{name}/{inside}" for inside, is_folder in folder.inside(name) if is_folder]


def _check_numbers(source: Source) -> None:
    numbers = [int(found[-1]) for file in source.files if (found := re.findall(r"\d+", file.path.rpartition("/")[2]))]
    missing = sorted(set(range(len(numbers))) - set(numbers))
    if missing:
        raise MediaError(
            f"frame {missing[0]} of {source.name} is missing: its {len(numbers)} pictures should be numbered from 0 "
            'on; copy the folder again, or set data.layout = "videos" to take the pictures that are there'
        )
