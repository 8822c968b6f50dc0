"""How fast this machine trains a model: a few updates on random tokens, by one process."""

from __future__ import annotations

import time
from itertools import count

import torch

from horovod_transformer import distributed
from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.compilation import choose_compile
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import set_arithmetic
from horovod_transformer.training.exact_sums import wants_exact
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.resume import Start, TrainState
from horovod_transformer.training.setup import build_step

# More blocks than any update has.
BLOCKS = 10**9


def measure_tokens_per_second(model: ModelConfig, training: TrainingConfig, seconds: float) -> float:
    """Train for a few seconds and return the speed; the first update, which warms up, does not count.

    Args:
        model: Shape.
        training: Batch, optimizer, precision and device.
        seconds: At least one update is measured, then more until so long has passed.

    Returns:
        Tokens a second of this process, all its threads or its GPU together.
    """
    device, _ = distributed.choose_device(training.device)
    precision = distributed.common_precision(training.precision, device).name
    distributed.set_threads(training.threads_per_rank)
    threads = torch.get_num_threads()
    exact = wants_exact(DistributedConfig(), model.dropout, device)
    plan = BatchPlan.of(training, BLOCKS, model.max_seq_len, 0, 1, exact)
    state = TrainState("", {}, precision=precision, exact_sums={} if exact else None)
    set_arithmetic(device, precision, training.deterministic)
    built = build_model(model).to(device).train()
    if choose_compile(training.compile, device)[0]:
        built.compile_layers()
    try:
        step = build_step(
            model, training, DistributedConfig(), Start(state), built, plan, device, PhaseTimer(device)
        )
        tokens = torch.randint(0, model.vocab_size, (plan.piece_size, model.max_seq_len))
        began = 0.0
        for update in count():
            sizes = [len(plan.micro_batch(update, 0, i)) for i in range(plan.micro_batches)]
            batches = [{"input_ids": tokens[:size], "labels": tokens[:size]} for size in sizes]
            step.run(update, iter(batches), training.learning_rate)
            now = time.perf_counter()
            if update == 0:
                began = now
            elif now - began >= seconds:
                break
    finally:
        torch.set_num_threads(threads)  # exact sums divide work among them in their own way
    return update * plan.global_batch_size * model.max_seq_len / (now - began)
