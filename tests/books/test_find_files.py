"""Which files a source means: the wrong corpus is refused, and what is left out is said."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.find_files import describe_kinds, find_files
from horovod_transformer.books.sources import open_books
from horovod_transformer.data.manifest import read_manifest
from horovod_transformer.errors import UserError


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(name)


def found(entry: Path | str) -> list[str]:
    return [name for _, name in find_files(str(entry)).files]


def refusal(entry: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        open_books(str(entry))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_a_readme_is_not_taken_for_the_corpus(tmp_path: Path) -> None:
    make(tmp_path, "README.md", "data/1.csv.gz", "data/2.csv.gz")
    text = refusal(tmp_path)
    assert "README.md is no book, and the data files there are not read (2 .csv.gz)" in text
    make(tmp_path, "data/book.txt", "LICENSE.txt", "cover.jpg")
    assert found(tmp_path) == ["data/book.txt"]
    assert find_files(str(tmp_path)).passed_over == {".csv.gz": 2, "about": 2, ".jpg": 1}


def test_a_readme_by_itself_or_by_name_is_a_book(tmp_path: Path) -> None:
    make(tmp_path, "README.md", "license to kill.txt")
    assert found(tmp_path / "README.md") == ["README.md"]
    (tmp_path / "license to kill.txt").unlink()
    assert found(tmp_path) == ["README.md"]


def test_a_glob_searches_the_folders_it_matches(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "sub/b.txt", "sub/deep/c.txt", "d.mobi")
    assert found(f"{tmp_path}/*") == ["a.txt", "b.txt", "deep/c.txt"]
    assert find_files(f"{tmp_path}/*").passed_over == {".mobi": 1}
    assert sorted(path.name for path, _ in find_files(f"{tmp_path}/**").files) == ["a.txt", "b.txt", "c.txt"]
    assert "it has only .mobi" in refusal(f"{tmp_path}/*.mobi")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path, "real/1.txt", "books/0.txt")
    (tmp_path / "books" / "more").symlink_to(tmp_path / "real")
    (tmp_path / "books" / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "books")
    (tmp_path / "books" / "self").symlink_to(".")
    assert found(tmp_path / "books") == ["0.txt", "again/1.txt"]
    assert [book.text for book in open_books(str(tmp_path / "books"))] == ["books/0.txt", "real/1.txt"]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train.parquet", "data/test.parquet"),
        ("train/1.txt", "test/2.txt"),
        ("books/Train/x.parquet", "books/dev/x.parquet"),
    ],
)
def test_mixed_splits_are_refused_unless_told_which(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *names)
    for entry in (tmp_path, f"{tmp_path}/**"):
        assert "holds several splits (" in refusal(entry) and "say which" in refusal(entry)
    assert open_books(str(tmp_path / names[0])).count == 1
    assert open_books([str(tmp_path / name) for name in names]).count == len(names)


def test_titles_that_begin_like_splits_are_books(tmp_path: Path) -> None:
    make(tmp_path, "test-pilot.txt", "train-spotting.txt", "testament.parquet", "trains.parquet")
    assert len(found(tmp_path)) == 4


def test_what_was_taken_and_passed_over_is_said_and_kept(tmp_path: Path, run_python) -> None:
    folder = tmp_path / "books"
    make(folder, "README.md", "x.jpg", "y.jpg", "z.pdf")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"{number} is a number and this is a book. " * 20)
    pq.write_table(pa.table({"text": ["There is a text in parquet, too. " * 30]}), folder / "p.parquet")
    books = open_books(str(folder))
    assert books.taken == Counter({".txt": 3, ".parquet": 1})
    done = run_python(
        *("-m", "horovod_transformer", "prepare", "--data.source", str(folder)),
        *("--data.data_dir", str(tmp_path / "v1")),
    )
    assert done.returncode == 0, done.stderr
    assert "reading 1 .parquet, 3 .txt\n" in done.stdout
    assert "passed over: 2 .jpg, 1 .pdf, 1 about (README.md)\n" in done.stdout
    assert read_manifest(tmp_path / "v1")["source"]["about"] == ["README.md"]


def test_a_name_in_an_old_encoding_is_read_and_kept(tmp_path: Path, run_python) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"two\nlines.txt", "Straße.txt".encode()):
        with open(bytes(folder) + b"/" + name, "w") as file:
            file.write(f"A book by the name of {name!r}. " * 20)
    done = run_python(
        *("-m", "horovod_transformer", "prepare", "--data.source", str(folder)),
        *("--data.data_dir", str(tmp_path / "v1"), "--data.validation_fraction", "0.6"),
    )
    assert done.returncode == 0, done.stderr
    listed = (tmp_path / "v1" / "source_files.json").read_text(encoding="utf-8")
    assert "caf\\\\xe9.txt" in listed and "two\\\\nlines.txt" in listed


def test_titles_that_begin_like_licences_are_books(tmp_path: Path) -> None:
    titles = [
        "Changelog of the Heart.txt",
        "Contributing Factors - A Novel.txt",
        "License to Sail.md",
        "Noticed.txt",
    ]
    abouts = ["CONTRIBUTING.md", "LICENSE-MIT.txt", "License.txt", "README de.txt", "notice.txt"]
    make(tmp_path, *titles, *abouts)
    assert found(tmp_path) == titles
    assert find_files(str(tmp_path)).about == abouts
    (tmp_path / "License.txt").write_text("This is a long book about a licence. " * 10_000)
    assert "License.txt" in found(tmp_path), "no licence is as long as that"


@pytest.mark.parametrize("suffix", [".fb2", ".pdf", ".mobi", ".djvu", ".xyz", ""])
def test_a_readme_beside_books_of_another_kind_is_not_the_corpus(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, "README.txt", f"novel{suffix}", f"other{suffix}")
    text = refusal(tmp_path)
    assert (
        f"README.txt is no book, and the other files there are not read (2 {suffix or 'no suffix'})" in text
    )
    assert "name README.txt itself" in text and found(tmp_path / "README.txt") == ["README.txt"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.txt", "wiki.test.txt"),
        ("corpus_train.jsonl", "corpus_test.jsonl"),
        ("en.train.jsonl.gz", "en.dev.jsonl.gz"),
        ("corpus-train-00000-of-00002.parquet", "corpus-validation-00000-of-00001.parquet"),
        ("split=train/0.txt", "split=test/0.txt"),
        ("books_train/0.txt", "books_valid/0.txt"),
        ("train-00.txt", "train-01.txt", "test-00.txt"),
        ("TRAIN.TXT", "Test.txt"),
    ],
)
def test_splits_by_any_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"holds several splits \("):
        find_files(str(tmp_path))
    assert len(find_files(str(tmp_path / names[0])).files) == 1


def test_titles_with_a_splits_word_in_them_are_books(tmp_path: Path) -> None:
    names = ["the-acid-test.txt", "the-last-train.txt", "Night Train.txt", "A Test.txt", "valid points.txt"]
    make(tmp_path, *names, "en.train.jsonl", "de.test.jsonl")
    assert len(found(tmp_path)) == 7


def test_what_stands_behind_a_full_stop_need_not_be_a_suffix(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.txt",
        "x.mp3",
        *(f"Author {n}. A title, number {n}" for n in range(30)),
        "bad\x1b.\x1b[1m",
    )
    (tmp_path / os.fsdecode(b"notes.caf\xe9")).touch()
    passed_over = find_files(str(tmp_path)).passed_over
    assert passed_over == {"no suffix": 31, ".mp3": 1, r".caf\xe9": 1}
    assert describe_kinds(passed_over) == r"1 .caf\xe9, 1 .mp3, 31 no suffix"


def test_many_kinds_are_summed_up() -> None:
    kinds = {f".k{n}": n + 1 for n in range(40)} | {"about": 1}
    text = describe_kinds(kinds, {"about": ["LICENSE\n.txt"]})
    assert r"1 about (LICENSE\n.txt)" in text and "40 .k39" in text
    assert text.endswith("561 of 33 other kinds") and sum(kinds.values()) == 821
