"""The curves of a run: what is drawn, what the terminal shows."""

from __future__ import annotations

import csv

import matplotlib.image
import numpy as np
import pytest

from horovod_transformer.reports.plotting import draw_curve, terminal_curve

UPDATES = range(10, 310, 10)


def write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["update", "loss", "accuracy"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def run(tmp_path):
    """A run whose loss falls from 8 to 2, with three validations."""
    losses = np.linspace(8, 2, len(UPDATES))
    rows = [{"update": u, "loss": x, "accuracy": 0.25} for u, x in zip(UPDATES, losses, strict=True)]
    write_table(tmp_path / "train.csv", rows)
    write_table(tmp_path / "val.csv", [{"update": u, "loss": 9 - u / 50} for u in (100, 200, 300)])
    return tmp_path


def test_the_picture_shows_both_curves(run, tmp_path):
    draw_curve(run, tmp_path / "new" / "loss.png", "a run")
    pixels = matplotlib.image.imread(tmp_path / "new" / "loss.png")
    assert pixels.shape[:2] == (540, 960)
    # The two colours of the lines: training smoothed, and validation.
    for red, green, blue in ((0x21, 0x71, 0xB5), (0xD9, 0x48, 0x01)):
        same = (np.abs(pixels[..., :3] * 255 - (red, green, blue)) < 2).all(axis=-1)
        rows, columns = np.nonzero(same)
        # Below the legend, the line falls from the upper left to the lower right.
        assert same.sum() > 300 and np.corrcoef(columns, rows)[0, 1] > 0.5


def test_the_terminal_shows_them_too(run):
    lines = terminal_curve(run, width=60, height=15).splitlines()
    assert len(lines) == 15 and max(map(len, lines)) == 60
    text = "\n".join(lines)
    assert "training loss" in text and "validation loss" in text and "optimizer update" in text
    assert "\x1b" not in text
    braille = [
        (row, column)
        for row, line in enumerate(lines)
        for column, character in enumerate(line)
        if "\u2801" <= character <= "\u28ff"
    ]
    assert len(braille) > 20
    rows, columns = np.array(braille).T
    assert np.corrcoef(columns, rows)[0, 1] > 0.5


def test_a_loss_that_is_no_number_is_passed_over(run, tmp_path):
    draw_curve(run, tmp_path / "whole.png", "a run")
    whole = terminal_curve(run)
    with open(run / "train.csv", "a") as file:
        file.write("155,nan,0.25\n")
    draw_curve(run, tmp_path / "holed.png", "a run")
    assert terminal_curve(run) == whole
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "holed.png").read_bytes()
