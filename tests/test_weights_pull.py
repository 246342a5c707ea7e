"""Fetching over a connection that is cut, lies, changes its mind or is forbidden: whole and right, or not there."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import attrs
import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from helpers import shell_environment
from weights_parts import ONLY_FAKES, Fault, FileServer, install_asset, l4p_state, save_lightning

from fourd_core.errors import WeightsError
from fourd_core.weights import fetch, read_state_dict, sha256_of, sources
from fourd_core.weights.assets import find
from fourd_core.weights.cache import read_manifest
from fourd_core.weights.pull import is_here, problem_of, pull

FILE = "l4p_v1.ckpt"
CHUNK = 4096


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """A Lightning checkpoint of about 20 kB with official names."""
    data = save_lightning(tmp_path / "published", l4p_state())
    assert len(data) > 4 * CHUNK
    return data


@pytest.fixture
def server(content: bytes) -> Iterator[FileServer]:
    with FileServer(l4p_v1__ckpt=content) as server:
        yield server


class Place(NamedTuple):
    """The cache's folder of the asset, and what installs it."""

    folder: Path
    install: Callable[..., None]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> Place:
    """The asset `l4p` can be installed with an address on the server; transfers wait for nothing."""
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.delenv("FOURD_OFFLINE", raising=False)
    monkeypatch.setenv("FOURD_PLUGINS", ONLY_FAKES)
    monkeypatch.setattr(fetch, "CHUNK", CHUNK)
    monkeypatch.setattr(fetch, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(**fields: Any) -> None:
        install_asset(tmp_path / "site", name="l4p", file_name=FILE, **{"url": f"{server.url}/{FILE}", **fields})

    return Place(tmp_path / "cache" / "acme-weights" / "l4p", install)


def refusal(location: str | None = None, sha256: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        pull(find("l4p"), location, sha256)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fetched_once_and_found_by_its_name(place: Place, server: FileServer, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    place.install(sha256=digest, size=len(content))
    path = pull(find("l4p"))
    assert path.read_bytes() == content
    assert place.names() == [FILE, f"{FILE}.json"]
    manifest = read_manifest(path)
    assert manifest is not None
    assert (manifest.sha256, manifest.size, manifest.checked) == (digest, len(content), "published")
    assert (manifest.source, manifest.licence) == (f"{server.url}/{FILE}", "Apache-2.0")
    for location in ("weights:l4p", f"weights:l4p/{FILE}", "weights:acme-weights:l4p"):
        state = read_state_dict(location)
        assert state.keys() == l4p_state().keys()
        assert all(torch.equal(state[key], value) for key, value in l4p_state().items())
        assert sha256_of(location) == digest


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("cut", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_a_cut_connection_is_taken_up_where_it_broke(
    cut: int, tags: bool, place: Place, server: FileServer, content: bytes
) -> None:
    """With an ETag the server is asked whether the file is the same; without one its size must be."""
    place.install(sha256=hashlib.sha256(content).hexdigest())
    server.tags = tags
    server.faults = [Fault(cut=cut), Fault(cut=cut)]
    assert pull(find("l4p")).read_bytes() == content
    assert server.asked_ranges == ["", f"bytes={cut}-", f"bytes={2 * cut}-"]
    assert ("If-Range" in server.requests[1]) == tags


def test_the_next_call_goes_on(place: Place, server: FileServer, content: bytes) -> None:
    place.install()
    server.faults = [Fault(cut=5000), *[Fault(status=503)] * 4]
    message = refusal()
    assert "503" in message and "5000 bytes are here, and the same command goes on from them" in message
    assert place.names() == [f"{FILE}.part", f"{FILE}.part.json"]
    with pytest.raises(WeightsError, match="are not here; fetch them with: fourd weights pull l4p"):
        read_state_dict("weights:l4p")
    del server.requests[:]
    assert pull(find("l4p")).read_bytes() == content
    assert server.asked_ranges == ["bytes=5000-"]


@pytest.mark.parametrize("obeys_if_range", [True, False])
def test_a_file_that_changed_in_between_is_fetched_anew(
    obeys_if_range: bool, place: Place, server: FileServer, content: bytes, tmp_path: Path
) -> None:
    place.install()
    server.faults = [Fault(cut=5000), *[Fault(status=500)] * 4]
    refusal()
    other = save_lightning(tmp_path / "other", {key: value.add_(1) for key, value in l4p_state().items()})
    assert len(other) == len(content)  # only the ETag tells them apart
    server.files[f"/{FILE}"], server.obeys_if_range = other, obeys_if_range
    assert pull(find("l4p")).read_bytes() == other


def test_a_file_of_another_length_is_fetched_anew(place: Place, server: FileServer) -> None:
    place.install()
    server.tags = False
    for length in (30_000, 9001, 7000):  # longer; hardly longer and shorter than what is here already
        server.files[f"/{FILE}"] = b"PK\x03\x04" + bytes(20_000)
        server.faults = [Fault(cut=9000), *[Fault(status=500)] * 4]
        refusal()
        other = b"PK\x03\x04" + b"x" * length
        server.files[f"/{FILE}"] = other
        assert pull(find("l4p")).read_bytes() == other
        (place.folder / FILE).unlink()


def test_a_server_without_ranges(place: Place, server: FileServer, content: bytes) -> None:
    place.install()
    server.ranges = False
    server.faults = [Fault(cut=5000)]
    assert pull(find("l4p")).read_bytes() == content
    assert server.asked_ranges == ["", "bytes=5000-"]
    (place.folder / FILE).unlink()
    server.faults = [Fault(cut=5000)] * 20  # and never farther than that
    assert "5000 bytes are here" in refusal()
    assert len(server.faults) == 20 - 1 - 4


def test_a_server_that_tells_no_length(place: Place, server: FileServer, content: bytes) -> None:
    place.install(sha256=hashlib.sha256(content).hexdigest())
    server.sizes = False
    server.faults = [Fault(cut=5000)]
    assert "nothing was kept" in refusal()  # an end looks like the end; the hash knows better
    assert place.names() == []
    assert pull(find("l4p")).read_bytes() == content


def test_a_flipped_byte(place: Place, server: FileServer, content: bytes) -> None:
    place.install(sha256=hashlib.sha256(content).hexdigest())
    bad = bytearray(content)
    bad[len(bad) // 2] ^= 1
    server.files[f"/{FILE}"] = bytes(bad)
    message = refusal()
    assert hashlib.sha256(content).hexdigest() in message and hashlib.sha256(bad).hexdigest() in message
    assert place.names() == []


def test_a_flipped_byte_in_what_an_interruption_left(place: Place, server: FileServer, content: bytes) -> None:
    place.install(sha256=hashlib.sha256(content).hexdigest())
    server.faults = [Fault(cut=5000), *[Fault(status=500)] * 4]
    refusal()
    part = place.folder / f"{FILE}.part"
    part.write_bytes(b"P" + bytes(10) + part.read_bytes()[11:])
    assert "nothing was kept" in refusal()
    assert place.names() == []


def test_hashes_that_the_user_gives(place: Place, server: FileServer, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    place.install()
    assert "expected 64 hexadecimal digits" in refusal(sha256="abc")
    assert "another file than it should be" in refusal(sha256="0" * 64)
    assert place.names() == []
    manifest = read_manifest(pull(find("l4p"), sha256=digest.upper()))
    assert manifest is not None and manifest.checked == "given"
    manifest = read_manifest(pull(find("l4p")))
    assert manifest is not None and (manifest.checked, manifest.sha256) == ("nothing", digest)


def test_a_hash_against_the_published_one(place: Place) -> None:
    place.install(sha256="1" * 64)
    assert "contradicts the published SHA-256" in refusal(sha256="2" * 64)


def test_another_size_than_published_is_not_even_begun(place: Place, server: FileServer, content: bytes) -> None:
    place.install(size=len(content) + 1)
    assert f"it has {len(content)} bytes, the published one {len(content) + 1}" in refusal()
    assert place.names() == []


def test_what_stands_in_the_place_of_the_file(place: Place, server: FileServer) -> None:
    place.install()
    for data, text in (
        (b"<!DOCTYPE html><title>Sign in</title>" + bytes(9000), "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of Git LFS"),
        (b"No such file, sorry.", "neither like a safetensors nor like a torch file"),
        (b"PK", "neither like a safetensors nor like a torch file"),
        (b"", "an empty file"),
    ):
        server.files[f"/{FILE}"] = data
        server.faults = [Fault(cut=CHUNK)]
        del server.requests[:]
        assert text in refusal()
        assert place.names() == []
        assert len(server.requests) == 1  # the first bytes were enough


def test_a_hash_that_is_published_later(place: Place, server: FileServer, content: bytes) -> None:
    """A plugin learns the right SHA-256 after somebody fetched the file, or names another file."""
    place.install()
    pull(find("l4p"))
    later = find("l4p")
    asset = attrs.evolve(later.asset, sha256=hashlib.sha256(content).hexdigest())
    assert problem_of(attrs.evolve(later, asset=asset)) is None
    later = attrs.evolve(later, asset=attrs.evolve(asset, sha256="0" * 64))
    assert "not the published 000" in str(problem_of(later))
    assert not is_here(later)


def test_what_the_server_refuses(place: Place, server: FileServer) -> None:
    place.install()
    assert "the server answers 404 (Not Found); check the address" in refusal(f"{server.url}/absent.ckpt")
    server.faults = [Fault(status=403)]
    assert "a login or a consent may be needed" in refusal()
    server.faults = [Fault(status=500)]
    assert "500" in refusal()
    assert len(server.requests) == 3  # nothing of that gets better by asking again at once
    assert "check the address and the connection" in refusal("http://127.0.0.1:9/x.ckpt")
    assert "check the address" in refusal("http://nonsense:port/x.ckpt")


def test_offline_opens_no_connection(
    place: Place, server: FileServer, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.install()
    monkeypatch.setenv("FOURD_OFFLINE", "1")
    for location in (None, f"zip://x.ckpt::{server.url}/x.zip", "hf://owner/name/x.ckpt", "s3://bucket/x.ckpt"):
        assert "FOURD_OFFLINE forbids connections" in refusal(location)
    with pytest.raises(WeightsError, match="FOURD_OFFLINE forbids connections"):
        read_state_dict(f"{server.url}/{FILE}")
    assert server.requests == []
    assert pull(find("l4p"), str(tmp_path / "published")).read_bytes() == content
    monkeypatch.setenv("FOURD_OFFLINE", "0")
    assert pull(find("l4p")).read_bytes() == content


def test_from_elsewhere(place: Place, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.install(url=None)
    assert "no public address of l4p is known" in refusal()
    assert "fourd weights pull l4p --from PATH_OR_URL" in refusal()
    with pytest.raises(WeightsError, match="then: fourd weights pull l4p --from PATH_OR_URL"):
        read_state_dict("weights:l4p")
    with fsspec.open("memory://weights/x.ckpt", "wb") as handle:
        handle.write(content)
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, "published")
    monkeypatch.chdir(tmp_path)
    for location in ("published", "memory://weights/x.ckpt", f"zip://published::{tmp_path}/archive.zip"):
        path = pull(find("l4p"), location)
        assert path.read_bytes() == content
        path.unlink()
    assert "there is no such file" in refusal(str(tmp_path / "absent"))
    assert "directory" in refusal(str(tmp_path))
    assert "check the address" in refusal("nonsense://host/x.ckpt")


def test_passwords_are_not_kept(place: Place, content: bytes) -> None:
    place.install()
    with fsspec.open("memory://me:secret@host/x.ckpt", "wb") as handle:
        handle.write(content)
    path = pull(find("l4p"), "memory://me:secret@host/x.ckpt")
    assert json.loads((place.folder / f"{FILE}.json").read_text())["source"] == "memory://host/x.ckpt"
    assert path.exists()
    assert "secret" not in refusal("memory://me:secret@host/absent.ckpt")


def test_keys_in_addresses_are_not_kept(place: Place, server: FileServer, content: bytes) -> None:
    """And an address that was signed anew in between is gone on with, where the server tells the file's version."""
    place.install()
    for tags in (True, False):
        server.tags = tags
        for number, query in enumerate(("?X-Amz-Signature=hidden1", "?X-Amz-Signature=hidden2")):
            server.files[f"/{FILE}{query}"] = content
            server.faults = [Fault(cut=5000), *[Fault(status=500)] * 4] if number == 0 else []
            del server.requests[:]
            if number == 0:
                assert "hidden" not in refusal(f"{server.url}/{FILE}{query}#hidden")
                assert "hidden" not in (place.folder / f"{FILE}.part.json").read_text()
            else:
                assert pull(find("l4p"), f"{server.url}/{FILE}{query}").read_bytes() == content
        assert server.asked_ranges == ["bytes=5000-" if tags else ""]
    assert json.loads((place.folder / f"{FILE}.json").read_text())["source"] == f"{server.url}/{FILE}"
    assert "hidden" not in refusal("http://host/a b?token=hidden hidden") + refusal(f"{server.url}/x?token=hidden")


def test_hugging_face_without_its_package(place: Place) -> None:
    if importlib.util.find_spec("huggingface_hub"):
        pytest.skip("huggingface_hub is installed")
    place.install(url="hf://owner/name/x.ckpt")
    assert refusal().endswith("hf:// needs the package huggingface_hub, which is not installed; "
                              "pip install huggingface_hub")  # fmt: skip


class Breaking(io.BytesIO):
    """Breaks off after two chunks."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 2 * CHUNK:
            raise ConnectionResetError("reset by peer")
        return super().read(size)


class Flaky(MemoryFileSystem):
    """A file system whose files break off in the middle the first time."""

    protocol = "flaky"
    opened: ClassVar[list[io.BytesIO]] = []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        self.opened.append(file if self.opened else Breaking(file.getvalue()))
        return self.opened[-1]


def test_other_protocols_go_on_too(place: Place, content: bytes) -> None:
    place.install()
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    with fsspec.open("flaky://x.ckpt", "wb") as handle:
        handle.write(content)
    Flaky.opened.clear()
    assert pull(find("l4p"), "flaky://x.ckpt").read_bytes() == content
    assert len(Flaky.opened) == 2


def test_a_killed_process_leaves_a_part_and_no_file(
    tmp_path: Path, place: Place, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"PK\x03\x04" + bytes(range(256)) * 12_000  # 3 MB, for the process reads 1 MiB at once
    server.files[f"/{FILE}"] = data
    place.install(sha256=hashlib.sha256(data).hexdigest())
    server.faults = [Fault(cut=2**21 + 1000, hang=True)]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    command = [sys.executable, "-m", "fourd_core", "weights", "pull", "l4p"]
    part = place.folder / f"{FILE}.part"
    with subprocess.Popen(command, env=shell_environment(), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size >= 2**21):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        assert "another process is fetching l4p_v1.ckpt already" in refusal()
        process.kill()
    assert place.names() == [f"{FILE}.part", f"{FILE}.part.json"]
    del server.requests[:]
    assert pull(find("l4p")).read_bytes() == data
    assert server.asked_ranges == [f"bytes={2**21}-"]
    assert place.names() == [FILE, f"{FILE}.json"]


def test_killed_between_the_last_byte_and_the_name(place: Place, server: FileServer, content: bytes) -> None:
    place.install(sha256=hashlib.sha256(content).hexdigest())

    def stop(receipt: fetch.Receipt) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(f"{server.url}/{FILE}", place.folder / FILE, stop)
    assert place.names() == [f"{FILE}.part", f"{FILE}.part.json"]
    assert pull(find("l4p")).read_bytes() == content
    assert len(server.requests) == 1


def test_a_part_of_another_address_is_not_continued(place: Place, server: FileServer, content: bytes) -> None:
    place.install()
    server.files["/other.ckpt"] = b"PK\x03\x04" + bytes(len(content))
    server.faults = [Fault(cut=5000), *[Fault(status=500)] * 4]
    refusal(f"{server.url}/other.ckpt")
    assert pull(find("l4p")).read_bytes() == content
    assert server.asked_ranges[-1] == ""


def test_no_room(place: Place, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    place.install()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert f"{len(content)} bytes are to come, 1000 are free" in refusal()


def test_one_process_at_a_time(place: Place, content: bytes) -> None:
    place.install()
    place.folder.mkdir(parents=True)
    with (place.folder / f"{FILE}.part").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is fetching" in refusal()
    assert pull(find("l4p")).read_bytes() == content


def test_another_process_finishes_first(place: Place, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our opening the part and our locking it, it has become the file: that one must not be touched."""
    place.install()
    place.folder.mkdir(parents=True)
    (place.folder / f"{FILE}.part").write_bytes(content)
    lock = fcntl.flock

    def late(handle: Any, operation: int) -> None:
        (place.folder / f"{FILE}.part").rename(place.folder / FILE)
        (place.folder / f"{FILE}.part").write_bytes(content[:5000])  # and a third one has begun
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert "another process has just fetched" in refusal()
    assert (place.folder / FILE).read_bytes() == content


def test_silence_is_a_broken_connection(place: Place, server: FileServer, content: bytes,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    place.install()
    server.faults = [Fault(cut=2 * CHUNK, hang=True)]
    assert pull(find("l4p")).read_bytes() == content
    assert server.asked_ranges[1] == f"bytes={2 * CHUNK}-"
