"""Pictures with a label for every pixel, and how they reach a probe."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.interfaces import Sample
from fourd_evals.roots import Root
from fourd_evals.transforms import Crop, chance, random_crop, resized_labels, resized_picture

Part = Literal["train", "val"]


class Labelled(NamedTuple):
    """A picture and its labels, 255 where a pixel does not count."""

    picture: UInt8[Tensor, "3 h w"]
    labels: Int64[Tensor, "h w"]


class PictureFiles:
    """Pictures and label maps by name, with a table from the file's labels to those of the evaluation.

    Attributes:
        digest: of the pictures' names, in their order.

    Args:
        names: pairs of files within the root: picture, labels.
        table: 256 entries.
        layout: in which form they were found, for the protocol.
        there: how many pictures the folder has, chosen or not.
    """

    def __init__(
        self, root: Root, names: list[tuple[str, str]], table: Int64[Tensor, "256"], layout: str, there: int
    ) -> None:
        self._root, self._names, self._table, self.layout, self.there = root, names, table, layout, there
        self.digest = hashlib.sha256("\n".join(picture for picture, _ in names).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> Labelled:
        picture_name, labels_name = self._names[number]
        picture, labels = self._root.picture(picture_name), self._root.label_map(labels_name)
        if labels.shape != picture.shape[-2:]:
            raise MediaError(
                f"{self._root.place(labels_name)} has {tuple(labels.shape)} rows and columns, its picture "
                f"{tuple(picture.shape[-2:])}"
            )
        if int(labels.max()) > 255:
            raise MediaError(f"{self._root.place(labels_name)} has the label {int(labels.max())}, more than 8 bits")
        return Labelled(picture, self._table[labels])


def random_view(
    item: Labelled, side: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Sample:
    """RandomResizedCrop to a square, mirrored half of the time (albumentations)."""
    crop = random_crop((item.picture.shape[-2], item.picture.shape[-1]), scale, ratio, generator)
    picture = resized_picture(crop.of(item.picture), (side, side))
    labels = resized_labels(crop.of(item.labels), (side, side))
    if chance(0.5, generator):
        picture, labels = picture.flip(-1), labels.flip(-1)
    return {"picture": picture.float() / 255, "labels": labels}


def center_view(item: Labelled, side: int) -> Sample:
    """SmallestMaxSize, then CenterCrop (albumentations)."""
    height, width = item.picture.shape[-2:]
    scale = side / min(height, width)
    size = round(height * scale), round(width * scale)
    # albumentations cuts off half a pixel where torchvision rounds it.
    crop = Crop((size[0] - side) // 2, (size[1] - side) // 2, side, side)
    picture = crop.of(resized_picture(item.picture, size))
    return {"picture": picture.float() / 255, "labels": crop.of(resized_labels(item.labels, size))}
