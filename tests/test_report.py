"""The page that a run leaves: what it shows, what it survives, and that it stands alone."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fourd_core.errors import RunError
from fourd_core.report import contents
from fourd_core.report.page import duration, number, write_report

HOSTILE = """</title></pre><script>console.error('got in')</script><img src=x onerror="throw 1">"&'{{ 7*7 }}"""


def png(width: int, height: int) -> bytes:
    """A grey PNG, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([128]) * width for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def fill(folder: Path, name: str = "lila tiny") -> Path:
    """A complete run folder in which every text that a user can choose is `name`."""
    pictures = folder / "evaluate" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "pca_frame-07.png").write_bytes(png(32, 18))
    (folder / "recipe.toml").write_text(f"name = '''{name}'''\n")
    run = {
        "fourd": "0.1.0", "name": name, "created": "2026-11-21T07:30:00+00:00", "command": ["fourd", "run", name],
        "seed": 0, "device": "cpu", "precision": "fp32", "threads": 2, "versions": {"torch": "2.13.0", name: "1"},
        "git": {"commit": "275f183", "dirty": True}, "python": "3.11.7",
        "weights": [{"component": "backbone", "location": name, "licence": "Apache-2.0", "source": "https://example.org/w"}],
        "stages": {"train": {"job": "train", "state": "done", "seconds": 123.4, "message": name},
                   "evaluate": {"job": "evaluate", "state": "interrupted", "seconds": 3.2}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    lines = [{"stage": "train", "step": i, "time": i, "loss": 1 / (i + 1), name: 0.5, "lr": 1e-4} for i in range(50)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "tra')
    table = {
        "title": f"Cue error {name}", "notes": [name], "protocol": {"pairs": 36, "split": name, "crop": [224, 224]},
        "rows": [{"name": "trained", "L1": 0.51234567, name: 3}, {"name": "untrained", "L1": None, "EPE": name}],
    }  # fmt: skip
    (folder / "evaluate" / "result.json").write_text(json.dumps([table]))
    return folder


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    VOID = frozenset({"meta", "link", "img", "path", "polyline", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_everything_is_on_the_page(tmp_path: Path) -> None:
    page = page_of(fill(tmp_path))
    for expected in (
        "lila tiny", "interrupted", "2 min 03 s", "fourd run 'lila tiny'", "fp32", "275f183 , with changes",
        "Cue error lila tiny", "name L1 lila tiny EPE trained 0.5123 3 –", "untrained – – lila tiny",
        "Protocol pairs 36", "[224, 224]",
        "pca frame 07", "loss 0.02", "lr 0.0001", "Apache-2.0", "2.13.0", "3.11.7", "name = '''lila tiny'''",
        "left out: 1",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert len(page.all("svg")) == 3  # three scales: 0.02, 0.5, 1e-4


def test_pictures_are_embedded_byte_for_byte_with_size_and_alternative_text(tmp_path: Path) -> None:
    (picture,) = page_of(fill(tmp_path)).all("img")
    assert picture["src"] == "data:image/png;base64," + base64.b64encode(png(32, 18)).decode()
    assert (picture["alt"], picture["width"], picture["height"]) == ("pca frame 07, stage evaluate", "32", "18")


def test_large_files_are_linked_and_small_ones_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "EMBED_FILE", 1000)
    fill(tmp_path)
    (tmp_path / "evaluate" / "small one.mp4").write_bytes(b"\0" * 1000)
    (tmp_path / "evaluate" / "big #1?.mp4").write_bytes(b"\0" * 1001)
    (tmp_path / "evaluate" / "empty.mp4").touch()
    page = page_of(tmp_path)
    assert [video["src"][:22] for video in page.all("video")] == ["data:video/mp4;base64,"]
    assert [link["href"] for link in page.all("a")] == ["evaluate/big%20%231%3F.mp4"]
    assert "controls" in page.all("video")[0]


def test_all_embedded_files_together_have_a_limit(tmp_path: Path) -> None:
    budget = contents._Budget(left=2500)
    assert [budget.take(size) for size in (1000, 1000, 1000, 500)] == [True, True, False, True]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = page_of(fill(tmp_path, HOSTILE))
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.text.count("console.error('got in')") >= 8
    assert "{{ 7*7 }}" in page.text
    assert any(HOSTILE in svg["aria-label"] for svg in page.all("svg"))


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    page = page_of(fill(tmp_path))
    references = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in {"src", "srcset", "href", "data", "poster", "action", "xlink:href", "style"}
    ]
    assert references
    assert all(value.startswith("data:") for value in references)
    html = (tmp_path / "report.html").read_text()
    assert not re.findall(r"url\(|@import", html)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_html_is_sound(tmp_path: Path) -> None:
    html = write_report(fill(tmp_path)).read_text()
    page = Page(html)  # raises where tags do not nest
    assert html.startswith("<!DOCTYPE html>\n<html lang=")
    assert [len(page.all(tag)) for tag in ("title", "h1", "main", "header")] == [1, 1, 1, 1]
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    # A row has as many cells as its table has columns.
    for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
        assert len({len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}) == 1


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "nothing has run yet" in page.text
    assert not page.all("svg")


@pytest.mark.parametrize("missing", ["run.json", "recipe.toml", "metrics.jsonl", "evaluate/result.json"])
def test_any_file_may_be_missing_or_cut_off(tmp_path: Path, missing: str) -> None:
    path = fill(tmp_path) / missing
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    text = page_of(tmp_path).text
    assert (f"{missing} cannot be read" in text) == missing.endswith(".json")
    path.unlink()
    assert "cannot be read" not in page_of(tmp_path).text


@pytest.mark.parametrize("text", ["[1]", "3", "null", '[{"rows": 7}]', '{"stages": []}', '{"weights": [1]}'])
def test_json_of_another_shape_is_a_remark(tmp_path: Path, text: str) -> None:
    fill(tmp_path)
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "evaluate" / "result.json").write_text(text)
    assert "cannot be read" in page_of(tmp_path).text


def test_a_picture_that_is_cut_off_is_left_out_and_named(tmp_path: Path) -> None:
    fill(tmp_path)
    pictures = tmp_path / "evaluate" / "pictures"
    (pictures / "cut.png").write_bytes(png(64, 64)[:-5])
    (pictures / "text.png").write_text("hello")
    (pictures / "empty.png").touch()
    page = page_of(tmp_path)
    assert len(page.all("img")) == 1
    for name in ("cut.png", "text.png", "empty.png"):
        assert f"evaluate/pictures/{name} is not a complete PNG" in page.text


def test_stages_stand_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    for stage in ("a_last", "b_first", "zz_unknown", ".hidden"):
        (tmp_path / stage / "pictures").mkdir(parents=True)
        (tmp_path / stage / "pictures" / "x.png").write_bytes(png(2, 2))
    stages = {"b_first": {"state": "done"}, "a_last": {"state": "done"}}
    (tmp_path / "run.json").write_text(json.dumps({"stages": stages}))
    html = write_report(tmp_path).read_text()
    assert re.findall(r"<h2>(\w+)</h2>", html) == ["b_first", "a_last", "zz_unknown"]


@pytest.mark.parametrize(
    ("states", "overall"),
    [
        (["done", "done"], "done"),
        (["done", "running"], "running"),
        (["interrupted", "running"], "interrupted"),
        (["failed", "interrupted"], "failed"),
        ([], "nothing has run yet"),
    ],
)
def test_the_state_of_the_run_is_its_worst_stage(tmp_path: Path, states: list[str], overall: str) -> None:
    stages = {str(i): {"state": state} for i, state in enumerate(states)}
    (tmp_path / "run.json").write_text(json.dumps({"stages": stages}))
    html = write_report(tmp_path).read_text()
    assert re.search(r"<header>.*?class=\"state[^>]*>([^<]*)<", html, re.DOTALL)[1] == overall


def test_the_page_is_replaced_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path)
    before = set(tmp_path.rglob("*"))
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "report.html"}


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_report(fill(tmp_path)).read_bytes()

    def full_disk(self: contents.Medium) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contents.Medium, "data_uri", full_disk)
    with pytest.raises(RunError, match=r"cannot write .*report\.html: the disk is full"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert not list(tmp_path.glob(".*"))


def test_no_folder_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is not a run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (3.21, "3.2 s"), (59.97, "1 min 00 s"), (123.4, "2 min 03 s"), (3600, "1 h 00 min")],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.9, "0.9000"), (0.0, "0.000"), (1234.5, "1234"), (12345.6, "1.235e+04"), (7, "7"), (None, "–"), ("a", "a"),
     (float("nan"), "nan"), ([1, "é"], '[1, "é"]'), (True, "true")],
)  # fmt: skip
def test_numbers_in_cells(value: object, words: str) -> None:
    assert number(value) == words
