"""`manifest.json`: what a folder of prepared data holds, and from what and how it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from horovod_transformer.config import Config
from horovod_transformer.data.sources import Books
from horovod_transformer.errors import UserError
from horovod_transformer.tokenizer import GPT2_VOCAB_SIZE

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")


def settings_of(config: Config) -> dict[str, Any]:
    """Return the config values that decide what the prepared data is, by dotted key."""
    data = config.data
    return {
        "data.tokenizer": data.tokenizer,
        "data.validation_fraction": data.validation_fraction,
        "data.min_book_characters": data.min_book_characters,
        "data.split_seed": data.split_seed,
        "model.max_seq_len": config.model.max_seq_len,
        # GPT-2's tokens are the same for a model that keeps room for more.
        "model.vocab_size": GPT2_VOCAB_SIZE if data.tokenizer == "gpt2" else config.model.vocab_size,
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, ensure_ascii=False, indent=1)
        file.write("\n")


def find_prepared(data_dir: Path) -> dict[str, Any] | None:
    """Return the manifest of data that `prepare` put here, or None if the place is free.

    Raises:
        UserError: Something else is here; it must not be touched.
    """
    try:
        if not data_dir.exists():
            return None
        if not data_dir.is_dir():
            raise UserError(f"{data_dir}: is a file; data.data_dir names a folder")
        if not os.listdir(data_dir):
            return None
        manifest = json.loads((data_dir / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest["settings"], dict) or not isinstance(manifest["source"]["files"], list):
            raise TypeError
    except PermissionError as error:
        raise UserError(f"{data_dir}: cannot be read: {error.strerror} (data.data_dir)") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{data_dir}: is not empty and not ours (no sound {MANIFEST}); nothing was touched; "
            "choose another data.data_dir or remove that folder"
        ) from None
    return manifest


def first_difference(manifest: dict[str, Any], config: Config, books: Books, data_dir: Path) -> str | None:
    """Say in a few words how prepared data differs from what is wanted now; None if it does not."""
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"it has format version {manifest.get('format_version')}, now it is {FORMAT_VERSION}"
    for key, wanted in settings_of(config).items():
        had = manifest["settings"].get(key)
        if had != wanted:
            return f"{key} was {had}, now it is {wanted}"
    # Names repeat where several folders are given, so lists are compared, not sets of names.
    before, now = manifest["source"]["files"], books.files
    for entry in now:
        if entry not in before:
            same_name = any(entry[0] == other[0] for other in before)
            return f"the source file {entry[0]} {'has changed' if same_name else 'was not there'}"
    for entry in before:
        if entry not in now:
            return f"the source file {entry[0]} is gone"
    if before != now:
        return "the source files come in another order"
    missing = [name for name in SPLITS if not (data_dir / name / "state.json").is_file()]
    return f"its split {missing[0]} is damaged" if missing else None
