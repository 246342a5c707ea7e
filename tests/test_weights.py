"""Reading and loading checkpoints: what is taken, and the one sentence with which the rest is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fourd_core.errors import WeightsError
from fourd_core.weights import load_weights, read_state_dict, sha256_of
from fourd_core.weights.reading import WRAPPERS, read_tensors


def tiny_state() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 4, generator=make), "bias": torch.randn(3, generator=make)}


def save_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS: list[Callable[[Any, Path], None]] = [save_zip, save_legacy, save_file]


class RunsCode:
    """A pickle of this leaves a folder behind wherever it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


def refusal(location: str | Path) -> str:
    """The message; one sentence, one line, with the location in it."""
    with pytest.raises(WeightsError) as caught:
        read_state_dict(str(location))
    message = str(caught.value)
    assert "\n" not in message
    assert str(location) in message
    assert len(message) - len(str(location)) < 400
    return message


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value)


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_whatever_its_name(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write(tiny_state(), tmp_path / "weights.bin")
    assert_same(read_state_dict(str(tmp_path / "weights.bin")), tiny_state())


def test_a_dict_under_state_dict(tmp_path: Path) -> None:
    save_zip({"epoch": 3, "state_dict": OrderedDict(tiny_state())}, tmp_path / "run.pt")
    assert_same(read_state_dict(str(tmp_path / "run.pt")), tiny_state())


@pytest.mark.parametrize("key", WRAPPERS)
def test_a_dict_under_the_names_that_training_programs_use(key: str, tmp_path: Path) -> None:
    save_zip({"epoch": 3, key: tiny_state(), "optimizer": {"state": {}}}, tmp_path / "run.pt")
    assert_same(read_state_dict(str(tmp_path / "run.pt")), tiny_state())
    save_zip({f"{key}.weight": torch.ones(2), key: torch.ones(2)}, tmp_path / "plain.pt")  # only a name like it
    assert set(read_state_dict(str(tmp_path / "plain.pt"))) == {f"{key}.weight", key}


def test_a_torch_file_is_mapped_and_not_read_whole(tmp_path: Path) -> None:
    save_zip({"weight": torch.zeros(2**20)}, tmp_path / "w.pt")
    tensor = read_tensors(tmp_path / "w.pt", "w.pt")["weight"]
    with (Path("/proc/self/maps") if sys.platform == "linux" else tmp_path / "w.pt").open("rb") as maps:
        mapped = any(line.rstrip().endswith(b"/w.pt") for line in maps)
    assert mapped or sys.platform != "linux"
    (tmp_path / "w.pt").unlink()  # a file that was only copied here for reading
    tensor += 1  # pages that are written are our own
    assert float(tensor.sum()) == 2**20


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "it is a TorchScript program; save the state_dict()" in refusal(tmp_path / "script.pt")


def test_urls_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package_with_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    save_file(tiny_state(), package / "models" / "tiny.safetensors")
    content = (package / "models" / "tiny.safetensors").read_bytes()
    with fsspec.open("memory://weights/tiny.safetensors", "wb") as handle:
        handle.write(content)
    monkeypatch.syspath_prepend(tmp_path)
    for location in (
        "memory://weights/tiny.safetensors",
        (package / "models" / "tiny.safetensors").as_uri(),
        "package:some_package_with_weights/models/tiny.safetensors",
    ):
        assert_same(read_state_dict(location), tiny_state())
        assert sha256_of(location) == hashlib.sha256(content).hexdigest()
    assert "no such file" in refusal("package:some_package_with_weights/models/other.safetensors")
    sys.modules.pop("some_package_with_weights")


def test_http(tmp_path: Path, web: str) -> None:
    save_file(tiny_state(), tmp_path / "tiny.safetensors")
    assert_same(read_state_dict(f"{web}/tiny.safetensors"), tiny_state())
    assert "there is no such file" in refusal(f"{web}/absent.safetensors")
    assert "500" in refusal(f"{web}/broken.safetensors")


@pytest.mark.parametrize("place", ["tiny.safetensors", "absent.safetensors", "broken.safetensors", ":bad port/x"])
def test_keys_in_addresses_are_not_shown(place: str, tmp_path: Path, web: str, capsys: Any) -> None:
    (tmp_path / "tiny.safetensors").write_text("no checkpoint")
    address = web.replace("://", "://me:hidden@") + f"/{place}"
    with pytest.raises(WeightsError) as caught:
        read_state_dict(f"{address}?X-Amz-Signature=hidden#hidden")
    assert f"{web}/{place}"[:25] in str(caught.value)
    assert "hidden" not in str(caught.value) + capsys.readouterr().err


def test_a_protocol_without_its_package() -> None:
    if importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is installed")
    assert refusal("hdfs://host/file.pt").endswith(
        ": its protocol needs a package that is not installed (No module named 'pyarrow'); pip install 'fsspec[hdfs]'"
    )


def test_missing(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "absent.pt")
    assert "it is a folder" in refusal(tmp_path)
    assert "there is no such file" in refusal("memory://absent/file.pt")
    assert "check the address" in refusal("nonsense://host/file.pt")
    assert "'no_such_package' is not installed" in refusal("package:no_such_package/file.pt")
    assert "IMPORT_NAME" in refusal("package:torch")
    with pytest.raises(WeightsError, match="there is no such file"):
        sha256_of(str(tmp_path / "absent.pt"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_does_not_run(protocol: int, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    content = pickle.dumps({"weight": RunsCode(trace)}, protocol=protocol)
    path.write_bytes(content)
    message = refusal(path)
    assert not trace.exists()
    assert "could run code" in message or protocol < 2  # older ones do not even look like a checkpoint
    pickle.loads(content)  # the same bytes are harmful where pickle opens them
    assert trace.exists()


@pytest.mark.parametrize("write", [save_zip, save_legacy])
def test_code_inside_a_torch_file(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write({"weight": RunsCode(tmp_path / "trace")}, tmp_path / "evil.pt")
    assert "mkdir" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "trace").exists()
    write(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")


@pytest.mark.parametrize("write", WRITERS)
def test_cut_short_anywhere(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write(tiny_state(), path)
    content = path.read_bytes()
    for length in (1, 4, 8, 9, 10, 40, 100, len(content) // 2, len(content) - 8, len(content) - 1):
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content[: len(content) * 9 // 10])
    assert "damaged or cut short" in refusal(path)


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"")
    assert "empty file" in refusal(path)
    path.write_text("<!doctype html><title>404</title>")
    assert "not a checkpoint" in refusal(path) and "a web page" in refusal(path)
    save_file({}, path)
    assert "holds no tensors" in refusal(path)
    save_zip({}, path)
    assert "holds no tensors" in refusal(path)
    save_zip(torch.zeros(3), path)
    assert "holds one Tensor" in refusal(path)
    save_zip({"weight": torch.zeros(3), "epoch": 7}, path)
    assert "'epoch' is of type int" in refusal(path)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(write: Callable[[Any, Path], None], bad: float, tmp_path: Path) -> None:
    state = tiny_state()
    state["weight"][1, 2] = bad
    write(state, tmp_path / "w")
    assert "1 of the 12 numbers of 'weight' are NaN or infinite" in refusal(tmp_path / "w")


def test_loading_casts_to_the_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(torch.bfloat16)
    given = {key: value.clone().double() if value.is_floating_point() else value + 5
             for key, value in module.state_dict().items()}  # fmt: skip
    given["0.weight"] += 1 / 3
    load_weights(module, given, location="here")
    assert module[0].weight.dtype == torch.bfloat16
    assert torch.equal(module[0].weight.detach(), given["0.weight"].to(torch.bfloat16))
    assert module[1].num_batches_tracked.dtype == torch.int64
    assert int(module[1].num_batches_tracked) == 5


def test_loading_the_wrong_one_changes_nothing_and_says_why() -> None:
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {f"layer.{i}.weight": torch.zeros(4, 4) for i in range(20)} | {"0.weight": torch.zeros(4, 5)}
    with pytest.raises(WeightsError) as caught:
        load_weights(module, state, location="other.pt")
    message = str(caught.value)
    assert "other.pt does not fit this network (Sequential, 10 tensors)" in message
    assert "9 missing (0.bias, 1.weight, 1.bias and 6 more)" in message
    assert "20 unexpected (layer.0.weight, layer.1.weight, layer.2.weight and 17 more)" in message
    assert "1 different (0.weight is 4x5 in the file and 4x4 here)" in message
    assert "correct the weights' location or the config" in message
    assert len(message) < 500
    assert_same(dict(module.state_dict()), before)


def test_loading_what_was_agreed() -> None:
    module = nn.Linear(4, 3)
    bias = module.bias.detach().clone()
    state = {"weight": torch.ones(3, 4), "head.weight": torch.zeros(1)}
    load_weights(module, state, location="here", ignore_prefixes=["head."], optional=["bias"])
    assert torch.equal(module.weight.detach(), torch.ones(3, 4))
    assert torch.equal(module.bias.detach(), bias)
    with pytest.raises(WeightsError, match=r"1 unexpected \(head.weight\)\. Take the other file"):
        load_weights(module, state, location="here", optional=["bias"], advice="Take the other file")
    with pytest.raises(WeightsError, match=r"1 missing \(bias\)"):
        load_weights(module, state, location="here", ignore_prefixes=["head."])


def test_whole_numbers_do_not_pass_for_others() -> None:
    with pytest.raises(WeightsError, match=r"bias is torch.int64 in the file and torch.float32 here"):
        load_weights(nn.Linear(4, 3), {"weight": torch.ones(3, 4), "bias": torch.ones(3).long()}, location="here")
