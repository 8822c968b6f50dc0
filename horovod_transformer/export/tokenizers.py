"""Tokenizers as Hugging Face folders hold them, written and read."""

from __future__ import annotations

import json
from pathlib import Path

from horovod_transformer.errors import UserError
from horovod_transformer.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    gpt2_tokenizer,
    tokenizer_from_dict,
    visible_bytes,
)


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """A tokenizer as the `tokenizers` library's JSON."""
    described = tokenizer.to_dict()
    if "tokenizer_json" in described:
        return described["tokenizer_json"]
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eos_token_id)]
    shown = {byte: character for character, byte in visible_bytes().items()}

    def show(piece: bytes) -> str:
        return "".join(shown[byte] for byte in piece)

    vocabulary = {show(piece): i for i, piece in enumerate(pieces)}
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    pairs = [_merge_of(piece, ranks) for piece in pieces if len(piece) > 1]
    merges = [(show(left), show(right)) for left, right in pairs]
    library = Library(models.BPE(vocab=vocabulary, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return library.to_str()


def read_tokenizer(folder: Path, file: str = "tokenizer.json") -> Tokenizer:
    """Read the tokenizer of a Hugging Face GPT-2 folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Args:
        folder: The folder.
        file: What `tokenizer.json` is called there.

    Raises:
        UserError: There is none, or it is damaged or no byte-level BPE in the manner of GPT-2's.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    path = folder / file
    pair = (folder / "vocab.json", folder / "merges.txt")
    try:
        if path.is_file():
            # Through the library: files of its earlier versions leave out what it now writes.
            text = Library.from_str(path.read_text(encoding="utf-8")).to_str()
        elif all(file.is_file() for file in pair):
            path = pair[0]
            library = Library(models.BPE.from_file(*map(str, pair)))
            library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            text = library.to_str()
        else:
            raise UserError(f"{folder}: has no tokenizer.json, nor vocab.json with merges.txt")
        tokenizer = tokenizer_from_dict({"kind": "bpe", "tokenizer_json": _in_our_form(text)})
    except UserError as error:
        if "has no tokenizer.json" in str(error):
            raise
        raise UserError(
            f"{path}: is not a byte-level BPE in the manner of GPT-2's, with {END_OF_TEXT} as its last token"
        ) from None
    except Exception as error:
        # The library raises plain exceptions.
        raise UserError(f"{path}: is not a readable tokenizer: {str(error).splitlines()[0]}") from None
    return _gpt2_if_equal(tokenizer)


def tokens_left_out(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Tokens behind end-of-text, such as `[PAD]`, that the folder's files have and `read_tokenizer` left out.

    Args:
        folder: A Hugging Face folder that was read.
        tokenizer: Its tokenizer.

    Raises:
        UserError: `added_tokens.json` is damaged.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        # The library read it, with or without this key.
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
        ids = {token["content"]: token["id"] for token in added}
    else:
        path = folder / "added_tokens.json"
        try:
            ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            damaged = not isinstance(ids, dict) or not all(isinstance(number, int) for number in ids.values())
        except (OSError, ValueError):
            damaged = True
        if damaged:
            raise UserError(f"{path}: cannot be read as names with their ids; the folder is damaged")
    return sorted((name for name in ids if ids[name] >= tokenizer.vocab_size), key=lambda name: ids[name])


def _in_our_form(text: str) -> str:
    """Move the end-of-text token out of the vocabulary, where some files have it, to the added tokens.

    Tokens behind it, such as `[PAD]`, are left out: no text is encoded with them.
    """
    values = json.loads(text)
    vocabulary, added = values["model"]["vocab"], values["added_tokens"]
    ends = {token["content"]: token["id"] for token in added} | vocabulary
    end = ends.get(END_OF_TEXT, len(vocabulary))
    for token in added:
        if token["id"] >= end:
            vocabulary.pop(token["content"], None)
    vocabulary.pop(END_OF_TEXT, None)
    values["added_tokens"] = [token for token in added if token["id"] < end] + [
        {
            "id": end,
            "content": END_OF_TEXT,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    return json.dumps(values, ensure_ascii=False)


def _gpt2_if_equal(tokenizer: Tokenizer) -> Tokenizer:
    """GPT-2's own tokenizer goes by its name, so that data prepared with it is known to fit."""
    if tokenizer.vocab_size != 50257:
        return tokenizer
    gpt2 = gpt2_tokenizer()
    same = all(tokenizer.decode_bytes([i]) == gpt2.decode_bytes([i]) for i in range(gpt2.vocab_size))
    return gpt2 if same else tokenizer


def _merge_of(piece: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a token was merged from: merge its bytes by all earlier ranks."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 2:
        ranked = [ranks.get(left + right, len(ranks)) for left, right in zip(parts, parts[1:], strict=False)]
        place = ranked.index(min(ranked))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]
