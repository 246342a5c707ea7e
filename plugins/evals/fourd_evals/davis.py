"""DAVIS-2017 as it lies on disk, or behind any URL that fsspec knows.

    JPEGImages/480p/<sequence>/00000.jpg      frames
    Annotations/480p/<sequence>/00000.png     palette pictures whose indices are the ids of objects, 0 the background
    ImageSets/2017/{train,val}.txt            names of sequences, one a line

Source: Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation; davischallenge.org.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from jaxtyping import UInt8
from torch import Tensor

from fourd_core.errors import MediaError, some
from fourd_evals.roots import Root

VAL = {
    "bike-packing": 69, "blackswan": 50, "bmx-trees": 80, "breakdance": 84, "camel": 90, "car-roundabout": 75,
    "car-shadow": 40, "cows": 104, "dance-twirl": 90, "dog": 60, "dogs-jump": 66, "drift-chicane": 52,
    "drift-straight": 50, "goat": 90, "gold-fish": 78, "horsejump-high": 50, "india": 81, "judo": 34, "kite-surf": 50,
    "lab-coat": 47, "libby": 49, "loading": 50, "mbike-trick": 79, "motocross-jump": 40, "paragliding-launch": 80,
    "parkour": 100, "pigs": 79, "scooter-black": 43, "shooting": 40, "soapbox": 99,
}  # fmt: skip
"""The sequences of the published validation set and how many frames they have, 1999 together."""


@attrs.frozen(eq=False)
class DAVISSequence:
    """One video and its annotated frames, read when asked for.

    Attributes:
        frames: the pictures' names within the root, in order.
        annotations: the palette picture's name for each frame, None where it has none.
    """

    name: str
    root: Root = attrs.field(repr=False)
    frames: tuple[str, ...] = attrs.field(repr=False)
    annotations: tuple[str | None, ...] = attrs.field(repr=False)

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the first frame."""
        _, height, width = self.frame(0).shape
        return height, width

    def frame(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """A frame, RGB.

        Raises:
            MediaError: it cannot be read.
        """
        return self.root.picture(self.frames[number])

    def mask(self, number: int) -> UInt8[Tensor, "h w"] | None:
        """The ids of a frame's objects, 255 where nothing is scored; None where the frame has no annotation.

        Raises:
            MediaError: it cannot be read, holds colours instead of ids, or is not of the frames' size.
        """
        name = self.annotations[number]
        if name is None:
            return None
        ids = self.root.label_map(name)
        if tuple(ids.shape) != self.size:
            raise MediaError(
                f"{self.root.place(name)} has {' x '.join(map(str, ids.shape))} rows and columns, the frames of the "
                f"sequence {self.name} have {' x '.join(map(str, self.size))}"
            )
        return ids.to(torch.uint8)


@attrs.frozen(eq=False)
class DAVIS:
    """The sequences of one split.

    Attributes:
        split: the name of the list.
        sequences: in the order of the list.
    """

    split: str
    sequences: tuple[DAVISSequence, ...]

    @classmethod
    def open(cls, location: str, split: str = "val", names: Sequence[str] = (), resolution: str = "480p") -> DAVIS:
        """List a split's sequences, or only those of `names`, without reading any picture.

        Raises:
            MediaError: there are not the folders of DAVIS-2017 (says what was looked for and what is there), a sequence
                is not there, or its first frame has no annotation.
        """
        root, list_file = Root(location), f"ImageSets/2017/{split}.txt"
        folders = f"JPEGImages/{resolution}", f"Annotations/{resolution}"
        wanted = (*folders, *(() if names else (list_file,)))
        missing = [name for name in wanted if not root.has(name)]
        if missing:
            raise root.missing("DAVIS-2017", wanted, f"missing: {', '.join(missing)}")
        listed = tuple(names) or tuple(root.read(list_file).decode().split())
        if not listed:
            raise MediaError(f"the list {root.place(list_file)} names no sequence")
        return cls(split, tuple(_sequence(root, *folders, name) for name in listed))

    @property
    def frame_count(self) -> int:
        """Frames of all sequences."""
        return sum(map(len, self.sequences))

    def facts(self) -> dict[str, Any]:
        """What identifies the data in a result's protocol; not the folder it is in."""
        return {
            "name": "DAVIS-2017",
            "split": self.split,
            "sequences": {sequence.name: len(sequence) for sequence in self.sequences},
            "frames": self.frame_count,
        }

    def note(self, names: Sequence[str] = tuple(VAL)) -> str | None:
        """A sentence where this is not the published validation set, None where it looks like it.

        Args:
            names: which of its sequences are measured.
        """
        found = {sequence.name: len(sequence) for sequence in self.sequences}
        differences = []
        if missing := [name for name in names if name not in found]:
            differences.append(f"{len(missing)} of {len(names)} sequences are missing ({some(missing)})")
        if added := sorted(name for name in found if name not in VAL):
            differences.append(f"{len(added)} others are there ({some(added)})")
        wrong = [f"{name} has {n} frames instead of {VAL[name]}" for name, n in found.items() if n != VAL.get(name, n)]
        if wrong:
            differences.append(some(wrong))
        if not differences:
            return None
        return (
            f"this is not the published validation set of DAVIS-2017: {', '.join(differences)}; "
            "the paper's numbers are of other data"
        )


def _sequence(root: Root, pictures: str, annotations: str, name: str) -> DAVISSequence:
    frames = root.names(f"{pictures}/{name}", (".jpg", ".jpeg", ".png"))
    if not frames:
        raise MediaError(f"the sequence {name} has no pictures: {root.place(f'{pictures}/{name}')} is empty or missing")
    masks = set(root.names(f"{annotations}/{name}", ".png"))
    wanted = [f"{frame.rpartition('.')[0]}.png" for frame in frames]
    if wanted[0] not in masks:
        raise MediaError(
            f"the sequence {name} has no annotation of its first frame: "
            f"{root.place(f'{annotations}/{name}/{wanted[0]}')} is missing"
        )
    return DAVISSequence(
        name,
        root,
        tuple(f"{pictures}/{name}/{frame}" for frame in frames),
        tuple(f"{annotations}/{name}/{mask}" if mask in masks else None for mask in wanted),
    )
