"""`manifest.json`, read: what a folder of prepared data holds, and from what and how it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable

MANIFEST = "manifest.json"
# The source's files, which may be a hundred thousand; ranks of a training run do not read it.
SOURCE_FILES = "source_files.json"
REPORT_JSON, REPORT_PAGE = "report.json", "report.html"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")
TEST = "test"
# What is counted of each split.
COUNTS = ("books", "characters", "bytes", "tokens", "blocks")


def splits_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return the splits that prepared data has, the one for training first."""
    return (*SPLITS, TEST) if TEST in manifest.get("splits", {}) else SPLITS


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
    except OSError as error:  # nothing says that the data are damaged
        raise UserError(f"{readable(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{readable(path)}: cannot be read as JSON; {again}") from None
    if not isinstance(manifest, dict) or not _counts_are_numbers(manifest):
        raise UserError(f"{readable(path)}: is not a manifest; {again}")
    version = manifest.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{readable(path)}: has format version {version}, this program reads {FORMAT_VERSION} and older; "
            f"update the program, or {again}"
        )
    return manifest


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a run records of its data, as far as a manifest says it: how much there is, and its digest."""
    splits = manifest.get("splits", {})
    train, validation = splits.get("train", {}), splits.get("validation", {})
    return {
        "books": train.get("books"),
        "validation_books": validation.get("books"),
        "training_tokens": train.get("tokens"),
        "data_fingerprint": manifest.get("fingerprint"),
    }


def _counts_are_numbers(manifest: dict[str, Any]) -> bool:
    """Whether what is there of splits and sizes can be counted and divided with."""
    splits, sizes = manifest.get("splits", {}), manifest.get("sizes")
    if not isinstance(splits, dict) or not all(isinstance(split, dict) for split in splits.values()):
        return False
    counts = [split.get(key, 0) for split in splits.values() for key in COUNTS]
    counts += sizes.values() if isinstance(sizes, dict) else []
    return all(type(count) is int and count >= 0 for count in counts)


def find_damage(manifest: dict[str, Any], data_dir: Path) -> str | None:
    """Say in a few words which file of prepared data is missing or of another size; None if all are well."""
    sizes = manifest.get("sizes")
    if not isinstance(sizes, dict):
        return None  # a manifest that `prepare` has not written: nothing to compare
    for name, size in sizes.items():
        try:
            found = (data_dir / name).stat().st_size
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror}"
        if found != size:
            return f"its file {name} has {found:,} bytes and should have {size:,}"
    return None


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
