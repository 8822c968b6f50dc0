"""The model and the update step that a run begins with, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable

import torch

from horovod_transformer import distributed
from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.page_cache import free_memory
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.distributed.workers import Workers, twin
from horovod_transformer.model.compilation import choose_compile
from horovod_transformer.model.size import pass_bytes, require_memory
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.precision import set_arithmetic
from horovod_transformer.system.machine import memory_bytes
from horovod_transformer.training.exact_sums import ExactSums
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.resume import Start
from horovod_transformer.training.step import UpdateStep, passes_here


def build_equal_model(
    shape: ModelConfig,
    training: TrainingConfig,
    start: Start,
    device: torch.device,
    beat: Callable[[], None],
) -> tuple[TransformerLM, list[str]]:
    """Build the model with the weights that the run starts with. *Collective.*

    Args:
        shape: Of the model.
        training: The seed of fresh weights, and whether to compile and to repeat to the bit.
        start: The weights, if they come from a checkpoint, and the precision.
        device: Where the model goes.
        beat: Called while weights travel, which may take minutes.

    Returns:
        The model in training mode, compiled if every rank can, and lines for the user.

    Raises:
        UserError: This machine's memory cannot hold it, or it is to be compiled and cannot.
    """
    set_arithmetic(device, start.state.precision, training.deterministic)
    torch.manual_seed(training.seed)
    distributed.raise_on_all_ranks(lambda: require_memory(shape))
    model = build_model(shape)
    # Fresh weights come from rank 0, too: another machine's torch may draw others.
    model.load_state_dict(start.model or distributed.broadcast(model.state_dict(), on_slice=beat))
    model.to(device).train()
    choice = distributed.raise_on_all_ranks(lambda: choose_compile(training.compile, device))
    choices = distributed.gather_objects(choice, "compile")  # all ranks, or none
    if all(compiles for compiles, _ in choices):
        model.compile_layers()
    return model, sorted({note for _, note in choices if note})


def build_step(
    shape: ModelConfig,
    training: TrainingConfig,
    settings: DistributedConfig,
    start: Start,
    model: TransformerLM,
    plan: BatchPlan,
    device: torch.device,
    timer: PhaseTimer,
) -> UpdateStep:
    """Build the optimizer that sums gradients over the ranks, and the update around it. *Collective.*"""
    exact, workers, twins = None, Workers(), []
    if start.state.exact_sums is not None:
        exact = ExactSums(list(model.parameters()), plan.summands, plan.micro_batches)
        if device.type == "cpu":
            workers = Workers(torch.get_num_threads())
            free = (free_memory() or memory_bytes() // 2) // distributed.get_local_size()
            at_once = passes_at_once(shape, plan, workers.number, free)
            twins = [twin(model) for _ in range(at_once - 1)]
            for each in twins:
                exact.follow(list(each.parameters()))
    optimizer = distributed.distribute_optimizer(
        build_optimizer(model, training),
        model.named_parameters(),
        passes_here(plan, len(twins)),
        settings.compression,
        settings.gradient_groups,
        whole_numbers=exact is not None,
        # Passes side by side end together: nothing could leave before. An embedding that is not the output
        # projection has no first part.
        late_tokens=0 if twins or not model.tie_embeddings else plan.piece_size * plan.block_size,
    )
    step = UpdateStep(
        model,
        optimizer,
        plan,
        device,
        start.state.precision,
        training.max_grad_norm,
        uses_dropout=model.dropout.p > 0,
        compression=settings.compression,
        timer=timer,
        exact=exact,
        twins=twins,
        workers=workers,
    )
    if start.optimizer is not None:
        # Horovod's wrapper begins with an empty state, so the state goes in after wrapping.
        state = start.state
        step.load_state_dict(
            {"optimizer": start.optimizer, "loss_scale": state.loss_scale, "sums": state.exact_sums}
        )
    distributed.require_equal_weights(model, "setting up")
    return step


def passes_at_once(shape: ModelConfig, plan: BatchPlan, threads: int, free_bytes: int) -> int:
    """How many passes a rank computes side by side on a CPU; no result depends on it.

    Args:
        shape: Of the model.
        plan: Tells how many passes an update has, and how large they are.
        threads: Of this rank.
        free_bytes: Memory for this rank; half of it is used.
    """
    if shape.dropout:
        return 1  # all passes draw from one source of random numbers
    fit = free_bytes // (2 * pass_bytes(shape, plan.piece_size * plan.block_size))
    return max(1, min(threads, plan.micro_batches, fit))
