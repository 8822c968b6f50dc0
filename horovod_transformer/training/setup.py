"""The model and the update step that a run begins with, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable

import torch

from horovod_transformer import distributed
from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.compilation import choose_compile
from horovod_transformer.model.size import require_memory
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.precision import set_arithmetic
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.resume import Start
from horovod_transformer.training.step import UpdateStep


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
    training: TrainingConfig,
    settings: DistributedConfig,
    start: Start,
    model: TransformerLM,
    plan: BatchPlan,
    device: torch.device,
    timer: PhaseTimer,
) -> UpdateStep:
    """Build the optimizer that sums gradients over the ranks, and the update around it. *Collective.*"""
    optimizer = distributed.distribute_optimizer(
        build_optimizer(model, training),
        model.named_parameters(),
        plan.micro_batches,
        settings.compression,
        settings.gradient_groups,
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
    )
    if start.optimizer is not None:
        # Horovod's wrapper begins with an empty state, so the state goes in after wrapping.
        step.load_state_dict({"optimizer": start.optimizer, "loss_scale": start.state.loss_scale})
    distributed.require_equal_weights(model, "setting up")
    return step
