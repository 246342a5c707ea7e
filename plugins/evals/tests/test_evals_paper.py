"""The papers' numbers as rows beside ours."""

from __future__ import annotations

import pytest
from fourd_evals.paper import our_name, paper_columns, paper_rows

from fourd_core.testing.miniature import Miniature

LINEAR = {"J&F": "J&F linear probe"}


def test_davis_rows_are_the_printed_ones() -> None:
    rows = {row["features"]: row["J&F"] for row in paper_rows("DAVIS-2017 val", LINEAR)}
    assert rows["DINO2-S14 (paper)"] == 57.5
    assert rows["DINO2-S14 + LILA (paper)"] == 68.6
    assert rows["DINO2-B14 + LILA (paper)"] == 70.4
    assert len(rows) == 8
    nearest = {r["features"]: r["J&F"] for r in paper_rows("DAVIS-2017 val", {"J&F": "J&F local k-NN"})}
    assert (nearest["DINO2-S14 (paper)"], nearest["DINO2-S14 + LILA (paper)"]) == (65.1, 73.9)


def test_two_metrics_share_a_row_and_tables_are_told_apart() -> None:
    row = paper_rows("NYUv2 normals", {"RMSE": "RMSE", "d1": "delta1"})[2]
    assert row == {"features": "DINO2-S14 + LILA (paper)", "RMSE": 28.53, "d1": 31.14}
    assert paper_rows("DAVIS-2017 val", LINEAR, "5")[0] == {
        "features": "(A) ERM distillation (paper, table 5)",
        "J&F": 63.2,
    }
    assert paper_rows("COCO-Stuff", {"mIoU": "mIoU"}, "5") == ()
    assert paper_rows("COCO-Stuff", {"mIoU": "mIoU"}, "none") == ()


def test_every_value_is_carried() -> None:
    columns = paper_columns()
    assert sum(len(column.rows) for column in columns) == 391
    assert {column.paper for column in columns} == {"L4P", "LILA"}
    sintel = next(c for c in columns if (c.dataset, c.metric, c.table) == ("Sintel", "AbsRel", "1"))
    assert sintel.rows["Marigold"] == 0.532


def test_a_column_that_no_table_has_is_an_error() -> None:
    with pytest.raises(ValueError, match='"speed" on "COCO-Stuff"'):
        paper_rows("COCO-Stuff", {"x": "speed"})


def test_the_name_of_our_row() -> None:
    assert our_name(Miniature()) == "this system"
