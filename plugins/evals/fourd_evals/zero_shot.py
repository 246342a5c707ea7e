"""Segmentation of classes that a probe never saw, by the embeddings of their names."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any
from zipfile import BadZipFile

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from attrs.validators import ge
from jaxtyping import Float, Int64
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from torch import Tensor, nn

from fourd_core.errors import MediaError, RecipeError
from fourd_core.interfaces import Dataset, Sample
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals import coco
from fourd_evals.miniatures import zero_shot_miniature
from fourd_evals.probe_task import Score, Scores, Task
from fourd_evals.probe_training import ProbeMetric
from fourd_evals.probes import LinearZeroShot
from fourd_evals.roots import Root, read_file
from fourd_evals.segmentation_metrics import IGNORED, confusion, scores
from fourd_evals.semantic import LabelsTask, SegmentationConfig, cross_entropy

ZIP = b"PK"
"""How every npz file begins."""
KEPT = 0.1
"""Weight of the cross entropy in a batch that has ignored pixels."""


@attrs.frozen(eq=False)
class TextEmbeddings:
    """One embedding per class.

    Attributes:
        names: of the classes, by class number.
        values: of length 1.
        sha256: of the file.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "k e"]
    sha256: str


def read_text(location: str) -> TextEmbeddings:
    """Text embeddings from a file, made of length 1.

    An npz file has the arrays `names` (texts) and `embeddings` (a row per class); a safetensors file has the tensor
    `embeddings` and, in its metadata, `names` as a JSON list.

    Raises:
        MediaError: no such file, another format, names and rows that differ in number.
    """
    data = read_file(location)
    try:
        names, values = _from_npz(data) if data.startswith(ZIP) else _from_safetensors(data)
    except (ValueError, KeyError, TypeError, OSError, BadZipFile, SafetensorError) as error:
        raise MediaError(
            f"{location} holds no text embeddings ({error}): it must be an npz file with the arrays `names` and "
            "`embeddings`, or a safetensors file with the tensor `embeddings` and the metadata `names`"
        ) from error
    if values.ndim != 2 or len(names) != len(values):
        raise MediaError(f"{location} has {len(names)} names and embeddings of shape {values.shape}: one row per name")
    embeddings = F.normalize(torch.from_numpy(values.astype(np.float32)), dim=1)
    return TextEmbeddings(tuple(names), embeddings, hashlib.sha256(data).hexdigest())


def _from_npz(data: bytes) -> tuple[list[str], ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return [str(name) for name in arrays["names"]], arrays["embeddings"]


def _from_safetensors(data: bytes) -> tuple[list[str], ndarray]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [str(name) for name in json.loads(header["__metadata__"]["names"])], load_safetensors(data)["embeddings"]


def read_list(root: Root, name: str) -> list[str]:
    """The entries of `NAME.npy` (an array of texts or numbers) or of `NAME.txt` (separated by white space).

    Raises:
        MediaError: neither is there; an array that holds pickled objects.
    """
    found = root.first([f"{name}.npy", f"{name}.txt"])
    if found is None:
        raise root.missing("the zero-shot split", [f"{name}.npy", f"{name}.txt"])
    if found.endswith(".txt"):
        return root.read(found).decode().split()
    try:
        return [str(item) for item in np.load(io.BytesIO(root.read(found)), allow_pickle=False).ravel()]
    except ValueError as error:
        raise MediaError(
            f"{root.place(found)} is no plain array ({error}); objects in it are pickled and never opened here: where "
            f"you trust the file, write the list as text to {name}.txt, an entry a line"
        ) from error


def zero_shot_loss(
    logits: Float[Tensor, "b k h w"], labels: Int64[Tensor, "b h w"], seen: Int64[Tensor, " s"]
) -> Float[Tensor, ""]:
    """Cross entropy; where pixels are ignored, a tenth of it and what the seen classes claim of those pixels.

    The claim is the square of the seen classes' summed probability, mean over ignored pixels: these may be novel.

    Source: google-research/lila, eval_openseg.py.
    """
    kept, ignored = cross_entropy(logits, labels), labels == IGNORED
    if not ignored.any():
        return kept
    claimed = logits.softmax(1)[:, seen].sum(1)[ignored]
    return KEPT * kept + claimed.square().mean()


class ZeroShot(ProbeMetric):
    """COCO-Stuff's 182 classes by their names' embeddings, some never seen in training: mIoU seen, unseen, harmonic.

    Source: google-research/lila, eval_openseg.py.
    """

    title = "COCO-Stuff zero-shot segmentation"

    @attrs.frozen(kw_only=True)
    class Config(SegmentationConfig):
        """The protocol, by default the reference's."""

        text: Location | None = None
        """An embedding per label 0 to 181: npz with the arrays `names` and `embeddings`, or safetensors with the tensor
        `embeddings` and, as metadata, `names` in JSON."""
        splits: Location | None = None
        """The folder of train_list, test_list, seen_cls and novel_cls (.npy or .txt); none: the root."""
        epochs: int = attrs.field(default=5, validator=ge(1))
        """How often the training pictures are gone through; the probe is measured after each."""
        batch_size: int = attrs.field(default=32, validator=ge(1))
        """Pictures of a training step."""
        val_batch_size: int = attrs.field(default=32, validator=ge(1))
        """Validation pictures that go through together; a number counts on it while `batch_statistics` is on."""
        batch_statistics: bool = True
        """Whether the probe's BatchNorm normalises by the batch at hand in validation, too, as in the reference."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature of four classes, one of them novel."""
        root = zero_shot_miniature()
        return cls.Config(
            root=Location(root),
            text=Location(f"{root}/text.npz"),
            epochs=1,
            batch_size=2,
            size=32,
            val_batch_size=2,
            workers=1,
        )

    def task(self, system: System, data: Dataset) -> Task:
        """The pictures of the split, the classes and their text.

        Raises:
            MediaError: a file is not there or not as expected.
        """
        return ZeroShotTask(self.config)


class ZeroShotTask(LabelsTask):
    """Fine labels, of which the novel ones are ignored in training."""

    def __init__(self, config: Any) -> None:
        root = Root(config.folder)
        splits = Root(config.splits) if config.splits is not None else root
        if config.text is None:
            raise RecipeError("zero_shot needs an embedding of each label: set `text`, a file of them")
        self.text = read_text(config.text)
        self._check_text(config.text)
        self.seen, self.novel = (self._classes(splits, name) for name in ("seen_cls", "novel_cls"))
        both = set(self.seen.tolist()) & set(self.novel.tolist())
        if both:
            raise MediaError(f"{splits.location}: class {min(both)} is in both seen_cls and novel_cls")
        table = coco.fine_table()
        without_novel = table.clone()
        without_novel[self.novel] = IGNORED
        lists = {name: coco.picture_names(read_list(splits, name)) for name in ("train_list", "test_list")}
        train = coco.open_coco(root, "train", without_novel, lists["train_list"])
        val = coco.open_coco(root, "val", table, lists["test_list"])
        super().__init__("COCO-Stuff zero-shot", (train, val), len(self.text.names), config)
        self.eval_mode = not config.batch_statistics
        self.data = {
            "text_sha256": self.text.sha256, "seen": self.seen.tolist(), "novel": self.novel.tolist(),
            "answers": "among all classes with text", "loss_kept": KEPT,
        }  # fmt: skip
        notes = coco.size_note("train", train), coco.size_note("val", val)
        self.remarks = [note for note in notes if note]

    def _check_text(self, location: str) -> None:
        if len(self.text.names) != coco.FINE:
            raise MediaError(f"{location} has {len(self.text.names)} classes, COCO-Stuff has {coco.FINE} labels")

    def _classes(self, splits: Root, name: str) -> Int64[Tensor, " n"]:
        entries = read_list(splits, name)
        try:
            classes = torch.tensor([int(entry) for entry in entries], dtype=torch.long)
        except ValueError as error:
            raise MediaError(f"{splits.place(name)} must list numbers of classes: {error}") from error
        wrong = classes[(classes < 0) | (classes >= len(self.text.names))]
        if len(wrong):
            raise MediaError(
                f"{splits.place(name)} lists class {int(wrong[0])}; there are 0 to {len(self.text.names) - 1}"
            )
        return classes

    def probe(self, pixel_dim: int, encoder_dim: int) -> nn.Module:
        """Features into the space of the text."""
        device = torch.get_default_device()
        return LinearZeroShot(pixel_dim, encoder_dim, self.text.values.to(device), self.config.alphas)

    def loss(self, answer: Tensor, batch: Sample) -> Tensor:
        """Cross entropy, and what seen classes claim of ignored pixels."""
        return zero_shot_loss(answer, batch["labels"], self.seen.to(answer.device))

    def scores(self) -> Scores:
        """One confusion matrix."""
        return ZeroShotScores(self.classes, self.seen, self.novel)


class ZeroShotScores(Scores):
    """One confusion matrix for the set; percent."""

    def __init__(self, classes: int, seen: Int64[Tensor, " s"], novel: Int64[Tensor, " n"]) -> None:
        self._matrix = torch.zeros(classes, classes, dtype=torch.long)
        self._seen, self._novel = seen, novel

    def add(self, answer: Tensor, batch: Sample) -> None:
        """Count a batch."""
        self._matrix += confusion(answer.argmax(1), batch["labels"], len(self._matrix)).cpu()

    def result(self) -> Score:
        """The harmonic mean decides."""
        seen, novel = (scores(self._matrix, among).miou for among in (self._seen, self._novel))
        harmonic = 2 * seen * novel / (seen + novel) if seen + novel else 0.0
        columns = {
            "mIoU seen": seen, "mIoU unseen": novel, "harmonic": harmonic,
            "pAcc": scores(self._matrix).pixel_accuracy,
        }  # fmt: skip
        return Score({name: 100 * value for name, value in columns.items()}, quality=harmonic)
