"""Trainings in pieces, and weights that are published: what is put into files is what is read from them again."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import Fourd
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import publish, train_piece
from fourd_core.checkpoint import Checkpoint


def weights() -> dict[str, torch.Tensor]:
    """A large tensor among small ones; 1 + 2^-12 has no place in half precision."""
    state = {f"heads.value.{i}": torch.randn(100, generator=torch.Generator().manual_seed(i)) for i in range(6)}
    state["heads.value.large"] = torch.full((700,), 1 + 2**-12)
    state["heads.value.count"] = torch.tensor([2**40, 3])
    return state


def test_shards_are_small_and_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_piece, "LARGEST", 500)
    state = weights()
    groups = train_piece.shards(state)
    assert [name for group in groups for name in group] == list(state)
    sizes = [sum(value.nbytes for value in group.values()) for group in groups]
    assert all(size <= 500 or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    assert sizes[0] == 400, "as few files as fit: two tensors of 200 bytes each"
    for number, group in enumerate(groups):
        save_file(group, tmp_path / f"weights-{number:02}.safetensors")
    back = train_piece.joined(tmp_path)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value.half() if value.is_floating_point() else value)
    assert back["heads.value.large"][0] == 1
    with pytest.raises(SystemExit, match="has no weights"):
        train_piece.joined(tmp_path / "nothing")


def test_a_piece_after_the_other(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one starts from the first one's weights, wherever the process runs."""
    started: list[Path | None] = []

    def train(options: object, run: Path, start: Path | None) -> None:
        started.append(start)
        words = ["--set", f"trained={start}"] if start else []
        fourd("run", toy_recipe, "train", "--set", "stages.train.steps=2", *words, "--out", run, check=0)
        if start is not None:
            given.update(load_file(start))

    given: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(train_piece, "train", train)
    for piece, more in (("one", []), ("two", ["--weights", str(tmp_path / "one")])):
        words = ["train_piece", str(toy_recipe), "train", "--out", str(tmp_path / piece), *more]
        monkeypatch.setattr("sys.argv", words)
        train_piece.main()
    one, two = (train_piece.joined(tmp_path / piece) for piece in ("one", "two"))
    assert started[0] is None and started[1] is not None
    assert {name: value.dtype for name, value in given.items()} == dict.fromkeys(one, torch.float32)
    assert all(torch.equal(given[name], one[name].float()) for name in one)
    assert not torch.equal(two["heads.value.linear.weight"], one["heads.value.linear.weight"])
    assert len((tmp_path / "two/metrics.jsonl").read_text().splitlines()) == 2


def test_a_later_piece_draws_other_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seed comes from the weights that it starts with, unless it is said."""
    commands: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], **_: object) -> None:
            commands.append(command)

        def wait(self, _: float) -> None:
            """At once."""

    monkeypatch.setattr("subprocess.Popen", Started)
    starts = [None, *(tmp_path / name for name in ("a", "b", "a"))]
    for start in starts[1:]:
        assert start is not None
        start.write_bytes(start.name.encode())
    for said in ([], ["seed=3"]):
        options = Namespace(recipe="r.toml", stages=["s"], set=said, site=None, minutes=1.0)
        for start in starts:
            train_piece.train(options, tmp_path / "run", start)
    seeds = [[word for word in command if word.startswith("seed=")] for command in commands]
    assert seeds[0] == [] and [len(found) for found in seeds[1:4]] == [1, 1, 1]
    assert seeds[1] == seeds[3] != seeds[2]
    assert seeds[4:] == [["seed=3"]] * 4


def test_a_piece_that_does_not_fit_into_half_precision_is_not_left(
    toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(_options: object, run: Path, _start: Path | None) -> None:
        (run / "train").mkdir(parents=True)
        save_file({"heads.value.weight": torch.tensor([1.0, 1e6])}, run / "train/weights.safetensors")

    monkeypatch.setattr(train_piece, "train", train)
    monkeypatch.setattr("sys.argv", ["train_piece", str(toy_recipe), "train", "--out", str(tmp_path / "piece")])
    with pytest.raises(SystemExit, match=r"heads\.value\.weight is not finite in half precision"):
        train_piece.main()
    assert not [*(tmp_path / "piece").iterdir()]


def test_published_from_a_run_a_checkpoint_or_a_file(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "FOLDER", tmp_path)
    fourd("run", toy_recipe, "train", "--set", "stages.train.steps=2", "--out", "run", check=0)
    left = load_file(tmp_path / "run/train/weights.safetensors")
    path = publish.publish("toy", tmp_path / "run", "on a square that wanders")
    assert path == tmp_path / "toy.safetensors"
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["fourd"]) == {
            "recipe": "toy", "how": "on a square that wanders", "licence": "Apache-2.0",
        }  # fmt: skip
    found = load_file(path)
    assert found.keys() == {key for key in left if key.startswith("heads.")}
    assert all(torch.equal(found[key], left[key].half()) for key in found)

    objective = {"objectives.train.own": torch.zeros(2)}
    Checkpoint({**left, **objective}, 1, {"x/step": torch.ones(())}).save(tmp_path / "checkpoint.safetensors")
    again = load_file(publish.publish("again", tmp_path / "checkpoint.safetensors", ""))
    assert again.keys() == found.keys(), "what objectives own and the optimiser's state stay behind"
    fourd("run", toy_recipe, "evaluate", "--set", f"weights={path}", "--out", "used", check=0)


def test_what_does_not_fit_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "FOLDER", tmp_path)
    save_file({"heads.value.weight": torch.tensor([1.0, 1e6])}, tmp_path / "w.safetensors")
    with pytest.raises(SystemExit, match=r"heads\.value\.weight does not fit into half precision"):
        publish.publish("bad", tmp_path / "w.safetensors", "")
    assert not (tmp_path / "bad.safetensors").exists()
