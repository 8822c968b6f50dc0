"""How fast this machine trains models: a few updates of each on random tokens, by one process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count

import torch

from horovod_transformer import distributed
from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.errors import UserError
from horovod_transformer.launch.gpus import GpuCount
from horovod_transformer.model.compilation import choose_compile
from horovod_transformer.model.size import count_parameters, flops_per_token
from horovod_transformer.model.transformer import build_model
from horovod_transformer.planning.machine import Machine
from horovod_transformer.precision import set_arithmetic
from horovod_transformer.system.console import tell
from horovod_transformer.system.machine import memory_bytes, usable_cores
from horovod_transformer.training.exact_sums import wants_exact
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.resume import Start, TrainState
from horovod_transformer.training.setup import build_step

# For one model, its first update apart, which warms up.
SECONDS_EACH = 3.0
# More blocks than any update has.
BLOCKS = 10**9


def machine_here(number: int | None) -> Machine:
    """This machine: its GPUs if it has some, else its cores.

    Args:
        number: How many GPUs to use; None: all.

    Raises:
        UserError: There are fewer.
    """
    there = GpuCount().result()
    if number is not None and number > there:
        has = there or "no"
        raise UserError(f"--gpus {number}: this machine has {has} GPUs; name a kind of others, as --gpu h100")
    if not there:
        cores = usable_cores()
        name = f"{cores} CPU core{'s' * (cores != 1)} here"
        return Machine(name, 1, memory_bytes(), on_gpu=False, here=True, cores=cores)
    card = torch.cuda.get_device_properties(0)
    processes = number or there
    return Machine(f"{processes} x {card.name} here", processes, card.total_memory, on_gpu=True, here=True)


def measure_speeds(cases: Sequence[tuple[ModelConfig, TrainingConfig]], seconds: float) -> dict[int, float]:
    """Measure models from small to large, until the next one would take longer than there is.

    Args:
        cases: Shapes with their settings, the smallest first; that one is always measured.
        seconds: For all of them together.

    Returns:
        Parameters of those measured -> tokens/s of one process.
    """
    speeds: dict[int, float] = {}
    began, operations = time.monotonic(), 0.0
    for model, training in cases:
        parameters = count_parameters(model)
        flops = flops_per_token(model, parameters, model.max_seq_len)
        left = seconds - (time.monotonic() - began)
        if operations:
            update = (training.global_batch_size or 0) * model.max_seq_len * flops / operations
            if max(SECONDS_EACH, 2 * update) > left:
                break
        speeds[parameters] = measure_tokens_per_second(model, training, SECONDS_EACH)
        operations = speeds[parameters] * flops
        tell(f"measured: {parameters / 1e6:,.1f}M parameters, {speeds[parameters]:,.0f} tokens/s")
    return speeds


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
