"""Texts that the model writes while it is being trained, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable

from horovod_transformer import distributed
from horovod_transformer.config import Config
from horovod_transformer.generation import continue_prompt
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.tokenizer import Tokenizer


def write_samples(
    model: TransformerLM, tokenizer: Tokenizer, config: Config, on_wait: Callable[[], None]
) -> dict[str, str]:
    """Continue each of `training.sample_prompts` on rank 0, while the others wait. *Collective.*

    Args:
        model: Left in the mode it was in.
        tokenizer: The data's.
        config: `generation` says how, `training.seed` makes it repeatable.
        on_wait: Called on every rank now and then.

    Returns:
        The text of each prompt, on every rank.
    """
    settings = config.generation.model_copy(update={"num_samples": 1})

    def write() -> dict[str, str]:
        return {
            prompt: continue_prompt(model, tokenizer, prompt, settings, config.training.seed)[0]
            for prompt in config.training.sample_prompts
        }

    return distributed.run_on_rank0(write, on_wait)
