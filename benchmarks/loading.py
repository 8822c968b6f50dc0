"""How fast do blocks become batches, with how many loader processes, from memory and from the disk?

    .venv/bin/python benchmarks/loading.py [--millions 100] [--folder /tmp/blocks]

Makes random blocks of 512 tokens and iterates over batches of 32 in the order of training. `warm`: the
files are in memory. `cold`: they were put out of it; `read ahead`: that, and they are read in order
meanwhile, as training does. Medians of three rounds, taken in turn. Run it alone on the machine, from the
repository's root. A local disk says little about a parallel file system.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BLOCK, VOCAB, BATCH = 512, 50257, 32
ROUNDS = 3
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


def measure(folder: Path, workers: int, cold: bool, ahead: bool) -> tuple[float, float]:
    """One round: million tokens a second, and milliseconds of this process's own work for a batch."""
    from horovod_transformer.config import config_from_dict
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.data.loader import plan_updates, training_loader
    from horovod_transformer.data.page_cache import reading_ahead

    if cold:
        put_out_of_memory(list(folder.rglob("*.arrow")))
    values = {"data_dir": str(folder), "num_workers": workers}
    config = config_from_dict({"data": values, "training": {"per_gpu_batch_size": BATCH}}, "benchmark")
    data = open_prepared_data(config)
    plan = plan_updates(config, data.train, 1)
    loader = training_loader(config, data.train, plan, 0, range(plan.total_updates))
    with reading_ahead(data.train.files) if ahead else nullcontext():
        began, worked, tokens = time.perf_counter(), time.thread_time(), 0
        for batch in loader:
            tokens += batch["input_ids"].numel()
            seconds = time.perf_counter() - began
            if tokens >= MOST_TOKENS or seconds > MOST_SECONDS:
                break
        worked = time.thread_time() - worked
    return tokens / seconds / 1e6, worked * 1e3 / (tokens / BLOCK / BATCH)


def main() -> None:
    """Make the blocks, measure in turn, print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=int, default=100, help="million tokens on disk")
    parser.add_argument("--folder", type=Path, help="where; kept, and used again if it is there")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loading-") as temporary:
        folder = options.folder or Path(temporary) / "blocks"
        if not folder.exists():
            make_blocks(folder, options.millions * 1_000_000)
        kinds = [(workers, False, False) for workers in (0, 1, 2)]
        kinds += [(workers, True, ahead) for ahead in (False, True) for workers in (0, 2)]
        found: dict[tuple[int, bool, bool], list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for kind in kinds * ROUNDS:
            found[kind].append(measure(folder, *kind))
    print("| files | loader processes | million tokens/s | the rank's own ms per batch |")
    print("| --- | --- | --- | --- |")
    for (workers, cold, ahead), rounds in found.items():
        state = "cold, read ahead" if ahead else "cold" if cold else "warm"
        speed, worked = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"| {state} | {workers} | {speed:.1f} | {worked:.2f} |")


if __name__ == "__main__":
    main()
