"""Which files a source means: what is taken, what is passed over, and when that must not be guessed."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable, user_path

TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
TEXTS = (".txt", ".md", ".txt.gz", ".txt.zst")
PAGES = (".html", ".htm", ".xhtml")
E_BOOK = ".epub"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
SUFFIXES = (*TABLES, *TEXTS, *PAGES, E_BOOK, *ARCHIVES)
# Of an archive: what is one book, without a pack of its own.
READ_IN_ARCHIVES = (".txt", ".md", *PAGES, E_BOOK)
_READ = ".parquet, .jsonl, .txt, .md, .epub and .html"
WHAT_IS_TAKEN = (
    f"data.source takes `sample`, {_READ} files (.jsonl and .txt also with .gz or .zst), folders, .zip and "
    ".tar.gz archives and globs of them, or hub:OWNER/NAME"
)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_DATA = (".csv", ".tsv", ".json", ".ndjson", ".arrow", ".feather", ".orc")
_CONVERTERS = {
    ".pdf": "pdftotext x.pdf x.txt (package poppler-utils)",
    ".djvu": "djvutxt x.djvu x.txt (package djvulibre-bin)",
    **dict.fromkeys((".mobi", ".azw", ".azw3", ".lit"), "ebook-convert x{} x.epub (Calibre)"),
    **dict.fromkeys((".rtf", ".fb2", ".docx", ".odt"), "pandoc x{} -t plain --wrap none -o x.txt"),
    ".doc": "soffice --convert-to txt x.doc (LibreOffice)",
}
_CONVERT = {kind: f"convert it first: {command.format(kind)}" for kind, command in _CONVERTERS.items()}
_HINTS = {
    **dict.fromkeys(_PACKED, "unpack it first"),
    **_CONVERT,
    **dict.fromkeys(_DATA, "convert it to parquet with a column `text` first"),
    **dict.fromkeys(
        (".json", ".ndjson"), "rename it to .jsonl if it has an object a line, else convert it to parquet"
    ),
}
# What accompanies data and is no book; left out of folders and globs where there is anything else. A
# name that goes on with other words ("License to Sail.txt") is a title, and a text as long as this a book.
_ABOUT = re.compile(
    r"(?i)readme\b[^/]*|(licen[cs]e|copying|notice|changelog|contributing|citation)([-_.][^/ ]*)?(\.\w+)?"
)
_LONGEST_ABOUT_BYTES = 200_000
# A file or folder of a split: `train`, `split=train`, `wiki.train`, `corpus_train-00000-of-00002`. What
# stands before the word tells corpora apart, and books with such a word in their titles.
_SPLIT = re.compile(
    r"(?i)(?P<before>.*[-_.]|\w+=|)(?P<split>train|training|validation|valid|val|dev|test)"
    r"(?:[-_.]?\d+(?:[-_.]of[-_.]\d+)?)?"
)
# Tables are seldom called by titles: there other words may follow.
_SPLIT_OF_TABLE = re.compile(
    r"(?i)(?P<before>.*?[-_.]|)(?P<split>train|training|validation|valid|val|dev|test)(?=[-_.]|$)"
)
_LONGEST_SUFFIX = 8
_KINDS_SHOWN = 8


@dataclass
class FoundFiles:
    """Files behind one entry of `data.source`.

    Attributes:
        files: Paths with the names they have in the manifest, in order.
        passed_over: How many files of a folder or glob were left out, by kind: a suffix, or `about`
            for README and licence files.
        about: The names of those README and licence files.
    """

    files: list[tuple[Path, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    about: list[str] = field(default_factory=list)


def kind_of(path: Path) -> str:
    """Return a file's suffix, both of them where the last says how it is packed: `.txt.gz`.

    What stands behind the last full stop of a title is no suffix.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and (
        suffixes[1] not in _PACKED or suffixes[0] not in (*_DATA, *TABLES, *TEXTS, ".tar")
    ):
        suffixes = suffixes[1:]
    # A byte that is no UTF-8 may be a letter of an old encoding.
    if not suffixes or not all(c.isalnum() or "\udc80" <= c <= "\udcff" for c in suffixes[-1][1:]):
        return "no suffix"
    return readable("".join(suffixes)) if len(suffixes[-1]) <= 1 + _LONGEST_SUFFIX else "no suffix"


def describe_kinds(
    kinds: Mapping[str, int], names: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str:
    """Say in a line how many files there are of each kind, those of few files summed up where there are many.

    Args:
        kinds: Number of files by kind.
        names: Of some kinds the names, which are told.
    """
    shown = sorted(sorted(kinds, key=lambda kind: (kind not in names, -kinds[kind], kind))[:_KINDS_SHOWN])
    parts = []
    for kind in shown:
        told = ", ".join(readable(name) for name in names.get(kind, [])[:_KINDS_SHOWN])
        more = ", …" if len(names.get(kind, [])) > _KINDS_SHOWN else ""
        parts.append(f"{kinds[kind]:,} {kind}" + (f" ({told}{more})" if told else ""))
    rest = sum(count for kind, count in kinds.items() if kind not in shown)
    if rest:
        parts.append(f"{rest:,} of {len(kinds) - len(shown):,} other kinds")
    return ", ".join(parts)


def how_to_convert(kinds: Mapping[str, int]) -> list[str]:
    """Return a line for each kind of e-book that is not read: which program makes one of it that is.

    Args:
        kinds: Number of files by kind.
    """
    return [f"{kind} is not read; {_CONVERT[kind]}" for kind in sorted(kinds) if kind in _CONVERT]


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
    books = [(path, name) for path, name in read if not _is_about_file(path)]
    others = Counter(kind_of(path) for path, _ in everything if kind_of(path) not in SUFFIXES)
    # Tables and what is packed are data; beside a README anything else may be the books.
    unread = {kind: n for kind, n in others.items() if read or _last(kind) in (*_DATA, *_PACKED)}
    if not books and unread:
        hinted = sorted(kind for kind in unread if _last(kind) in _HINTS)
        if read:
            hint = _HINTS[_last(hinted[0])] if hinted else "a .txt suffix says that a file is plain text"
            about = f"{readable(read[0][1])} is no book, and "
            hint += f" (or name {readable(Path(read[0][1]).name)} itself)"
        else:
            about, hint = "", _HINTS[_last(hinted[0])]
        what = "data files" if any(_last(kind) in (*_DATA, *_PACKED) for kind in unread) else "other files"
        raise UserError(
            f"{readable(entry)}: {about}the {what} there are not read ({describe_kinds(unread)}); {hint}"
        )
    if not read:
        kinds = ", ".join(sorted(others)[:5])
        there = f"it has only {kinds}" if others else "it is empty"
        raise UserError(f"{readable(entry)}: no {_READ} files there; {there}")
    # A folder that has nothing but a README: that is then the book.
    taken = books or read
    refuse_mixed_splits(entry, taken, "FOLDER/")
    kept = set(taken)
    about_files = [name for path, name in read if (path, name) not in kept]
    if about_files:
        others["about"] = len(about_files)
    return FoundFiles(taken, others, about_files)


def _is_about_file(path: Path) -> bool:
    try:
        return is_about(path.name, path.stat().st_size)
    except OSError:
        return bool(_ABOUT.fullmatch(path.name))


def is_about(name: str, size: int) -> bool:
    """Whether a file of this name and so many bytes is a README, a licence or the like."""
    return bool(_ABOUT.fullmatch(name)) and size <= _LONGEST_ABOUT_BYTES


def _last(kind: str) -> str:
    return Path(f"x{kind}").suffix


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
    by_corpus: dict[str, dict[str, str]] = {}
    # A pattern may match folders one by one; what counts is below the folder that they share.
    shared = os.path.commonpath([path.parent for path, _ in files])
    for path, name in files:
        found = [_SPLIT.fullmatch(part) for part in path.parent.relative_to(shared).parts]
        stem = path.name.removesuffix("".join(path.suffixes[-1:])) if path.suffix else path.name
        if kind_of(path) in TABLES:
            found.append(_SPLIT_OF_TABLE.match(path.name))
        else:
            found.append(_SPLIT.fullmatch(Path(stem).stem if path.suffix.lower() in _PACKED else stem))
        split = next((one for one in found if one), None)
        if split:
            by_split = by_corpus.setdefault(split["before"].lower(), {})
            by_split.setdefault(split["split"].lower(), name)
    for by_split in by_corpus.values():
        if len(by_split) > 1:
            examples = ", ".join(readable(name) for name in list(by_split.values())[:3])
            raise UserError(
                f"{readable(entry)}: holds several splits ({', '.join(by_split)}: {examples}); say which: "
                f"data.source takes a glob such as {where}train-*.parquet, or a list of several"
            )
