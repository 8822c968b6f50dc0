"""Is one tree slower than the other, or does it hold more memory?

    python benchmarks/two_trees.py OLD_TREE NEW_TREE [--rounds 5] [--cases WORDS ...] [--tiny]

Both are checkouts with a `.venv` of their own (`make install`). They take turns at the same training runs,
each run a process of its own on all cores. Printed are the median seconds of an update, of which the first
three do not count, and the median peak of the process's resident memory; beside the ratios of the new tree to
the old one stand the least and the greatest of single rounds. The trees are asked through their commands
alone, so their modules may lie where they like. OLD twice shows how much of a ratio is noise.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WARM_UP = 3
QUICKSTART = ["--training.global_batch_size", "32", "--training.per_gpu_batch_size", "16"]
GPT2_30M = [
    "--model.vocab_size", "50257", "--model.d_model", "384", "--model.n_layers", "6", "--model.n_heads", "6",
    "--model.d_ff", "1536", "--training.global_batch_size", "16", "--training.per_gpu_batch_size", "8",
]  # fmt: skip
TINY = ["--training.global_batch_size", "2", "--training.threads_per_rank", "1"]
# Name -> tokens of a block, updates, and what the run changes in the old tree's configs/quickstart.yaml.
CASES = {
    f"{shape}, {precision}, {optimizer}": (
        block,
        updates,
        [*changes, "--training.precision", precision, "--training.optimizer", optimizer],
    )
    for shape, block, updates, changes, optimizer in (
        ("quickstart", 128, 40, QUICKSTART, "muon"),
        ("30M, T=256", 256, 8, GPT2_30M, "adamw"),
    )
    for precision in ("fp32", "bf16")
}


def main() -> None:
    """Compare the two trees named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="WORDS", help="pick some by their names")
    parser.add_argument("--tiny", action="store_true", help="short blocks and runs: does it work?")
    options = parser.parse_args()
    trees = [options.old.resolve(), options.new.resolve()]
    print("case | s per update, old | new | ratio | peak MB, old | new | ratio")
    print("--- | --- | --- | --- | --- | --- | ---")
    for name, (block, updates, changes) in CASES.items():
        if not any(words in name for words in options.cases):
            continue
        if options.tiny:
            block, updates, changes = 16, WARM_UP + 2, changes + TINY
        with tempfile.TemporaryDirectory() as scratch:
            data = ["--config", f"{trees[0]}/configs/quickstart.yaml", "--data.data_dir", f"{scratch}/data"]
            data += ["--model.max_seq_len", str(block)]
            run(trees[0], "horovod_transformer", "prepare", *data)
            found: list[list[tuple[float, float]]] = [[], []]
            for turn in range(options.rounds):
                for who in (0, 1) if turn % 2 == 0 else (1, 0):
                    folder = Path(scratch, f"{turn}-{who}")
                    found[who].append(measure(trees[who], folder, updates, [*data, *changes]))
        old, new = (list(zip(*each, strict=True)) for each in found)
        print(f"{name} | {compare(old[0], new[0], '.4f')} | {compare(old[1], new[1], '.0f')}", flush=True)


def measure(tree: Path, folder: Path, updates: int, arguments: list[str]) -> tuple[float, float]:
    """Train in a tree; return the median seconds of an update and the process's peak in MB."""
    peak = run(
        tree, "src.train", "--output_dir", str(folder), "--run_name", "speed", *arguments,
        "--training.max_updates", str(updates), "--training.eval_interval", "1000",
        "--training.eval_blocks", "1", "--training.save_interval", "1000",
    )  # fmt: skip
    with open(folder / "runs/structured/speed/train.csv", newline="", encoding="utf-8") as file:
        ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    seconds = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    return statistics.median(seconds[WARM_UP - 1 :]), peak


def run(tree: Path, module: str, *arguments: str) -> float:
    """Run a module of a tree with that tree's Python; return its peak in MB."""
    command = [f"{tree}/.venv/bin/python", "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=tree, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        if process.returncode is None:  # wait4 has taken it from Popen
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{output.read()}")
    return usage.ru_maxrss * 1024 / 1e6


def compare(old: tuple[float, ...], new: tuple[float, ...], form: str) -> str:
    """Medians of both, and new by old with the range of the rounds."""
    ratios = [after / before for before, after in zip(old, new, strict=True)]
    before, after = statistics.median(old), statistics.median(new)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return f"{before:{form}} | {after:{form}} | {after / before:.3f} ({spread})"


if __name__ == "__main__":
    main()
