"""A model's tokenizer can be used again for other books, and another one is never taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from horovod_transformer.config import config_from_dict
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.prepare.tokenizer_choice import read_tokenizer
from horovod_transformer.tokenizer import gpt2_tokenizer
from horovod_transformer.training.resume import require_same_tokenizer

ONE = "It was a dark night, and the lamps went out one after the other; nobody spoke. "
OTHER = "Numquam est fidelis cum potente societas, testatur haec fabella propositum meum. "


def config_for(folder: Path, words: str, name: str, tokenizer: str = "bpe", vocab_size: int = 270):
    books = folder / f"books of {name}"
    if not books.exists():
        books.mkdir()
        for number in range(3):
            (books / f"{number}.txt").write_text(f"{number} " + words * (9 + number))
    return config_from_dict(
        {
            "model": {"vocab_size": vocab_size, "max_seq_len": 16},
            "data": {"source": str(books), "data_dir": str(folder / name), "tokenizer": tokenizer},
        },
        "test",
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data with a tokenizer trained on it."""
    folder = tmp_path_factory.mktemp("one")
    prepare(config_for(folder, ONE, "one"), progress=False)
    return folder / "one"


def tokenizer_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["tokenizer"]


def test_other_books_with_the_same_tokenizer(one: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer.json").write_text(tokenizer_of(one)["tokenizer_json"])
    wanted = None
    for path in (one, one / "manifest.json", tmp_path / "t", tmp_path / "t" / "tokenizer.json"):
        config = config_for(tmp_path, OTHER, "other", str(path), vocab_size=300)
        manifest = prepare(config, progress=False)  # the second time it is "already prepared"
        wanted = wanted or manifest
        assert manifest == wanted and manifest["tokenizer"] == tokenizer_of(one)
    require_same_tokenizer(tokenizer_of(one), open_prepared_data(config), "last.pt")
    # And a checkpoint's own.
    config = config_for(tmp_path, OTHER, "third", str(tiny_checkpoint))
    assert prepare(config, progress=False)["tokenizer"]["kind"] == "bpe"
    assert read_tokenizer(tiny_checkpoint).vocab_size == 260


def test_a_tokenizer_trained_on_other_books_is_another_one(one: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, OTHER, "other")
    prepare(config, progress=False)
    data = open_prepared_data(config)
    assert data.tokenizer.vocab_size == len(read_tokenizer(one)._token_bytes), "shapes alone do not tell"
    with pytest.raises(UserError) as caught:
        require_same_tokenizer(tokenizer_of(one), data, "run/last.pt")
    text = str(caught.value)
    assert text.startswith("run/last.pt: was trained with another tokenizer (bpe, 270 entries, ")
    assert text.endswith("--data.tokenizer run/last.pt") and "\n" not in text
    with pytest.raises(UserError, match="another tokenizer"):
        require_same_tokenizer(gpt2_tokenizer().to_dict(), data, "run/last.pt")
    with pytest.raises(UserError, match=r"data\.tokenizer was bpe, now it is bpe, 270 entries, \w{8};"):
        prepare(config.with_overrides({"data.tokenizer": str(one)}), progress=False)


def test_blocks_without_a_tokenizer_cannot_be_compared(one: Path, tmp_path: Path) -> None:
    split = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 3})
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(str(tmp_path / "d"))
    config = config_from_dict({"data": {"data_dir": str(tmp_path / "d")}}, "test")
    require_same_tokenizer(tokenizer_of(one), open_prepared_data(config), "last.pt")


def test_gpt2_by_path_is_gpt2(tmp_path: Path) -> None:
    first = config_for(tmp_path, ONE, "first", "gpt2", 50257)
    manifest = prepare(first, progress=False)
    assert prepare(first.with_overrides({"data.tokenizer": str(tmp_path / "first")})) == manifest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such tokenizer; data.tokenizer is gpt2, bpe, or the path"),
        ("folder", "has neither manifest.json nor tokenizer.json"),
        ("{", "is no JSON"),
        ("{}", "not a byte-level BPE"),
        (b"\xff", "is no JSON"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    path = tmp_path / "odd.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as caught:
        prepare(config_for(tmp_path, ONE, "x", str(path)), progress=False)
    assert "odd.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_model_too_small_for_the_tokenizer(one: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.vocab_size = 269: the tokenizer of .* has 270 entries"):
        prepare(config_for(tmp_path, ONE, "x", str(one), vocab_size=269), progress=False)
