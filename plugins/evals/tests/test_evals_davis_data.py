"""The DAVIS-2017 reader on a generated miniature with the real names and encodings."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fourd_evals.davis import DAVIS, VAL, DAVISSequence
from fourd_evals.davis_miniature import davis_miniature
from PIL import Image

from fourd_core.errors import MediaError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    davis_miniature(str(tmp_path / "DAVIS"))
    return tmp_path / "DAVIS"


def test_frames_ids_and_list(root: Path) -> None:
    davis = DAVIS.open(str(root))
    assert [sequence.name for sequence in davis.sequences] == ["dog", "india"]
    assert (davis.frame_count, davis.sequences[0].size) == (10, (40, 56))
    sequence = davis.sequences[1]
    with Image.open(root / "JPEGImages/480p/india/00003.jpg") as picture:
        assert torch.equal(sequence.frame(3), torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    with Image.open(root / "Annotations/480p/india/00003.png") as annotation:
        assert annotation.mode == "P"
        assert annotation.getpalette()[3:6] == [128, 0, 0]
        mask = sequence.mask(3)
        assert mask is not None
        assert mask.dtype == torch.uint8
        assert torch.equal(mask, torch.from_numpy(np.array(annotation)))
    assert mask.unique().tolist() == [0, 1, 2]
    disk = sequence.frame(3)[:, mask == 1].float().mean(1)
    assert (disk - torch.tensor([220.0, 120.0, 40.0])).abs().max() < 25, "the mask does not lie on the object"


def test_any_file_system_and_chosen_names(root: Path) -> None:
    davis_miniature("memory://davis-elsewhere")
    (root / "ImageSets/2017/val.txt").unlink()
    assert [len(s) for s in DAVIS.open("memory://davis-elsewhere").sequences] == [5, 5]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for path in root.rglob("*.*g"):
            packed.write(path, path.relative_to(root.parent))
    fsspec.filesystem("memory").pipe_file("/davis.zip", archive.getvalue())
    chosen = DAVIS.open("zip://DAVIS::memory://davis.zip", names=("india",))
    mask, same = chosen.sequences[0].mask(2), DAVIS.open("memory://davis-elsewhere").sequences[1].mask(2)
    assert mask is not None
    assert torch.equal(mask, same)


def test_frames_without_annotation(root: Path) -> None:
    (root / "Annotations/480p/dog/00002.png").unlink()
    sequence = DAVIS.open(str(root)).sequences[0]
    assert [sequence.mask(number) is None for number in range(5)] == [False, False, True, False, False]
    (root / "Annotations/480p/dog/00000.png").unlink()
    with pytest.raises(MediaError, match=r"dog has no annotation of its first frame: .*/dog/00000\.png is missing"):
        DAVIS.open(str(root))


def test_a_root_without_the_folders_says_what_was_looked_for_and_found(root: Path) -> None:
    with pytest.raises(MediaError, match=r"looked for JPEGImages/480p or .*val\.txt; found DAVIS"):
        DAVIS.open(str(root.parent))
    with pytest.raises(
        MediaError, match=r"found Annotations, ImageSets, JPEGImages; missing: ImageSets/2017/test\.txt"
    ):
        DAVIS.open(str(root), "test")
    with pytest.raises(MediaError, match="nowhere does not exist"):
        DAVIS.open(str(root / "nowhere"))
    (root / "ImageSets/2017/val.txt").write_text("dog\ngoat\n")
    with pytest.raises(MediaError, match=r"goat has no pictures: .*JPEGImages/480p/goat is empty or missing"):
        DAVIS.open(str(root))
    (root / "ImageSets/2017/val.txt").write_text("\n")
    with pytest.raises(MediaError, match="names no sequence"):
        DAVIS.open(str(root))


def test_annotations_that_are_no_ids_of_these_frames(root: Path) -> None:
    place = root / "Annotations/480p/dog/00001.png"
    Image.new("RGB", (56, 40)).save(place)
    with pytest.raises(MediaError, match=r"00001\.png is a picture in colours"):
        DAVIS.open(str(root)).sequences[0].mask(1)
    Image.new("P", (28, 20)).save(place)
    with pytest.raises(MediaError, match=r"00001\.png has 20 x 28 rows and columns, .* dog have 40 x 56"):
        DAVIS.open(str(root)).sequences[0].mask(1)
    place.write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"00001\.png cannot be decoded"):
        DAVIS.open(str(root)).sequences[0].mask(1)


def test_what_is_not_the_published_set_is_said(root: Path) -> None:
    davis = DAVIS.open(str(root))
    note = davis.note()
    assert note is not None
    assert note.startswith("this is not the published validation set of DAVIS-2017: 28 of 30 sequences are missing")
    assert "dog has 5 frames instead of 60" in note
    place = davis.sequences[0].root

    def real(counts: dict[str, int]) -> DAVIS:
        return DAVIS(
            "val", tuple(DAVISSequence(n, place, ("x",) * count, (None,) * count) for n, count in counts.items())
        )

    assert (len(VAL), sum(VAL.values())) == (30, 1999)
    assert real(VAL).note() is None
    assert real({"dog": 60}).note(["dog"]) is None
    assert "1 others are there (cat)" in str(real({**VAL, "cat": 3}).note())
    assert "camel has 91 frames instead of 90" in str(real({**VAL, "camel": 91}).note())
