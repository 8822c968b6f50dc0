"""What one GPU does with this package: is it right, and how fast?

    python benchmarks/gpu.py                   # on a GPU: minutes, and Horovod's build
    python benchmarks/gpu.py --checks-only     # is it right?
    python benchmarks/gpu.py --speed-only      # how fast is it?
    python benchmarks/gpu.py --tiny            # small shapes, on any machine: does the script work?

Checks first: an update repeats to the bit under `training.deterministic`; a run resumes to the bit from
a checkpoint, with AdamW, with Muon and compiled; fp16 survives an overflow; the host does not wait for the
GPU; two ranks walk one rank's curve. Then tokens/s, MFU and peak memory of the 124M model, one thing
changed at a time; tokens/s of Hugging Face's GPT-2 of this shape where `transformers` is installed;
generation of both; and a profile of one update. All of it is on random tokens, and in one process but for
the check of two ranks.

Horovod is built by scripts/install_horovod.py if it is not installed (not with `--tiny`). Two ranks can share
one GPU only through Gloo: NCCL refuses, so with a Horovod built for NCCL that check is left out, and says so.
`--checks-only` with a Horovod built with HOROVOD_BUILD=cuda-without-nccl makes it.

Everything is written to a JSON file in benchmarks/results/, with date, chip, versions and commit; the profile
goes next to it as a trace that https://ui.perfetto.dev opens. A failed check is written down and ends the
script with exit code 1. A case that does not fit into memory is written down as such.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_checks import RATE, Case, Checks
from side_by_side import TINY, hugging_face

from horovod_transformer import distributed
from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.model.size import flops_per_token
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import autocast, bf16_unit, set_arithmetic
from horovod_transformer.system.machine import installed_version
from horovod_transformer.training.metrics.tables import describe_environment
from horovod_transformer.training.metrics.throughput import peak_flops
from horovod_transformer.training.results import DeferredResults
from horovod_transformer.training.step import UpdateStep

WINDOWS = 3


class Bench(Checks):
    """Times cases, too; a window of a timing takes `updates` micro-batches or an update."""

    def profile(self, case: Case, trace: Path) -> dict[str, float]:
        """Profile one update into `trace`; return the costliest operations, milliseconds by name."""
        set_arithmetic(self.device, case.precision, deterministic=False)
        step = self.step(case)
        self.run(step, range(3))
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
            self.run(step, range(3, 4))
            self.synchronize()
        profiler.export_chrome_trace(str(trace))
        on_gpu = self.device.type == "cuda"

        def milliseconds(event: Any) -> float:
            return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000

        costliest = sorted(profiler.key_averages(), key=milliseconds, reverse=True)[:15]
        return {event.key: round(milliseconds(event), 3) for event in costliest}

    def speed(self, case: Case) -> dict[str, Any]:
        """Tokens/s (the median of `WINDOWS` windows), MFU and peak memory of one case."""
        set_arithmetic(self.device, case.precision, deterministic=False)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            step = self.step(case)
            self.run(step, range(3))  # compiles, and finds memory
            seconds = [self._seconds_per_update(step, case) for _ in range(WINDOWS)]
        except torch.OutOfMemoryError:
            return {**dataclasses.asdict(case), "tokens_per_second": None, "why": "out of memory"}
        tokens = case.micro_batches * case.batch * case.block_size / statistics.median(seconds)
        parameters = sum(parameter.numel() for parameter in step.model.parameters())
        peak = peak_flops(self.card, case.precision)
        shape = self.shape.model_copy(update={"max_seq_len": case.block_size})
        used = torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None
        return {
            **dataclasses.asdict(case),
            "tokens_per_second": round(tokens),
            "mfu": peak and tokens * flops_per_token(shape, parameters, case.block_size) / peak,
            "peak_memory_gib": used,
            "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        }

    def peer_speed(self, case: Case) -> dict[str, Any]:
        """Tokens/s of Hugging Face's GPT-2 in the same case, with autocast, clipping and fused AdamW.

        No loss is read: the host never waits for the GPU.
        """
        set_arithmetic(self.device, case.precision, deterministic=False)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        model: Any = hugging_face(self.shape.model_copy(update={"max_seq_len": case.block_size}))
        model = model.to(self.device).train()
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        if case.compile:
            model = torch.compile(model)
        tokens = torch.randint(0, self.shape.vocab_size, (case.batch, case.block_size), device=self.device)

        def update() -> None:
            for _ in range(case.micro_batches):
                with autocast(case.precision, self.device):
                    loss = model(input_ids=tokens, labels=tokens).loss
                (loss / case.micro_batches).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        number = self.updates_per_window(case)

        def window() -> None:
            for _ in range(number):
                update()

        try:
            for _ in range(3):
                update()
            seconds = [self._seconds(window) / number for _ in range(WINDOWS)]
        except torch.OutOfMemoryError:
            return {**dataclasses.asdict(case), "tokens_per_second": None, "why": "out of memory"}
        rate = case.micro_batches * tokens.numel() / statistics.median(seconds)
        return {
            **dataclasses.asdict(case),
            "tokens_per_second": round(rate),
            "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        }

    def _seconds_per_update(self, step: UpdateStep, case: Case) -> float:
        """Make a window of updates as training does: each result is read after the next update has begun."""
        batches = [list(self.batches(step.plan, number)) for number in range(self.updates_per_window(case))]

        def window() -> None:
            results = DeferredResults(step.defers_results)
            for number, its in enumerate(batches):
                started = step.start(number, iter(its), RATE)
                results.add(number, 0, started, needed_now=number + 1 == len(batches))

        return self._seconds(window) / len(batches)

    def updates_per_window(self, case: Case) -> int:
        """As many as have `updates` micro-batches."""
        return -(-self.updates // case.micro_batches)

    def products(self, size: int) -> float:
        """FLOP/s of products of two square matrices of random numbers, half precision on a GPU."""
        half = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        left, right = (torch.randn(size, size, device=self.device).to(half) for _ in range(2))

        def five() -> None:
            for _ in range(5):
                left @ right

        return 5 * 2 * size**3 / statistics.median(self._seconds(five) for _ in range(10))

    def generation(self, batch: int, tokens: int) -> dict[str, Any]:
        """New tokens/s over all rows, greedy, half precision on a GPU; ours and Hugging Face's."""
        half = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        prompt = torch.zeros(batch, 8, dtype=torch.int64, device=self.device)
        ours = build_model(self.shape).to(self.device, half).eval()
        figures: dict[str, Any] = {
            "batch": batch,
            "ours": self._rate(lambda: ours.generate(prompt, tokens, temperature=0.0), batch * tokens),
        }
        if importlib.util.find_spec("transformers") is None:
            return {**figures, "hugging_face": None}
        theirs: Any = hugging_face(self.shape).to(self.device, half).eval()
        mask = torch.ones_like(prompt)

        def write() -> Any:
            return theirs.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False)

        return {**figures, "hugging_face": self._rate(write, batch * tokens)}

    def _rate(self, write: Any, tokens: int) -> float:
        write()  # warms up
        return round(tokens / statistics.median(self._seconds(write) for _ in range(WINDOWS)), 1)

    def _seconds(self, work: Callable[[], Any]) -> float:
        """How long this takes, the device's part included."""
        self.synchronize()
        began = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began


def cases(base: Case, tiny: bool) -> list[Case]:
    """The table: the default's micro-batch alone, a whole update of it, and one thing changed at a time."""
    change = dataclasses.replace
    if tiny:
        return [base, change(base, optimizer="muon", micro_batches=2), change(base, checkpointing=True)]
    whole = change(base, micro_batches=4)  # the global batch of configs/config.yaml
    longer = change(whole, block_size=1024, batch=base.batch // 2)
    return [
        base,
        whole,
        longer,
        change(base, batch=32),
        change(whole, batch=128, micro_batches=2),
        change(whole, optimizer="muon"),
        change(base, compile=False),
        change(base, checkpointing=True),
    ]


def within_memory(measure: Callable[[], Any]) -> Any:
    """What `measure` returns, or that it was too much for the card."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return "out of memory"


def install_horovod() -> str:
    """Build and install Horovod if it is not there; return what came of it, in words."""
    if importlib.util.find_spec("horovod") is not None:
        return "found"
    script = Path(__file__).parent.parent / "scripts" / "install_horovod.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
    return "built" if done.returncode == 0 else f"not installed: {last}"


def main() -> int:
    """Check, measure, write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any machine")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checks-only", action="store_true", help="no tables of speed")
    which.add_argument("--speed-only", action="store_true", help="no checks")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="a folder")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)  # `Bench.shares` starts these
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        parser.error(f"torch {torch.__version__} sees no GPU here; --tiny tries the script without")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    precision = "bf16" if device.type == "cuda" and bf16_unit(device) else "fp32"
    bench = Bench(device, TINY if options.tiny else ModelConfig(), updates=3 if options.tiny else 10)
    if options.as_rank:
        # Not the GPU of this rank, as in training: there is one for both.
        distributed.setup_horovod(require_distributed=True, device="cpu")
    base = Case(32, 4, precision) if options.tiny else Case(512, 64, precision, compile=True)
    eager = dataclasses.replace(base, compile=False)
    # What is checked fits into small cards, too.
    small = dataclasses.replace(eager, batch=min(base.batch, 8))
    compiled = dataclasses.replace(small, compile=True)
    muon = dataclasses.replace(small, optimizer="muon")
    if options.as_rank:
        bench.as_rank(small, options.as_rank)
        return 0
    chip = bench.card or "cpu"
    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{'-'.join(chip.split())}"
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": f"{datetime.now():%Y-%m-%d}", "chip": chip}
    results["environment"] = {
        key: value for key, value in describe_environment({}).items() if key not in ("command", "platform")
    }

    results["environment"]["packages"]["transformers"] = installed_version("transformers")
    if not (options.tiny or options.speed_only):
        results["horovod"] = install_horovod()

    def record(key: str, value: Any) -> None:
        results[key] = value
        newest = value[-1:] if isinstance(value, list) else value
        print(f"{key}: {json.dumps(newest)}", flush=True)
        # After each figure: a run that is cut off keeps what it has.
        text = json.dumps(results, indent=1) + "\n"
        (options.output / f"{name}.json").write_text(text, encoding="utf-8")

    checks = {
        "repeats": lambda: bench.repeats(small),
        "resumes, adamw": lambda: bench.resumes(small),
        "resumes, muon": lambda: bench.resumes(muon),
        "fp16 overflows": lambda: bench.overflows(small),
        "two ranks share": lambda: bench.shares(small, [__file__, *(["--tiny"] if options.tiny else [])]),
        "the host does not wait": lambda: bench.waits(small),
        "the host does not wait, muon": lambda: bench.waits(muon),
    }
    if base.compile:
        checks["the host does not wait, compiled"] = lambda: bench.waits(compiled)
        checks["repeats, compiled"] = lambda: bench.repeats(compiled)
        checks["resumes, compiled"] = lambda: bench.resumes(compiled)
        checks["compiled is eager"] = lambda: bench.compiles(small)
    failed = 0
    for key, check in ({} if options.speed_only else checks).items():
        problem = within_memory(check)
        failed += problem is not None and not problem.startswith("left out")
        record(f"check: {key}", problem or "ok")
    if not options.checks_only:
        record("products, TFLOP/s", round(bench.products(64 if options.tiny else 8192) / 1e12, 3))
        for case in cases(base, options.tiny):
            record("speed", [*results.get("speed", []), bench.speed(case)])
        if importlib.util.find_spec("transformers") is not None:
            for case in (base, eager):
                record("hugging face", [*results.get("hugging face", []), bench.peer_speed(case)])
        tokens = 8 if options.tiny else 128
        written = [within_memory(partial(bench.generation, batch, tokens)) for batch in (1, 64)]
        record("generation, tokens/s", written)
        trace = options.output / f"{name}.trace.json"
        record("profile, ms", within_memory(lambda: bench.profile(base, trace)))
    print(f"written to {options.output / name}.json")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
