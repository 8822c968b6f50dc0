"""What a run would be, told without starting it."""

from __future__ import annotations

import torch

from horovod_transformer import distributed
from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.dataset import PreparedData
from horovod_transformer.data.held_out import held_out_warnings
from horovod_transformer.data.loader import plan_batches
from horovod_transformer.planning.machine import device_bytes
from horovod_transformer.reports.formats import byte_size, duration
from horovod_transformer.training.exact_sums import wants_exact
from horovod_transformer.training.run_summary import RunSummary
from horovod_transformer.training.speed import machine_here, measure_tokens_per_second

SECONDS_TO_MEASURE = 5.0


def describe_run(
    model: ModelConfig, training: TrainingConfig, settings: DistributedConfig, data: PreparedData
) -> list[str]:
    """What a run says before its first update, and how long it would take here; nothing is written.

    Args:
        model, training, settings: Sections of the config.
        data: The prepared data.

    Returns:
        Lines for the user. The time is measured on a few updates of one process.
    """
    device, _ = distributed.choose_device(training.device)
    exact = wants_exact(settings, model.dropout, device)
    plan = plan_batches(training, data.train, 1, exact)
    summary = RunSummary.of(model, training, plan, data.folder)
    shape = model.model_copy(update={"max_seq_len": plan.block_size})
    speed = measure_tokens_per_second(shape, training, SECONDS_TO_MEASURE)
    update = plan.global_batch_size * plan.block_size / speed
    memory = device_bytes(shape, training, machine_here(1 if device.type == "cuda" else None))
    seconds = summary.tokens / speed
    return [
        f"{summary.parameters:,} parameters; about {byte_size(memory)} of memory (reckoned)",
        *summary.introduction(training, plan),
        *(f"warning: {line}" for line in held_out_warnings(data.train, data.validation)),
        f"time: {update:.2f} s an update, {speed:,.0f} tokens/s (measured, one process of "
        f"{torch.get_num_threads()} threads): {duration(seconds)} in all, validation and checkpoints apart",
    ]
