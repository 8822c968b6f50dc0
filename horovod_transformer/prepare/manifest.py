"""The manifest of prepared data, written; and how data that is there differs from what is wanted now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from horovod_transformer.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    REPORT_JSON,
    REPORT_PAGE,
    SOURCE_FILES,
)
from horovod_transformer.system.paths import readable


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


def first_difference(
    manifest: dict[str, Any], settings: dict[str, Any], files: Sequence[Sequence[Any]]
) -> str | None:
    """Say in a few words how prepared data differs from what is wanted now; None if it does not.

    Args:
        manifest: The data's, with its `source.files`.
        settings: What is wanted now; see `PrepareSettings.recorded`.
        files: The source's files as they are now; see `Books.files`.
    """
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"it has format version {manifest.get('format_version')}, now it is {FORMAT_VERSION}"
    for key, wanted in settings.items():
        # Only a tokenizer that was trained on the books has a sample of them: `data.tokenizer` differs, too.
        had = manifest["settings"].get(key, wanted if key == "data.tokenizer_characters" else None)
        if had != wanted:
            return f"{key} was {readable(str(had))}, now it is {readable(str(wanted))}"
    # Names repeat where several folders are given, so lists are compared, not sets of names.
    before, now = [[tuple(entry) for entry in listed] for listed in (manifest["source"]["files"], files)]
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
