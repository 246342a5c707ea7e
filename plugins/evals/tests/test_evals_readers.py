"""Readers of public layouts, on miniatures with the real file names and encodings."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fourd_evals import coco
from fourd_evals.ade import open_ade
from fourd_evals.coco import coarse_table, fine_table, open_coco
from fourd_evals.miniatures import (
    COLOURS,
    DEPTHS,
    FINE_LABELS,
    NORMALS,
    ade_miniature,
    coco_files,
    coco_miniature,
    encoded,
    in_memory,
    kinds,
    normal_picture,
    nyu_files,
    nyu_miniature,
)  # fmt: skip
from fourd_evals.nyu import open_nyu, size_note
from fourd_evals.nyu_normals import NYUNormals
from fourd_evals.roots import Root
from PIL import Image

from fourd_core.errors import MediaError
from fourd_core.testing.miniature import Miniature, Textures


def on_disk(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# ---- NYUv2


def test_the_labelled_file(tmp_path: Path) -> None:
    """HDF5 with reversed axes behind MATLAB's header; the split counts from 1: pictures 2 and 4 validate."""
    on_disk(tmp_path, nyu_files())
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat") as file:
        assert file["images"].shape == (5, 3, 64, 48) and file["depths"].shape == (5, 64, 48)
    root = Root(str(tmp_path))
    train, val = (open_nyu(root, part, "normal") for part in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    for item, number in ((train[1], 2), (val[1], 3)):
        maps = kinds(number)
        assert torch.equal(item.picture, torch.from_numpy(COLOURS[maps]).permute(2, 0, 1))
        depth = DEPTHS[maps]
        depth[:4] = 0
        assert torch.equal(item.depth[0], torch.from_numpy(depth))
        assert item.normal is not None
        wanted = torch.from_numpy(NORMALS[maps]).permute(2, 0, 1)
        assert float((item.normal - wanted).abs().max()) < 0.01  # 8 bits
        assert torch.allclose(item.normal.norm(dim=0), torch.ones(48, 64), atol=1e-5)
    filled = open_nyu(root, "val", "depth", "filled")[0]
    assert float(filled.depth.min()) > 0 and filled.normal is None


def test_black_normals_are_unknown() -> None:
    files = nyu_files()
    black = normal_picture(NORMALS[kinds(0)])
    black[:, :10] = 0
    item = open_nyu(
        Root(in_memory("black", {**files, "normals/000000_normal.png": encoded(black)})), "train", "normal"
    )[0]
    assert item.normal is not None
    assert float(item.normal[:, :, :10].abs().max()) == 0
    assert float(item.depth[:, :, :10].max()) == 0 and float(item.depth[:, 4:, 10:].min()) > 0


def test_dsine_folder() -> None:
    """Pictures and normals alone: what is not black counts."""
    normals = normal_picture(NORMALS[kinds(7)])
    normals[:5] = 0
    files = {f"nyuv2/test/{n:06d}_img.png": encoded(COLOURS[kinds(n)]) for n in (0, 13)}
    files |= {f"nyuv2/test/{n:06d}_normal.png": encoded(normals) for n in (0, 13)}
    root = Root(in_memory("dsine", {**files, "nyuv2/test/000000_intrins.npy": b""}))
    val = open_nyu(root, "val", "normal")
    assert len(val) == 2
    assert torch.equal(val[1].picture, torch.from_numpy(COLOURS[kinds(13)]).permute(2, 0, 1))
    assert float(val[1].depth[:, :5].max()) == 0 and float(val[1].depth[:, 5:].min()) == 1
    with pytest.raises(
        MediaError, match=r"part train with normals: looked for .*nyuv2/train/000000_img.png.*found nyuv2"
    ):
        open_nyu(root, "train", "normal")
    with pytest.raises(MediaError, match="part val with depths"):
        open_nyu(root, "val", "depth")


@pytest.mark.parametrize("channels_first", [True, False])
def test_lists_of_arrays(tmp_path: Path, channels_first: bool) -> None:
    """As the pickled lists are written by `numpy.savez(file, *list)`; more than ten keep their order."""
    count = 12
    maps = [kinds(n) for n in range(count)]
    move = (lambda a: np.moveaxis(a, -1, 0)) if channels_first else (lambda a: a)
    np.savez(tmp_path / "nyu_train_image.npz", *[move(COLOURS[m]) for m in maps])
    np.savez(tmp_path / "nyu_train_depth.npz", *[DEPTHS[m] for m in maps])
    np.savez(tmp_path / "nyu_train_normal.npz", *[move(NORMALS[m]) for m in maps])
    train = open_nyu(Root(str(tmp_path)), "train", "normal")
    assert len(train) == count
    item = train[11]
    assert torch.equal(item.picture, torch.from_numpy(COLOURS[maps[11]]).permute(2, 0, 1))
    assert torch.equal(item.depth[0], torch.from_numpy(DEPTHS[maps[11]]))
    assert item.normal is not None
    assert torch.equal(item.normal, torch.from_numpy(NORMALS[maps[11]]).permute(2, 0, 1))
    np.savez(tmp_path / "nyu_train_depth.npz", *[DEPTHS[m] for m in maps[1:]])
    with pytest.raises(MediaError, match="differ in length"):
        open_nyu(Root(str(tmp_path)), "train", "normal")


def test_lists_that_are_damaged(tmp_path: Path) -> None:
    for name, values in (("image", COLOURS[kinds(0)]), ("depth", DEPTHS[kinds(0)])):
        np.savez(tmp_path / f"nyu_train_{name}.npz", values)
    path = tmp_path / "nyu_train_depth.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(MediaError, match=r"nyu_train_depth.npz is not an npz file of arrays"):
        open_nyu(Root(str(tmp_path)), "train", "depth")
    path.write_bytes(whole[:5000] + b"damaged" + whole[5007:])
    with pytest.raises(MediaError, match=r"picture 0 of .*nyu_train_depth.npz cannot be read"):
        open_nyu(Root(str(tmp_path)), "train", "depth")[0]


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    """One that would leave a trace: the sentence says how to convert it."""

    class Trace:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "opened",))

    for name in ("image", "depth", "normal"):
        (tmp_path / f"nyu_train_{name}.pkl").write_bytes(pickle.dumps([Trace()]))
    metric = NYUNormals(NYUNormals.Config(root=str(tmp_path)))
    with pytest.raises(MediaError, match=r"nyu_train_depth.pkl is a pickle.*never is here.*numpy.savez"):
        metric.prepare(Miniature(), Textures())
    (tmp_path / "nyu_train_image.npz").write_bytes(pickle.dumps([Trace()]))
    (tmp_path / "nyu_train_depth.npz").write_bytes(b"")
    with pytest.raises(MediaError, match="not an npz file of arrays"):
        open_nyu(Root(str(tmp_path)), "train", "normal")
    assert not (tmp_path / "opened").exists()


def test_what_is_missing_of_the_labelled_file() -> None:
    files = nyu_files()
    no_normals = {name: data for name, data in files.items() if not name.startswith("normals/")}
    with pytest.raises(MediaError, match=r"NYUv2's normals: looked for normals/000000_normal.png"):
        open_nyu(Root(in_memory("no_normals", no_normals)), "val", "normal")
    assert len(open_nyu(Root(in_memory("no_normals", no_normals)), "val", "depth")) == 2
    no_split = {name: data for name, data in files.items() if name != "splits.mat"}
    with pytest.raises(MediaError, match=r"NYUv2's split: looked for splits.mat"):
        open_nyu(Root(in_memory("no_split", no_split)), "val", "normal")
    with pytest.raises(MediaError, match="not NYUv2's labelled file"):
        open_nyu(Root(in_memory("damaged", {**files, "nyu_depth_v2_labeled.mat": b"abc"})), "val", "normal")


def test_the_published_numbers() -> None:
    assert size_note(795, 654) is None
    assert "794 pictures to train on" in str(size_note(794, 654))


# ---- COCO-Stuff and ADE20K


def test_coco_folders() -> None:
    val = open_coco(Root(coco_miniature()), "val", coarse_table())
    picture, labels = val[1]
    maps = torch.from_numpy(kinds(140))
    assert float((picture.float() - torch.from_numpy(COLOURS)[maps].permute(2, 0, 1).float()).abs().mean()) < 4  # JPEG
    wanted = coarse_table()[torch.tensor(FINE_LABELS)][maps]
    assert torch.equal(labels[2:], wanted[2:]) and bool((labels[:2] == 255).all())
    fine = open_coco(Root(coco_miniature()), "val", fine_table())[1].labels
    assert torch.equal(fine[2:], torch.tensor(FINE_LABELS)[maps][2:])


def test_coco_side_by_side_with_a_list(tmp_path: Path) -> None:
    """LILA's layout; the list's order is kept, and what it does not name does not count."""
    files = {}
    for name, data in coco_files(train=1, val=4).items():
        if name.startswith(("images", "annotations")):
            files[name.partition("/")[2]] = data
    files["val_Coco164kFull_Stuff_Coarse.txt"] = b"000000000141\n000000000139\n"
    root = Root(str(on_disk(tmp_path, files)))
    chosen, every = (open_coco(root, "val", fine_table(), which) for which in ("curated", "all"))
    assert (len(chosen), len(every), chosen.there) == (2, 4, 4)
    assert torch.equal(chosen[0].labels, every[2].labels)
    assert not torch.equal(chosen[0].labels, every[0].labels)
    with pytest.raises(MediaError, match=r"curated list of COCO-Stuff's part train: looked for curated/train2017/Coco"):
        open_coco(root, "train", fine_table())


def test_coco_lists_what_is_not_there() -> None:
    files = coco_files()
    del files["annotations/val2017/000000000140.png"]
    with pytest.raises(MediaError, match=r"lists 000000000140, and its map .*annotations/val2017/000000000140.png"):
        open_coco(Root(in_memory("coco_gap", files)), "val", fine_table())
    with pytest.raises(MediaError, match=r"looked for images/val2017/\*.jpg with .* found ADEChallengeData2016"):
        open_coco(Root(ade_miniature()), "val", fine_table())


def test_coco_numbers_that_were_published() -> None:
    train = open_coco(Root(coco_miniature()), "train", fine_table())
    assert "the part train has 3 pictures instead of 118287" in str(coco.size_note("train", train))
    train.there = 118287
    assert coco.size_note("train", train, "curated") is None
    train.there = 5000
    assert "it names 3 pictures instead of 2175" in str(coco.size_note("val", train, "curated_7"))


def test_ade_folders() -> None:
    """150 becomes class 149, 0 does not count; the root may be the folder itself."""
    for place in (ade_miniature(), f"{ade_miniature()}/ADEChallengeData2016"):
        train = open_ade(Root(place), "train")
        assert len(train) == 3
        assert torch.equal(train[0].labels, torch.tensor([255, 0, 74, 149])[torch.from_numpy(kinds(31))])
    with pytest.raises(MediaError, match=r"looked for ADEChallengeData2016/images/validation/ADE_val_00000001.jpg or"):
        open_ade(Root(coco_miniature()), "val")


def test_labels_with_a_palette_are_indices(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 3], [2, 255]], np.uint8), "L").convert("L")
    palette = Image.new("P", (2, 2))
    palette.putdata([0, 3, 2, 200])
    palette.putpalette([n for i in range(256) for n in (255 - i, i, 7)])
    palette.save(tmp_path / "p.png")
    picture.save(tmp_path / "l.png")
    picture.convert("RGB").save(tmp_path / "rgb.png")
    root = Root(str(tmp_path))
    assert root.label_map("p.png").tolist() == [[0, 3], [2, 200]]
    assert root.label_map("l.png").tolist() == [[0, 3], [2, 255]]
    with pytest.raises(MediaError, match="not a map of labels"):
        root.label_map("rgb.png")


# ---- any file system


def test_a_zip_file_is_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "nyu.zip", "w") as archive:
        for name, data in nyu_files().items():
            archive.writestr(name, data)
    val = open_nyu(Root(f"zip://::{tmp_path}/nyu.zip"), "val", "normal")
    assert torch.equal(val[0].picture, open_nyu(Root(nyu_miniature()), "val", "normal")[0].picture)


def test_roots_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"the folder .*nowhere does not exist"):
        Root(str(tmp_path / "nowhere"))
    with pytest.raises(MediaError, match="cannot open nosuch://x"):
        Root("nosuch://x")
    with pytest.raises(MediaError, match="found nothing"):
        open_nyu(Root(str(tmp_path)), "val", "normal")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"a.png cannot be decoded"):
        Root(str(tmp_path)).picture("a.png")
    with pytest.raises(MediaError, match="does not exist"):
        Root(str(tmp_path)).read("b.png")
