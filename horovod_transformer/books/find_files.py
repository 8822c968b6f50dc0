"""Which files a source means: what is taken, what is passed over, and when that must not be guessed."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable, user_path

TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
TEXTS = (".txt", ".md", ".txt.gz", ".txt.zst")
SUFFIXES = (*TABLES, *TEXTS)
_READ = ".parquet, .jsonl, .txt and .md"
WHAT_IS_TAKEN = (
    f"data.source takes `sample`, {_READ} files (.jsonl and .txt also with .gz or .zst), folders and "
    "globs of them, or hub:OWNER/NAME"
)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")
_DATA = (".csv", ".tsv", ".json", ".ndjson", ".arrow", ".feather", ".orc")
_HINTS = {
    **dict.fromkeys(_PACKED, "unpack it first"),
    **dict.fromkeys((".epub", ".pdf", ".html", ".htm", ".mobi", ".docx"), "convert it to .txt first"),
    **dict.fromkeys(_DATA, "convert it to parquet with a column `text` first"),
}
# What accompanies data and is no book; left out of folders and globs where there is anything else.
_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|copying|notice|changelog|contributing|citation)\b[^/]*")
_SPLIT = re.compile(r"(?i)(train|validation|valid|val|dev|test)")
_SPLIT_OF_FILE = re.compile(r"(?i)(train|validation|valid|val|dev|test)(?=[-_.])")


@dataclass
class FoundFiles:
    """Files behind one entry of `data.source`.

    Attributes:
        files: Paths with the names they have in the manifest, in order.
        passed_over: How many files of a folder or glob were left out, by kind: a suffix, or `about`
            for README and licence files.
    """

    files: list[tuple[Path, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def kind_of(path: Path) -> str:
    """Return a file's suffix, both of them where the last says how it is packed: `.txt.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and (suffixes[1] not in _PACKED or suffixes[0] not in (*_DATA, *SUFFIXES)):
        suffixes = suffixes[1:]
    return "".join(suffixes) or "no suffix"


def find_files(entry: str) -> FoundFiles:
    """List the files behind a path or glob.

    Folders are searched to the bottom, links followed; hidden files are left out.

    Raises:
        UserError: Nothing is there, nothing there is read, data files were passed over for a README,
            or files of several splits (`train-…`, `test-…`) lie together and nobody said which.
    """
    path = user_path(entry, "data.source")
    if path.is_dir():
        matches = [path]
    elif path.exists():
        if kind_of(path) not in SUFFIXES:
            hint = _HINTS.get(path.suffix.lower(), "rename it to .txt if it is plain text")
            raise UserError(f"{readable(path)}: only {_READ} files are read; {hint}")
        return FoundFiles([(path, path.name)])
    elif glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise UserError(f"{readable(entry)}: no file matches this pattern (data.source)")
    else:
        raise UserError(f"{readable(entry)}: no such file or folder; {WHAT_IS_TAKEN}")
    everything: list[tuple[Path, str]] = []
    seen_folders: set[str] = set()
    for match in matches:
        if match.is_dir():
            everything += [
                (file, file.relative_to(match).as_posix()) for file in _search(match, seen_folders)
            ]
        else:
            everything.append((match, match.name))
    return _choose(entry, list({os.path.realpath(file): (file, name) for file, name in everything}.values()))


def _search(folder: Path, seen: set[str]) -> list[Path]:
    """All files below a folder but hidden ones, each folder once however it is linked."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{readable(error.filename)}: cannot be read: {error.strerror}")

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two ways to a folder it is always the same one that is walked.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: path.parts)


def _choose(entry: str, everything: list[tuple[Path, str]]) -> FoundFiles:
    read = [(path, name) for path, name in everything if kind_of(path) in SUFFIXES]
    books = [(path, name) for path, name in read if not _ABOUT.fullmatch(path.name)]
    others = Counter(kind_of(path) for path, _ in everything if kind_of(path) not in SUFFIXES)
    unread_data = {kind: n for kind, n in others.items() if Path(f"x{kind}").suffix in (*_DATA, *_PACKED)}
    if not books and unread_data:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(unread_data.items()))
        about = f"{readable(read[0][1])} is no book, and " if read else ""
        hint = _HINTS[Path(f"x{min(unread_data)}").suffix]
        raise UserError(f"{readable(entry)}: {about}the data files there are not read ({kinds}); {hint}")
    if not read:
        kinds = ", ".join(sorted(others)[:5])
        there = f"it has only {kinds}" if others else "it is empty"
        raise UserError(f"{readable(entry)}: no {_READ} files there; {there}")
    # A folder that has nothing but a README: that is then the book.
    taken = books or read
    refuse_mixed_splits(entry, taken, "FOLDER/")
    if len(read) > len(taken):
        others["about"] = len(read) - len(taken)
    return FoundFiles(taken, others)


def refuse_mixed_splits(entry: str, files: list[tuple[Path, str]], where: str) -> None:
    """Refuse files of several splits.

    Args:
        entry: What `data.source` says.
        files: Paths, and names for the message.
        where: What stands before a name in `data.source`, for the advice.

    Raises:
        UserError: They are of several splits.
    """
    if not files:
        return
    by_split: dict[str, str] = {}
    # A pattern may match folders one by one; what counts is below the folder that they share.
    shared = os.path.commonpath([path.parent for path, _ in files])
    for path, name in files:
        split = next((part for part in path.parent.relative_to(shared).parts if _SPLIT.fullmatch(part)), None)
        if split is None and kind_of(path) in TABLES:
            found = _SPLIT_OF_FILE.match(path.name)
            split = found[1] if found else None
        if split:
            by_split.setdefault(split.lower(), name)
    if len(by_split) > 1:
        examples = ", ".join(readable(name) for name in list(by_split.values())[:3])
        raise UserError(
            f"{readable(entry)}: holds several splits ({', '.join(by_split)}: {examples}); say which: "
            f"data.source takes a glob such as {where}train-*.parquet, or a list of several"
        )
