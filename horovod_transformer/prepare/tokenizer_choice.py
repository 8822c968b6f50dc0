"""Which tokenizer `data.tokenizer` names."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.data.manifest import MANIFEST, read_manifest
from horovod_transformer.errors import UserError
from horovod_transformer.export.tokenizers import read_tokenizer as huggingface_tokenizer
from horovod_transformer.system.paths import readable, user_path
from horovod_transformer.tokenizer import (
    END_OF_TEXT,
    GPT2_VOCAB_SIZE,
    SMALLEST_VOCAB_SIZE,
    Tokenizer,
    gpt2_tokenizer,
    tokenizer_from_dict,
)

TOKENIZER_FILE = "tokenizer.json"


def chosen_tokenizer(name: str, size: int) -> Tokenizer | None:
    """Return the tokenizer that `data.tokenizer` names; None for `bpe`, which is trained on the books.

    Args:
        name: `data.tokenizer`.
        size: Ids that the model has room for, `model.vocab_size`.

    Raises:
        UserError: There is none at that path, or `model.vocab_size` does not fit.
    """
    if name == "bpe":
        if size < SMALLEST_VOCAB_SIZE:
            raise UserError(
                f"model.vocab_size = {size}: a byte-level vocabulary has at least {SMALLEST_VOCAB_SIZE} "
                "entries (256 bytes and end-of-text); set it to that or more"
            )
        return None
    if name == "gpt2":
        if size < GPT2_VOCAB_SIZE:
            raise UserError(
                f"model.vocab_size = {size}: the GPT-2 tokenizer has {GPT2_VOCAB_SIZE} entries; set it to "
                "that or more, or data.tokenizer to bpe"
            )
        return gpt2_tokenizer()
    tokenizer = read_tokenizer(name)
    if size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {size}: the tokenizer of {readable(name)} has {tokenizer.vocab_size} "
            "entries; set it to that or more"
        )
    return tokenizer


def read_tokenizer(source: str | Path) -> Tokenizer:
    """Read the tokenizer of prepared data, of a checkpoint, or of a Hugging Face GPT-2 folder.

    Args:
        source: A folder that `prepare` wrote or that holds a `tokenizer.json` (or `vocab.json` and
            `merges.txt`), such a file, or a checkpoint.

    Raises:
        UserError: There is nothing, or it holds no tokenizer of ours.
    """
    path = user_path(source, "data.tokenizer")
    if not path.exists():
        raise UserError(
            f"{readable(source)}: no such tokenizer; data.tokenizer is gpt2, bpe, or the path of prepared "
            f"data, a checkpoint or a {TOKENIZER_FILE}"
        )
    if path.is_dir() and (path / MANIFEST).exists():
        description = read_manifest(path).get("tokenizer")
    elif path.is_dir() and not (path / TOKENIZER_FILE).exists() and (path / "vocab.json").exists():
        return huggingface_tokenizer(path)
    elif path.is_dir() or path.suffix == ".json":
        file = path / TOKENIZER_FILE if path.is_dir() else path
        description = _read_tokenizer_file(file)
        with contextlib.suppress(UserError):
            return tokenizer_from_dict(description)
        with contextlib.suppress(UserError):
            return huggingface_tokenizer(file.parent, file.name)
        raise UserError(
            f"{readable(path)}: is not a byte-level BPE in the manner of GPT-2's, with {END_OF_TEXT} as its "
            "last token (data.tokenizer)"
        )
    else:
        description = load_checkpoint(path)["tokenizer"]
    if description is None:
        raise UserError(f"{readable(path)}: holds no tokenizer (data.tokenizer)")
    try:
        return tokenizer_from_dict(description)
    except UserError as error:
        raise UserError(f"{readable(path)}: {error}") from None


def _read_tokenizer_file(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{readable(path.parent)}: has neither {MANIFEST} nor {TOKENIZER_FILE} (data.tokenizer)"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{readable(path)}: is no JSON (data.tokenizer)") from None
    except OSError as error:
        raise UserError(f"{readable(path)}: cannot be read: {error.strerror} (data.tokenizer)") from None
    try:
        values = json.loads(text)
    except ValueError:
        raise UserError(f"{readable(path)}: is no JSON (data.tokenizer)") from None
    # The manifest of prepared data, named as a file.
    if isinstance(values, dict) and isinstance(values.get("tokenizer"), dict):
        return values["tokenizer"]
    return {"kind": "bpe", "tokenizer_json": text}
