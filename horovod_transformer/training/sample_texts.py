"""Texts that the model writes while it is being trained, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from horovod_transformer import distributed
from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.generation import continue_prompt
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.tokenizer import Tokenizer
from horovod_transformer.training.due import Every
from horovod_transformer.training.metrics.logger import MetricLogger


class SampleWriter:
    """Lets the model continue a few prompts every so often.

    Args:
        model: Left in the mode it is in.
        tokenizer: The data's; None where the data came without.
        prompts: What to continue.
        settings: How to write.
        seed: Makes the texts repeatable.
        every: When texts are due.
        logger: Keeps them.
        on_wait: Called on every rank now and then while rank 0 writes.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer | None,
        prompts: Sequence[str],
        settings: GenerationConfig,
        seed: int,
        every: Every,
        logger: MetricLogger,
        on_wait: Callable[[], None],
    ) -> None:
        self._model, self._tokenizer, self._prompts, self._seed = model, tokenizer, prompts, seed
        self._settings = settings.model_copy(update={"num_samples": 1})
        self.every, self._logger, self._on_wait = every, logger, on_wait

    def write_if_due(self, update: int) -> None:
        """Write and log a text for each prompt, on rank 0, if they are due. *Collective.*"""
        if not self.every.is_due(update):
            return
        tokenizer = self._tokenizer
        if tokenizer is None:
            self._logger.say("no sample texts: the data came without a tokenizer")
            return

        def write() -> dict[str, str]:
            return {
                prompt: continue_prompt(self._model, tokenizer, prompt, self._settings, self._seed)[0]
                for prompt in self._prompts
            }

        texts = distributed.run_on_rank0(write, self._on_wait, "writing sample texts")
        for prompt, text in texts.items():
            self._logger.log_sample(update, prompt, text)
