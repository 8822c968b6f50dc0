"""What exact sums cost: an update with them and with fast sums, in turn, on one process and on two.

    .venv/bin/python benchmarks/exact_sums.py [--rounds 5] [--only 30M]

A process takes all cores, two share them, as they do by default. Fast sums take each rank's share in
micro-batches of `per_gpu_batch_size`; exact ones cut the update into at least `exact_up_to` pieces.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from side_by_side import GPT2_30M, GPT2_124M, TINY, python

from horovod_transformer import distributed
from horovod_transformer.config import load_config
from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.resume import Start, TrainState
from horovod_transformer.training.setup import build_step

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    Attributes:
        model: Shape.
        training: Batch sizes and optimizer.
        up_to: Values of `exact_up_to` to try.
    """

    model: ModelConfig
    training: TrainingConfig
    up_to: tuple[int, ...]


def cases() -> dict[str, Case]:
    """What is measured, by name."""
    quickstart, laptop = (load_config(f"configs/{name}.yaml") for name in ("quickstart", "laptop"))
    adamw: dict[str, Any] = {"global_batch_size": 16, "per_gpu_batch_size": 8, "optimizer": "adamw"}
    return {
        "tiny": Case(TINY, TrainingConfig(**adamw), (8,)),
        "quickstart": Case(quickstart.model, quickstart.training, (2, 4, 8)),
        "laptop": Case(laptop.model, laptop.training, (2, 4, 8)),
        "30M": Case(GPT2_30M, TrainingConfig(**adamw), (2, 8)),
        "124M": Case(GPT2_124M, TrainingConfig(**adamw), (2,)),
    }


def rank(name: str, precision: str, rounds: int) -> None:
    """One rank: rank 0 prints the median seconds of each kind, and how many updates were skipped."""
    case = cases()[name]
    size, place, *_ = distributed.setup_horovod(device="cpu")
    distributed.set_threads(None)
    threads = torch.get_num_threads()
    tokens = torch.randint(0, case.model.vocab_size, (8, case.model.max_seq_len))

    def make(kind: str) -> Any:
        training = case.training.model_copy(update={"exact_up_to": int(kind) if kind.isdigit() else 8})
        plan = BatchPlan.of(training, 10**6, case.model.max_seq_len, 0, size, exact=kind.isdigit())
        state = TrainState("", {}, precision=precision, exact_sums={} if kind.isdigit() else None)
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        model = build_model(case.model).train()
        step = build_step(
            case.model, training, DistributedConfig(), Start(state), model, plan, CPU, PhaseTimer(CPU)
        )
        return step, torch.get_num_threads()

    kinds = ["fast", *map(str, case.up_to)]
    made = {kind: make(kind) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    skipped = dict.fromkeys(kinds, 0)
    for number in range(rounds + 1):
        for kind, (step, own_threads) in made.items():
            torch.set_num_threads(own_threads)
            sizes = [len(step.plan.micro_batch(number, place, i)) for i in range(step.plan.micro_batches)]
            batches = [{"input_ids": tokens[:blocks], "labels": tokens[:blocks]} for blocks in sizes]
            gc.collect()
            began = time.perf_counter()
            result = step.run(number, iter(batches), 1e-4)
            if number:
                seconds[kind].append(time.perf_counter() - began)
            skipped[kind] += result.skipped
    if place == 0:
        medians = {kind: statistics.median(each) for kind, each in seconds.items()}
        for kind, median in medians.items():
            figures = f"{median:.4f} {median / medians['fast']:.3f} {skipped[kind]}"
            os.write(1, f"result {name} {precision} {size} {kind} {figures}\n".encode())


def main() -> None:
    """Measure all cases, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="updates of each kind")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="one of them")
    parser.add_argument("--only", choices=list(cases()), help="one case")
    parser.add_argument("--rank", nargs=2, metavar=("CASE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(*options.rank, options.rounds)
        return
    print("case  precision  processes  sums  seconds  by fast  skipped")
    for name in [options.only] if options.only else [name for name in cases() if name != "tiny"]:
        for precision in [options.precision] if options.precision else ("fp32", "bf16"):
            for processes in (1, 2):
                launch = ["-m", "horovod_transformer", "launch", "-np", str(processes), "--", sys.executable]
                job = [__file__, "--rank", name, precision, "--rounds", str(options.rounds)]
                for line in python(*(launch if processes > 1 else []), *job).splitlines():
                    if line.startswith("result "):
                        print(line.removeprefix("result ").replace(" ", "  "), flush=True)


if __name__ == "__main__":
    main()
