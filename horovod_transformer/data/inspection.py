"""Prepared data looked at: is it what its manifest says, what is in it, and what does a block say."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from horovod_transformer.data.dataset import BlockDataset, load_splits
from horovod_transformer.data.manifest import COUNTS, find_damage, read_manifest, splits_of
from horovod_transformer.data.stored_split import StoredSplit
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable, user_path
from horovod_transformer.tokenizer import Tokenizer, tokenizer_from_dict

_ROWS_AT_A_TIME = 1 << 14


def verify(data_dir: str | Path) -> tuple[dict[str, int], list[str]]:
    """Read all blocks of prepared data and compare them with the manifest.

    Checked are sizes of files, that JSON is JSON, block lengths, numbers of blocks, hashes, the range of
    ids, the number of books, that padding is end-of-text, and that no book is in two splits.

    Args:
        data_dir: The folder.

    Returns:
        Blocks checked per split, and a line for each thing that is wrong.

    Raises:
        UserError: There is no prepared data, or it has no manifest to be compared with.
    """
    folder, manifest, tokenizer = _open(data_dir)
    damage = find_damage(manifest, folder)
    if damage:
        return {}, [damage]
    try:
        opened = load_splits(folder)
    except UserError as error:
        return {}, [str(error)]
    checked: dict[str, int] = {}
    wrong = [
        f"its file {name} is not the JSON that was written"
        for name in manifest.get("sizes", {})
        if name.endswith(".json") and not _is_json(folder / name)
    ]
    books: dict[str, set[bytes]] = {}
    for name in splits_of(manifest):
        split = opened[name]
        checked[name] = len(split)
        try:
            books[name] = _check_split(name, split, manifest, tokenizer, wrong)
        except UserError as error:
            wrong.append(str(error))
            books[name] = set()
    for one, other in itertools.combinations(books, 2):
        both = len(books[one] & books[other])
        if both:
            wrong.append(f"{both:,} books are in {one} and in {other}")
    return checked, wrong


def stats(data_dir: str | Path) -> dict[str, Any]:
    """Return what the manifest says about prepared data, and figures that follow from it."""
    folder, manifest, tokenizer = _open(data_dir)
    splits = manifest["splits"]
    tokens = sum(splits[name]["tokens"] for name in splits_of(manifest))
    return {
        "folder": readable(folder),
        "tokenizer": str(tokenizer),
        "block_size": manifest["block_size"],
        "megabytes_on_disk": round(
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1
        ),
        "tokens": tokens,
        "validation_share": splits["validation"]["tokens"] / tokens,
        "splits": {
            name: {
                **{key: splits[name][key] for key in ("books", "characters", "tokens", "blocks")},
                "tokens_per_book": splits[name]["tokens"] / max(1, splits[name]["books"]),
                "bytes_per_token": splits[name]["bytes"] / splits[name]["tokens"],
            }
            for name in splits_of(manifest)
        },
        "dropped": manifest["dropped"]["counts"],
        "unreadable": manifest["unreadable"]["count"],
        "reencoded": manifest["reencoded"]["count"],
    }


def show(data_dir: str | Path, split: str = "train", block: int = 0, border: str = "⏎ end of book\n") -> str:
    """Return a block as text, with a mark wherever a book ends.

    Args:
        data_dir: The folder.
        split: One of the data's splits.
        block: Which one; negative counts from the end.
        border: The mark.

    Raises:
        UserError: There is no such split or block.
    """
    folder, manifest, tokenizer = _open(data_dir)
    if split not in splits_of(manifest):
        raise UserError(f"no split {readable(split)}; there are {', '.join(splits_of(manifest))}")
    blocks = load_splits(folder)[split]
    if not -len(blocks) <= block < len(blocks):
        raise UserError(f"{readable(folder)}: {split} has the blocks 0 to {len(blocks) - 1}, not {block}")
    ids = blocks.table.column("input_ids")[block % len(blocks)].as_py()
    if block % len(blocks) == len(blocks) - 1:
        ids = ids[: len(ids) - manifest["splits"][split]["padding"]]
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.eos_token_id:
            parts.append([])
        else:
            parts[-1].append(token)
    return border.join(tokenizer.decode(part) for part in parts)


def _open(data_dir: str | Path) -> tuple[Path, dict[str, Any], Tokenizer]:
    folder = user_path(data_dir, "data.data_dir")
    if not folder.is_dir():
        raise UserError(f"{readable(folder)}: no prepared data here; `horovod-transformer prepare` makes it")
    manifest = read_manifest(folder)
    needed = (*COUNTS, "padding", "sha256")
    try:
        splits = [manifest["splits"][name] for name in splits_of(manifest)]
        sound = all(key in split for split in splits for key in needed)
        sound = sound and all(split["tokens"] for split in splits)
        sound = sound and isinstance(manifest["tokenizer"], dict)
        counts = [manifest["block_size"], *(split["padding"] for split in splits)]
        counts += manifest["dropped"]["counts"].values()
        counts += [manifest[key]["count"] for key in ("unreadable", "reencoded")]
        sound = sound and all(type(count) is int for count in counts)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f"{readable(folder)}: has no manifest that `prepare` wrote; nothing to compare it with"
        )
    return folder, manifest, tokenizer_from_dict(manifest["tokenizer"])


def _is_json(path: Path) -> bool:
    """Whether a file can be read as JSON: not all are needed here, but `datasets` needs more of them."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _check_split(
    name: str, split: StoredSplit, manifest: dict[str, Any], tokenizer: Tokenizer, wrong: list[str]
) -> set[bytes]:
    """Add what is wrong with a split; return the digests of its books."""
    said = manifest["splits"][name]
    blocks = BlockDataset(split, said["padding"], tokenizer.vocab_size, name)
    if blocks.block_size != manifest["block_size"]:
        wrong.append(
            f"{name}: blocks have {blocks.block_size} tokens and should have {manifest['block_size']}"
        )
    if len(blocks) != said["blocks"]:
        wrong.append(f"{name}: has {len(blocks):,} blocks and should have {said['blocks']:,}")
    digest, first, ends = hashlib.sha256(), 0, 0
    books: set[bytes] = set()
    book = hashlib.blake2b(digest_size=16)
    for rows in _rows(blocks):
        digest.update(rows.tobytes())
        outside = np.argwhere(rows >= tokenizer.vocab_size)
        if len(outside):
            row, column = outside[0]
            wrong.append(
                f"{name}, block {first + row}: token id {rows[row, column]} is outside the vocabulary of "
                f"{tokenizer.vocab_size}"
            )
        first += len(rows)
        ids, start = rows.reshape(-1), 0
        for end in np.flatnonzero(ids == tokenizer.eos_token_id).tolist():
            ends += 1
            if ends <= said["books"]:  # what follows is padding
                book.update(ids[start:end].tobytes())
                books.add(book.digest())
            book, start = hashlib.blake2b(digest_size=16), end + 1
        book.update(ids[start:].tobytes())
    if digest.hexdigest() != said["sha256"]:
        wrong.append(f"{name}: its blocks are not those that were written (sha256 differs)")
    if ends - said["padding"] != said["books"]:
        wrong.append(
            f"{name}: has {ends - said['padding']:,} ends of books and should have {said['books']:,}"
        )
    if said["padding"] and not (ids[-said["padding"] :] == tokenizer.eos_token_id).all():
        wrong.append(f"{name}: its last {said['padding']} tokens should be padding")
    return books


def _rows(blocks: BlockDataset) -> Iterator[np.ndarray]:
    """The blocks as stored, [blocks, block_size], some at a time."""
    for array in blocks._arrays:
        for start in range(0, len(array), _ROWS_AT_A_TIME):
            yield array[start : start + _ROWS_AT_A_TIME]
