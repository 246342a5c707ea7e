"""What progress says away from a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fourd_core import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, in a list of one."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def taking(clock: list[float], *seconds: float) -> Iterator[int]:
    for number, duration in enumerate(seconds):
        clock[0] += duration
        yield number


def test_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(taking(clock, 6, 6, 6, 6), "work", 14, done=10)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == "work: 12 of 14, about 12 s left\nwork: 14 of 14, about 0 s left\n"


def test_how_workers_start_tells_nothing_of_their_pace(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Four at a time: a minute until the first four are there, then a unit every five seconds."""
    list(progress.track(taking(clock, 60, 0, 0, 0, 5, 5, 5), "units", 100, warm_up=4))
    assert capsys.readouterr().err.splitlines() == ["units: 1 of 100", "units: 6 of 100, about 470 s left"]
