"""What the readers of evaluation data sets share: which sequences and frames a protocol takes, and what it cuts off.

Sources: the tables of DepthCrafter's and MonST3R's evaluations, as their published scripts prepare the data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import cropped_intrinsics
from fourd_core.media.layouts import Part
from fourd_evals.annotated import AnnotatedConfig, AnnotatedFrames, AnnotatedSet
from fourd_evals.roots import Root


@attrs.frozen
class Crop:
    """How many rows and columns a protocol cuts off each side of a picture."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    @classmethod
    def to_even(cls, size: tuple[int, int]) -> Crop:
        """The last row and column of an odd height and width."""
        return cls(bottom=size[0] % 2, right=size[1] % 2)

    def of(self, maps: Tensor) -> Tensor:
        """What is left of maps or pictures `... h w`."""
        height, width = self.size((maps.shape[-2], maps.shape[-1]))
        return maps[..., self.top : self.top + height, self.left : self.left + width]

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what is left."""
        return size[0] - self.top - self.bottom, size[1] - self.left - self.right

    def intrinsics(self, matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
        """The pinhole matrix of what is left."""
        return cropped_intrinsics(matrix, (self.top, self.left))


NO_CROP = Crop()


class EvaluationFrames(AnnotatedFrames):
    """A sequence of an evaluation data set.

    Attributes:
        depth_cap: metres from which on the protocol does not count the true depth; None: it counts everywhere.
    """

    depth_cap: float | None = None


@attrs.frozen(kw_only=True)
class EvaluationConfig(AnnotatedConfig):
    """As of any annotated data set; all of it is held out."""

    held_out: float = attrs.field(default=1.0)
    """The share of the evaluated sequences, the last in natural order, that training does not see."""
    only: tuple[str, ...] = ()
    """Evaluate these sequences alone; none: those of the protocol."""

    @held_out.validator
    def _(self, attribute: object, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"held_out is a share of the sequences, from 0 to 1, not {value}")


class EvaluationSet(AnnotatedSet):
    """A data set whose evaluated sequences are named by a protocol."""

    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """As `AnnotatedSet.find`: the evaluated sequences are held out, and others may be trained on.

        Raises:
            MediaError: no sequence is there, or none that the protocol evaluates.
        """
        names, published = self.sequences(root), self.config.only or self.published()
        chosen = [name for name in names if not published or name in published]
        if not chosen:
            raise MediaError(
                f"{root.location} holds {len(names)} sequences of {self.title} ({names[0]} ...), and none of "
                f"those to be evaluated ({published[0]} ...)"
            )
        if self.config.held_out < 1:
            return {"held_out": chosen}
        return {"train": [name for name in names if name not in chosen], "held_out": chosen}

    @abstractmethod
    def sequences(self, root: Root) -> list[str]:
        """The names of all sequences that are there, in natural order.

        Raises:
            MediaError: there are none.
        """

    def published(self) -> Sequence[str]:
        """The names that the protocol evaluates; none: all."""
        return ()

    def note(self) -> str | None:
        """A sentence where sequences of the protocol are missing: its published numbers are of other data."""
        found = set(self.videos("all").keys)
        missing = [name for name in self.published() if name not in found]
        if not missing:
            return None
        return f"{len(missing)} of the {len(self.published())} sequences that are published are missing: {missing[0]} …"


def one_pinhole(intrinsics: Sequence[Float[Tensor, "3 3"]]) -> Float[Tensor, "3 3"] | None:
    """The pinhole matrix of a whole video; None where its frames have none, or several: a lens may zoom."""
    same = all(torch.allclose(matrix, intrinsics[0], rtol=1e-6) for matrix in intrinsics)
    return intrinsics[0].float() if len(intrinsics) and same else None


def grey_depth(root: Root, name: str, steps: float, unknown: Sequence[int] = (0,)) -> Float[Tensor, "1 h w"]:
    """Depth of a grey 16-bit PNG in metres, NaN where it is not known.

    Args:
        steps: per metre.
        unknown: codes that are no depth.
    """
    codes = torch.from_numpy(root.grey16(name).astype("int64"))[None]
    known = torch.isin(codes, torch.tensor(unknown), invert=True)
    return (codes.double() / steps).where(known, torch.nan).float()


def picture_size(root: Root, name: str) -> tuple[int, int]:
    """Height and width of a picture."""
    _, height, width = root.picture(name).shape
    return height, width


def numbers(root: Root, name: str) -> Float[Tensor, "rows columns"]:
    """A text file of numbers, a row a line, float64.

    Raises:
        MediaError: it does not exist, or its lines are not equally many numbers.
    """
    rows = [line.split() for line in _lines(root, name)]
    try:
        return torch.tensor([[float(word) for word in row] for row in rows], dtype=torch.float64)
    except ValueError as error:
        raise MediaError(f"{root.place(name)} does not hold rows of equally many numbers: {error}") from error


def table(root: Root, name: str) -> list[dict[str, str]]:
    """A text file whose first line names its columns.

    Raises:
        MediaError: it does not exist, or a line has more or fewer words than the first.
    """
    header, *rows = [line.split() for line in _lines(root, name)] or [[]]
    wrong = next((row for row in rows if len(row) != len(header)), None)
    if wrong is not None:
        raise MediaError(f"{root.place(name)} has {len(header)} columns, and the line '{' '.join(wrong)}' has not")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _lines(root: Root, name: str) -> list[str]:
    lines = root.read(name).decode("utf-8", "replace").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
