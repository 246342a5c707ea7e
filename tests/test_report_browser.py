"""Debian's Chromium opens the page without a complaint; skipped, visibly, where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from fourd_core.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the report was not opened in a browser")


def chromium(page: Path, *options: str) -> tuple[list[str], str]:
    """Open a page; what its console said, and what `options` print."""
    profile = page.parent / "profile"
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=5000",
    ]
    command = [str(CHROMIUM), *words, f"--user-data-dir={profile}", *options, page.as_uri()]
    environment = {**os.environ, "HOME": str(page.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(0, 250, 25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_picture(path: Path) -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 60, 40, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "evaluate" / "pictures").mkdir(parents=True)
    write_picture(folder / "evaluate" / "pictures" / "red.png")
    write_video(folder / "evaluate" / "features.mp4")
    lines = [{"stage": "train", "step": i, "loss": 1 / (i + 1), "lr": 1e-4} for i in range(200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hostile = "<script>console.error('got in')</script><img src=http://127.0.0.1:9/x.png>"
    run = {"name": hostile, "stages": {"train": {"job": "train", "state": "done", "seconds": 1.0, "message": hostile}}}
    (folder / "run.json").write_text(json.dumps(run))
    table = {"title": hostile, "rows": [{"name": "trained", "L1": 0.5}], "protocol": {"pairs": 3}}
    (folder / "evaluate" / "result.json").write_text(json.dumps([table]))
    return folder


def test_the_page_opens_without_a_word_on_the_console(run_folder: Path) -> None:
    page = write_report(run_folder)
    said, document = chromium(page, "--dump-dom")
    assert said == []
    assert document.count("<svg") == 2
    assert "&lt;script&gt;console.error" in document


@pytest.mark.parametrize(
    "fault",
    [
        "<script>throw new Error('broken')</script>",
        "<img src='missing.png' alt=''>",
        "<img src='http://127.0.0.1:9/x.png' alt=''>",
        "<link rel='stylesheet' href='missing.css'>",
    ],
)
def test_a_fault_in_the_page_would_be_heard(run_folder: Path, fault: str) -> None:
    page = write_report(run_folder)
    page.write_text(page.read_text().replace("</body>", fault + "</body>"))
    said, _ = chromium(page, "--dump-dom")
    assert said


@pytest.mark.parametrize("width", [1200, 500])
def test_pictures_videos_and_curves_are_seen_at_every_width(run_folder: Path, width: int) -> None:
    picture = run_folder / f"seen_{width}.png"
    chromium(write_report(run_folder), f"--window-size={width},2400", f"--screenshot={picture}", "--hide-scrollbars")
    with av.open(str(picture)) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert pixels.shape[1] == width
    red = (pixels == [255, 0, 0]).all(-1)
    blue = (abs(pixels - [0x0B, 0x63, 0xB5]) < 40).all(-1)  # the first curve's colour
    assert red.sum() > 60 * 40  # the picture, enlarged to its column
    assert blue.sum() > 300
    # Nothing sticks out to the right: the page's margin keeps the background's colour.
    assert (pixels[:, -8:] == pixels[0, 0]).all()
