"""Reading metrics as a stream, and drawing them."""

from __future__ import annotations

import json
import math
import tracemalloc
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourd_core.report.curves import draw_charts, smoothed, ticks
from fourd_core.report.series import MAX_BUCKETS, Series, read_metrics


def filled(name: str, values: list[float], first_step: int = 1) -> Series:
    series = Series(name)
    for step, value in enumerate(values, start=first_step):
        series.add(step, value)
    return series


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_long_series_stays_short_and_keeps_mean_spikes_and_both_ends() -> None:
    values = [math.sin(i / 1000) for i in range(100_000)]
    values[54_321] = 77.0
    series = filled("loss", values)
    assert len(series.buckets) <= MAX_BUCKETS
    assert sum(bucket.count for bucket in series.buckets) == 100_000
    assert len({bucket.count for bucket in series.buckets[:-1]}) == 1
    assert sum(b.mean * b.count for b in series.buckets) / 100_000 == pytest.approx(sum(values) / 100_000)
    assert max(bucket.high for bucket in series.buckets) == 77.0
    assert (series.buckets[0].first, series.buckets[-1].last) == (1, 100_000)
    assert series.latest == values[-1]


def test_short_series_is_kept_exactly() -> None:
    series = filled("loss", [3.0, 1.0, 2.0])
    assert [(b.first, b.mean, b.count) for b in series.buckets] == [(1, 3.0, 1), (2, 1.0, 1), (3, 2.0, 1)]


def test_steps_that_a_resumed_run_repeats_replace_the_old_ones() -> None:
    series = filled("loss", [1.0, 2.0, 3.0, 4.0])
    series.add(3, 30.0)
    series.add(4, 40.0)
    assert [(b.last, b.mean) for b in series.buckets] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_lines_are_grouped_by_stage_and_damaged_ones_counted(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "metrics.jsonl",
        {"stage": "train", "step": 1, "time": 5.0, "seconds": 0.1, "loss": 2, "note": "text", "flag": True},
        {"stage": "other", "step": 1, "loss": 0.5},
        {"stage": "train", "step": 2, "loss": 1.5, "lr": 1e-4},
    )
    with path.open("ab") as file:
        file.write(
            b'{"stage": "tr{"stage": "train", "step": 3, "loss": 1}\n[1, 2]\n\xff\xfe\n\n{"stage": "train", "ste'
        )
    metrics = read_metrics(path)
    assert {stage: sorted(series) for stage, series in metrics.stages.items()} == {
        "train": ["loss", "lr"],
        "other": ["loss"],
    }
    assert [bucket.mean for bucket in metrics.stages["train"]["loss"].buckets] == [2.0, 1.5]
    assert metrics.unreadable == 4


def test_values_that_are_not_finite_are_named_and_not_drawn(tmp_path: Path) -> None:
    lines = [{"stage": "s", "step": i, "loss": v} for i, v in enumerate([1.0, math.nan, math.inf, 10**400, 2.0])]
    series = read_metrics(write_lines(tmp_path / "metrics.jsonl", *lines)).stages["s"]["loss"]
    assert (series.not_finite, series.first_not_finite, len(series.buckets)) == (3, 1, 2)
    (chart,) = draw_charts([series], "s")
    assert chart.legend[0].remark == "3 not finite, first at step 1"
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg


def test_a_huge_file_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"stage": "t", "step": {i}, "loss": {i % 97}.5}}\n' for i in range(60_000))
    tracemalloc.start()
    read_metrics(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 < path.stat().st_size


def points(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).findall(f".//polyline[@class='{kind}']")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.get("points", "").split())] for line in lines]


def test_a_straight_line_is_drawn_straight_inside_the_frame() -> None:
    (chart,) = draw_charts([filled("loss", [float(i) for i in range(101)], first_step=0)], "train")
    (smooth,) = points(chart.svg, "smooth")
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(smooth[0:-10], smooth[10:], strict=True)]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.02)
    assert smooth[0][1] > smooth[-1][1]  # SVG counts down the page
    assert all(58 <= x <= 408 and 10 <= y <= 210 for x, y in smooth)


def test_a_long_series_is_drawn_with_at_most_a_thousand_points() -> None:
    (chart,) = draw_charts([filled("loss", [float(i % 7) for i in range(20_000)])], "train")
    assert 400 < len(points(chart.svg, "raw")[0]) <= 1000


def test_series_of_one_scale_share_a_chart_and_others_do_not() -> None:
    loss, edge, rate = filled("loss", [2.0, 1.0]), filled("edge", [0.9, 0.5]), filled("lr", [1e-4, 1e-5])
    charts = draw_charts([loss, rate, edge], "train")
    assert [[entry.name for entry in chart.legend] for chart in charts] == [["loss", "edge"], ["lr"]]
    assert [entry.latest for entry in charts[0].legend] == ["1", "0.5"]


def test_one_spike_does_not_flatten_the_rest() -> None:
    values = [1.0 + 0.1 * (i % 2) for i in range(400)]
    values[200] = 1e6
    (chart,) = draw_charts([filled("loss", values)], "train")
    (raw,) = points(chart.svg, "raw")
    heights = sorted(y for _, y in raw)
    assert heights[-1] - heights[1] > 150
    assert heights[0] == 10  # the spike itself runs along the frame


def test_smoothing_keeps_constants_and_lines_and_calms_noise() -> None:
    assert smoothed(filled("c", [3.0] * 100).buckets) == pytest.approx([3.0] * 100)
    line = [float(i) for i in range(100)]
    assert smoothed(filled("l", line).buckets) == pytest.approx(line)
    noise = smoothed(filled("n", [(-1.0) ** i for i in range(200)]).buckets)
    assert max(map(abs, noise[20:-20])) < 0.15


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 100, ["0", "20", "40", "60", "80", "100"]),
        (0.13, 0.29, ["0.15", "0.20", "0.25"]),
        (-1, 1, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (0, 3e6, ["0", "1e+06", "2e+06", "3e+06"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in ticks(low, high)] == labels


@given(st.lists(st.floats(-1e38, 1e38), min_size=1, max_size=40))
def test_any_numbers_give_valid_svg_inside_the_frame(values: list[float]) -> None:
    for chart in draw_charts([filled("loss", values)], "train"):
        for line in points(chart.svg, "raw") + points(chart.svg, "smooth"):
            assert all(58 <= x <= 408 and 10 <= y <= 210 for x, y in line)
        assert 2 <= len(ElementTree.fromstring(chart.svg).findall(".//path[@class='grid']")) <= 12
