"""Zero-shot segmentation: text from files, the loss, seen and novel classes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from fourd_evals.depth_probe import DepthProbe
from fourd_evals.flow_probe import FlowProbe
from fourd_evals.miniatures import FINE_LABELS, colour_system, in_memory, zero_shot_miniature
from fourd_evals.nyu_normals import NYUNormals
from fourd_evals.roots import Root
from fourd_evals.semantic import ADE20K, COCOStuff, cross_entropy
from fourd_evals.zero_shot import ZeroShot, ZeroShotScores, ZeroShotTask, read_list, read_text, zero_shot_loss
from safetensors.numpy import save_file

from fourd_core.errors import MediaError, RecipeError
from fourd_core.recipe import Location
from fourd_core.testing.miniature import Miniature, Textures


def config(**changes: Any) -> Any:
    return attrs.evolve(ZeroShot.example(), **changes)


def test_text_from_both_formats(tmp_path: Path) -> None:
    names, values = ["wall", "sky"], np.array([[3, 4], [0, 2]], np.float32)
    np.savez(tmp_path / "text.npz", names=np.array(names), embeddings=values)
    save_file({"embeddings": values}, tmp_path / "text.safetensors", {"names": json.dumps(names)})
    for name in ("text.npz", "text.safetensors"):
        text = read_text(str(tmp_path / name))
        assert text.names == ("wall", "sky")
        assert torch.allclose(text.values, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
        assert len(text.sha256) == 64
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "text.npz", "text.npz")
    assert read_text(f"zip://text.npz::{tmp_path / 'all.zip'}").names == ("wall", "sky")


@pytest.mark.parametrize("name", ["text.npz", "text.safetensors"])
def test_text_that_is_cut_off(tmp_path: Path, name: str) -> None:
    values = np.ones((9, 40), np.float32)
    np.savez(tmp_path / "text.npz", names=np.array(list("abcdefghi")), embeddings=values)
    save_file({"embeddings": values}, tmp_path / "text.safetensors", {"names": json.dumps(list("abcdefghi"))})
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(MediaError, match="no text embeddings"):
        read_text(str(path))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"embeddings": np.ones((2, 3))}, "no text embeddings"),
        ({"names": ["a"], "embeddings": np.ones((2, 3))}, "1 names"),
    ],
)
def test_text_that_does_not_fit(tmp_path: Path, arrays: Any, reason: str) -> None:
    np.savez(tmp_path / "text.npz", **arrays)
    with pytest.raises(MediaError, match=reason):
        read_text(str(tmp_path / "text.npz"))


def test_lists_from_arrays_and_text(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.array([3, 5]))
    (tmp_path / "names.txt").write_text("a/b.jpg\nc.jpg\n")
    np.save(tmp_path / "pickled.npy", np.array(["a", None], object))
    root = Root(str(tmp_path))
    assert read_list(root, "numbers") == ["3", "5"]
    assert read_list(root, "names") == ["a/b.jpg", "c.jpg"]
    with pytest.raises(MediaError, match=r"never opened here.*pickled\.txt"):
        read_list(root, "pickled")
    with pytest.raises(MediaError, match=r"looked for novel\.npy or novel\.txt; found"):
        read_list(root, "novel")


def test_the_loss_by_hand() -> None:
    """Two of three classes are seen; of four pixels one is labelled."""
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([[[1, 255], [255, 255]]])
    seen = torch.tensor([0, 2])
    shares = logits.softmax(1)[0]
    claimed = [float(shares[0, y, x] + shares[2, y, x]) ** 2 for y, x in ((0, 1), (1, 0), (1, 1))]
    wanted = 0.1 * -float(shares[1, 0, 0].log()) + sum(claimed) / 3
    assert float(zero_shot_loss(logits, labels, seen)) == pytest.approx(wanted, rel=1e-5)
    every = torch.tensor([[[1, 0], [2, 0]]])
    assert torch.equal(zero_shot_loss(logits, every, seen), cross_entropy(logits, every))


def test_novel_classes_are_ignored_in_training_alone() -> None:
    task = ZeroShotTask(config())
    train = torch.cat([task._train[n].labels.flatten() for n in range(3)]).unique().tolist()
    val = torch.cat([task._val[n].labels.flatten() for n in range(2)]).unique().tolist()
    assert train == [*FINE_LABELS[:3], 255]
    assert val == [*FINE_LABELS, 255]


def test_seen_unseen_and_harmonic() -> None:
    """Class 0 right on half of its pixels and given to all of class 1's: 1/4 seen; class 2 is novel and 1/2 right."""
    count = ZeroShotScores(3, torch.tensor([0, 1]), torch.tensor([2]))
    truth = torch.tensor([[[0, 0], [1, 1], [2, 2]]])
    given = torch.tensor([[[0, 2], [0, 0], [2, 0]]])
    count.add(torch.nn.functional.one_hot(given, 3).movedim(-1, 1).float(), {"labels": truth})
    score = count.result()
    seen, novel = (1 / 5 + 0) / 2, 1 / 3
    assert score.columns["mIoU seen"] == pytest.approx(100 * seen)
    assert score.columns["mIoU unseen"] == pytest.approx(100 * novel)
    assert score.columns["harmonic"] == pytest.approx(100 * 2 * seen * novel / (seen + novel))


def test_a_probe_learns_seen_classes() -> None:
    changes = {"features": "pixels", "lr": 0.02, "epochs": 15}
    result = ZeroShot(config(**changes)).measure(colour_system(), Textures())
    assert result.rows[0]["mIoU seen"] > 60
    assert result.protocol["novel"] == [FINE_LABELS[3]]
    assert len(result.protocol["text_sha256"]) == 64
    assert "text" not in result.protocol
    assert "instead of 118287" in result.notes[0]


def test_the_batch_norm_of_the_reference_sees_the_batch() -> None:
    """With batch statistics the answer depends on which pictures share a batch, without it does not."""

    def both(batch_statistics: bool) -> list[Any]:
        results = [
            ZeroShot(
                config(features="encoder", lr=0.01, batch_statistics=batch_statistics, val_batch_size=n, select="last")
            ).measure(Miniature(), Textures())
            for n in (1, 2)
        ]
        return [result.rows[0] for result in results]

    alone, together = both(False)
    assert alone == together
    alone, together = both(True)
    assert alone != together


def test_classes_that_do_not_fit() -> None:
    root = zero_shot_miniature()
    overlap = in_memory("overlap", {**lists(root), "novel_cls.txt": b"92"})
    with pytest.raises(MediaError, match="class 92 is in both"):
        ZeroShot(config(splits=Location(overlap))).prepare(Miniature(), Textures())
    beyond = in_memory("beyond", {**lists(root), "novel_cls.txt": b"182"})
    with pytest.raises(MediaError, match="lists class 182; there are 0 to 181"):
        ZeroShot(config(splits=Location(beyond))).prepare(Miniature(), Textures())


def test_text_of_other_classes() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(["a"]), embeddings=np.ones((1, 4), np.float32))
    place = in_memory("other_text", {"text.npz": buffer.getvalue()})
    with pytest.raises(MediaError, match="has 1 classes, COCO-Stuff has 182 labels"):
        ZeroShot(config(text=Location(f"{place}/text.npz"))).prepare(Miniature(), Textures())


def test_the_reference_protocol_is_the_default() -> None:
    c = ZeroShot.Config(root=Location("memory://a"), text=Location("memory://b"))
    assert (c.lr, c.weight_decay, c.batch_size, c.epochs, c.batch_statistics) == (3e-4, 0.01, 32, 5, True)


def lists(root: str) -> dict[str, bytes]:
    """Everything of the split but the novel classes."""
    found = Root(root)
    return {f"{name}.npy": found.read(f"{name}.npy") for name in ("train_list", "test_list", "seen_cls")}


def test_what_names_no_root_is_left_out_and_what_names_no_text_says_so() -> None:
    system, data = colour_system(), Textures()
    for metric in (ZeroShot, COCOStuff, ADE20K, NYUNormals, DepthProbe):
        assert not metric(metric.Config()).available(system, data)
        assert metric(metric.example()).available(system, data)
        with pytest.raises(RecipeError, match="set `root`"):
            metric(metric.Config()).prepare(system, data)
    assert FlowProbe(FlowProbe.Config()).available(system, data)  # a flow cue will do
    with pytest.raises(RecipeError, match="set `text`"):
        ZeroShot(attrs.evolve(ZeroShot.example(), text=None)).prepare(system, data)
