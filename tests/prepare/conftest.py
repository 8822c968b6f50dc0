"""Books of random words, and what is in the data that `prepare` makes of them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import BookTable, describe_text
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.prepare.selection import choose_splits
from horovod_transformer.tokenizer import tokenizer_from_dict

WORDS = [
    "the",
    "sea",
    "was",
    "calm",
    "and",
    "so",
    "said",
    "captain",
    "of",
    "ship",
    "né",
    "Brême",
    "1851",
    "—",
]
BLOCK = 16


def some_text(seed: int, words: int = 300) -> str:
    chosen = random.Random(seed)
    return f"Book {seed}\n\n" + " ".join(chosen.choices(WORDS, k=words)).replace(" of ", "\n\n")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Twenty books of different lengths in a folder."""
    folder = tmp_path / "books"
    folder.mkdir()
    for seed in range(20):
        (folder / f"{seed:02}.txt").write_text(some_text(seed, 100 + 20 * seed), encoding="utf-8")
    return folder


def config_for(source: Path | str | list[str], data_dir: Path, vocab_size: int = 280, **data: Any):
    return config_from_dict(
        {
            "model": {"vocab_size": vocab_size, "max_seq_len": BLOCK},
            "data": {
                "source": source if isinstance(source, list) else str(source),
                "data_dir": str(data_dir),
                "tokenizer": "bpe",
                **data,
            },
        },
        "test",
    )


def run_quietly(
    source: Path | str | list[str], data_dir: Path, force: bool = False, **data: Any
) -> dict[str, Any]:
    return prepare(config_for(source, data_dir, **data), force=force, progress=False)


def refusal(source: Path | str | list[str], data_dir: Path, force: bool = False, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        run_quietly(source, data_dir, force, **data)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    assert not list(data_dir.parent.glob("*.unfinished-*")), "a failure leaves nothing behind"
    return text


def tokens_of(data_dir: Path, manifest: dict[str, Any], name: str) -> np.ndarray:
    """All tokens of a split in order, without the filling."""
    blocks = np.array(datasets.load_from_disk(str(data_dir))[name]["input_ids"][:])
    counts = manifest["splits"][name]
    assert blocks.shape == (counts["blocks"], BLOCK)
    assert 0 <= counts["padding"] < BLOCK and blocks.size == counts["tokens"] + counts["padding"]
    eos = tokenizer_from_dict(manifest["tokenizer"]).eos_token_id
    assert (blocks.reshape(-1)[counts["tokens"] :] == eos).all()
    return blocks.reshape(-1)[: counts["tokens"]]


def books_in(data_dir: Path, manifest: dict[str, Any], name: str) -> list[str]:
    """Decode the books of a split."""
    tokenizer = tokenizer_from_dict(manifest["tokenizer"])
    ids = tokens_of(data_dir, manifest, name)
    ends = np.flatnonzero(ids == tokenizer.eos_token_id)
    assert ends[-1] == len(ids) - 1, "every book ends with end-of-text"
    return [tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1] for part in [part[:-1]]]


def table_of(texts: list[str]) -> BookTable:
    """What units would say of these books."""
    described = [describe_text(text) for text in texts]
    return BookTable(
        np.array([list(one[0]) for one in described], np.uint8),
        np.array([len(text) for text in texts]),
        np.array([one[1] for one in described]),
        np.array([one[2] for one in described]),
        np.zeros(len(texts), int),
        np.zeros(len(texts), bool),
    )


def held_out(books: BookTable, fraction: float, seed: int = 0, by: str = "share") -> set[int]:
    kept, names = np.ones(len(books), bool), ("train", "validation")
    splits = choose_splits(books, kept, names, {"validation": fraction}, by, seed)
    return set(np.flatnonzero(splits == 1).tolist())


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "report.json", "report.html")
    }
