"""Books that cannot be read: all named at once, re-encoded, or skipped and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.config import config_from_dict
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.manifest import find_prepared
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare

GOOD = "A plain book that everyone can read, number {n}. " * 12
LATIN = "Der Bär läuft über die Brücke, Nummer {n}. " * 12


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Four books in UTF-8 and three in latin-1."""
    folder = tmp_path / "books"
    folder.mkdir()
    for n in range(4):
        (folder / f"good {n}.txt").write_text(GOOD.replace("{n}", str(n)))
    for n in range(3):
        (folder / f"latin {n}.txt").write_bytes(LATIN.replace("{n}", str(n)).encode("latin-1"))
    return folder


def run(source: Path, target: Path, force: bool = False, **data: Any) -> dict[str, Any]:
    model = {"vocab_size": 280, "max_seq_len": 16}
    data = {"source": str(source), "data_dir": str(target), "tokenizer": "bpe", **data}
    return prepare(config_from_dict({"model": model, "data": data}, "test"), force=force, progress=False)


def test_all_that_are_not_utf8_are_named_at_once(library: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(library, tmp_path / "v1")
    text = str(caught.value)
    assert "3 files or rows cannot be read" in text and "\n" not in text
    for n in range(3):
        assert f"latin {n}.txt" in text
    assert "good" not in text and "data.encoding" in text and "data.on_bad_book: skip" in text
    assert not (tmp_path / "v1").exists()


def test_the_encoding_is_tried_where_utf8_fails(library: Path, tmp_path: Path, capsys) -> None:
    manifest = run(library, tmp_path / "v1", encoding="latin-1", validation_fraction=0.5)
    assert manifest["reencoded"]["count"] == 3
    assert manifest["reencoded"]["first"][1].endswith(
        "latin 1.txt: Der Bär läuft über die Brücke, Nummer 1. Der Bär läuft über die Brücke, Nummer 1"
    )
    assert manifest["unreadable"]["count"] == 0
    config = config_from_dict({"data": {"data_dir": str(tmp_path / "v1")}}, "test")
    data = open_prepared_data(config)
    assert data.tokenizer is not None
    text = "".join(
        data.tokenizer.decode(split.__getitems__(range(len(split)))["input_ids"].flatten().tolist())
        for split in (data.train, data.validation)
    )
    assert text.count("Der Bär läuft über die Brücke") == 36 and text.count("plain book") == 48


def test_a_book_of_neither_encoding_is_bad(library: Path, tmp_path: Path) -> None:
    (library / "odd.txt").write_bytes(b"\xff" * 300)
    with pytest.raises(UserError, match="4 files or rows .* and not ascii"):
        run(library, tmp_path / "v1", encoding="ascii")


def test_skipping_is_counted_and_listed(library: Path, tmp_path: Path) -> None:
    manifest = run(library, tmp_path / "v1", on_bad_book="skip")
    assert sum(split["books"] for split in manifest["splits"].values()) == 4
    assert manifest["unreadable"]["count"] == 3
    assert "latin 0.txt: is not UTF-8 text (byte 5)" in manifest["unreadable"]["first"][0]
    assert find_prepared(tmp_path / "v1") == manifest


def test_nothing_but_bad_books(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff" * 300)
    with pytest.raises(UserError, match=r"no book is left of 1 \(1 unreadable\)"):
        run(tmp_path / "x.txt", tmp_path / "v1", on_bad_book="skip")


def test_bad_rows_and_torn_row_groups_of_parquet(tmp_path: Path) -> None:
    texts = [GOOD.replace("{n}", str(n)).encode() for n in range(40)]
    texts[3] = LATIN.encode("latin-1")
    raw = pa.array(texts, pa.binary())
    column = pa.StringArray.from_buffers(40, raw.buffers()[1], raw.buffers()[2])
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"text": column}), path, row_group_size=10, compression="zstd", use_dictionary=False
    )
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(2).column(0).data_page_offset
        size = file.metadata.row_group(2).column(0).total_compressed_size
    content = bytearray(path.read_bytes())
    content[start + 30 : start + size] = b"\xff" * (size - 30)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"2 files or rows cannot be read: .*row 3, .*rows 20 to 29"):
        run(path, tmp_path / "v1")
    manifest = run(path, tmp_path / "v1", on_bad_book="skip")
    assert sum(split["books"] for split in manifest["splits"].values()) == 29
    with_encoding = run(path, tmp_path / "v2", on_bad_book="skip", encoding="latin-1")
    assert sum(split["books"] for split in with_encoding["splits"].values()) == 30


def test_a_file_that_cannot_even_be_opened(library: Path, tmp_path: Path) -> None:
    for path in library.glob("latin*"):
        path.unlink()
    (library / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"torn\.parquet: is not a whole parquet file"):
        run(library, tmp_path / "v1")
    manifest = run(library, tmp_path / "v1", on_bad_book="skip")
    assert manifest["unreadable"]["count"] == 1 and "torn.parquet" in manifest["unreadable"]["first"][0]


# Prepared data that was damaged later


def test_damage_has_a_way_out_from_both_sides(library: Path, tmp_path: Path) -> None:
    target = tmp_path / "v1"
    run(library, target, encoding="latin-1")
    table = next((target / "train").glob("*.arrow"))
    table.write_bytes(table.read_bytes()[:-8])
    config = config_from_dict({"data": {"data_dir": str(target)}}, "test")
    with pytest.raises(UserError, match=r"train/data.*arrow has .* bytes and should have .*prepare --force"):
        open_prepared_data(config)
    with pytest.raises(UserError, match=r"train/data.*arrow has .* use --force to prepare it again"):
        run(library, target, encoding="latin-1")
    run(library, target, force=True, encoding="latin-1")
    open_prepared_data(config)


def test_home_means_the_same_to_prepare_and_to_training(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run(library, Path("~/v1"), encoding="latin-1")
    assert (tmp_path / "v1").is_dir()
    open_prepared_data(config_from_dict({"data": {"data_dir": "~/v1"}}, "test"))


def test_a_second_prepare_is_refused_while_the_first_is_at_work(library: Path, tmp_path: Path) -> None:
    from horovod_transformer.system.folders import lock_for

    with (
        lock_for(tmp_path / "v1", "data.data_dir", print),
        pytest.raises(UserError, match=r"v1: process \d+ on .* is writing here"),
    ):
        run(library, tmp_path / "v1", encoding="latin-1")
    run(library, tmp_path / "v1", encoding="latin-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books", "v1"]


def test_all_kinds_of_bad_files_are_named_at_once(library: Path, tmp_path: Path) -> None:
    """Those that are found by a look at them and those that are found by reading."""
    names = [f"{kind} {n}" for kind in ("torn", "nowhere", "lines") for n in range(3)]
    for n in range(3):
        (library / f"torn {n}.parquet").write_bytes(b"PAR1 and no more")
        (library / f"nowhere {n}.txt").symlink_to(tmp_path / f"gone {n}")
        (library / f"lines {n}.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(UserError) as caught:
        run(library, tmp_path / "v1")
    text = str(caught.value)
    assert text.startswith("data.source: 12 files or rows cannot be read: ") and "\n" not in text
    assert all(name in text for name in [*names, *(f"latin {n}.txt" for n in range(3))])
    assert text.endswith("data.on_bad_book: skip leaves them out")
    assert run(library, tmp_path / "v1", on_bad_book="skip")["unreadable"]["count"] == 12
