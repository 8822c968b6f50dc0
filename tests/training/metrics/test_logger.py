"""The tables of a run, through kills and resumes."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest
import yaml

from horovod_transformer.checkpoint.run_paths import run_paths
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.training.metrics.logger import MetricLogger
from horovod_transformer.training.metrics.tables import (
    TRAIN_COLUMNS,
    VALIDATION_COLUMNS,
    CsvTable,
    UpdateMetrics,
    ValidationMetrics,
)

COLUMNS = ["update", "loss", "seconds"]


def write_rows(path, updates, keep_until):
    table = CsvTable(path, COLUMNS, keep_until)
    for update in updates:
        table.append({"update": update, "loss": update / 3, "seconds": 1.5})
    table.close()


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_updates_that_come_again_are_dropped(tmp_path):
    path = tmp_path / "t.csv"
    write_rows(path, range(1, 8), 0)
    write_rows(path, range(5, 7), 4)
    rows = read_rows(path)
    assert [int(row["update"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    # Numbers survive unchanged, to the last digit.
    assert [float(row["loss"]) for row in rows] == [update / 3 for update in range(1, 7)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tail", ["8", "8,", "8,2.6", "\x00\x00\x00", "8,\ufffd", ",,", "8,1.0,2,3,4"])
def test_a_half_written_last_row_is_dropped(tmp_path, tail):
    path = tmp_path / "t.csv"
    write_rows(path, range(1, 4), 0)
    with open(path, "a", encoding="utf-8") as file:
        file.write(tail)
    write_rows(path, [4], 3)
    assert [row["update"] for row in read_rows(path)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("zeros", [5, 4096, 300_000])
@pytest.mark.parametrize("begin", [0, 3, 40, 10**9])
def test_rows_that_a_power_failure_filled_with_zeros_are_dropped(tmp_path, begin, zeros):
    path = tmp_path / "t.csv"
    write_rows(path, range(1, 9), 0)
    content = path.read_bytes()
    path.write_bytes(content[:begin] + bytes(zeros) + content[begin + 5 :])
    write_rows(path, [9], 8)
    kept = [int(row["update"]) for row in read_rows(path)]
    # The row before the zeros may have lost its end, the one behind them its beginning.
    assert kept[-1] == 9 and kept[-4:-1] == [6, 7, 8] and len(set(kept)) == len(kept) >= 7
    assert all(float(row["loss"]) == int(row["update"]) / 3 for row in read_rows(path))


def test_bytes_that_are_no_text_are_dropped(tmp_path):
    path = tmp_path / "t.csv"
    write_rows(path, [1], 0)
    with open(path, "ab") as file:
        file.write(b"\xff\xfe2,1")
    write_rows(path, [2], 5)
    assert [row["update"] for row in read_rows(path)] == ["1", "2"]


def test_columns_may_have_changed_since(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("update,old,loss\n1,x,0.5\n")
    write_rows(path, [2], 1)
    assert read_rows(path)[0] == {"update": "1", "loss": "0.5", "seconds": ""}


def test_a_row_is_on_disk_at_once(tmp_path):
    table = CsvTable(tmp_path / "t.csv", COLUMNS, 0)
    table.append({"update": 1, "loss": None})
    assert read_rows(tmp_path / "t.csv") == [{"update": "1", "loss": "", "seconds": ""}]
    table.close()


@pytest.fixture
def config(tmp_path):
    names = ("checkpoint_dir", "log_dir", "tensorboard_dir")
    return Config().with_overrides({f"paths.{name}": str(tmp_path / name) for name in names})


def row_of(columns, update):
    return {**dict.fromkeys(columns, 0.5), "update": update}


def test_a_run_leaves_its_records_and_resumes_them(config, tmp_path, capsys):
    for start in (0, 2):
        logger = MetricLogger(run_paths(config.paths, "r"), start, 9, config.to_dict())
        logger.take_over()
        for update in (start + 1, start + 2, start + 3):
            logger.log_update(UpdateMetrics(**row_of(TRAIN_COLUMNS, update)))
        logger.log_validation(ValidationMetrics(**row_of(VALIDATION_COLUMNS, start + 3)))
        logger.say(f"from {start}")
        logger.close()
    folder = tmp_path / "tensorboard_dir" / "structured" / "r"
    assert [row["update"] for row in read_rows(folder / "train.csv")] == ["1", "2", "3", "4", "5"]
    assert [row["update"] for row in read_rows(folder / "val.csv")] == ["5"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config.to_dict()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 1 and environment["packages"]["torch"]
    log = (tmp_path / "log_dir" / "train_rank0.log").read_text()
    assert log.count("from 0") == log.count("from 2") == 1
    assert log.count("update 3: loss") == 2
    assert "from 2" in capsys.readouterr().out
    assert not logging.getLogger("horovod_transformer.training").handlers


def test_the_config_of_earlier_updates_is_kept(config, tmp_path):
    folder = tmp_path / "tensorboard_dir" / "structured" / "r"
    for start, rate in ((0, 0.1), (2, 0.1), (4, 0.2), (4, 0.3), (6, 0.3)):
        changed = config.with_overrides({"training.learning_rate": rate})
        logger = MetricLogger(run_paths(config.paths, "r"), start, 9, changed.to_dict())
        logger.take_over()
        logger.close()
    rates = {path.name: yaml.safe_load(path.read_text())["training"] for path in folder.glob("config*")}
    assert {name: training["learning_rate"] for name, training in rates.items()} == {
        "config.until_update_4.yaml": 0.1,
        "config.until_update_4-2.yaml": 0.2,
        "config.yaml": 0.3,
    }


def test_nothing_is_touched_before_it_takes_over(config, tmp_path):
    folder = tmp_path / "tensorboard_dir" / "structured" / "r"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("an earlier run's")
    logger = MetricLogger(run_paths(config.paths, "r"), 0, 9, config.to_dict())
    logger.say("an early line")
    assert [path.read_text() for path in tmp_path.rglob("*.*")] == ["an earlier run's"]
    logger.take_over()
    logger.close()
    assert "an early line" in (tmp_path / "log_dir" / "train_rank0.log").read_text()


def test_a_folder_that_cannot_be_made_is_one_line(config, tmp_path):
    (tmp_path / "log_dir").write_text("a file")
    with pytest.raises(UserError, match=r"log_dir: cannot write the run's records: "):
        MetricLogger(run_paths(config.paths, "r"), 0, 9, config.to_dict())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_costs_records_and_is_told_once(config, tmp_path, capsys):
    folder = tmp_path / "log_dir"
    folder.mkdir()
    (folder / "train_rank0.log").symlink_to("/dev/full")
    logger = MetricLogger(run_paths(config.paths, "r"), 0, 9, config.to_dict())
    logger.take_over()
    for update in (1, 2, 3):
        logger.log_update(UpdateMetrics(**row_of(TRAIN_COLUMNS, update)))
    logger.say("the end")
    logger.close()
    printed = capsys.readouterr()
    assert printed.out.count("records are no longer complete") == 1 and "the end" in printed.out
    assert "Logging error" not in printed.err and "Traceback" not in printed.err
    assert len(read_rows(tmp_path / "tensorboard_dir" / "structured" / "r" / "train.csv")) == 3
