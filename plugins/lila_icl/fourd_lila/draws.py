"""Which video and frame a sample takes, as a function of a generator alone; nothing is decoded."""

from __future__ import annotations

from collections.abc import Collection

import torch

from fourd_core.cues.plan import keys_of
from fourd_core.errors import MediaError
from fourd_core.interfaces import Dataset, Split, Video


def draw_below(count: int, generator: torch.Generator) -> int:
    """A uniform number below `count`."""
    return int(torch.randint(count, (), generator=generator))


def draw_video(data: Dataset, split: Split, skip: Collection[str], generator: torch.Generator) -> tuple[int, Video]:
    """A uniform choice among the videos of a split that are not to be skipped, and its number.

    Args:
        skip: keys of videos.
    Raises:
        MediaError: there is none.
    """
    videos = data.videos(split)
    if not videos:
        raise MediaError(f'the data has no video in its part "{split}"; LILA needs at least one')
    number = draw_below(len(videos), generator)
    if skip:
        keys = keys_of(videos)
        if all(key in skip for key in keys):
            raise MediaError(f'none of the {len(videos)} videos of the data\'s part "{split}" can be read')
        while keys[number] in skip:
            number = draw_below(len(videos), generator)
    return number, videos[number]
