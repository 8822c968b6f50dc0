"""What do gradients cost on their way: in one group, in several, in Horovod's own order?

    horovodrun -np 2 python benchmarks/gradient_group.py [--updates 40]
    sudo .venv/bin/python benchmarks/gradient_group.py --link 1000 [--updates 12]

One group lets no sum begin before the last gradient is there; several leave during the backward pass,
and are as repeatable; Horovod's own order is not repeatable with more than two ranks. Alternates blocks
of updates of the quickstart model of each kind, and prints medians and their ratios to one group.

With `--link` the two ranks are on two hosts, as in `scaling.py`, whose link lets so many Mbit/s pass, and the
model is the one of 30 million parameters that is used there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

import torch
from scaling import SHAPE, shape_link, start_on_hosts

from horovod_transformer import distributed
from horovod_transformer.config import load_config
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.loader import plan_batches, training_loader
from horovod_transformer.model.transformer import build_model
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep

ROUNDS = 4


def main() -> None:
    """Measure all ways in turn, and print on rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=40, help="of each kind")
    parser.add_argument("--link", type=int, metavar="MBIT", help="two hosts with a link of so many Mbit/s")
    options = parser.parse_args()
    if options.link and "RANK" not in os.environ:
        sys.exit(start_on_hosts())
    world_size, rank, _, _ = distributed.setup_horovod(require_distributed=True)
    if options.link:
        shape_link(options.link)
        config = load_config("configs/config.yaml", {key: str(value) for key, value in SHAPE.items()})
    else:
        config = load_config("configs/quickstart.yaml")
    distributed.run_on_rank0(lambda: prepare(config, progress=False) and None)
    data = open_prepared_data(config)
    plan = plan_batches(config.training, data.train, world_size)
    torch.manual_seed(0)
    steps = {}
    for kind, groups in (("one group", 1), ("four groups", 4), ("Horovod's order", None)):
        model = build_model(config.model)
        # Two optimizers are alive at once: their collectives need different names.
        named = [(f"{kind}.{name}", parameter) for name, parameter in model.named_parameters()]
        optimizer = distributed.distribute_optimizer(
            build_optimizer(model, config.training), named, plan.micro_batches, gradient_groups=groups
        )
        steps[kind] = UpdateStep(model, optimizer, plan, torch.device("cpu"), "fp32", 1.0, uses_dropout=False)
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    per_round = max(2, options.updates // ROUNDS)
    for _ in range(ROUNDS):
        for kind, step in steps.items():
            batches = iter(training_loader(data.train, plan, rank, range(per_round)))
            for update in range(per_round):
                began = time.perf_counter()
                step.run(update, batches, 1e-3)
                if update:  # the first of a round warms up
                    seconds[kind].append(time.perf_counter() - began)
    if rank == 0:
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        ratios = {kind: median / medians["one group"] for kind, median in medians.items()}
        spread = {kind: [min(values), max(values)] for kind, values in seconds.items()}
        print(json.dumps({"median_s": medians, "range_s": spread, "ratios": ratios, "ranks": world_size}))


if __name__ == "__main__":
    main()
