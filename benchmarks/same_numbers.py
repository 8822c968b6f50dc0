"""Show that a change which should change no number changes none.

    python benchmarks/same_numbers.py OLD_TREE NEW_TREE

Both are checkouts with a `.venv` of their own (`make install`). Each trains the quickstart model with
dropout, with AdamW and with Muon, on one and on two processes, straight through and stopped halfway and
resumed. Compared are all tensors of the last checkpoint, bit for bit, and every column of the tables that
the clock does not decide. Exit code 0 if all are equal, 1 if not.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

UPDATES, HALF = 12, 6
CLOCK_COLUMNS = {"updates_per_second", "tokens_per_second", "mfu", "memory_gib", "seconds"}


def main() -> int:
    """Compare the two trees named on the command line."""
    old, new = (Path(word).resolve() for word in sys.argv[1:3])
    differences = 0
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        run(
            old,
            1,
            "horovod_transformer",
            "prepare",
            "--config",
            "configs/quickstart.yaml",
            "--data.data_dir",
            data,
        )
        for optimizer, processes, resumed in itertools.product(("adamw", "muon"), (1, 2), (False, True)):
            outcomes = [
                outcome(
                    tree,
                    Path(scratch, f"{place}-{optimizer}-{processes}-{resumed}"),
                    data,
                    optimizer,
                    processes,
                    resumed,
                )
                for place, tree in (("old", old), ("new", new))
            ]
            equal = outcomes[0] == outcomes[1]
            differences += not equal
            what = f"{optimizer}, {processes} process(es), {'resumed' if resumed else 'straight through'}"
            print(f"{'equal ' if equal else 'DIFFER'} {what}: {outcomes[1]['digest'][:16]}", flush=True)
            if not equal:
                print(json.dumps(outcomes, indent=1)[:2000])
    return 1 if differences else 0


def outcome(
    tree: Path, folder: Path, data: Path, optimizer: str, processes: int, resumed: bool
) -> dict[str, Any]:
    """Train in a tree; return the digest of the last checkpoint's tensors and the tables."""
    for end in (HALF, UPDATES) if resumed else (UPDATES,):
        run(
            tree, processes, "src.train", "--config", "configs/quickstart.yaml", "--data.data_dir", data,
            "--output_dir", folder, "--run_name", "same", "--resume", "auto",
            "--model.dropout", 0.1, "--training.optimizer", optimizer, "--training.max_updates", end,
            "--training.lr_decay_updates", UPDATES, "--training.eval_blocks", 16,
            "--training.eval_interval", 4, "--training.save_interval", 4, "--training.global_batch_size", 6,
            "--training.per_gpu_batch_size", 2, "--training.precision", "fp32",
        )  # fmt: skip
    contents = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    tables = {}
    for name in ("train.csv", "val.csv"):
        with open(folder / "runs/structured/same" / name, newline="", encoding="utf-8") as file:
            tables[name] = [
                {
                    key: value
                    for key, value in row.items()
                    if key not in CLOCK_COLUMNS and not key.startswith("time_")
                }
                for row in csv.DictReader(file)
            ]
    return {
        "digest": digest({"model": contents["model"], "optimizer": contents["optimizer"]}),
        "tables": tables,
    }


def digest(value: Any) -> str:
    """SHA-256 over nested dicts and lists of tensors and numbers."""
    if isinstance(value, torch.Tensor):
        text = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        text = "".join(f"{key}:{digest(item)};" for key, item in sorted(value.items(), key=str)).encode()
    elif isinstance(value, list | tuple):
        text = "".join(map(digest, value)).encode()
    else:
        text = repr(value).encode()
    return hashlib.sha256(text).hexdigest()


def run(tree: Path, processes: int, module: str, *arguments: object) -> None:
    """Run a module of a tree with that tree's Python."""
    programs = tree / ".venv" / "bin"
    command = [str(programs / "python"), "-m", module, *map(str, arguments)]
    if processes > 1:
        command = [str(programs / "horovodrun"), "-np", str(processes), *command]
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
