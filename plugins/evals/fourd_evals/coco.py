"""COCO-Stuff: 27 coarse or 182 fine classes, from the official folders or with pictures and labels side by side.

    images/{train,val}2017/000000000139.jpg         annotations/{train,val}2017/000000000139.png
    {train,val}2017/000000000139.{jpg,png}          as LILA's evaluation has them

A label map holds the fine label 0..181, 255 where there is none. Which pictures count says a text file with one name a
line; the curated lists lie in `curated/{train,val}2017/` or, with the part's name in front, in the root.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_evals.labelled import Part, PictureFiles
from fourd_evals.roots import Root
from fourd_evals.segmentation_metrics import IGNORED

FINE, COARSE = 182, 27
Chosen = Literal["curated", "curated_7", "all"]
LISTS = {"curated": "Coco164kFull_Stuff_Coarse.txt", "curated_7": "Coco164kFull_Stuff_Coarse_7.txt"}
PUBLISHED = {"train": 118287, "val": 5000}
"""Pictures in the whole of each part."""
LISTED = {("val", "curated_7"): 2175}
"""Pictures that a curated list names, where that number is known: the one that IIC validates on."""


@cache
def coarse_table() -> Int64[Tensor, "256"]:
    """The coarse class 0..26 of every fine label, 255 for the rest."""
    table = torch.full((256,), IGNORED)
    fine = json.loads((files("fourd_evals") / "tables" / "coco_stuff27.json").read_text(encoding="utf-8"))["map"]
    table[: len(fine)] = torch.tensor(fine)
    return table


def fine_table() -> Int64[Tensor, "256"]:
    """Fine labels as they are, 255 for what is none."""
    table = torch.full((256,), IGNORED)
    table[:FINE] = torch.arange(FINE)
    return table


def open_coco(
    root: Root, part: Part, table: Int64[Tensor, "256"], chosen: Chosen | Sequence[str] = "curated"
) -> PictureFiles:
    """The pictures of one part.

    Args:
        table: from the files' labels to those that are wanted.
        chosen: a curated list, every picture, or names.
    Raises:
        MediaError: the folder is laid out in none of the known ways, or a listed picture is not there.
    """
    folder = f"{part}2017"
    layouts = {f"images/{folder}": f"annotations/{folder}", folder: folder}
    pictures = next((pictures for pictures in layouts if root.names(pictures, ".jpg")), None)
    if pictures is None:
        looked_for = [f"{pictures}/*.jpg with {labels}/*.png" for pictures, labels in layouts.items()]
        raise root.missing(f"COCO-Stuff's part {part}", looked_for)
    labels = layouts[pictures]
    labelled = {name.removesuffix(".png") for name in root.names(labels, ".png")}
    there = [name.removesuffix(".jpg") for name in root.names(pictures, ".jpg")]
    wanted = there if chosen == "all" else _listed(root, part, chosen) if isinstance(chosen, str) else list(chosen)
    if not wanted:
        raise MediaError(f"the list of COCO-Stuff's part {part} in {root.location} names no picture")
    known = set(there)
    for name in wanted:
        if name not in known or name not in labelled:
            kind, place = (
                ("picture", f"{pictures}/{name}.jpg") if name not in known else ("map", f"{labels}/{name}.png")
            )
            raise MediaError(f"COCO-Stuff's part {part} lists {name}, and its {kind} {root.place(place)} is not there")
    names = [(f"{pictures}/{name}.jpg", f"{labels}/{name}.png") for name in wanted]
    return PictureFiles(root, names, table, f"{pictures}, {labels}", len(there))


def _listed(root: Root, part: Part, chosen: str) -> list[str]:
    name = LISTS[chosen]
    candidates = [f"curated/{part}2017/{name}", f"{part}_{name}", f"{part}2017/{name}"]
    found = root.first(candidates)
    if found is None:
        raise root.missing(
            f"the curated list of COCO-Stuff's part {part}", candidates, 'or take every picture by "all"'
        )
    return picture_names(root.read(found).decode().split())


def picture_names(lines: Sequence[str]) -> list[str]:
    """File names without folders and endings."""
    return [line.rpartition("/")[2].partition(".")[0] for line in lines if line]


def size_note(part: Part, pictures: PictureFiles, chosen: str = "all") -> str | None:
    """A sentence where the folder, or the list, has not as many pictures as were published."""
    if pictures.there != PUBLISHED[part]:
        return (
            f"this is not the published COCO-Stuff: the part {part} has {pictures.there} pictures instead of "
            f"{PUBLISHED[part]}; do not compare with the paper's rows"
        )
    listed = LISTED.get((part, chosen))
    if listed is not None and len(pictures) != listed:
        return (
            f"this is not the published list of COCO-Stuff's part {part}: it names {len(pictures)} pictures instead of "
            f"{listed}; do not compare with the paper's rows"
        )
    return None
