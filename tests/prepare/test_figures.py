"""The report says what was made and left out, with titles, and shows what books say as text alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from horovod_transformer.config import config_from_dict
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import BookTable
from horovod_transformer.prepare.figures import make_report, read_report
from horovod_transformer.prepare.prepare import assemble_shards, prepare, prepare_shards
from horovod_transformer.reports.prepared_data import report_page

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A prepared corpus with something of everything, and its manifest."""
    folder = tmp_path_factory.mktemp("report")
    books = folder / "books"
    books.mkdir()
    for n in range(12):
        (books / f"book {n}.txt").write_text(f"Number {n}. The sea was calm. " * (20 + 10 * n))
    (books / "copy.txt").write_text("Number 3. The sea was calm. " * 50)
    (books / f"{NASTY.replace('/', '')}.txt").write_text("short")
    (books / "latin.txt").write_bytes("Der Bär läuft über die Brücke. ".encode("latin-1") * 30)
    (books / "torn.txt.gz").write_bytes(b"not gzip")
    (books / "sold.txt").write_text("Smashwords Edition\n\n" + "The pier was empty. " * 50)
    data = {"source": str(books), "data_dir": str(folder / "v1"), "tokenizer": "bpe", "encoding": "latin-1"}
    data |= {"on_bad_book": "skip", "validation_fraction": 0.2}
    config = config_from_dict({"model": {"vocab_size": 280, "max_seq_len": 16}, "data": data}, "test")
    return folder / "v1", prepare(config, progress=False, workers=1)


class Page(HTMLParser):
    """Tags and text of a page; fails on a tag that is closed and not open."""

    EMPTY = ("meta", "line", "rect", "br", "circle", "polyline", "i")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_figures_are_those_of_the_manifest(made: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = made
    report = read_report(folder)
    assert report["splits"] == manifest["splits"] and report["cleaned"] == manifest["cleaned"]
    assert report["books_read"] == 17
    assert report["dropped"] == {"empty": 0, "too_short": 1, "duplicate": 1}
    assert report["dropped_titles"]["duplicate"] == ["copy"]
    assert report["unreadable"]["count"] == report["reencoded"]["count"] == 1
    assert report["cleaned"]["smashwords"]["books"] == 1
    for histogram in report["histograms"].values():
        for name, counts in histogram["books"].items():
            assert sum(counts) == manifest["splits"][name]["books"]
        assert histogram["edges"] == sorted(histogram["edges"])
    assert {"digest", "tokenize", "assemble"} <= set(report["step_seconds"])
    longest = report["longest"]
    titles = [title for title, _ in longest]
    assert len(titles) == 10 and "book 11" in titles and "copy" not in titles
    assert [tokens for _, tokens in longest] == sorted((tokens for _, tokens in longest), reverse=True)


def test_training_a_tokenizer_is_among_the_steps_also_where_it_was_done_before(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for n in range(3):
        (books / f"{n}.txt").write_text(f"Book {n}. " + "It rained on the sea, so said the captain. " * 90)
    data = {"source": str(books), "data_dir": str(tmp_path / "v1"), "tokenizer": "bpe"}
    config = config_from_dict({"data": data, "model": {"vocab_size": 265}}, "test")
    prepare_shards(config, 1, 1, progress=False, workers=1)
    assert assemble_shards(config, progress=False) is None  # the tokenizer is trained
    prepare_shards(config, 1, 1, progress=False, workers=1)
    assert assemble_shards(config, progress=False) is not None
    assert read_report(tmp_path / "v1")["step_seconds"]["train_tokenizer"] >= 0
    page = Page((tmp_path / "v1" / "report.html").read_text(encoding="utf-8")).text
    steps = ["looking for copies", "training the tokenizer", "tokenizing", "assembling, on one process"]
    places = [page.rfind(step) for step in steps]
    assert -1 not in places and places == sorted(places), places


def test_books_of_one_title_are_all_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"title": "Poems", "text": f"Poem {n}. " * 90}) for n in range(3)]
    (tmp_path / "books.jsonl").write_text("\n".join(lines))
    data = {"source": str(tmp_path / "books.jsonl"), "data_dir": str(tmp_path / "v1")}
    prepare(config_from_dict({"data": data}, "test"), progress=False, workers=1)
    assert [title for title, _ in read_report(tmp_path / "v1")["longest"]] == ["Poems"] * 3


def test_the_page_shows_them_and_runs_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    page = Page((made[0] / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags and page.tags.count("svg") == 3
    for said in ("books kept of 17", "copy", "<script>", "torn.txt.gz", "latin.txt"):
        assert said in page.text, said
    assert not re.search(r"nan|inf\b|None", page.text.replace("information", ""))


def test_without_the_report_the_data_is_as_good(made: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = made
    kept = {name: (folder / name).read_bytes() for name in ("report.json", "report.html")}
    for name in kept:
        (folder / name).unlink()
    config = config_from_dict({"data": {"data_dir": str(folder)}}, "test")
    assert len(open_prepared_data(config).train) == manifest["splits"]["train"]["blocks"]
    with pytest.raises(UserError, match=r"report\.json: cannot be read; .*--force"):
        read_report(folder)
    for name, content in kept.items():
        (folder / name).write_bytes(content)


def table_of(tokens: list[int], characters: list[int]) -> BookTable:
    numbers = np.array(characters, np.int64)
    number = len(tokens)
    return BookTable(
        np.zeros((number, 32), np.uint8), numbers, numbers, numbers, np.array(tokens, np.int64),
        np.zeros(number, bool),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "characters"),
    [([5], [20]), ([5, 5, 5], [20, 20, 20]), ([2, 1_000_000_000], [1, 4_000_000_000]), ([1, 1], [0, 0])],
)
def test_any_lengths_can_be_drawn(made: tuple[Path, dict[str, Any]], tokens: list, characters: list) -> None:
    splits = np.zeros(len(tokens), np.int8)
    report = make_report(made[1], table_of(tokens, characters), splits, {})
    for histogram in report["histograms"].values():
        assert sum(histogram["books"]["train"]) == len(tokens)
    Page(report_page(json.loads(json.dumps(report, allow_nan=False))))
