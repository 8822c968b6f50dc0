"""Prepared blocks on disk, opened and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from horovod_transformer.config import Config
from horovod_transformer.data.manifest import SPLITS, find_damage, read_manifest, splits_of
from horovod_transformer.data.stored_split import StoredSplit, open_stored_splits
from horovod_transformer.errors import UserError
from horovod_transformer.model.losses import IGNORED_LABEL
from horovod_transformer.system.paths import readable, user_path
from horovod_transformer.tokenizer import Tokenizer, tokenizer_from_dict

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")

_AGAIN = "prepare it again, `horovod-transformer prepare --force`"


def load_preprocessed_data(data_dir: str | Path) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Open the splits `train` and `validation` of prepared data, memory-mapped.

    Args:
        data_dir: A folder that `prepare` or the notebook wrote, or any `DatasetDict` saved with
            these splits and a column `input_ids` of fixed-length lists.

    Returns:
        The training and the validation split.

    Raises:
        UserError: There is no such folder, or it holds something else.
    """
    import datasets  # it loads pandas: half a second that training does without

    load_splits(data_dir)
    path = user_path(data_dir, "data.data_dir")
    splits = _read(path, lambda: datasets.load_from_disk(str(path)))
    return splits["train"], splits["validation"]


def load_splits(data_dir: str | Path) -> dict[str, StoredSplit]:
    """Open all splits of prepared data, as `load_preprocessed_data` does, but without `datasets`.

    Raises:
        UserError: There is no such folder, or it holds something else.
    """
    path = user_path(data_dir, "data.data_dir")
    shown = readable(path)
    if not path.exists():
        raise UserError(
            f"{shown}: no prepared data here; run `horovod-transformer prepare` with the same --config and "
            "keys, or set data.data_dir"
        )
    damage = find_damage(manifest, path) if (manifest := read_manifest(path)) else None
    if damage:
        raise UserError(f"{shown}: {damage}; {_AGAIN}")
    splits = _read(path, lambda: open_stored_splits(path))
    for name in splits_of(manifest):
        if name in splits and not len(splits[name]):
            raise UserError(f"{shown}: the split `{name}` is empty; {_AGAIN}, with more books")
        if name not in splits or "input_ids" not in splits[name].table.column_names:
            raise UserError(f"{shown}: has no split `{name}` with a column `input_ids`; {_AGAIN}")
    return splits


def _read(path: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:
        # Arrow, JSON and the operating system each have their own exceptions for a broken folder.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{readable(path)}: is not readable as prepared data ({reason}); {_AGAIN}") from None


class BlockDataset(Dataset):
    """Blocks of one split as tensors, read straight from the memory-mapped file.

    Args:
        split: Has a column `input_ids` of equally long lists.
        padding: How many tokens at the end of the last block are filling; they are no labels.
        vocab_size: Token ids at or above it are refused.
        name: How errors name the split.

    Raises:
        UserError: The blocks are not of one length.
    """

    def __init__(self, split: StoredSplit, padding: int, vocab_size: int, name: str) -> None:
        self.split = split
        self.padding = padding
        self.vocab_size = vocab_size
        self.name = name
        self._open()

    def _open(self) -> None:
        self._arrays: list[np.ndarray] = []
        for chunk in self.split.table.column("input_ids").chunks:
            fixed = pa.types.is_fixed_size_list(chunk.type)
            if not (fixed or pa.types.is_list(chunk.type)) or not pa.types.is_integer(chunk.type.value_type):
                raise UserError(f"{self.name}: `input_ids` holds {chunk.type}, not lists of whole numbers")
            if not len(chunk):
                continue
            values = chunk.flatten()
            even = fixed or len(set(np.diff(np.from_dlpack(chunk.offsets)))) == 1
            if chunk.null_count or values.null_count or not even:
                raise UserError(
                    f"{self.name}: the blocks are not all of the same length; prepare the data again"
                )
            # `to_numpy` would load pandas first; this is the same mapped memory, read-only.
            self._arrays.append(np.from_dlpack(values).reshape(len(chunk), -1))
        lengths = {array.shape[1] for array in self._arrays}
        if len(lengths) != 1:
            raise UserError(
                f"{self.name}: blocks of different lengths {sorted(lengths)}; prepare the data again"
            )
        self.block_size = lengths.pop()
        self._starts = np.cumsum([0] + [len(array) for array in self._arrays])

    def __getstate__(self) -> dict[str, Any]:
        # A loader process started afresh maps the files again rather than being sent their content.
        return {key: value for key, value in self.__dict__.items() if key not in ("_arrays", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def files(self) -> list[Path]:
        """The files that the blocks lie in."""
        return self.split.files

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Fetch a batch; see `batch`."""
        return self.batch(indices, self.rows(indices))

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Fetch blocks as they are stored, [len(indices), block_size], a copy.

        Raises:
            UserError: An id is outside the vocabulary.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        chunks = np.searchsorted(self._starts, wanted, side="right") - 1
        places = wanted - self._starts[chunks]
        rows = np.empty((len(wanted), self.block_size), dtype=self._arrays[0].dtype)
        for row, (chunk, place) in enumerate(zip(chunks.tolist(), places.tolist(), strict=True)):
            rows[row] = self._arrays[chunk][place]
        if rows.size and (rows.max() >= self.vocab_size or rows.min() < 0):
            row, column = np.argwhere((rows < 0) | (rows >= self.vocab_size))[0]
            raise UserError(
                f"{self.name}, row {indices[row]}: token id {rows[row, column]} is outside the vocabulary "
                f"of {self.vocab_size}; was the data prepared with another tokenizer, or damaged?"
            )
        return rows

    def batch(self, indices: Sequence[int], rows: np.ndarray, pin_memory: bool = False) -> dict[str, Tensor]:
        """Make a batch of blocks: `input_ids` and `labels`, int64 (len(indices), block_size).

        No indices give one block without labels: a rank that has nothing to add to an update
        still takes part in it.

        Args:
            indices: Which blocks they are.
            rows: The blocks as stored, [len(indices), block_size].
            pin_memory: Whether the batch lies in pinned memory, from which a GPU copies while it computes.
        """
        shape = (max(1, len(rows)), self.block_size)
        input_ids = torch.empty(shape, dtype=torch.int64, pin_memory=pin_memory)
        labels = torch.empty(shape, dtype=torch.int64, pin_memory=pin_memory)
        if not len(rows):
            input_ids.zero_()
            labels.fill_(IGNORED_LABEL)
            return {"input_ids": input_ids, "labels": labels}
        input_ids.numpy()[...] = rows
        labels.copy_(input_ids)
        if self.padding:
            last = torch.as_tensor(np.asarray(indices) == len(self) - 1)
            labels[last, self.block_size - self.padding :] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels}


@dataclass(frozen=True)
class PreparedData:
    """Both splits, what `prepare` wrote about them, the tokenizer, and the folder they are in.

    `bytes_per_token` holds each split's UTF-8 bytes of text per token. Data that came without a
    manifest has an empty one, and None for a tokenizer.
    """

    train: BlockDataset
    validation: BlockDataset
    manifest: dict[str, Any]
    tokenizer: Tokenizer | None
    bytes_per_token: dict[str, float]
    folder: Path


def open_prepared_data(config: Config) -> PreparedData:
    """Open `data.data_dir` and check that it fits the model.

    Raises:
        UserError: The data is missing, damaged, or was prepared for another block length or
            vocabulary; both values are named.
    """
    data_dir = user_path(config.data.data_dir, "data.data_dir")
    splits = load_splits(data_dir)
    manifest = read_manifest(data_dir)
    tokenizer = tokenizer_from_dict(manifest["tokenizer"]) if "tokenizer" in manifest else None
    if tokenizer and tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{data_dir}: was prepared with a vocabulary of {tokenizer.vocab_size} tokens, but "
            f"model.vocab_size is {config.model.vocab_size}; make them equal, or prepare the data again"
        )
    opened = {}
    for name in SPLITS:
        padding = _padding(manifest, name, data_dir)
        opened[name] = BlockDataset(splits[name], padding, config.model.vocab_size, f"{data_dir}/{name}")
        length = opened[name].block_size
        if padding >= length:
            raise UserError(
                f"{data_dir}: says that {padding} of {length} tokens of a block are padding; {_AGAIN}"
            )
        if length > config.model.max_seq_len:
            raise UserError(
                f"{data_dir}: blocks of {length} tokens do not fit into model.max_seq_len = "
                f"{config.model.max_seq_len}; make them equal, or prepare the data again"
            )
    ratios = {
        name: split["bytes"] / split["tokens"]
        for name, split in manifest.get("splits", {}).items()
        if split.get("bytes") and split.get("tokens")
    }
    return PreparedData(opened["train"], opened["validation"], manifest, tokenizer, ratios, data_dir)


def _padding(manifest: dict[str, Any], name: str, data_dir: Path) -> int:
    """How many tokens at a split's end are filling; blocks without a manifest are full ones.

    Raises:
        UserError: There is a manifest and it does not say.
    """
    if not manifest:
        return 0
    splits = manifest.get("splits")
    split = splits.get(name) if isinstance(splits, dict) else None
    padding = split.get("padding") if isinstance(split, dict) else None
    if not isinstance(padding, int) or padding < 0:
        raise UserError(
            f"{readable(data_dir)}: its manifest does not say how many tokens at the end of `{name}` are "
            f"padding, and training must not learn those; {_AGAIN}"
        )
    return padding
