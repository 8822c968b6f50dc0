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
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from horovod_transformer import distributed
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config import ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import UpdatePlan
from horovod_transformer.distributed import weights_digest
from horovod_transformer.distributed.launcher import Launcher
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import bf16_unit, set_arithmetic
from horovod_transformer.training.metric_logger import describe_environment
from horovod_transformer.training.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep
from horovod_transformer.training.throughput import flops_per_token, peak_flops

RATE = 6e-4
TINY = ModelConfig(vocab_size=301, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to train; a field that is left alone has the default's value."""

    block_size: int
    batch: int
    precision: str
    optimizer: str = "adamw"
    compile: bool = False
    checkpointing: bool = False


class Bench:
    """Builds and times cases on one device.

    Args:
        device: Where to run.
        shape: Of the model.
        updates: How many each timing and each half of a check takes.
    """

    def __init__(self, device: torch.device, shape: ModelConfig, updates: int) -> None:
        self.device, self.shape, self.updates = device, shape, updates
        self.card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""

    def step(self, case: Case) -> UpdateStep:
        """A fresh model, the same each time, and its optimizer."""
        torch.manual_seed(1337)
        changes = {"max_seq_len": case.block_size, "gradient_checkpointing": case.checkpointing}
        model = build_model(self.shape.model_copy(update=changes)).to(self.device).train()
        if case.compile:
            model.compile_blocks()
        training = TrainingConfig(optimizer=case.optimizer, learning_rate=RATE)  # type: ignore[arg-type]
        ranks = distributed.get_world_size()
        micro = -(-case.batch // ranks)
        plan = UpdatePlan(case.batch, case.block_size, 0, case.batch, micro, ranks, 10**6, 1337)
        optimizer = distributed.distribute_optimizer(
            build_optimizer(model, training), model.named_parameters(), plan.micro_batches, gradient_groups=4
        )
        return UpdateStep(model, optimizer, plan, self.device, case.precision, 1.0, uses_dropout=False)

    def run(self, step: UpdateStep, updates: range) -> list[float]:
        """Make these updates on random blocks, the same for the same number; return the losses."""
        return [step.run(number, self._batches(step.plan, number), RATE).loss for number in updates]

    def _batches(self, plan: UpdatePlan, number: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(number)
        size = (plan.global_batch_size, plan.block_size)
        tokens = torch.randint(0, self.shape.vocab_size, size, generator=generator)
        for place in range(plan.micro_batches):
            mine = plan.micro_batch(number, distributed.get_rank(), place)
            rows = tokens[[position % plan.global_batch_size for position in mine]]
            yield {"input_ids": rows, "labels": rows}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # --- Checks: each returns what went wrong, or nothing.

    def repeats(self, case: Case) -> str | None:
        """The same updates twice give the same weights, deterministic algorithms being on."""
        set_arithmetic(self.device, case.precision, deterministic=True)
        digests = []
        for _ in range(2):
            step = self.step(case)
            self.run(step, range(self.updates))
            digests.append(weights_digest(step.model))
        return None if digests[0] == digests[1] else "two runs of the same updates differ"

    def resumes(self, case: Case) -> str | None:
        """Half of the updates, a checkpoint, the rest: the weights of a run straight through."""
        set_arithmetic(self.device, case.precision, deterministic=True)
        half, end = range(self.updates), range(self.updates, 2 * self.updates)
        straight = self.step(case)
        self.run(straight, range(2 * self.updates))
        first = self.step(case)
        self.run(first, half)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "last.pt")
            state = first.state_dict()
            rest: dict[str, Any] = {"scheduler": {}, "config": {}, "tokenizer": None}
            rest["progress"] = {"loss_scale": state["loss_scale"]}
            save_checkpoint(
                path, {"model": first.model.state_dict(), "optimizer": state["optimizer"], **rest}
            )
            contents = load_checkpoint(path)
        resumed = self.step(case)
        resumed.model.load_state_dict(contents["model"])
        resumed.load_state_dict({"optimizer": contents["optimizer"], **contents["progress"]})
        self.run(resumed, end)
        same = weights_digest(straight.model) == weights_digest(resumed.model)
        return None if same else "the resumed run differs from the one straight through"

    def overflows(self, case: Case) -> str | None:
        """With a loss scale that is far too large fp16 skips updates until it fits, and then learns."""
        set_arithmetic(self.device, "fp16", deterministic=False)
        step = self.step(dataclasses.replace(case, precision="fp16"))
        step.loss_scale.factor = 2.0**40
        before = weights_digest(step.model)
        for tries in range(40):
            skipped = step.run(0, self._batches(step.plan, 0), RATE).skipped
            if not skipped:
                return None if tries else "a loss scale of 2^40 did not overflow"
            if weights_digest(step.model) != before:
                return "a skipped update changed the weights"
        return "the loss scale never came down to what fits"

    def compiles(self, case: Case) -> str | None:
        """Compiled and eager code walk the same curve, up to rounding in half precision."""
        set_arithmetic(self.device, case.precision, deterministic=False)
        curves = [
            self.run(self.step(dataclasses.replace(case, compile=on)), range(self.updates))
            for on in (False, True)
        ]
        apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
        return None if apart < 2e-2 else f"compiled and eager losses differ by {apart:.3g}"

    def shares(self, case: Case, words: list[str]) -> str | None:
        """Two ranks, sharing the one GPU through Gloo, walk one rank's curve and end with equal weights.

        Args:
            case: What to train.
            words: Of the command line that makes this script one of the ranks.
        """
        if importlib.util.find_spec("horovod") is None:
            return "left out: no Horovod here"
        if self.device.type == "cuda" and _nccl_built():
            return "left out: this Horovod sums through NCCL, which refuses two ranks on one GPU"
        set_arithmetic(self.device, case.precision, deterministic=True)
        alone = self.run(self.step(case), range(self.updates))
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder, "curve.json")
            command = [sys.executable, __file__, "--as-rank", str(found), *words]
            code = Launcher(2, command).run()
            if code:
                return f"two ranks ended with exit code {code}"
            outcome = json.loads(found.read_text(encoding="utf-8"))
        if len(set(outcome["digests"])) > 1:
            return "the two ranks' weights differ"
        apart = max(abs(a - b) for a, b in zip(alone, outcome["losses"], strict=True))
        limit = 1e-4 if case.precision == "fp32" else 2e-2
        return None if apart < limit else f"losses of one rank and of two differ by {apart:.3g}"

    def as_rank(self, case: Case, target: Path) -> None:
        """Be one of the ranks of `shares`; rank 0 writes what came of it. *Collective.*"""
        set_arithmetic(self.device, case.precision, deterministic=True)
        step = self.step(case)
        losses = self.run(step, range(self.updates))
        digests = distributed.gather_objects(str(weights_digest(step.model)), "digests")
        if distributed.is_main_process():
            target.write_text(json.dumps({"losses": losses, "digests": digests}), encoding="utf-8")

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

    # --- Speed

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


def _nccl_built() -> bool:
    program = "import horovod.torch as hvd; raise SystemExit(not hvd.nccl_built())"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


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
        # After each figure: a session that is cut off keeps what it has.
        text = json.dumps(results, indent=1) + "\n"
        (options.output / f"{name}.json").write_text(text, encoding="utf-8")

    checks = {
        "repeats": lambda: bench.repeats(eager),
        "resumes, adamw": lambda: bench.resumes(eager),
        "resumes, muon": lambda: bench.resumes(muon),
        "fp16 overflows": lambda: bench.overflows(eager),
        "two ranks share": lambda: bench.shares(eager, ["--tiny"] if options.tiny else []),
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
