"""Areas on top of each other: their places, what is joined, and how the page of a run uses them."""

from __future__ import annotations

import re

import pytest

from horovod_transformer.reports.area_chart import MOST_STEPS, draw_shares
from horovod_transformer.reports.run_records import read_run
from horovod_transformer.reports.runs import run_page
from tests.reports.test_runs import TRAIN, write_run, write_table


def polygons(figure):
    return [
        [tuple(map(float, corner.split(","))) for corner in points.split()]
        for points in re.findall(r'<polygon [^>]*points="([^"]+)"', figure)
    ]


def test_areas_lie_on_each_other_and_fill_the_whole():
    figure = draw_shares("t", [10, 20], {"a": [1, 3], "nothing": [0, None], "b": [3, 1]})
    low, high = polygons(figure)
    # Up to update 10 a quarter of the 206 points of height, then three quarters; the roof, and back.
    assert low == [
        (58, 164.5),
        (264, 164.5),
        (264, 61.5),
        (470, 61.5),
        (470, 216),
        (264, 216),
        (264, 216),
        (58, 216),
    ]
    assert high[:4] == [(58, 10), (264, 10), (264, 10), (470, 10)]
    assert high[4:] == low[:4][::-1]
    assert "a 50.0%" in figure and "b 50.0%" in figure and "nothing" not in figure


def test_rows_are_joined_by_adding_them_up():
    rows = range(1, 1001)
    (only, rest) = polygons(draw_shares("t", rows, {"a": [1] * 1000, "b": [3, 1] * 500}))
    assert len(only) // 4 <= MOST_STEPS and len(only) == len(rest)
    assert draw_shares("t", rows, {"a": [1] * 1000}).count("100.0%") == 1


@pytest.mark.parametrize("parts", [{}, {"a": [None, None]}, {"a": [0, 0], "b": []}, {"a": [-1.0, None]}])
def test_nothing_to_add_up_is_nothing_drawn(parts):
    assert draw_shares("t", [1, None], parts) == ""


def test_the_page_of_a_run(tmp_path):
    run = write_run(tmp_path)
    assert "where the time goes" not in run_page([read_run(run)])  # an older table has no such columns
    columns = [*TRAIN, "time_data", "time_forward", "time_gradient_wait", "time_<b>"]
    rows = [[u, 0, 5, 1, 1, u, 0, 1, "", 1, u, 1.0, 2.0, 1.0, "nan"] for u in range(1, 4)]
    write_table(run / "train.csv", columns, rows)
    page = run_page([read_run(run)])
    assert page.count("<polygon") == 3 and "forward 50.0%" in page and "gradient wait 25.0%" in page
    assert "<b>'" not in page
    both = run_page([read_run(run), read_run(write_run(tmp_path, name="second"))])
    assert both.count("on rank 0: first") == 2 and both.count("<polygon") == 3
