"""Two processes against one, and Horovod (ours) against torch's DistributedDataParallel over Gloo.

    .venv/bin/python benchmarks/processes.py [--rounds 5]

The same model, loss and optimizer (30M, T=256, B=8 a rank, fused AdamW), one thread a rank; the jobs take
turns. Ours sums its gradients as training does by default, DDP in its own buckets.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from side_by_side import GPT2_30M, TINY, Row, part, python
from torch import Tensor, nn
from update import RATE

from horovod_transformer import distributed
from horovod_transformer.config_sections import DistributedConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep

UPDATES = 4


class MeanLoss(nn.Module):
    """The model's training path as a module, as DistributedDataParallel wants it."""

    def __init__(self, model: TransformerLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean loss (scalar) of tokens, int64 (B, T)."""
        return self.model.loss_sums(tokens, tokens)[0] / tokens.numel()


def our_rank(model: TransformerLM, tokens: Tensor) -> Callable[[], object]:
    """An update of one rank of a Horovod job, or of none."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size, rank, _, _ = distributed.setup_horovod(flops_per_update=2 * 6 * parameters * tokens.numel())
    tokens = tokens.roll(rank)
    batch, length = tokens.shape
    plan = BatchPlan(size * batch, length, 0, size * batch, batch, size, 10**6, 1337)
    optimizer = distributed.distribute_optimizer(
        build_optimizer(model, TrainingConfig(learning_rate=RATE)),
        list(model.named_parameters()),
        plan.micro_batches,
        gradient_groups=DistributedConfig().gradient_groups,
    )
    step = UpdateStep(model, optimizer, plan, torch.device("cpu"), "fp32", 1.0, uses_dropout=False)
    return lambda: step.run(0, iter([{"input_ids": tokens, "labels": tokens}]), RATE)


def ddp_rank(model: TransformerLM, tokens: Tensor) -> Callable[[], object]:
    """An update of one rank under torchrun."""
    torch.distributed.init_process_group("gloo")
    tokens = tokens.roll(torch.distributed.get_rank())
    loss = nn.parallel.DistributedDataParallel(MeanLoss(model))
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=RATE))

    def update() -> None:
        loss(tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def rank(kind: str, tiny: bool) -> None:
    """Run as one rank; prints the seconds of its median update."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = TINY if tiny else GPT2_30M
    tokens = torch.randint(0, shape.vocab_size, (8, shape.max_seq_len))
    update = (ddp_rank if kind == "ddp" else our_rank)(build_model(shape).train(), tokens)
    seconds = []
    for number in range(UPDATES + 1):
        began = time.perf_counter()
        update()
        if number:
            seconds.append(time.perf_counter() - began)
    # One write for a line: torchrun's ranks share a pipe, and print() may write in pieces.
    os.write(1, f"seconds {statistics.median(seconds)}\n".encode())


def measure(rounds: int, tiny: bool) -> list[Row]:
    """One process, two through Horovod, two through DDP."""
    me = [__file__, "--rank"]
    more = ["--tiny"] if tiny else []
    jobs = {
        "alone": [*me, "alone", *more],
        "horovod": [
            "-m",
            "horovod_transformer",
            "launch",
            "-np",
            "2",
            "--",
            sys.executable,
            *me,
            "ours",
            *more,
        ],
        "ddp": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *me, "ddp", *more],
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            told = [line.split() for line in python(*job, OMP_NUM_THREADS="1").splitlines()]
            # The slower rank decides; of a Horovod job rank 0 alone is heard, and ranks wait for each other.
            seconds[name].append(max(float(words[1]) for words in told if words[:1] == ["seconds"]))
    tokens = 8 * (TINY if tiny else GPT2_30M).max_seq_len
    speed = {
        name: tokens * (1 if name == "alone" else 2) / statistics.median(each)
        for name, each in seconds.items()
    }
    shape = "tiny, B=8" if tiny else "30M, T=256, B=8"
    return [
        Row(f"two processes, {shape}", "tokens/s", speed["horovod"], speed["ddp"], peer_name="DDP"),
        Row(f"two processes, {shape}", "tokens/s", speed["horovod"], speed["alone"], peer_name="one process"),
        Row(f"DDP's two, {shape}", "tokens/s", speed["ddp"], speed["alone"], peer_name="one process"),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], "--tiny" in sys.argv)
    else:
        part("processes", __doc__, measure, rounds=5)
