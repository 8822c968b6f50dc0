"""What the parts of `make bench` share: the machine, contenders in turn, a table, and a line of JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.export import gpt_neox
from horovod_transformer.system.machine import cpu_field, cpu_flags
from horovod_transformer.training.metrics.tables import describe_environment

ROOT = Path(__file__).resolve().parent.parent
# What decides the speed of matrix products.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

GPT2_124M = ModelConfig()
GPT2_30M = ModelConfig(d_model=384, n_layers=6, n_heads=6, d_ff=1536, max_seq_len=256)
TINY = ModelConfig(vocab_size=301, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=32)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: What was measured, shape and batch included.
        unit: Of both figures.
        ours: Median.
        peer: Median of what it is compared with.
        peer_name: What that is.
        smaller_is_better: For seconds and bytes: the ratio is then theirs by ours.
        share: Of the machine's own rate (see the part), between 0 and 1; None if it has no meaning.
    """

    what: str
    unit: str
    ours: float
    peer: float
    peer_name: str = "Hugging Face"
    smaller_is_better: bool = False
    share: float | None = None

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        return self.peer / self.ours if self.smaller_is_better else self.ours / self.peer


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each; the first round of each warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


class OwnProcess:
    """Work that is done in a process of its own whenever this is called: no contender meets another's heap.

    Args:
        make: Called there once, with `arguments`; returns what there is to do. A function of a module.
        arguments: For it.
    """

    def __init__(self, make: Callable[..., Mapping[str, Callable[[], object]]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, name: str) -> None:
        """Do the work of this name once.

        Raises:
            EOFError: The process has failed; it has told why.
        """
        self._pipe.send(name)
        self._pipe.recv()

    def end(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(
    pipe: Connection, make: Callable[..., Mapping[str, Callable[[], object]]], *arguments: object
) -> None:
    works = make(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            works[pipe.recv()]()
            pipe.send("done")


def products(
    size: int = 2048, number: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], None], float]:
    """A contender for `in_turn`: square matrix products on all threads, the most an update could reach.

    In turn with the others, because machines that are shared change from minute to minute.

    Returns:
        The contender, and its floating-point operations.
    """
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    result = torch.empty(size, size, dtype=dtype)

    def multiply() -> None:
        for _ in range(number):
            torch.mm(left, right, out=result)

    return multiply, 2.0 * size**3 * number


def product_rate(rounds: int = 7) -> float:
    """FLOP/s of the machine's products, by themselves."""
    multiply, flops = products()
    return flops / in_turn({"products": multiply}, rounds)["products"]


def hugging_face(shape: ModelConfig) -> torch.nn.Module:
    """transformers' GPT-2 of a shape, or GPT-NeoX with rotary positions, as it comes out of the box.

    Its weights are drawn at random.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    if shape.positions == "rotary":
        values = {**gpt_neox.their_config(shape), "bos_token_id": 0, "eos_token_id": None}
        return GPTNeoXForCausalLM(GPTNeoXConfig(**values))
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.max_seq_len, n_embd=shape.d_model,
        n_layer=shape.n_layers, n_head=shape.n_heads, n_inner=shape.d_ff,
        resid_pdrop=shape.dropout, embd_pdrop=shape.dropout, attn_pdrop=shape.dropout,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def python(*arguments: str, **more: str) -> str:
    """Run Python with these arguments in the root of the repository; return what it printed.

    Raises:
        SystemExit: It failed; says how.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, **more}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def describe_machine() -> dict[str, Any]:
    """Enough to tell later what a figure was measured on."""
    known, flags = describe_environment({}), cpu_flags()
    return {
        "date": f"{date.today()}",
        "cpu": cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "commit": known["git_commit"],
        "python": known["python"],
        "torch": known["packages"]["torch"],
    }


def part(name: str, description: str | None, measure: Callable[[int, bool], list[Row]], rounds: int) -> None:
    """The main program of a part: measure, print a table, and end in one line of JSON.

    Args:
        name: The part's.
        description: Its docstring, shown by --help.
        measure: Is given the number of rounds and whether to use tiny shapes.
        rounds: The default number of them.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="of each contender (default: %(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes: does it work? The figures say nothing"
    )
    options = parser.parse_args()
    rows = measure(options.rounds, options.tiny)
    print(f"{name} | ours | compared with | ratio | of the machine's rate\n--- | --- | --- | --- | ---")
    for row in rows:
        share = "" if row.share is None else f"{row.share:.0%}"
        peer = f"{row.peer:,.4g} ({row.peer_name})"
        print(f"{row.what} | {row.ours:,.4g} {row.unit} | {peer} | {row.ratio:.2f} | {share}")
    found = [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows]
    print(json.dumps({"part": name, "tiny": options.tiny, "rows": found}), flush=True)
