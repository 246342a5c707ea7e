"""The 4D page: it plays in a browser without a fault or a network, and leaves no server behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import Fourd
from known_heads import install
from known_scene import KnownScene
from numpy.typing import NDArray

from fourd_core.errors import RunError
from fourd_core.media.video import open_video
from fourd_core.viewer import page as module
from fourd_core.viewer.page import write_viewer

viser = pytest.importorskip("viser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the viewer was not opened in a browser")

VIDEO = KnownScene(frames=8, size=(90, 120))
LISTEN = """<script>
for (const kind of ["error", "warn"]) console[kind] = (...words) => console.log("FAULT", ...words);
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(kind, (e) => console.log("FAULT", kind, e.message || e.reason || e.blockedURI), true);
</script>"""
NO_FAULTS = ("THREE.Clock",)
"""Said by viser's own libraries about themselves."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "scene_4d.html"
    store = VIDEO.store(folder / "a.zarr")
    store["track.visibility"][2:4] = 0  # moments without a point
    write_viewer(store, VIDEO, path, VIDEO.tracks()[0])
    return path


def opened(page: Path, milliseconds: int, extra: str = "") -> tuple[list[str], NDArray[np.int64]]:
    """Faults that a browser found on a page by that time, and what it then showed."""
    copy, picture, profile = (page.with_name(name) for name in ("copy.html", "seen.png", "profile"))
    copy.write_text(page.read_text().replace("<head>", f"<head>{LISTEN}{extra}", 1))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--hide-scrollbars",
        f"--virtual-time-budget={milliseconds}", f"--user-data-dir={profile}", "--window-size=800,600",
        f"--screenshot={picture}", copy.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(page.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "FAULT" in line]
    seen = open_video(str(picture)).read([0])[0].permute(1, 2, 0).numpy().astype(int)
    return [line for line in lines if not any(known in line for known in NO_FAULTS)], seen


@in_a_browser
def test_the_page_shows_the_scene_and_plays_it(page: Path) -> None:
    faults, early = opened(page, 5000)
    assert faults == []
    later_faults, later = opened(page, 5250)
    assert later_faults == []
    for seen in (early, later):
        red, green, blue = (seen[..., channel] for channel in range(3))
        wall = (blue > red + 40) & (blue > green + 20)
        box = (red > 120) & (red > green + 60) & (green > blue + 30)
        assert wall.mean() > 0.1
        assert box.mean() > 0.01
        assert (seen.min(-1) > 250).mean() > 0.2  # the page around
    assert (abs(early - later).max(-1) > 40)[:520].mean() > 0.003, "nothing moved"


@in_a_browser
@pytest.mark.parametrize(
    "fault",
    [
        "<script>throw new Error('broken')</script>",
        "<script>console.error('broken')</script>",
        "<script>fetch('http://127.0.0.1:9/x')</script>",
        "<img src='http://127.0.0.1:9/x.png'>",
    ],
)
def test_a_fault_in_the_page_would_be_heard(page: Path, fault: str) -> None:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{module._POLICY}">'
    empty = page.with_name("empty.html")
    empty.write_text(f"<!doctype html><head>{policy}</head><body>{fault}</body>")
    assert opened(empty, 500)[0]


def test_the_page_is_one_small_file_that_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert len(text) < 2e6
    assert "default-src 'none'" in text.split("<script", 1)[0]
    assert "scene. 8 frames</div>" in text
    assert sorted(path.name for path in page.parent.glob("*.html") if path.name.startswith("scene")) == [page.name]


def test_no_server_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It listens on the loopback only, on a port of the system's choice, and is gone afterwards, also after a fault."""
    places = []

    class Watched(viser.ViserServer):  # type: ignore[misc]
        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            places.append((self.get_host(), self.get_port(), options["port"]))
            with socket.create_connection((self.get_host(), self.get_port()), timeout=5):
                pass

    monkeypatch.setattr(viser, "ViserServer", Watched)
    store = VIDEO.store(tmp_path / "a.zarr", ["features", "flow", "moving"])
    before = threading.active_count()
    write_viewer(store, VIDEO, tmp_path / "a.html", frames=2)
    monkeypatch.setattr(module._Page, "play", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_viewer(store, VIDEO, tmp_path / "b.html", frames=2)
    assert not (tmp_path / "b.html").exists()
    assert len(places) == 2
    for host, port, asked in places:
        assert (host, asked) == ("127.0.0.1", 0)
        with pytest.raises(OSError):
            socket.create_connection((host, port), timeout=1)
    assert threading.active_count() <= before
    assert capfd.readouterr().out == ""


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    video = KnownScene(frames=2, size=(24, 32))
    store = video.store(tmp_path / "a.zarr", ["features"])
    video.name = "home/<script>alert(1)<script>.mp4"
    write_viewer(store, video, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "alert(1)" in text
    assert "<script>alert(1)" not in text
    assert "home/" not in text.rpartition("<div")[2]


def test_without_viser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r'pip install "fourd-core\[viewer\]"'):
        write_viewer(VIDEO.store(tmp_path / "a.zarr"), VIDEO, tmp_path / "a.html")


# --- fourd view ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


def test_view_writes_the_page_and_the_report_links_it(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "--out", "run", check=0)
    assert "_4d.html" not in (tmp_path / "run/report.html").read_text()
    said = fourd("view", "run", "--frames", 3, check=0).stdout
    assert said.startswith("viewer: run/predict/scene_4d.html (")
    assert "MB; 3 of 6 frames)" in said
    assert '<a href="predict/scene_4d.html">scene 4d</a>' in (tmp_path / "run/report.html").read_text()
    assert (
        fourd("view", "run", "--out", "there.html", "--video", "predict/scene", check=0).stdout.count("6 frames") == 1
    )
    assert (tmp_path / "there.html").stat().st_size > 8e5


def test_the_predict_stage_writes_the_page_too(fourd: Fourd, recipe: Path, tmp_path: Path) -> None:
    fourd("run", recipe, "--set", "stages.predict.viewer=true", "--out", "run", check=0)
    assert (tmp_path / "run/predict/scene_4d.html").stat().st_size > 8e5
    assert "predict/scene_4d.html" in (tmp_path / "run/report.html").read_text()


def test_what_view_refuses(fourd: Fourd, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a run folder" in fourd("view", "nowhere", check=2).stderr
    (tmp_path / "second").mkdir()
    for path in (tmp_path / "scene").iterdir():
        shutil.copy(path, tmp_path / "second")
    recipe.write_text(recipe.read_text().replace('video = "scene"', 'video = "s*"'))
    fourd("run", recipe, "--out", "run", check=0)
    assert "name one with --video: predict/scene, predict/second" in fourd("view", "run", check=2).stderr
    assert "no predictions of a video 'third'; it has: scene, second" in (
        fourd("view", "run", "--video", "third", check=2).stderr
    )
    about = tmp_path / "run/predict/scene.zarr/zarr.json"
    group = json.loads(about.read_text())
    group["attributes"]["complete"] = False
    about.write_text(json.dumps(group))
    assert "are not finished" in fourd("view", "run", "--video", "scene", check=2).stderr
    with pytest.raises(SystemExit):
        fourd("view", "run", "--frames", "0")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "needs viser" in fourd("view", "run", check=2).stderr
    assert "needs viser" in fourd("run", recipe, "--set", "stages.predict.viewer=true", "--out", "b", check=2).stderr
    assert not (tmp_path / "b").exists()
