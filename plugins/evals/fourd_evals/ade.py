"""ADE20K's scene parsing benchmark: `ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_*`.

A label map holds 1..150, 0 where a pixel does not count; here the classes are 0..149 and such a pixel is 255.
"""

from __future__ import annotations

import torch

from fourd_core.errors import MediaError
from fourd_evals.labelled import Part, PictureFiles
from fourd_evals.roots import Root
from fourd_evals.segmentation_metrics import IGNORED

CLASSES = 150
PUBLISHED = {"train": 20210, "val": 2000}
FOLDERS = {"train": "training", "val": "validation"}
NAME = "ADEChallengeData2016"


def open_ade(root: Root, part: Part) -> PictureFiles:
    """The pictures of one part; the root is `ADEChallengeData2016` or the folder that holds it.

    Raises:
        MediaError: the folder is laid out otherwise, or a picture has no label map.
    """
    folder = FOLDERS[part]
    layouts = [f"{NAME}/", ""]
    base = next((base for base in layouts if root.names(f"{base}images/{folder}", ".jpg")), None)
    if base is None:
        looked_for = [f"{base}images/{folder}/ADE_{part}_00000001.jpg" for base in layouts]
        raise root.missing(f"ADE20K's part {part}", looked_for)
    pictures, maps = f"{base}images/{folder}", f"{base}annotations/{folder}"
    names = [name.removesuffix(".jpg") for name in root.names(pictures, ".jpg")]
    labelled = {name.removesuffix(".png") for name in root.names(maps, ".png")}
    for name in names:
        if name not in labelled:
            raise MediaError(f"{root.place(f'{pictures}/{name}.jpg')} has no labels {root.place(f'{maps}/{name}.png')}")
    table = torch.full((256,), IGNORED)
    table[1 : CLASSES + 1] = torch.arange(CLASSES)
    pairs = [(f"{pictures}/{name}.jpg", f"{maps}/{name}.png") for name in names]
    return PictureFiles(root, pairs, table, f"{pictures}, {maps}", len(names))


def size_note(train: int, val: int) -> str | None:
    """A sentence where these are not as many pictures as were published."""
    if (train, val) == (PUBLISHED["train"], PUBLISHED["val"]):
        return None
    return (
        f"this is not the published ADE20K: {train} pictures to train on and {val} to validate on instead of "
        f"{PUBLISHED['train']} and {PUBLISHED['val']}; do not compare with published numbers"
    )
