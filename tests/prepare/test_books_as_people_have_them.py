"""E-books, pages and archives beside texts: made alike by one process and in shares, with their titles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import assemble_shards, prepare, prepare_shards
from tests.books.made_books import PROSE, page, write_epub, write_tar, write_zip


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Eight books and a copy of one, in six files."""
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text(f"a {PROSE}")
    (folder / "b.html").write_text(f"<title>A page</title><meta name=author content='An author'><p>b {PROSE}")
    write_epub(folder / "c.epub", {"c.xhtml": page(f"<p>c {PROSE}</p>")})
    write_zip(folder / "d.zip", {"1.txt": f"1 {PROSE}", "2.html": f"<p>2 {PROSE}"})
    write_tar(
        folder / "e.tar.gz", {"4.md": f"4 {PROSE}", "3.txt": f"3 {PROSE}", "copy.html": f"<p>c {PROSE}"}
    )
    (folder / "f.txt").write_bytes(f"é {PROSE}".encode("utf-16"))
    (folder / "g.mobi").write_bytes(b"BOOKMOBI")
    return folder


def config(source: Path, target: Path, **data: Any):
    data = {"source": str(source), "data_dir": str(target), "validation_fraction": 0.7, **data}
    return config_from_dict({"model": {"max_seq_len": 16}, "data": data}, "test")


def test_one_process_and_shares_make_the_same(library: Path, tmp_path: Path, capsys) -> None:
    manifest = prepare(config(library, tmp_path / "v1"), workers=1)
    said = capsys.readouterr().out
    assert "reading 1 .epub, 1 .html, 1 .html in .tar.gz, 1 .html in .zip, 1 .md in .tar.gz, " in said
    assert ".mobi is not read; convert it first: ebook-convert x.mobi x.epub (Calibre)" in said
    assert sum(split["books"] for split in manifest["splits"].values()) == 8
    assert manifest["dropped"]["counts"]["duplicate"] == 1
    assert manifest["dropped"]["first_titles"]["duplicate"] == ["copy"]
    assert manifest["reencoded"] == {"count": 1, "first": [f"{library / 'f.txt'}: é {PROSE[:78].strip()}"]}
    everything = prepare(config(library, tmp_path / "v2", split_seed=1), progress=False, workers=1)
    titles = {*manifest["validation_books"], *everything["validation_books"]}
    assert titles & {"A page (An author)", "Paul Clifford (Edward Bulwer-Lytton)"}
    for node in (1, 2):
        prepare_shards(config(library, tmp_path / "v3"), node, 2, progress=False, workers=1, unit_bytes=3000)
    shared = assemble_shards(config(library, tmp_path / "v3"), progress=False, unit_bytes=3000)
    assert shared is not None and shared["fingerprint"] == manifest["fingerprint"]


def test_an_archive_that_has_changed_is_not_what_was_prepared(library: Path, tmp_path: Path) -> None:
    prepare(config(library, tmp_path / "v1"), progress=False, workers=1)
    write_zip(library / "d.zip", {"1.txt": f"1 {PROSE}", "2.html": f"<p>2, another {PROSE}"})
    with pytest.raises(UserError, match=r"the source file d\.zip has changed"):
        prepare(config(library, tmp_path / "v1"), progress=False)


def test_all_that_are_bad_are_named(library: Path, tmp_path: Path) -> None:
    write_zip(library / "c.epub", {"a": "x"})
    write_zip(library / "d.zip", {"1.txt": b"n\xe9", "../2.txt": "x"})
    write_tar(library / "e.tar.gz", {"3.txt": b"n\xe9"})
    with pytest.raises(UserError) as caught:
        prepare(config(library, tmp_path / "v1"), progress=False)
    assert "3 files or rows cannot be read" in str(caught.value)
    assert all(name in str(caught.value) for name in ("c.epub", "d.zip", "e.tar.gz/3.txt"))
    manifest = prepare(config(library, tmp_path / "v1", on_bad_book="skip"), progress=False, workers=1)
    assert manifest["unreadable"]["count"] == 3
