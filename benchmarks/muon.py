"""What does Muon cost per update, plain and in batches that are shared out over the ranks?

    python benchmarks/muon.py [--shape demo|default] [--steps 5]
    horovodrun -np 2 python benchmarks/muon.py [--shape demo|default] [--steps 5]

Times `optimizer.step()` on random gradients, all kinds in turn, beside AdamW; prints rank 0's median,
quickest and slowest step in seconds. Plain is the form that this program had first: each rank does
all of the work.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from horovod_transformer import distributed
from horovod_transformer.config import Config, load_config
from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.optim.muon import (
    MUON_MOMENTUM,
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_STEPS,
    MuonAdamW,
)
from horovod_transformer.training.optim.optimizer import build_optimizer


class PlainMuon(MuonAdamW):
    """One matrix after the other, all of them on each rank."""

    def _muon_step(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            gradient, momentum = parameter.grad, self._momentum(parameter, None)
            momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
            update = _orthogonalized(gradient.lerp(momentum, MUON_MOMENTUM))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def _orthogonalized(matrix: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.t() if tall else x


def main() -> None:
    """Time all kinds in turn, and print on rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("demo", "default"), default="demo")
    parser.add_argument("--steps", type=int, default=5, help="of each kind")
    options = parser.parse_args()
    world_size, rank, _, _ = distributed.setup_horovod(device="cpu")
    config = load_config("configs/quickstart.yaml") if options.shape == "demo" else Config()
    torch.manual_seed(0)
    model = build_model(config.model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    muon = build_optimizer(model, TrainingConfig(optimizer="muon"))
    groups = [{**group, "params": list(group["params"])} for group in muon.param_groups]
    optimizers = {
        "plain": PlainMuon(groups, fused=True),
        "batches": muon,
        "adamw": build_optimizer(model, TrainingConfig(optimizer="adamw")),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in optimizers}
    for number in range(options.steps + 1):
        for kind, optimizer in optimizers.items():
            distributed.gather_objects(kind, "together")
            began = time.perf_counter()
            optimizer.step()
            if number:  # the first makes the state
                seconds[kind].append(time.perf_counter() - began)
    if rank == 0:
        figures = {kind: [statistics.median(x), min(x), max(x)] for kind, x in seconds.items()}
        rounded = {kind: [round(value, 4) for value in values] for kind, values in figures.items()}
        print(json.dumps({"shape": options.shape, "ranks": world_size, **rounded}))


if __name__ == "__main__":
    main()
