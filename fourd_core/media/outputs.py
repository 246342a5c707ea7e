"""What the files of a predict stage are called, and the list of points among them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fourd_core.data import Queries
from fourd_core.files import write_text
from fourd_core.interfaces import Video


def named(videos: Iterable[Video]) -> dict[str, Video]:
    """Videos by a file name of their own: the stem in plain letters, with a number where several share it."""
    found: dict[str, Video] = {}
    for video in videos:
        stem = re.sub(r"[^\w.-]+", "_", PurePosixPath(video.name).stem).strip("._") or "video"
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = video
    return found


def queries_path(folder: Path, name: str) -> Path:
    """Where the points are listed that were followed through a video."""
    return folder / f"{name}_queries.csv"


def write_queries(path: Path, queries: Queries) -> None:
    """Rows `frame,x,y`, which `[queries] file` reads; nine digits hold all of a float32."""
    points = zip(queries.frame[0].tolist(), queries.xy[0].tolist(), strict=True)
    write_text(path, "frame,x,y\n" + "".join(f"{frame},{x:.9g},{y:.9g}\n" for frame, (x, y) in points))
