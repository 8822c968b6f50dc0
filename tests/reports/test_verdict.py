"""What is said of a result in a sentence."""

from __future__ import annotations

import math

import pytest

from horovod_transformer.reports.run_records import RunRecords
from horovod_transformer.reports.verdict import (
    Result,
    compared,
    known_number,
    trend,
    trend_of,
    verdict,
    verdict_of,
    verdict_of_run,
)


def test_beside_what_else_there_is():
    result = Result(
        1.9, "2 held-out books", 2.26, 3.33, 4.2, [("gpt2.pt", 1.9)], "still improving at its end"
    )
    assert verdict(result) == (
        "1.90 bits per byte on 2 held-out books: 16 % fewer than xz needs, 43 % fewer than knowing only how "
        "often each token comes, as many as gpt2.pt; still improving at its end."
    )
    assert verdict(Result(1.9, "held-out text")) == "1.90 bits per byte on held-out text."


def test_worse_than_knowing_nothing_says_what_to_do():
    said = verdict(Result(4.3, "3 held-out books", 2.0, 3.3, 4.2))
    assert said.startswith(
        "Worse than knowing nothing: 4.30 bits per byte on 3 held-out books, and giving every"
    )
    assert "takes 4.20" in said and "another language" in said and "training.learning_rate" in said
    said = verdict(Result(3.4, "3 held-out books", 2.0, 3.3, 4.2))
    assert said.startswith("It has learned next to nothing: 3.40 ") and "Train longer" in said


def test_compared():
    assert [compared(bits, 2.0) for bits in (1.0, 1.999, 2.5)] == ["50 % fewer", "as many", "25 % more"]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([5, 4], None),
        ([5, 4, 3], "still improving at its end"),
        ([5, 4, 3.999], "level at its end"),
        ([5, 3, 3.001], "level at its end"),
        ([5, 3, 4], "best at update 20, worse after that"),
        ([5, None, 3, None, 2], "still improving at its end"),
        ([], None),
    ],
)
def test_trend(losses, words):
    assert trend(range(10, 60, 10), losses) == words


def test_the_trend_of_a_checkpoints_run(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "best_model.pt"
    assert trend_of(checkpoint) is None
    (tmp_path / "run" / "tables").mkdir(parents=True)
    (tmp_path / "run" / "tables" / "val.csv").write_text("update,loss\n1,5\n2,4\n3,3\n")
    assert trend_of(checkpoint) == "still improving at its end"


@pytest.mark.parametrize("value", [None, "1", True, [], math.nan, math.inf, -1, 0, 10**400])
def test_what_is_no_figure(value):
    assert known_number(value) is None
    assert "no finite number" in verdict_of({"bits_per_byte": value}, None)
    # Of the others what is no figure is left out.
    hostile = {"bits_per_byte": 2, "books": value, "xz_bits_per_byte": value, "beside": value}
    assert verdict_of(hostile, None) == "2.00 bits per byte on held-out text."


def test_a_run_before_and_after_its_evaluation():
    run = RunRecords("first", {"update": [1.0]}, {}, {"model.vocab_size": 256})
    assert verdict_of_run(run).startswith("How well it predicts is not known")
    # A token is a byte here: guessing takes 8 bits.
    run.validation = {"update": [1.0, 2.0], "loss": [5.0, math.log(2) * 4], "bits_per_byte": [7.2, 4.0]}
    assert verdict_of_run(run) == (
        "4.00 bits per byte on held-out blocks: 50 % fewer than giving every token the same chance."
    )
    run.evaluation = {"prediction": {"bits_per_byte": 3.5, "books": 1}}
    assert verdict_of_run(run) == "3.50 bits per byte on 1 held-out book."
