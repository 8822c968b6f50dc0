"""How fast do blocks become batches, with how many loader processes, from memory and from the disk?

    .venv/bin/python benchmarks/loading.py [--rounds 3]

Makes 100 million random tokens in blocks of 512 and iterates over batches of 32 in the order of training,
beside the same files as `datasets` gives them out in torch's format, shuffled by torch's own loader. `warm`:
the files are in memory. `cold`: they were put out of it; `read ahead`: that, and they are read in order
meanwhile, as training does. Medians of rounds taken in turn. Run it alone on the machine. A local disk says
little about a parallel file system.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from side_by_side import Row, part

BLOCK, VOCAB, BATCH = 512, 50257, 32
# A round ends after so many tokens, or so many seconds.
MOST_TOKENS, MOST_SECONDS = 30_000_000, 8.0


def make_blocks(folder: Path, tokens: int) -> None:
    """Write a training split of random blocks, and a small validation split."""
    import datasets
    import numpy as np
    import pyarrow as pa

    features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("uint16"), length=BLOCK)})
    splits = datasets.DatasetDict()
    for name, blocks in (("train", tokens // BLOCK), ("validation", 100)):
        ids = np.random.default_rng(0).integers(0, VOCAB, blocks * BLOCK, dtype=np.uint16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(ids), BLOCK)
        table = pa.Table.from_arrays([column], schema=features.arrow_schema)
        splits[name] = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    splits.save_to_disk(str(folder))


def put_out_of_memory(files: list[Path]) -> None:
    """Have the system forget what it holds of these files; nobody may have them mapped."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(folder: Path, workers: int, cold: bool = False, ahead: bool = False) -> tuple[float, float]:
    """One round of this package; see `timed`."""
    from horovod_transformer.config import config_from_dict
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.data.loader import plan_batches, training_loader
    from horovod_transformer.data.page_cache import reading_ahead

    if cold:
        put_out_of_memory(list(folder.rglob("*.arrow")))
    values = {"data_dir": str(folder), "num_workers": workers}
    config = config_from_dict({"data": values, "training": {"per_gpu_batch_size": BATCH}}, "benchmark")
    data = open_prepared_data(config)
    plan = plan_batches(config.training, data.train, 1)
    loader = training_loader(data.train, plan, 0, range(plan.total_updates), workers)
    with reading_ahead(data.train.files) if ahead else nullcontext():
        return timed(loader)


def theirs(folder: Path, workers: int) -> tuple[float, float]:
    """One round of `datasets` and torch's loader."""
    import datasets

    split = datasets.load_from_disk(str(folder))["train"].with_format("torch")
    return timed(torch.utils.data.DataLoader(split, batch_size=BATCH, shuffle=True, num_workers=workers))


def timed(loader: Iterable[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Million tokens a second, and milliseconds of this process's own work for a batch."""
    began, worked, tokens = time.perf_counter(), time.thread_time(), 0
    for batch in loader:
        tokens += batch["input_ids"].numel()
        seconds = time.perf_counter() - began
        if tokens >= MOST_TOKENS or seconds > MOST_SECONDS:
            break
    worked = time.thread_time() - worked
    return tokens / seconds / 1e6, worked * 1e3 / (tokens / BLOCK / BATCH)


def measure(rounds: int, tiny: bool) -> list[Row]:
    """All in turn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loading-") as temporary:
        folder = Path(temporary) / "blocks"
        make_blocks(folder, (1 if tiny else 100) * 1_000_000)
        runs = {
            **{f"ours {workers}": partial(ours, folder, workers) for workers in (0, 2)},
            **{f"theirs {workers}": partial(theirs, folder, workers) for workers in (0, 2)},
            "cold": partial(ours, folder, 0, cold=True),
            "ahead": partial(ours, folder, 0, cold=True, ahead=True),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for name in list(runs) * rounds:
            found[name].append(runs[name]())
    medians = {
        name: [statistics.median(values) for values in zip(*each, strict=True)]
        for name, each in found.items()
    }
    rows = []
    for workers in (0, 2):
        (speed, work), (their_speed, their_work) = medians[f"ours {workers}"], medians[f"theirs {workers}"]
        what = f"warm, {workers} loader processes"
        rows.append(Row(what, "million tokens/s", speed, their_speed, peer_name="datasets"))
        what += ", a rank's own work for a batch"
        rows.append(Row(what, "ms", work, their_work, peer_name="datasets", smaller_is_better=True))
    ahead, cold = medians["ahead"][0], medians["cold"][0]
    rows.append(Row("cold, read ahead", "million tokens/s", ahead, cold, peer_name="not read ahead"))
    return rows


if __name__ == "__main__":
    part("loading", __doc__, measure, rounds=3)
