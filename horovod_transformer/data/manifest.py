"""`manifest.json`: what a folder of prepared data holds, and from what and how it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from horovod_transformer.books.sources import Books
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable
from horovod_transformer.tokenizer import Tokenizer

MANIFEST = "manifest.json"
# The source's files, which may be a hundred thousand; ranks of a training run do not read it.
SOURCE_FILES = "source_files.json"
REPORT_JSON, REPORT_PAGE = "report.json", "report.html"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")
TEST = "test"


def split_names(config: Config) -> tuple[str, ...]:
    """Return the splits that a config asks for, the one for training first."""
    return (*SPLITS, TEST) if config.data.test_fraction else SPLITS


def splits_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return the splits that prepared data has, the one for training first."""
    return (*SPLITS, TEST) if TEST in manifest.get("splits", {}) else SPLITS


def settings_of(config: Config, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the config values that decide what the prepared data is, by dotted key.

    Args:
        config: The configuration.
        tokenizer: The one that was chosen; None if one is trained on the books.
    """
    data = config.data
    name, vocab_size = data.tokenizer, config.model.vocab_size
    if tokenizer:
        # Which one, not where it lay; and its tokens are the same for a model that keeps room for more.
        name = "gpt2" if tokenizer.kind == "gpt2" else str(tokenizer)
        vocab_size = tokenizer.vocab_size
    # What a tokenizer that is trained on the books depends on.
    sample = {} if tokenizer else {"data.tokenizer_characters": data.tokenizer_characters}
    return {
        **sample,
        "data.tokenizer": name,
        "data.encoding": data.encoding,
        "data.text_column": data.text_column,
        "data.separator": data.separator,
        "data.join_rows": data.join_rows,
        "data.clean": data.clean,
        "data.validation_fraction": data.validation_fraction,
        "data.test_fraction": data.test_fraction,
        "data.split": data.split,
        "data.min_book_characters": data.min_book_characters,
        "data.split_seed": data.split_seed,
        "model.max_seq_len": config.model.max_seq_len,
        "model.vocab_size": vocab_size,
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder; the last of its files, whose sizes it lists under `sizes`.

    The report is left out: training does not need it, whoever wants may take it away. What stands under
    `source.files` goes to a file of its own.
    """
    source = dict(manifest["source"])
    with (folder / SOURCE_FILES).open("w", encoding="utf-8") as file:
        json.dump(source.pop("files"), file, ensure_ascii=False)
        file.write("\n")
    manifest["sizes"] = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (REPORT_JSON, REPORT_PAGE)
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({**manifest, "source": source}, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read_manifest(data_dir: Path) -> dict[str, Any]:
    """Read the manifest of prepared data, without its `source.files`; data without one has an empty one.

    Raises:
        UserError: It is damaged, or of a newer version of this program.
    """
    path = data_dir / MANIFEST
    again = "remove that folder and prepare the data again"
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{readable(path)}: cannot be read as JSON; {again}") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{readable(path)}: is not a manifest; {again}")
    version = manifest.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{readable(path)}: has format version {version}, this program reads {FORMAT_VERSION} and older; "
            f"update the program, or {again}"
        )
    return manifest


def find_damage(manifest: dict[str, Any], data_dir: Path) -> str | None:
    """Say in a few words which file of prepared data is missing or of another size; None if all are well."""
    sizes = manifest.get("sizes")
    if not isinstance(sizes, dict):  # of an older version
        torn = [name for name in splits_of(manifest) if not _looks_whole(manifest, data_dir / name, name)]
        return f"its split {torn[0]} is damaged" if torn else None
    for name, size in sizes.items():
        try:
            found = (data_dir / name).stat().st_size
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror}"
        if found != size:
            return f"its file {name} has {found:,} bytes and should have {size:,}"
    return None


def _looks_whole(manifest: dict[str, Any], folder: Path, name: str) -> bool:
    try:
        ids = manifest["splits"][name]["blocks"] * manifest["block_size"]
        needed = ids * (4 if manifest["dtype"] == "uint32" else 2)
    except (KeyError, TypeError):
        needed = 0
    held = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    return (folder / "state.json").is_file() and held >= needed


def find_prepared(data_dir: Path) -> dict[str, Any] | None:
    """Return the manifest of data that `prepare` put here, or None if the place is free.

    With `source.files`, which `read_manifest` leaves out.

    Raises:
        UserError: Something else is here; it must not be touched.
    """
    shown = readable(data_dir)
    try:
        if not data_dir.exists():
            return None
        if not data_dir.is_dir():
            raise UserError(f"{shown}: is a file; data.data_dir names a folder")
        if not os.listdir(data_dir):
            return None
        manifest = json.loads((data_dir / MANIFEST).read_text(encoding="utf-8"))
        source = manifest["source"]
        if "files" not in source:  # older data has them here
            source["files"] = json.loads((data_dir / SOURCE_FILES).read_text(encoding="utf-8"))
        if not isinstance(manifest["settings"], dict) or not isinstance(source["files"], list):
            raise TypeError
        if not all(isinstance(entry, list) and entry for entry in source["files"]):
            raise TypeError
    except PermissionError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror} (data.data_dir)") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{shown}: is not empty and not ours (no sound {MANIFEST}); nothing was touched; "
            "choose another data.data_dir or remove that folder"
        ) from None
    return manifest


def first_difference(manifest: dict[str, Any], settings: dict[str, Any], books: Books) -> str | None:
    """Say in a few words how prepared data differs from what is wanted now; None if it does not."""
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"it has format version {manifest.get('format_version')}, now it is {FORMAT_VERSION}"
    defaults = settings_of(Config(), None)
    for key, wanted in settings.items():
        # A setting that is newer than the data had what is now the default.
        had = manifest["settings"].get(key, defaults[key])
        if had != wanted:
            return f"{key} was {readable(str(had))}, now it is {readable(str(wanted))}"
    # Names repeat where several folders are given, so lists are compared, not sets of names.
    before, now = [[tuple(entry) for entry in files] for files in (manifest["source"]["files"], books.files)]
    had_names, had, has = {entry[0] for entry in before}, set(before), set(now)
    for entry in now:
        if entry not in had:
            return f"the source file {entry[0]} {'has changed' if entry[0] in had_names else 'was not there'}"
    for entry in before:
        if entry not in has:
            return f"the source file {entry[0]} is gone"
    if before != now:
        return "the source files come in another order"
    return None
