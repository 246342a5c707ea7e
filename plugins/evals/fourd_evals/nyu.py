"""NYUv2's labelled pictures with depth and surface normals, in the forms in which people have them.

Each split (`train`, `val`) is looked for by itself, in this order:

    nyu_{train,val}_{image,depth,normal}.npz     LILA's lists, one array a picture (`numpy.savez(file, *list)`)
    nyuv2/{train,test}/000000_{img,normal}.png   DSINE's: normal = value / 255 * 2 - 1, black where unknown; no depth
    nyu_depth_v2_labeled.mat, splits.mat         the authors' HDF5 and its split (numbers from 1 on), with
    normals/000000_normal.png                    normals in DSINE's coding by the picture's number, from 0 on

Pickles, in which LILA and probe3d keep these lists, are never opened: they can run any program.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import Any, Literal
from zipfile import BadZipFile

import attrs
import h5py
import numpy as np
import scipy.io
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_evals.labelled import Part
from fourd_evals.roots import Root

Truth = Literal["normal", "depth"]
Depth = Literal["raw", "filled"]

PUBLISHED = {"train": 795, "val": 654}
"""Pictures of each part."""
MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
DSINE_FOLDERS = {"train": "nyuv2/train", "val": "nyuv2/test"}


@attrs.frozen(eq=False)
class NYUPicture:
    """One picture with what was measured.

    Attributes:
        picture: RGB.
        depth: metres, 0 where nothing was measured; where a layout has no depth, 1 for every pixel with a normal.
        normal: of length 1, or None where it was not asked for; 0 where it is unknown, and depth then is 0, too.
    """

    picture: UInt8[Tensor, "3 h w"]
    depth: Float[Tensor, "1 h w"]
    normal: Float[Tensor, "3 h w"] | None


class NYUPictures(ABC):
    """The pictures of one part.

    Attributes:
        layout: in which form they were found, for the protocol.
    """

    layout: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int) -> NYUPicture: ...


def open_nyu(root: Root, part: Part, truth: Truth, depth: Depth = "raw") -> NYUPictures:
    """The pictures of one part with the truth that is asked for; may be read by several threads.

    Args:
        depth: of the authors' file: as measured, or with its holes filled in.
    Raises:
        MediaError: the folder is laid out in none of the known ways, or what it has lacks this truth.
    """
    pictures = _open(root, part, truth, depth)
    if not len(pictures):
        raise MediaError(f"NYUv2's part {part} in {root.location} has no pictures ({pictures.layout})")
    return pictures


def _open(root: Root, part: Part, truth: Truth, depth: Depth) -> NYUPictures:
    lists = {name: f"nyu_{part}_{name}.npz" for name in ("image", "depth", truth)}
    pngs = f"{DSINE_FOLDERS[part]}/000000_img.png"
    if root.has(lists["image"]):
        return Lists(root, lists)
    if truth == "normal" and root.names(DSINE_FOLDERS[part], "_img.png"):
        return DSINEPictures(root, DSINE_FOLDERS[part])
    if root.has(MAT):
        return LabelledFile(root, part, truth, depth)
    looked_for = [lists["image"], *([pngs] if truth == "normal" else []), f"{MAT} with {SPLITS}"]
    raise root.missing(f"NYUv2's part {part} with {truth}s", looked_for, _about_pickles(root, part))


def _about_pickles(root: Root, part: Part) -> str:
    pickles = root.names(suffix=(".pkl", ".pklz", ".pickle"))
    if not pickles:
        return ""
    return (
        f"{pickles[0]} is a pickle, which may run any program when it is opened and never is here: where you trust it, "
        f'write each of its lists as one array a picture by numpy.savez("nyu_{part}_image.npz", *pictures)'
    )


class Lists(NYUPictures):
    """LILA's lists of arrays; channels may come first or last, colours as 8 bits or in [0, 1]."""

    layout = "nyu_*.npz"

    def __init__(self, root: Root, names: dict[str, str]) -> None:
        self._places = {key: root.place(name) for key, name in names.items()}
        self._lists = {key: _open_npz(root, name) for key, name in names.items()}
        counts = {self._places[key]: len(found.files) for key, found in self._lists.items()}
        if len(set(counts.values())) > 1:
            raise MediaError(f"lists of one part differ in length: {counts}")

    def __len__(self) -> int:
        return len(self._lists["image"].files)

    def __getitem__(self, number: int) -> NYUPicture:
        picture = self._item("image", number, 3)
        if picture.dtype != np.uint8:
            picture = (picture.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
        depth = self._item("depth", number, 1).astype(np.float32)
        normal = self._item("normal", number, 3).astype(np.float32) if "normal" in self._lists else None
        return NYUPicture(
            torch.from_numpy(picture.copy()),
            torch.from_numpy(depth).nan_to_num(0.0),
            None if normal is None else torch.from_numpy(normal),
        )

    def _item(self, key: str, number: int, channels: int) -> ndarray:
        try:
            values = self._lists[key][self._lists[key].files[number]]
        except (ValueError, OSError, BadZipFile) as error:
            raise MediaError(f"picture {number} of {self._places[key]} cannot be read: {error}") from error
        if values.ndim == 2:
            values = values[None]
        if values.ndim == 3 and values.shape[0] != channels and values.shape[-1] == channels:
            values = np.moveaxis(values, -1, 0)
        if values.ndim != 3 or values.shape[0] != channels:
            raise MediaError(
                f"picture {number} of {self._places[key]} has the shape {values.shape}, not {channels} channels of "
                "rows and columns"
            )
        return np.ascontiguousarray(values)


def _open_npz(root: Root, name: str) -> Any:
    try:
        return np.load(root.open(name), allow_pickle=False)
    except (ValueError, OSError, BadZipFile) as error:
        raise MediaError(f"{root.place(name)} is not an npz file of arrays: {error}") from error


class DSINEPictures(NYUPictures):
    """A folder of `<number>_img.png` and `<number>_normal.png`."""

    layout = "nyuv2/*_{img,normal}.png"

    def __init__(self, root: Root, folder: str) -> None:
        self._root, self._folder = root, folder
        self._numbers = [name.removesuffix("_img.png") for name in root.names(folder, "_img.png")]
        normals = set(root.names(folder, "_normal.png"))
        without = [number for number in self._numbers if f"{number}_normal.png" not in normals]
        if without:
            raise MediaError(f"{root.place(folder)}/{without[0]}_img.png has no {without[0]}_normal.png beside it")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> NYUPicture:
        place = f"{self._folder}/{self._numbers[number]}"
        normal, known = read_normals(self._root, f"{place}_normal.png")
        return NYUPicture(self._root.picture(f"{place}_img.png"), known.float(), normal)


def read_normals(root: Root, name: str) -> tuple[Float[Tensor, "3 h w"], Bool[Tensor, "1 h w"]]:
    """Normals of a picture `value / 255 * 2 - 1` made of length 1, and where they are known (`1 h w`): not black."""
    values = root.picture(name)
    known = (values > 0).any(0, keepdim=True)
    normal = values.float() / 255 * 2 - 1
    return torch.nn.functional.normalize(normal, dim=0) * known, known


class LabelledFile(NYUPictures):
    """The authors' `nyu_depth_v2_labeled.mat` (an HDF5 whose axes are in reversed order) and `splits.mat`."""

    def __init__(self, root: Root, part: Part, truth: Truth, depth: Depth) -> None:
        self._root, self._depth = root, {"raw": "rawDepths", "filled": "depths"}[depth]
        self._numbers = _split(root, part)
        self._normals = truth == "normal"
        self.layout = f"{MAT}, {self._depth}"
        if self._normals and not root.names("normals", "_normal.png"):
            raise root.missing(
                "NYUv2's normals",
                ["normals/000000_normal.png (numbered as the pictures of the .mat file, which has no normals)"],
                _about_pickles(root, part),
            )
        self._place = root.place(MAT)
        try:
            self._file = h5py.File(root.open(MAT), "r")
            self._images, self._depths = self._file["images"], self._file[self._depth]
        except (OSError, KeyError) as error:
            raise MediaError(f"{self._place} is not NYUv2's labelled file: {error}") from error
        if self._numbers and max(self._numbers) >= len(self._images):
            raise MediaError(
                f"{root.place(SPLITS)} names picture {max(self._numbers) + 1}, {self._place} has {len(self._images)}"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> NYUPicture:
        index = self._numbers[number]
        picture = torch.from_numpy(self._images[index].astype(np.uint8)).mT.contiguous()
        depth = torch.from_numpy(self._depths[index].astype(np.float32)).mT[None].nan_to_num(0.0).contiguous()
        if not self._normals:
            return NYUPicture(picture, depth, None)
        normal, known = read_normals(self._root, f"normals/{index:06d}_normal.png")
        return NYUPicture(picture, depth * known, normal)


def _split(root: Root, part: Part) -> list[int]:
    """Which pictures of the labelled file, counted from 0."""
    key = {"train": "trainNdxs", "val": "testNdxs"}[part]
    if not root.has(SPLITS):
        raise root.missing("NYUv2's split", [SPLITS])
    try:
        numbers = scipy.io.loadmat(io.BytesIO(root.read(SPLITS)))[key]
    except (ValueError, KeyError, NotImplementedError) as error:
        raise MediaError(f"{root.place(SPLITS)} does not hold {key}: {error}") from error
    return [int(number) - 1 for number in np.asarray(numbers).ravel()]


def size_note(train: int, val: int) -> str | None:
    """A sentence where these are not as many pictures as were published."""
    if (train, val) == (PUBLISHED["train"], PUBLISHED["val"]):
        return None
    return (
        f"this is not the published NYUv2: {train} pictures to train on and {val} to validate on instead of "
        f"{PUBLISHED['train']} and {PUBLISHED['val']}; do not compare with published numbers"
    )
