"""What one GPU does with this package: is it right, and how fast?

    python benchmarks/gpu.py                   # on a GPU, about half an hour
    python benchmarks/gpu.py --checks-only     # the first minutes of it
    python benchmarks/gpu.py --tiny            # small shapes, on any machine: does the script work?

Checks first: an update repeats to the bit under `training.deterministic`; a run resumes to the bit from
a checkpoint, with AdamW and with Muon; fp16 survives an overflow; two ranks walk one rank's curve. One
update is profiled. Then tokens/s, MFU and peak memory of the 124M model, one thing changed at a time, and
generation beside Hugging Face's GPT-2 of the same shape where `transformers` is installed. All of it is on
random tokens, and in one process but for the check of two ranks.

Horovod is built by scripts/install_horovod.py if it is not installed (not with `--tiny`). Two ranks can share
one GPU only through Gloo: NCCL refuses, so with a Horovod built for NCCL that check is left out, and says so.
`--checks-only` in another virtual environment, with a Horovod built with HOROVOD_BUILD=cpu, makes it.

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
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from gpu_checks import Case, Checks

from horovod_transformer import distributed
from horovod_transformer.config import ModelConfig
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import bf16_unit, set_arithmetic
from horovod_transformer.training.metric_logger import describe_environment
from horovod_transformer.training.throughput import flops_per_token, peak_flops

TINY = ModelConfig(vocab_size=301, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=32)


class Bench(Checks):
    """Times cases, too; each timing takes `updates` updates."""

    def profile(self, case: Case, trace: Path) -> dict[str, float]:
        """Profile one update into `trace`; return the costliest operations, milliseconds by name."""
        set_arithmetic(self.device, case.precision, deterministic=False)
        step = self.step(case)
        self.run(step, range(3))
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profiler:
            self.run(step, range(3, 4))
            self.synchronize()
        profiler.export_chrome_trace(str(trace))
        on_gpu = self.device.type == "cuda"

        def milliseconds(event: Any) -> float:
            return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000

        costliest = sorted(profiler.key_averages(), key=milliseconds, reverse=True)[:15]
        return {event.key: round(milliseconds(event), 3) for event in costliest}

    def speed(self, case: Case) -> dict[str, Any]:
        """Tokens/s (median update), MFU and peak memory of one case."""
        set_arithmetic(self.device, case.precision, deterministic=False)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            step = self.step(case)
            self.run(step, range(3))  # compiles, and finds memory
            seconds = []
            for number in range(3, 3 + self.updates):
                self.synchronize()
                began = time.perf_counter()
                self.run(step, range(number, number + 1))
                self.synchronize()
                seconds.append(time.perf_counter() - began)
        except torch.OutOfMemoryError:
            return {**dataclasses.asdict(case), "tokens_per_second": None, "why": "out of memory"}
        tokens = case.batch * case.block_size / statistics.median(seconds)
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

    def generation(self, batch: int, tokens: int) -> dict[str, Any]:
        """New tokens/s over all rows, greedy, half precision on a GPU; ours and Hugging Face's."""
        half = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        prompt = torch.zeros(batch, 8, dtype=torch.int64, device=self.device)
        ours = build_model(self.shape).to(self.device, half).eval()
        figures: dict[str, Any] = {
            "batch": batch,
            "ours": self._rate(lambda: ours.generate(prompt, tokens, temperature=0.0), batch * tokens),
        }
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError:
            return {**figures, "hugging_face": None}
        shape = self.shape
        config = GPT2Config(
            vocab_size=shape.vocab_size, n_positions=shape.max_seq_len, n_embd=shape.d_model,
            n_layer=shape.n_layers, n_head=shape.n_heads, n_inner=shape.d_ff,
            bos_token_id=0, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        theirs = GPT2LMHeadModel(config).to(self.device, half).eval()
        mask = torch.ones_like(prompt)

        def write() -> Any:
            return theirs.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False)

        return {**figures, "hugging_face": self._rate(write, batch * tokens)}

    def _rate(self, write: Any, tokens: int) -> float:
        write()
        self.synchronize()
        began = time.perf_counter()
        write()
        self.synchronize()
        return round(tokens / (time.perf_counter() - began), 1)


def cases(base: Case, tiny: bool) -> list[Case]:
    """The table: the default, and one thing changed at a time."""
    change = dataclasses.replace
    if tiny:
        return [base, change(base, optimizer="muon"), change(base, checkpointing=True)]
    longer = change(base, block_size=1024, batch=base.batch // 2)
    return [
        base,
        *(change(base, batch=batch) for batch in (8, 16, 64, 128)),
        longer,
        change(base, compile=False),
        change(base, checkpointing=True),
        change(base, optimizer="muon"),
        change(longer, compile=False),
        change(longer, optimizer="muon"),
    ]


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
    parser.add_argument("--checks-only", action="store_true", help="no tables of speed")
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
    base = Case(32, 4, precision) if options.tiny else Case(512, 32, precision, compile=True)
    eager = dataclasses.replace(base, compile=False)
    muon = dataclasses.replace(eager, optimizer="muon")
    if options.as_rank:
        bench.as_rank(eager, options.as_rank)
        return 0
    chip = bench.card or "cpu"
    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{'-'.join(chip.split())}"
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": f"{datetime.now():%Y-%m-%d}", "chip": chip}
    results["environment"] = {
        key: value for key, value in describe_environment({}).items() if key not in ("command", "platform")
    }

    if not options.tiny:
        results["horovod"] = install_horovod()

    def record(key: str, value: Any) -> None:
        results[key] = value
        newest = value[-1:] if isinstance(value, list) else value
        print(f"{key}: {json.dumps(newest)}", flush=True)
        # After each figure: a run that is cut off keeps what it has.
        text = json.dumps(results, indent=1) + "\n"
        (options.output / f"{name}.json").write_text(text, encoding="utf-8")

    checks = {
        "repeats": lambda: bench.repeats(eager),
        "resumes, adamw": lambda: bench.resumes(eager),
        "resumes, muon": lambda: bench.resumes(muon),
        "fp16 overflows": lambda: bench.overflows(eager),
        "two ranks share": lambda: bench.shares(eager, [__file__, *(["--tiny"] if options.tiny else [])]),
    }
    if base.compile:
        checks["compiled is eager"] = lambda: bench.compiles(eager)
    failed = 0
    for key, check in checks.items():
        problem = check()
        failed += problem is not None and not problem.startswith("left out")
        record(f"check: {key}", problem or "ok")
    record("profile, ms", bench.profile(base, options.output / f"{name}.trace.json"))
    if not options.checks_only:
        for case in cases(base, options.tiny):
            record("speed", [*results.get("speed", []), bench.speed(case)])
        tokens = 8 if options.tiny else 128
        record("generation, tokens/s", [bench.generation(batch, tokens) for batch in (1, 64)])
    print(f"written to {options.output / name}.json")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
