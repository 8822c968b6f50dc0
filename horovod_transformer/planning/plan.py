"""What could be trained on these books in this time on this machine, and what to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import count_parameters, run_bytes
from horovod_transformer.planning.corpus import Corpus
from horovod_transformer.planning.expectation import parameters_of_layers
from horovod_transformer.planning.law import Law
from horovod_transformer.planning.machine import Machine, device_bytes
from horovod_transformer.planning.shapes import SHAPES, model_of, training_of

# Of the time that there is; the rest goes to validation, checkpoints and the start.
SHARE_FOR_UPDATES = 0.92
# Beyond this many passes over the books a run learns them by heart, and the law knows nothing of that.
MOST_EPOCHS = 4
# A model with more parameters than this for each token of its books would learn them by heart, too: a guess.
MOST_PARAMETERS = 4
# Models that are expected to be this close are as good: the smaller one is taken. Bits per byte.
AS_GOOD = 0.01
BYTES_OF_A_TOKEN = 2


@dataclass(frozen=True)
class Option:
    """A model that could be trained, and what would come of it.

    Attributes:
        model: Its shape.
        training: Its settings; they hold the length of the run.
        parameters: All of them, the embedding included.
        tokens: That the run reads.
        epochs: Passes over the books that these are.
        tokens_per_second: Of all devices together.
        seconds: That the run takes.
        device_bytes: Memory on each device, about.
        disk_bytes: Of the prepared data and the checkpoints.
        bits_per_byte: Expected of held-out text; `error` to each side.
        error: Half the width of that range.
        obstacle: Why it cannot be trained; empty if it can.
    """

    model: ModelConfig
    training: TrainingConfig
    parameters: int
    tokens: int
    epochs: float
    tokens_per_second: float
    seconds: float
    device_bytes: int
    disk_bytes: int
    bits_per_byte: float
    error: float
    obstacle: str = ""


@dataclass(frozen=True)
class Plan:
    """Every model that was looked at, and the one to take.

    Attributes:
        corpus: The books.
        machine: What computes.
        hours: That there are.
        law: Where expected bits per byte come from.
        options: From small to large.
        recommended: The place of one of them.
        reason: Why that one, a sentence.
    """

    corpus: Corpus
    machine: Machine
    hours: float
    law: Law
    options: tuple[Option, ...]
    recommended: int
    reason: str

    @property
    def choice(self) -> Option:
        """The recommended one."""
        return self.options[self.recommended]


def candidates(corpus: Corpus, machine: Machine) -> list[tuple[ModelConfig, TrainingConfig]]:
    """The models that a plan considers, with settings whose speed can be measured."""
    models = [model_of(shape, corpus) for shape in SHAPES]
    return [(model, training_of(model, corpus, corpus.tokens, machine)) for model in models]


def make_plan(corpus: Corpus, machine: Machine, speeds: Mapping[int, float], hours: float, law: Law) -> Plan:
    """Work out what each model would reach in this time, and choose one.

    Args:
        corpus: The books.
        machine: What computes.
        speeds: Parameters of a model -> tokens/s of all devices together; models without one are left out.
        hours: That the run may take.
        law: Tells what to expect.

    Raises:
        UserError: Not one model can be trained in this time and memory.
    """
    options = []
    for shape in SHAPES:
        model = model_of(shape, corpus)
        speed = speeds.get(count_parameters(model))
        if speed is not None:
            options.append(_option(model, corpus, machine, speed, hours, law))
    possible = [option for option in options if not option.obstacle]
    if not possible:
        why = options[0].obstacle if options else "no speed is known"
        raise UserError(f"nothing can be trained in {hours:g} h on {machine.name}: the smallest model {why}")
    best = min(option.bits_per_byte for option in possible)
    choice = next(option for option in possible if option.bits_per_byte <= best + AS_GOOD)
    return Plan(
        corpus, machine, hours, law, tuple(options), options.index(choice), _reason(choice, options, hours)
    )


def _option(
    model: ModelConfig, corpus: Corpus, machine: Machine, speed: float, hours: float, law: Law
) -> Option:
    affordable = int(speed * hours * 3600 * SHARE_FOR_UPDATES)
    tokens = min(affordable, MOST_EPOCHS * corpus.tokens)
    training = training_of(model, corpus, tokens, machine)
    assert training.max_updates is not None and training.global_batch_size is not None
    tokens = training.max_updates * training.global_batch_size * model.max_seq_len
    parameters = count_parameters(model)
    memory = device_bytes(model, training, machine)
    obstacle = ""
    if memory > machine.memory_bytes:
        obstacle = f"needs {memory / 1e9:.1f} GB, {machine.name} has {machine.memory_bytes / 1e9:.1f}"
    elif parameters > MOST_PARAMETERS * corpus.tokens and model.d_model > SHAPES[0][1]:
        obstacle = "too large for so little text"
    elif tokens < min(parameters, corpus.tokens / 10):
        obstacle = "too slow for the time"
    prepared = BYTES_OF_A_TOKEN * (2 if corpus.vocab_size > 2**16 else 1) * corpus.tokens
    return Option(
        model=model,
        training=training,
        parameters=parameters,
        tokens=tokens,
        epochs=tokens / corpus.tokens,
        tokens_per_second=speed,
        seconds=tokens / speed / SHARE_FOR_UPDATES,
        device_bytes=memory,
        disk_bytes=prepared + run_bytes(model, training.keep_checkpoints),
        bits_per_byte=law.bits_per_byte(parameters_of_layers(model), corpus.tokens, tokens),
        error=law.error,
        obstacle=obstacle,
    )


def _reason(choice: Option, options: list[Option], hours: float) -> str:
    """Why this one and no larger one; a smaller one is expected to learn less."""
    place = options.index(choice)
    larger = options[place + 1 :]
    if choice.seconds < 0.9 * hours * 3600:
        first = f"it reads the books {MOST_EPOCHS} times, which is enough, in less time than there is"
    else:
        first = f"it fills the time with {choice.epochs:.2g} passes over the books"
    if not larger:
        return f"{first}, and none of those tried is larger"
    if larger[0].obstacle:
        return f"{first}; the next larger one will not do: {larger[0].obstacle}"
    if larger[0].bits_per_byte > choice.bits_per_byte:
        return f"{first}; a larger one would read too little in that time"
    return f"{first}; a larger one is expected to gain no more than {AS_GOOD} bits per byte"
