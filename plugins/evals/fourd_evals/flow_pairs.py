"""Pairs of successive frames and the flow between them: Sintel's, or a recipe's own videos without truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from fourd_core.errors import MediaError
from fourd_core.interfaces import Sample, Video
from fourd_core.media.formats.flow import read_flo
from fourd_evals.labelled import Part
from fourd_evals.roots import Root
from fourd_evals.transforms import center_crop

HELD_OUT = 4
"""Of Sintel's sequences in the order of their names, each fourth one validates."""
PUBLISHED = 23
"""Sequences of Sintel's training part."""


class FlowPairs(ABC):
    """Pairs of one part.

    Attributes:
        size: rows and columns of the frames.
        threads: how many may read at once; None: any number.
    """

    size: tuple[int, int]
    threads: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int) -> Sample:
        """`frames`: two of them, 8 bits, `2 3 h w`; `flow`, where it is known: `2 h w`, NaN where a pixel's is not."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the numbers depend on."""

    @abstractmethod
    def notes(self, train: FlowPairs) -> list[str]:
        """What a reader must know about these pairs."""


class SintelPairs(FlowPairs):
    """Sintel's training part: `training/{clean,final}/<seq>/frame_0001.png` and `training/flow/<seq>/frame_0001.flo`.

    Raises:
        MediaError: the folder is laid out otherwise, or has fewer sequences than four.
    """

    def __init__(self, root: Root, render: str, part: Part) -> None:
        self._root, self._render, self._part = root, render, part
        sequences = root.names("training/flow")
        looked_for = [f"training/{render}/alley_1/frame_0001.png with training/flow/alley_1/frame_0001.flo"]
        if not sequences or not root.has(f"training/{render}"):
            raise root.missing("Sintel", looked_for)
        if len(sequences) < HELD_OUT:
            raise MediaError(
                f"{root.place('training/flow')} has {len(sequences)} sequences; each {HELD_OUT}th one validates, so "
                f"there must be {HELD_OUT} at least"
            )
        self.sequences = sequences
        self.chosen = [s for n, s in enumerate(sequences, 1) if (n % HELD_OUT == 0) == (part == "val")]
        self._pairs = [(s, name) for s in self.chosen for name in root.names(f"training/flow/{s}", ".flo")]
        if not self._pairs:
            raise root.missing("Sintel", looked_for)
        height, width = root.picture(self._frame(*self._pairs[0])).shape[-2:]
        self.size = (height, width)

    def _frame(self, sequence: str, flow: str, later: int = 0) -> str:
        number = int(flow.removesuffix(".flo").rpartition("_")[2])
        return f"training/{self._render}/{sequence}/frame_{number + later:04d}.png"

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> Sample:
        sequence, name = self._pairs[number]
        frames = [self._root.picture(self._frame(sequence, name, later)) for later in (0, 1)]
        flow = read_flo(self._root.file(f"training/flow/{sequence}/{name}"))
        return {"frames": torch.stack(frames), "flow": flow}

    def facts(self) -> dict[str, Any]:
        """The split."""
        return {"data": f"Sintel training, {self._render}", "validated on": self.chosen}

    def notes(self, train: FlowPairs) -> list[str]:
        """Whether it is all of Sintel."""
        if len(self.sequences) == PUBLISHED:
            return []
        return [f"this is not the published Sintel: {len(self.sequences)} sequences instead of {PUBLISHED}"]


class CuePairs(FlowPairs):
    """Pairs of successive frames, evenly spread over videos; of each frame the middle square. Flow is not known here.

    Args:
        count: how many pairs; no more than there are.
        side: of the square; frames are resized by the one who takes them.
    Raises:
        MediaError: no video has two frames.
    """

    threads = 1  # a video's decoder serves one thread

    def __init__(self, videos: Sequence[Video], count: int, side: int) -> None:
        step = max(1, len(videos) // count)  # no more videos than pairs are opened
        self._videos = [videos[n] for n in range(0, len(videos), step)][:count]
        every = [(v, frame) for v, video in enumerate(self._videos) for frame in range(video.frame_count - 1)]
        if not every:
            raise MediaError("the recipe's data have no two successive frames to measure flow between")
        count = min(count, len(every))
        self._pairs = [every[n * len(every) // count] for n in range(count)]
        self.size = (side, side)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> Sample:
        video, frame = self._pairs[number]
        frames = self._videos[video].read([frame, frame + 1])
        height, width = frames.shape[-2:]
        return {"frames": center_crop((height, width), min(height, width)).of(frames)}

    def facts(self) -> dict[str, Any]:
        """The videos."""
        return {"data": "the recipe's videos", "videos": sorted({video.key or video.name for video in self._videos})}

    def notes(self, train: FlowPairs) -> list[str]:
        """That the truth is none."""
        return ["the truth is what a flow cue says of the recipe's own videos: its errors count as the probe's"]
