"""Show that a change which should change no number changes none.

    python benchmarks/same_numbers.py OLD_TREE NEW_TREE [--cases WORDS ...] [--cache FILE]

Both are checkouts with a `.venv` of their own (`make install`). Each prepares data and trains as the old
tree's configs/quickstart.yaml and every case below say, and writes, evaluates and exports from the last
checkpoint. Compared are all tensors of that checkpoint, bit for bit, its progress, every column of the tables
that the clock does not decide, and what the other commands wrote. The trees are asked through their commands
alone, so their modules may lie where they like. Exit code 0 if all are equal, 1 if not.

`--cases` picks those whose names contain one of the words. `--cache` keeps what the old tree gave, so that
later calls run the new one only; a file of another machine says nothing, for CPUs differ in the last bits.

Trees from before exact sums differ in two ways on purpose: losses are whole
multiples of 2**-24 now, and Muon multiplies in batches that do not depend on the number of ranks.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

UPDATES, HALF = 12, 6
CLOCK_COLUMNS = {"updates_per_second", "tokens_per_second", "mfu", "memory_gib", "seconds"}
# A digest of the weights, in val.csv and in a checkpoint's progress; older trees write none.
DIGEST = "weights"

# All cases but for what they change. Six blocks: one process has three micro-batches, two have two and two.
BASE = {
    "model.dropout": 0.1,
    "training.lr_decay_updates": UPDATES,
    "training.eval_blocks": 16,
    "training.eval_interval": 4,
    "training.save_interval": 4,
    "training.global_batch_size": 6,
    "training.per_gpu_batch_size": 2,
}


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        optimizer: `adamw` or `muon`.
        precision: `fp32`, `bf16` or `fp16`.
        processes: How many train.
        resumed: Whether the run is stopped halfway and resumed.
        more: What else differs from `BASE`.
    """

    optimizer: str
    precision: str
    processes: int
    resumed: bool = False
    more: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `--cases` picks from."""
        words = [self.optimizer, self.precision, f"{self.processes} process(es)"]
        words += [f"{key}={value}" for key, value in self.more.items()] + ["resumed"] * self.resumed
        return ", ".join(words)


CHECKPOINTING = {"model.gradient_checkpointing": True}
COMPILED = {"training.compile": "on"}
# Two ranks have 3 and 4 blocks; or 2 and 3 of them, where the first rank's second micro-batch is empty.
SEVEN_BLOCKS, FIVE_BLOCKS = {"training.global_batch_size": 7}, {"training.global_batch_size": 5}

CASES = [
    Case("adamw", "fp32", 1),
    Case("adamw", "fp32", 1, resumed=True),
    Case("adamw", "fp32", 2),
    Case("adamw", "fp32", 2, resumed=True),
    Case("muon", "fp32", 1),
    Case("muon", "fp32", 1, resumed=True),
    Case("muon", "fp32", 2),
    Case("muon", "fp32", 2, resumed=True),
    Case("adamw", "bf16", 1),
    Case("adamw", "bf16", 2),
    Case("muon", "bf16", 1),
    Case("muon", "bf16", 2),
    Case("muon", "bf16", 2, resumed=True),
    Case("adamw", "fp16", 1, resumed=True),
    Case("adamw", "fp32", 1, more=CHECKPOINTING),
    Case("muon", "bf16", 2, more=CHECKPOINTING),
    Case("adamw", "fp32", 1, more=COMPILED),
    Case("muon", "bf16", 1, more=COMPILED | CHECKPOINTING),
    Case("adamw", "fp32", 2, more=SEVEN_BLOCKS),
    Case("muon", "bf16", 2, more=SEVEN_BLOCKS),
    Case("adamw", "bf16", 2, more=FIVE_BLOCKS),
    Case("muon", "fp32", 2, more=FIVE_BLOCKS, resumed=True),
    Case("adamw", "fp32", 1, more={"model.positions": "learned", "model.dropout": 0}),
    Case("adamw", "fp32", 2, more={"distributed.compression": "fp16", "distributed.gradient_groups": 1}),
]

PROMPT = ["src.generate", "--prompt", "Enter the king", "--max_new_tokens", 60]
SAMPLED = [*PROMPT, "--seed", 1, "--temperature", 1.2, "--top_p", 0.95, "--repetition_penalty", 1.1]
# Commands that are given a checkpoint.
COMMANDS = {
    "generate, greedy": [*PROMPT, "--temperature", 0],
    "generate, sampled": SAMPLED,
    "generate, four texts": [*SAMPLED, "--num_samples", 4],
    "generate, bf16 weights": [*SAMPLED, "--precision", "bf16"],
    "generate, int8 weights": [*SAMPLED, "--precision", "int8"],
    "evaluate": ["horovod_transformer", "evaluate", "--samples", 4, "--xz", "--output", "REPORT"],
    "export": ["horovod_transformer", "export", "--to", "REPORT"],
}

Outcome = Callable[[Path, Path], dict[str, Any]]
"""What a tree, given first, makes in a folder that is its own."""


def main() -> int:
    """Compare the two trees named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--cases", nargs="+", default=[""], metavar="WORDS")
    parser.add_argument("--cache", type=Path, metavar="FILE")
    options = parser.parse_args()
    old, new = options.old.resolve(), options.new.resolve()
    commit, this_file = commit_of(old), Path(__file__).read_text(encoding="utf-8")
    known = json.loads(options.cache.read_text()) if options.cache and options.cache.exists() else {}
    differences = 0
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, outcome_of) in enumerate(all_cases(old, Path(scratch), options.cases)):
            key = digest([commit, name, torch.__version__, this_file])
            if key not in known:
                known[key] = outcome_of(old, Path(scratch, f"old-{number}"))
                if options.cache and not commit.endswith("-dirty"):
                    options.cache.write_text(json.dumps(known, indent=1))
            outcome = outcome_of(new, Path(scratch, f"new-{number}"))
            equal = outcome == known[key]
            differences += not equal
            print(f"{'equal ' if equal else 'DIFFER'} {name}: {digest(outcome)[:16]}", flush=True)
            if not equal:
                print(json.dumps([known[key], outcome], indent=1)[:3000])
    return 1 if differences else 0


def all_cases(old: Path, scratch: Path, picked: list[str]) -> Iterator[tuple[str, Outcome]]:
    """The name of each case picked, and how its outcome is had; all use what the old tree has prepared."""

    def wanted(name: str) -> bool:
        return any(words in name for words in picked)

    config = old / "configs" / "quickstart.yaml"
    if wanted("prepare"):
        yield "prepare", partial(prepare, config=config)
    data = scratch / "data"
    prepare(old, data, config)
    for case in CASES:
        if wanted(case.name):
            yield case.name, partial(train, config=config, data=data, case=case)
    commands = {name: words for name, words in COMMANDS.items() if wanted(name)}
    if commands:
        train(old, scratch / "run", config, data, CASES[0])
    for name, words in commands.items():
        yield name, partial(use, checkpoint=scratch / "run/checkpoints/last.pt", words=words)


def prepare(tree: Path, folder: Path, config: Path) -> dict[str, Any]:
    """Prepare data in a folder; return the fingerprint of what they hold, and digests of the tables."""
    run(tree, 1, "horovod_transformer", "prepare", "--config", config, "--data.data_dir", folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {"fingerprint": manifest["fingerprint"], "tables": digests(folder, "*.arrow")}


def train(tree: Path, folder: Path, config: Path, data: Path, case: Case) -> dict[str, Any]:
    """Train into a folder; return a digest of the last checkpoint, and the tables."""
    settings = {"training.optimizer": case.optimizer, "training.precision": case.precision}
    settings |= BASE | case.more
    if "sums:" in (tree / "configs" / "config.yaml").read_text(encoding="utf-8"):
        settings["distributed.sums"] = "fast"  # as trees do that know no others
    for end in (HALF, UPDATES) if case.resumed else (UPDATES,):
        run(
            tree, case.processes, "src.train", "--config", config, "--data.data_dir", data,
            "--output_dir", folder, "--run_name", "same", "--resume", "auto", "--training.max_updates", end,
            *(word for key, value in settings.items() for word in (f"--{key}", value)),
        )  # fmt: skip
    contents = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    tables = {}
    for name in ("train.csv", "val.csv"):
        with open(folder / "runs/structured/same" / name, newline="", encoding="utf-8") as file:
            tables[name] = [
                {
                    key: value
                    for key, value in row.items()
                    if key not in CLOCK_COLUMNS | {DIGEST} and not key.startswith("time_")
                }
                for row in csv.DictReader(file)
            ]
    contents["progress"].pop(DIGEST, None)
    parts = ("model", "optimizer", "scheduler", "progress")
    return {**{part: digest(contents[part]) for part in parts}, "tables": tables}


def use(tree: Path, folder: Path, checkpoint: Path, words: list[object]) -> dict[str, Any]:
    """Give a checkpoint to a command; return what it printed and digests of the files it wrote."""
    # A model card bears its folder's name.
    arguments = [folder / "report" if word == "REPORT" else word for word in words]
    printed = run(tree, 1, *arguments, "--checkpoint", checkpoint)
    return {"printed": printed.replace(str(folder), ""), "files": digests(folder, "*")}


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """The SHA-256 of each file of a folder, pages to look at left out, places on this machine as well."""
    found = {}
    for path in sorted(folder.rglob(pattern)):
        if path.is_file() and path.suffix != ".html":
            content = path.read_bytes().replace(bytes(folder), b"").replace(bytes(folder.parent), b"")
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


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


def commit_of(tree: Path) -> str:
    """The commit of a checkout; ends in `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.strip()


def run(tree: Path, processes: int, module: str, *arguments: object) -> str:
    """Run a module of a tree with that tree's Python; return what it printed."""
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
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
