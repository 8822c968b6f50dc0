"""Is training right on this device? The checks of benchmarks/gpu.py, and what its timings build on too.

Each check makes a few updates on random tokens and returns what went wrong, or None.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from horovod_transformer import distributed
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.distributed import weights_digest
from horovod_transformer.launch.launcher import Launcher
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import set_arithmetic
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep

RATE = 6e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to train; a field that is left alone has the default's value."""

    block_size: int
    batch: int
    precision: str
    micro_batches: int = 1
    optimizer: str = "adamw"
    compile: bool = False
    checkpointing: bool = False


class Checks:
    """Builds cases on one device, and checks them.

    Args:
        device: Where to run.
        shape: Of the model.
        updates: How many each half of a check takes.
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
            model.compile_layers()
        training = TrainingConfig(optimizer=case.optimizer, learning_rate=RATE)  # type: ignore[arg-type]
        ranks = distributed.get_world_size()
        blocks, micro = case.batch * case.micro_batches, -(-case.batch // ranks)
        plan = BatchPlan(blocks, case.block_size, 0, blocks, micro, ranks, 10**6, 1337)
        optimizer = distributed.distribute_optimizer(
            build_optimizer(model, training), model.named_parameters(), plan.micro_batches, gradient_groups=4
        )
        return UpdateStep(model, optimizer, plan, self.device, case.precision, 1.0, uses_dropout=False)

    def run(self, step: UpdateStep, updates: range) -> list[float]:
        """Make these updates on random blocks, the same for the same number; return the losses."""
        return [step.run(number, self.batches(step.plan, number), RATE).loss for number in updates]

    def batches(self, plan: BatchPlan, number: int) -> Iterator[dict[str, Tensor]]:
        """This rank's micro-batches of one update: random tokens, in pinned memory as training has them."""
        generator = torch.Generator().manual_seed(number)
        size = (plan.global_batch_size, plan.block_size)
        tokens = torch.randint(0, self.shape.vocab_size, size, generator=generator)
        for place in range(plan.micro_batches):
            mine = plan.micro_batch(number, distributed.get_rank(), place)
            rows = tokens[[position % plan.global_batch_size for position in mine]]
            rows = rows.pin_memory() if self.device.type == "cuda" else rows
            yield {"input_ids": rows, "labels": rows}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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
        """With a loss scale that is far too large fp16 skips updates until it fits, and then makes one."""
        set_arithmetic(self.device, "fp16", deterministic=False)
        step = self.step(dataclasses.replace(case, precision="fp16"))
        step.loss_scale.factor = 2.0**40
        before = weights_digest(step.model)
        for tries in range(40):
            skipped = step.run(0, self.batches(step.plan, 0), RATE).skipped
            if not skipped:
                return None if tries else "a loss scale of 2^40 did not overflow"
            if weights_digest(step.model) != before:
                return "a skipped update changed the weights"
        return "the loss scale never came down to what fits"

    def waits(self, case: Case) -> str | None:
        """The host starts an update without a wait for the GPU, as far as torch's own detector sees."""
        if self.device.type != "cuda":
            return "left out: there is no GPU here"
        set_arithmetic(self.device, case.precision, deterministic=False)
        step = self.step(case)
        self.run(step, range(3))
        batches = list(self.batches(step.plan, 3))
        torch.cuda.set_sync_debug_mode("error")
        try:
            started = step.start(3, iter(batches), RATE)
        except RuntimeError as error:
            return f"an operation waits for the GPU: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        started.result()
        return None

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
            words: The script, and what else makes it one of the ranks beside --as-rank.
        """
        if importlib.util.find_spec("horovod") is None:
            return "left out: no Horovod here"
        if self.device.type == "cuda" and not _sums_gpus_through_gloo():
            return "left out: wants a Horovod built with HOROVOD_BUILD=cuda-without-nccl"
        set_arithmetic(self.device, case.precision, deterministic=True)
        alone = self.run(self.step(case), range(self.updates))
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder, "curve.json")
            command = [sys.executable, *words, "--as-rank", str(found)]
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


def _sums_gpus_through_gloo() -> bool:
    """NCCL refuses two ranks on one GPU, and a Horovod built for CPUs refuses a GPU's tensors."""
    program = "import horovod.torch as hvd; raise SystemExit(hvd.nccl_built() or not hvd.cuda_built())"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
