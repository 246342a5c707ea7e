"""Translating published checkpoints, and telling what a checkpoint looks like."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from weights_parts import CONVERTER, ONLY_FAKES, install_asset, l4p_state, save_lightning

from fourd_core import __version__
from fourd_core.errors import FourdError, WeightsError
from fourd_core.weights import describe_checkpoint, load_weights, read_state_dict
from fourd_core.weights.assets import Known, find
from fourd_core.weights.convert import convert, for_recipe, licence_of, separated
from fourd_core.weights.describe import families, key_tree, look_into

L4P = {"name": "l4p", "summary": "L4P", "file_name": "l4p_v1.ckpt", "licence": "CC-BY-NC-SA-4.0", "noncommercial": True,
       "signature": ("video_encoder.blocks.0.attn.q_bias", "task_heads.track_2d.")}  # fmt: skip
MAE = {"name": "videomae", "summary": "VideoMAEv2", "signature": ("blocks.0.attn.q_bias", "patch_embed.proj.")}


@pytest.fixture
def l4p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    """Two installed plugins know an asset each; this is one of them, with its converter."""
    monkeypatch.setenv("FOURD_PLUGINS", ONLY_FAKES)
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    install_asset(tmp_path / "site", "acme-mae", **MAE)
    install_asset(tmp_path / "site", "acme-l4p", CONVERTER, convert="__MODULE__:convert", **L4P)
    return find("l4p")


def refusal(known: Known, path: Path, folder: Path) -> str:
    with pytest.raises(FourdError) as caught:
        convert(known, str(path), folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*.safetensors"))
    return str(caught.value)


def encoder_state() -> dict[str, Tensor]:
    prefix = "l4p_model.video_encoder."
    return {key.removeprefix(prefix): value for key, value in l4p_state().items() if key.startswith(prefix)}


def test_a_lightning_file_becomes_safetensors_and_a_manifest(l4p: Known, tmp_path: Path) -> None:
    content = save_lightning(tmp_path / "l4p_v1.ckpt", l4p_state())
    target = convert(l4p, str(tmp_path / "l4p_v1.ckpt"), tmp_path / "out" / "deep")
    expected = {k.removeprefix("l4p_model."): v for k, v in l4p_state().items() if "layer_rn" not in k}
    state = read_state_dict(str(target))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in expected.items())
    manifest = json.loads((target.parent / "manifest.json").read_text())
    assert manifest.pop("created")[:2] == "20"
    assert manifest == {
        "name": "l4p", "plugin": "acme-l4p", "fourd": __version__, "made_from": "l4p_v1.ckpt",
        "made_from_sha256": hashlib.sha256(content).hexdigest(),
        "licence": "CC-BY-NC-SA-4.0 (non-commercial use only)", "source": "https://example.org/paper",
        "tensors": 10, "numbers": sum(value.numel() for value in expected.values()),
        "file": "l4p.safetensors", "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
    }  # fmt: skip
    with safe_open(target, "pt") as handle:
        assert json.loads(handle.metadata()["fourd"])["made_from"] == "l4p_v1.ckpt"
    assert sorted(path.name for path in target.parent.iterdir()) == ["l4p.safetensors", "manifest.json"]
    assert convert(l4p, str(tmp_path / "l4p_v1.ckpt"), tmp_path / "out" / "deep") == target  # again is fine


def test_tensors_that_share_memory_are_written_twice(l4p: Known, tmp_path: Path) -> None:
    """L4P registers parameters under two names; what is left of that when nothing is converted must be writable."""
    save_lightning(tmp_path / "x.ckpt", l4p_state())
    plain = attrs.evolve(l4p, asset=attrs.evolve(l4p.asset, convert=None))
    state = read_state_dict(str(convert(plain, str(tmp_path / "x.ckpt"), tmp_path / "out")))
    assert state.keys() == l4p_state().keys()
    assert all(torch.equal(state[key], value) for key, value in l4p_state().items())
    base = torch.arange(6.0)
    shared = {"a": base, "b": base, "row": base.view(2, 3)[1], "empty": torch.zeros(0), "empty2": torch.zeros(0)}
    save_file(separated(shared), tmp_path / "shared")
    assert read_state_dict(str(tmp_path / "shared"))["row"].tolist() == [3.0, 4.0, 5.0]


def test_weights_of_our_own_are_taken_for_nobody_elses(l4p: Known, tmp_path: Path) -> None:
    """Their names may hold a published file's: an encoder with the same names inside is `backbone.` here."""
    own = separated({f"backbone.{name}": value for name, value in l4p_state().items()})
    save_file(own, tmp_path / "own.safetensors")
    assert for_recipe(str(tmp_path / "own.safetensors")).keys() == own.keys()
    save_file(separated(l4p_state()), tmp_path / "published.safetensors")
    assert for_recipe(str(tmp_path / "published.safetensors")).keys() != l4p_state().keys()


def test_the_wrong_kind_says_what_it_looks_like(l4p: Known, tmp_path: Path) -> None:
    save_file({f"module.{key}": value for key, value in encoder_state().items()}, tmp_path / "mae.safetensors")
    message = refusal(l4p, tmp_path / "mae.safetensors", tmp_path / "out")
    assert message.endswith("is not l4p (L4P): it looks like videomae (VideoMAEv2); take the file l4p_v1.ckpt")
    save_file({"fc.weight": torch.zeros(3), "fc.bias": torch.zeros(3), "x": torch.zeros(1)}, tmp_path / "fc")
    message = refusal(l4p, tmp_path / "fc", tmp_path / "out")
    assert "no installed plugin knows its 3 keys, which begin with fc (2), x (1)" in message
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_converter_cannot_use(l4p: Known, tmp_path: Path) -> None:
    module = install_asset(tmp_path / "site", "acme-bad", "def convert(state):\n    return {'x': state['head']}\n",
                           name="bad", convert="__MODULE__:convert")  # fmt: skip
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "fc")
    message = refusal(find("bad"), tmp_path / "fc", tmp_path / "out")
    assert f"cannot be translated by {module}:convert (KeyError: 'head')" in message


def test_a_folder_with_the_manifest_of_something_else(l4p: Known, tmp_path: Path) -> None:
    save_lightning(tmp_path / "x.ckpt", l4p_state())
    out = tmp_path / "out"
    out.mkdir()
    for text, what in (('{"name": "other"}', "other"), ("[]", "not to weights"), ("no json", "not to weights")):
        (out / "manifest.json").write_text(text)
        assert f"belongs to something else ({what})" in refusal(l4p, tmp_path / "x.ckpt", out)
        assert (out / "manifest.json").read_text() == text
    (tmp_path / "file").touch()
    assert "choose another one" in refusal(l4p, tmp_path / "x.ckpt", tmp_path / "file" / "out")


class Harmful:
    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("entry", ["hyper_parameters", "callbacks"])
def test_a_lightning_file_with_more_than_tensors_is_refused(entry: str, l4p: Known, tmp_path: Path) -> None:
    """A namespace is harmless, but who decides that? Only what torch itself reads without code is read."""
    save_lightning(tmp_path / "evil.ckpt", l4p_state(), **{entry: {"x": Harmful(tmp_path / "trace")}})
    assert "could run code" in refusal(l4p, tmp_path / "evil.ckpt", tmp_path / "out")
    assert not (tmp_path / "trace").exists()
    save_lightning(tmp_path / "own.ckpt", l4p_state(), **{entry: {"x": nn.Identity()}})
    message = refusal(l4p, tmp_path / "own.ckpt", tmp_path / "out")
    assert "torch.nn.modules.linear.Identity" in message and "save its state_dict() as safetensors" in message


def test_numbers_that_are_none_are_not_converted(l4p: Known, tmp_path: Path) -> None:
    state = l4p_state()
    state["l4p_model.video_encoder.norm.weight"][3] = float("nan")
    save_lightning(tmp_path / "nan.ckpt", state)
    assert "1 of the 8 numbers" in refusal(l4p, tmp_path / "nan.ckpt", tmp_path / "out")


def test_members_of_an_archive_are_never_written(l4p: Known, tmp_path: Path) -> None:
    """A torch file is a zip archive; names in it that lead out of it have no effect, or torch refuses them."""
    for number, (name, refused) in enumerate({"archive/../../escaped": False, "../../escaped": True}.items()):
        path = tmp_path / "inner" / f"{number}.ckpt"
        path.parent.mkdir(exist_ok=True)
        save_lightning(path, l4p_state())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        before = sorted(tmp_path.rglob("*"))
        if refused:
            assert "file in archive is not in a subdirectory" in refusal(l4p, path, tmp_path / "out")
        else:
            assert read_state_dict(str(path)).keys() == l4p_state().keys()
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("metadata", ["hello", "[1]", '"hello"', "3", "null", '{"licence": null}', "{}"])
def test_a_licence_that_nobody_states(metadata: str, l4p: Known, tmp_path: Path) -> None:
    save_file(separated(l4p_state()), tmp_path / "known", {"fourd": metadata})
    save_file({"x": torch.zeros(1)}, tmp_path / "unknown", {"fourd": metadata})
    assert licence_of(str(tmp_path / "known")) == l4p.asset.terms
    assert licence_of(str(tmp_path / "unknown")) == "as the run that trained it says"
    save_file({"x": torch.zeros(1)}, tmp_path / "stated", {"fourd": '{"licence": "MIT"}'})
    assert licence_of(str(tmp_path / "stated")) == "MIT"


def test_families(l4p: Known) -> None:
    state = l4p_state()
    assert describe_checkpoint(state) == "it looks like l4p (L4P)"
    bare = {key.removeprefix("l4p_model."): value for key, value in state.items()}
    assert families(bare) == families({f"a.b.{key}": value for key, value in state.items()}) == ["l4p (L4P)"]
    assert families(encoder_state()) == ["videomae (VideoMAEv2)"]
    assert families({}) == families({"x": torch.zeros(1)}) == []


def test_of_two_families_the_one_with_more_in_common(l4p: Known, tmp_path: Path) -> None:
    install_asset(tmp_path / "site", "acme-more", **{**MAE, "name": "more", "signature": (*MAE["signature"], "norm.")})
    assert families(encoder_state()) == ["more (VideoMAEv2)"]


def test_loading_the_wrong_one_says_what_it_looks_like(l4p: Known) -> None:
    with pytest.raises(WeightsError, match=r"It looks like l4p \(L4P\): correct the weights' location or the config"):
        load_weights(nn.Linear(2, 2), l4p_state(), location="x.ckpt")


def test_contents_of_every_format(l4p: Known, tmp_path: Path) -> None:
    state = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2).half(), "n": torch.tensor(3)}
    save_file(state, tmp_path / "st", {"note": "hello"})
    torch.save(state, tmp_path / "zip")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    found = [look_into(tmp_path / name, name) for name in ("st", "zip", "old")]
    assert [item.format for item in found] == ["safetensors", "torch", "torch (before 1.6)"]
    assert [item.metadata for item in found] == [{"note": "hello"}, {}, {}]
    for item in found:
        assert item.parameters == 9
        assert item.dtypes == {"float32": 1, "float16": 1, "int64": 1}
        assert {key: size.shape for key, size in item.tensors.items()} == {"a.weight": (2, 3), "a.bias": (2,), "n": ()}
    (tmp_path / "st").write_bytes((tmp_path / "st").read_bytes()[:-3])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        look_into(tmp_path / "st", "st")


def test_the_tree_of_keys(l4p: Known, tmp_path: Path) -> None:
    save_lightning(tmp_path / "x", l4p_state())
    rows = key_tree(look_into(tmp_path / "x", "x").tensors)
    assert rows == [
        ("l4p_model", 11, 8 * 96 + 8 + 2 * (8 + 24 * 8) + 8 + 2 * 16 * 8 * 27 + 12 + 24),
        ("  video_encoder", 7, 8 * 96 + 8 + 2 * (8 + 24 * 8) + 8),
        ("    patch_embed.proj", 2, 8 * 96 + 8),
        ("    blocks.0-1.attn", 4, 2 * (8 + 24 * 8)),
        ("    norm.weight", 1, 8),
        ("  task_heads", 4, 2 * 16 * 8 * 27 + 12 + 24),
        ("    depth.task_head.dpt.scratch", 2, 2 * 16 * 8 * 27),
        ("    track_2d", 2, 36),
    ]
