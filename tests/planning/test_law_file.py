"""A law that was fitted to some data lies beside it, and is what later commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.planning.expectation import expectation, parameters_of_layers
from horovod_transformer.planning.law import Law, Point, usual_law
from horovod_transformer.planning.law_file import LAW_FILE, keep_law, law_for

LAW = Law(1.0, 2.0, 0.3, 4.0, 0.2, 0.05, "fitted to 8 small models of these books")


def test_a_kept_law_is_the_one_that_is_taken(tmp_path: Path) -> None:
    assert law_for(tmp_path, 10**6) is usual_law(10**6)
    assert law_for(None, 10**9) is usual_law(10**9)
    page = keep_law(tmp_path, LAW, [Point(10, 20, 30, 2.0), Point(40, 20, 30, 1.9), Point(40, 20, 60, 1.8)])
    assert law_for(tmp_path, 10**6) == LAW
    text = page.read_text()
    assert "3 small models" in text and "1.800" in text and "<svg" in text and "<script" not in text


def test_what_a_run_says_of_its_end_follows_the_kept_law(tmp_path: Path) -> None:
    model = ModelConfig(vocab_size=100, d_model=8, n_layers=1, n_heads=2, d_ff=32, max_seq_len=16)
    keep_law(tmp_path, LAW, [])
    bits = LAW.bits_per_byte(parameters_of_layers(model), 10**6, 10**6)
    assert expectation(model, tmp_path, 10**6, 10**6) == (
        f"expected of held-out text: about {bits:.2f} bits per byte ({bits - 0.05:.2f} to {bits + 0.05:.2f}; "
        "fitted to 8 small models of these books)"
    )


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"law": {}}', "[" * 10**5, '{"law": {"floor": NaN}}']
    + [
        json.dumps({"law": {**LAW.__dict__, name: value}})
        for name, value in [("p", "0.3"), ("a", -1), ("b", True), ("q", None), ("floor", float("inf"))]
    ],
)
def test_a_damaged_law_is_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / LAW_FILE).write_text(text)
    with pytest.raises(UserError, match=rf"{LAW_FILE}: cannot be read as a law"):
        law_for(tmp_path, 10**6)
