"""Does the size of the position table matter? Train the quickstart model with several sizes.

    python benchmarks/position_scale.py [--updates 150] [--seeds 2]

The factor multiplies `POSITION_SCALE`, which makes a position vector as long as a fresh token
embedding. A factor of 35 is the plain table of sines and cosines. Prints validation bits per byte
after the same updates on the same blocks; nothing here depends on the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from horovod_transformer.config import load_config
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.loader import plan_batches, training_loader, validation_loader
from horovod_transformer.metrics import bits_per_byte
from horovod_transformer.model.transformer import build_model
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.optim.schedule import learning_rate
from horovod_transformer.training.step import UpdateStep
from horovod_transformer.training.validation import validate

FACTORS = (0.1, 0.3, 1.0, 3.0, 35.0)
CPU = torch.device("cpu")


def main() -> None:
    """Train each variant and print a table and a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    results = {
        factor: [train(factor, seed, options.updates) for seed in range(options.seeds)] for factor in FACTORS
    }
    for factor, figures in results.items():
        print(f"x {factor:<5} {statistics.mean(figures):.4f}  {[round(figure, 4) for figure in figures]}")
    print(json.dumps({"updates": options.updates, "bits_per_byte": results}))


def train(factor: float, seed: int, updates: int) -> float:
    """Validation bits per byte of the quickstart model whose position table is multiplied by `factor`."""
    config = load_config(
        "configs/quickstart.yaml",
        {"training.seed": seed, "training.eval_blocks": None, "training.global_batch_size": 16},
    )
    prepare(config, progress=False)
    data = open_prepared_data(config)
    torch.manual_seed(seed)
    model = build_model(config.model)
    model.position_table *= factor
    plan = plan_batches(config.training, data.train, world_size=1)
    step = UpdateStep(
        model, build_optimizer(model, config.training), plan, CPU, "fp32", 1.0, uses_dropout=False
    )
    batches = iter(training_loader(data.train, plan, 0, range(updates)))
    for update in range(updates):
        step.run(update, batches, learning_rate(update, config.training, updates))
    figures = validate(
        model, validation_loader(data.validation, plan, 0, config.training.eval_blocks), CPU, "fp32"
    )
    result = bits_per_byte(figures.loss, data.bytes_per_token["validation"])
    assert result is not None
    return result


if __name__ == "__main__":
    main()
