"""The tables of a run, read back."""

from __future__ import annotations

import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.reports.run_records import read_table


def test_columns_are_read_without_rows_that_were_cut_off(tmp_path):
    table = tmp_path / "train.csv"
    table.write_text("update,loss,mfu\n10,8.5,\n20,nan,0.25\n30,inf,x\n40,7.0,0.5\n50,6.")
    assert read_table(table) == {
        "update": [10, 20, 30, 40],
        "loss": [8.5, None, None, 7.0],
        "mfu": [None, 0.25, None, 0.5],
    }


@pytest.mark.parametrize("content", [b"", b"update,loss\n", b"update,loss\n1", b"\xff{[broken\n\x00"])
def test_a_table_without_rows(tmp_path, content):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match="train.csv: holds no updates yet; has the run started"):
        read_table(tmp_path / "train.csv")


def test_no_table_and_one_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="train.csv: no such table; has the run started"):
        read_table(tmp_path / "train.csv")
    with pytest.raises(UserError, match="cannot be read: .*directory"):
        read_table(tmp_path)
