"""`fourd weights` as a user types it: what is printed, what is asked, and one sentence where it does not work."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import Fourd
from weights_parts import CONVERTER, ONLY_FAKES, Fault, FileServer, install_asset, l4p_state, save_lightning

from fourd_core.weights import fetch, read_state_dict


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serves the checkpoint of `l4p`, which an installed plugin knows; its licence rules commercial use out."""
    data = save_lightning(tmp_path / "published.ckpt", l4p_state())
    monkeypatch.delenv("FOURD_OFFLINE", raising=False)
    monkeypatch.setenv("FOURD_PLUGINS", ONLY_FAKES)
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(fetch, "PAUSES", (0.0,))
    with FileServer(l4p_v1__ckpt=data) as server:
        install_asset(
            tmp_path / "site", "acme-l4p", CONVERTER, name="l4p", summary="L4P", file_name="l4p_v1.ckpt",
            licence="CC-BY-NC-SA-4.0", noncommercial=True, licence_note="for research", convert="__MODULE__:convert",
            url=f"{server.url}/l4p_v1.ckpt", sha256=hashlib.sha256(data).hexdigest(), size=len(data),
            signature=("video_encoder.blocks.0.attn.q_bias", "task_heads.track_2d."),
        )  # fmt: skip
        install_asset(tmp_path / "site", "acme-free", name="free")
        yield server


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "acme-l4p" / "l4p" / "l4p_v1.ckpt"


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return re.split(r"  +", line)


def test_from_the_list_to_a_converted_file(server: FileServer, fourd: Fourd, cached: Path, tmp_path: Path) -> None:
    size = f"{len(server.files['/l4p_v1.ckpt']) / 1000:.1f} kB"
    url = f"{server.url}/l4p_v1.ckpt"
    terms = "CC-BY-NC-SA-4.0 (non-commercial use only)"
    listed = fourd("weights", "list", check=0).stdout
    assert row(listed, "l4p") == ["l4p", terms, "not here", size]
    assert row(listed, "free") == ["free", "Apache-2.0", "not here", "unknown"]
    assert f"kept in {tmp_path}/cache" in listed

    said = fourd("weights", "pull", "l4p", "--yes", check=0).stdout
    assert said.splitlines()[:4] == [
        "l4p: L4P", f"licence: {terms}", "note: for research", "source: https://example.org/paper",
    ]  # fmt: skip
    assert "(as published)" in said and said.endswith(f"fetched: {cached}\n")
    assert row(fourd("weights", "list", check=0).stdout, "l4p")[2] == "here"
    assert "is here already" in fourd("weights", "pull", "l4p", check=0).stdout
    assert len(server.requests) == 1
    assert fourd("weights", "verify", check=0).stdout == "l4p: as it was fetched\n"

    shown = fourd("weights", "show", "l4p", check=0).stdout
    assert re.search(r"^licence +CC-BY-NC-SA-4.0$", shown, re.MULTILINE) and str(cached) in shown
    assert f'"source": "{url}"' in shown
    shown = fourd("weights", "show", "weights:l4p", check=0).stdout
    assert re.search(r"^looks like +l4p \(L4P\)$", shown, re.MULTILINE)
    assert re.search(r"^tensors +11 with 8,[0-9]{3} numbers$", shown, re.MULTILINE)
    assert re.search(r"^    video_encoder +7 tensors +1,184$", shown, re.MULTILINE)

    said = fourd("weights", "convert", "l4p", "weights:l4p", "out", check=0).stdout
    assert said.endswith("written: out/l4p.safetensors\n") and f"licence: {terms}" in said
    assert '"made_from": "l4p_v1.ckpt"' in (tmp_path / "out" / "manifest.json").read_text()
    state = read_state_dict(str(tmp_path / "out" / "l4p.safetensors"))
    assert torch.equal(state["video_encoder.norm.weight"], l4p_state()["l4p_model.video_encoder.norm.weight"])
    shown = fourd("weights", "show", "out/l4p.safetensors", check=0).stdout
    assert "format       safetensors" in shown and "out/manifest.json" in shown and '"licence": "CC-BY-NC' in shown


def test_the_licence_comes_before_the_file(server: FileServer, fourd: Fourd, cached: Path) -> None:
    answer = fourd("weights", "pull", "l4p", check=2)
    assert "licence: CC-BY-NC-SA-4.0 (non-commercial use only)" in answer.stdout
    assert answer.stderr == (
        "fourd: the licence of l4p (CC-BY-NC-SA-4.0) rules commercial use out; nothing was fetched, add --yes if your "
        "use agrees with it\n"
    )
    assert server.requests == [] and not cached.parent.exists()


@pytest.mark.parametrize("reply", ["y", "n", ""])
def test_a_question_on_a_terminal(reply: str, server: FileServer, fourd_process: Fourd, cached: Path) -> None:
    terminal, inside = pty.openpty()
    os.write(terminal, f"{reply}\n".encode())
    answer = fourd_process("weights", "pull", "l4p", stdin=inside, capture_output=False, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, check=0 if reply == "y" else 2)  # fmt: skip
    os.close(inside)
    os.close(terminal)
    assert "Does your use agree with it? [y/N]" in answer.stderr
    assert cached.exists() == (reply == "y")
    assert ("l4p was not fetched: its licence was not agreed to" in answer.stderr) == (reply != "y")
    assert len(server.requests) == (reply == "y")


def test_a_free_licence_is_shown_and_not_asked_for(server: FileServer, fourd: Fourd, tmp_path: Path) -> None:
    said = fourd("weights", "pull", "free", "--from", "published.ckpt", check=0).stdout
    digest = hashlib.sha256((tmp_path / "published.ckpt").read_bytes()).hexdigest()
    assert f"SHA-256: {digest} (not compared: none is published" in said and "licence: Apache-2.0" in said
    said = fourd("weights", "pull", "free", "--from", "published.ckpt", "--sha256", digest, check=0).stdout
    assert "(as given)" in said
    path = tmp_path / "cache" / "acme-free" / "free" / "tiny.ckpt"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert "free: has the SHA-256" in fourd("weights", "verify", check=2).stdout


def test_what_is_interrupted_or_damaged_is_seen(server: FileServer, fourd: Fourd, cached: Path) -> None:
    server.faults = [Fault(cut=5000), *[Fault(status=500)] * 2]
    answer = fourd("weights", "pull", "l4p", "--yes", check=2)
    assert answer.stderr.count("\n") == 1 and "the same command goes on" in answer.stderr
    assert row(fourd("weights", "list", check=0).stdout, "l4p")[2] == "5.0 kB fetched"
    fourd("weights", "pull", "l4p", "--yes", check=0)
    data = bytearray(cached.read_bytes())
    data[1000] ^= 1
    cached.write_bytes(data)
    answer = fourd("weights", "verify", "l4p", check=2)
    assert "l4p: has the SHA-256" in answer.stdout
    assert answer.stderr == "fourd: damaged: l4p; fetch them again with: fourd weights pull NAME\n"
    cached.write_bytes(data[:-1])
    assert row(fourd("weights", "list", check=0).stdout, "l4p")[2] == "DAMAGED"
    answer = fourd("weights", "show", "weights:l4p", check=2)
    assert f"has {len(data) - 1} bytes, not the {len(data)} that were fetched" in answer.stderr
    fourd("weights", "pull", "l4p", "--yes", check=0)
    assert fourd("weights", "verify", check=0).stdout == "l4p: as it was fetched\n"


def test_a_file_of_too_many_families(server: FileServer, fourd: Fourd, tmp_path: Path) -> None:
    torch.save({f"k{number}x": torch.zeros(1) for number in range(100)}, tmp_path / "flat.pt")
    shown = fourd("weights", "show", "flat.pt", check=0).stdout
    assert shown.endswith("  and 40 families more\n") and shown.count("1 tensors") == 60


def test_mistakes_are_one_sentence(server: FileServer, fourd: Fourd, tmp_path: Path) -> None:
    (tmp_path / "page.ckpt").write_text("<html>")
    for words, text in {
        ("pull", "l4"): 'no plugin knows weights called "l4"; did you mean l4p?',
        ("pull", "free"): "no public address of free is known; get tiny.ckpt as https://example.org/paper says, then: ",
        ("pull", "l4p", "--sha256", "12"): "--sha256: found 12, expected 64 hexadecimal digits",
        ("show", "nothing"): "and there is no file nothing",
        ("show", "no/such.ckpt"): "there is no such file",
        ("show", "page.ckpt"): "a web page saved in the place of the file",
        ("show", "weights:l4p"): "fetch them with: fourd weights pull l4p",
        ("verify", "l4p"): "l4p is not here; fetch it with: fourd weights pull l4p",
        ("convert", "l4p", "page.ckpt", "out"): "is not a checkpoint",
        ("convert", "free", "weights:free", "out"): "then: fourd weights pull free --from PATH_OR_URL",
    }.items():
        answer = fourd("weights", *words, check=2)
        assert text in answer.stderr, answer.stderr
        assert answer.stderr.startswith("fourd: ") and answer.stderr.count("\n") == 1
    assert fourd("weights", "verify", check=0).stdout == "no weights are here\n"


def test_a_broken_plugin_is_a_line_of_the_list(server: FileServer, fourd: Fourd, tmp_path: Path) -> None:
    install_asset(tmp_path / "site", "acme-broken", "raise RuntimeError('no luck')", name="broken")
    listed = fourd("weights", "list", check=0).stdout
    assert row(listed, "l4p")[2] == "not here"
    assert "BROKEN: broken of acme-broken: cannot be imported: RuntimeError: no luck; update or uninstall" in listed
