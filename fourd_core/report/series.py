"""Reading `metrics.jsonl` as a stream into short series, however long the run was."""

from __future__ import annotations

import json
from pathlib import Path

import attrs

MAX_BUCKETS = 500
"""A series is kept in at most this many buckets; a bucket is drawn as two points, its lowest and its highest value."""

LARGEST = 3.4e38
"""What fp32 can hold: anything beyond (and NaN, for which no comparison holds) counts as not finite."""

NOT_METRICS = frozenset({"stage", "step", "seconds", "time"})


@attrs.define
class Bucket:
    """Neighbouring points of a series, summed up."""

    first: float
    last: float
    count: int
    mean: float
    low: float
    high: float

    def join(self, other: Bucket) -> None:
        """Take in the bucket that follows this one."""
        total = self.count + other.count
        self.mean += (other.mean - self.mean) * (other.count / total)
        self.last, self.count = other.last, total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@attrs.define
class Series:
    """One quantity over the steps; memory stays bounded because full buckets are joined in pairs."""

    name: str
    buckets: list[Bucket] = attrs.field(factory=list)
    points_per_bucket: int = 1
    latest: float | None = None
    not_finite: int = 0
    first_not_finite: float | None = None

    def add(self, step: float, value: float) -> None:
        """Append a point; a step at or before the last one (a resumed run repeats some) replaces what was there."""
        while self.buckets and self.buckets[-1].last >= step:
            self.buckets.pop()
        if not abs(value) <= LARGEST:
            self.not_finite += 1
            self.first_not_finite = step if self.first_not_finite is None else self.first_not_finite
            return
        self.latest = value
        point = Bucket(step, step, 1, value, value, value)
        if self.buckets and self.buckets[-1].count < self.points_per_bucket:
            self.buckets[-1].join(point)
        else:
            self.buckets.append(point)
        if len(self.buckets) > MAX_BUCKETS:
            self._halve()

    def _halve(self) -> None:
        pairs, odd = self.buckets[0::2], self.buckets[1::2]
        for bucket, following in zip(pairs, odd, strict=False):
            bucket.join(following)
        self.buckets = pairs
        self.points_per_bucket *= 2


@attrs.define
class Metrics:
    """All series of a run by stage, and how many lines could not be read."""

    stages: dict[str, dict[str, Series]] = attrs.field(factory=dict)
    unreadable: int = 0


def read_metrics(path: Path) -> Metrics:
    """Read a JSON-lines file line by line; cut-off lines (a killed run leaves one) are counted and skipped."""
    metrics = Metrics()
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                step = _number(record["step"])
            except (ValueError, TypeError, KeyError):
                metrics.unreadable += 1
                continue
            _add_record(metrics, step, record)
    return metrics


def _add_record(metrics: Metrics, step: float, record: dict[str, object]) -> None:
    stage = metrics.stages.setdefault(str(record.get("stage", "")), {})
    for name, value in record.items():
        if name not in NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool):
            stage.setdefault(name, Series(name)).add(step, _float(value))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise TypeError("not a finite number")
    return float(value)


def _float(value: int | float) -> float:
    # A whole number may be too long for a float.
    return float(value) if abs(value) <= LARGEST else float("inf")
