"""What computes: this machine, or so many GPUs of a kind; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.model.size import count_parameters, flops_per_token, gpu_bytes, pass_bytes
from horovod_transformer.planning.rates import Device

# Weights, gradients and AdamW's two moments, all float32.
BYTES_OF_A_PARAMETER = 16


@dataclass(frozen=True)
class Machine:
    """What a plan is made for.

    Attributes:
        name: In words, such as "2 cores" or "4 x h100".
        processes: Processes of a run, one per GPU.
        memory_bytes: Of each device.
        on_gpu: Whether these are GPUs.
        here: Whether it is this machine, whose speed can be measured.
        cores: That compute passes side by side; 1 where GPUs compute.
    """

    name: str
    processes: int
    memory_bytes: int
    on_gpu: bool
    here: bool
    cores: int = 1


def gpus(device: Device, number: int) -> Machine:
    """So many GPUs of a kind."""
    return Machine(f"{number} x {device.name}", number, int(device.memory_gb * 1e9), on_gpu=True, here=False)


def modelled_speed(device: Device, number: int, model: ModelConfig, training: TrainingConfig) -> float:
    """Tokens/s of so many GPUs together, from one rate and the model of docs/scaling.md."""
    parameters = count_parameters(model)
    of_one = device.tokens_per_second(flops_per_token(model, parameters, model.max_seq_len))
    assert training.global_batch_size is not None
    seconds = training.global_batch_size * model.max_seq_len / number / of_one
    return number * of_one * device.efficiency(number, parameters, seconds)


def completed_speeds(
    measured: Mapping[int, float], models: Sequence[ModelConfig], processes: int
) -> dict[int, float]:
    """Tokens/s of all processes together for every model; those not measured compute as the largest that was.

    Args:
        measured: Parameters -> tokens/s of one process; not empty.
        models: From small to large.
        processes: That share the work, without a loss.
    """
    speeds = {}
    operations = 0.0
    for model in models:
        parameters = count_parameters(model)
        flops = flops_per_token(model, parameters, model.max_seq_len)
        one = measured.get(parameters, operations / flops)
        operations = one * flops
        speeds[parameters] = one * processes
    return speeds


def device_bytes(model: ModelConfig, training: TrainingConfig, machine: Machine) -> int:
    """Memory of one process, about: weights, gradients, moments, and what its passes keep."""
    tokens = training.per_gpu_batch_size * model.max_seq_len
    if machine.on_gpu:
        accumulates = (training.global_batch_size or 0) > training.per_gpu_batch_size * machine.processes
        return gpu_bytes(model, tokens, accumulates, machine.memory_bytes)
    return BYTES_OF_A_PARAMETER * count_parameters(model) + pass_bytes(model, tokens)
