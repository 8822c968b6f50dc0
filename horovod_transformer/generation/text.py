"""Prompts to text, piece by piece or whole."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch

from horovod_transformer.config import config_from_dict
from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation.loading import choose_device
from horovod_transformer.model.decoding import Decoder, Written
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.tokenizer import Tokenizer

DEFAULTS = GenerationConfig()
# Samples of one prompt that are written at once: bounds the memory of keys and values.
AT_ONCE = 64


@dataclass
class Sample:
    """One continuation of one prompt.

    Attributes:
        prompt: Its number among the prompts, from 0.
        text: What was written after the prompt, up to a stop string.
        tokens: Ids of all that was written, without end-of-text; what stands behind the beginning
            of a stop string is in here, too.
        log_probabilities: What the model gave each token, in nats; empty unless asked for.
        ended: Why it ended: `end` of the text, `stop` string, or `length`.
    """

    prompt: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: str = "length"


class Writing:
    """Continues several prompts at once, each `settings.num_samples` times.

    Args:
        model: From `load_model_for_generation`.
        tokenizer: The one the model was trained with.
        prompts: Texts to continue.
        settings: How tokens are drawn, and how many at most.
        seed: The same seed gives the same texts: what sample n becomes depends on seed and n, not
            on what stands beside it. None draws from torch's own generator.
        probabilities: Keep the tokens' log-probabilities.
        first_row: Number that the first sample counts as, for the seed.

    Attributes:
        samples: In the order of the prompts, the samples of one prompt together; complete once
            `pieces` has come to its end.

    Raises:
        UserError: A prompt is no text, the seed is out of its range, or model and tokenizer do not
            belong together.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        settings: GenerationConfig,
        seed: int | None = None,
        probabilities: bool = False,
        first_row: int = 0,
    ) -> None:
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise UserError(f"prompt: should be text, not {type(prompt).__name__}")
        if tokenizer.vocab_size > model.vocab_size:
            raise UserError(
                f"tokenizer and model do not belong together: one has {tokenizer.vocab_size} tokens, "
                f"the other only {model.vocab_size}"
            )
        numbers = [number for number in range(len(prompts)) for _ in range(settings.num_samples)]
        self.samples = [Sample(number) for number in numbers]
        self._end = tokenizer.eos_token_id
        starts = [tokenizer.encode(prompt) or [self._end] for prompt in prompts]
        self._decoder = Decoder(
            model,
            [starts[number] for number in numbers],
            settings,
            self._end,
            generators=_generators(seed, first_row, len(numbers)),
            log_probabilities=probabilities,
        )
        self._tokenizer = tokenizer
        self._readers = [_Reader(settings.stop) for _ in numbers]

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Write, and yield the number of a sample and what has become readable of it.

        A piece never ends within a character, nor within what may become a stop string. Bytes that
        form no character become U+FFFD.
        """
        while self._decoder.rows:
            for written in self._decoder.step():
                piece = self._take(written)
                if piece:
                    self.samples[written.row].text += piece
                    yield written.row, piece

    def _take(self, written: Written) -> str:
        sample, reader = self.samples[written.row], self._readers[written.row]
        if written.token == self._end:
            sample.ended = "end"
            return reader.close()
        sample.tokens.append(written.token)
        if written.log_probability is not None:
            sample.log_probabilities.append(written.log_probability)
        piece = reader.read(self._tokenizer.decode_bytes([written.token]))
        if not reader.stopped and written.row not in self._decoder.rows:
            piece += reader.close()
        if reader.stopped:
            sample.ended = "stop"
            self._decoder.finish(written.row)
        return piece


class _Reader:
    """Bytes to text, holding back half characters and what may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = stop
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""

    def read(self, data: bytes, final: bool = False) -> str:
        """Take bytes, and return the text that is certain by now."""
        text = self._held + self._decode(data, final)
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def close(self) -> str:
        """Return what was held back."""
        return self.read(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def continue_prompt(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    settings: GenerationConfig,
    seed: int | None = None,
) -> list[str]:
    """`generate_text` with settings that have been checked: `settings.num_samples` texts.

    Raises:
        UserError: As `generate_text`.
    """
    samples = list(write_samples(model, tokenizer, prompt, settings, seed))
    # A prompt may hold what is no character: lone surrogates of a command line.
    shown = tokenizer.decode(tokenizer.encode(prompt))
    return [shown + sample.text for sample in samples]


def write_samples(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    settings: GenerationConfig,
    seed: int | None = None,
    probabilities: bool = False,
    first_row: int = 0,
) -> Iterator[Sample]:
    """Continue one prompt `settings.num_samples` times, at most `AT_ONCE` of them at a time.

    Args:
        model, tokenizer, prompt, settings, seed, probabilities, first_row: See `Writing`.

    Yields:
        The samples, complete.
    """
    for start in range(0, settings.num_samples, AT_ONCE):
        some = settings.model_copy(update={"num_samples": min(AT_ONCE, settings.num_samples - start)})
        writing = Writing(model, tokenizer, [prompt], some, seed, probabilities, first_row + start)
        for _ in writing.pieces():
            pass
        yield from writing.samples


@overload
def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int = ...,
    top_p: float = ...,
    seed: int | None = ...,
    num_samples: None = ...,
    device: str | torch.device | None = ...,
    repetition_penalty: float = ...,
    stop: Sequence[str] = ...,
) -> str: ...


@overload
def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int = ...,
    top_p: float = ...,
    seed: int | None = ...,
    *,
    num_samples: int,
    device: str | torch.device | None = ...,
    repetition_penalty: float = ...,
    stop: Sequence[str] = ...,
) -> list[str]: ...


def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = DEFAULTS.max_new_tokens,
    temperature: float = DEFAULTS.temperature,
    top_k: int = DEFAULTS.top_k,
    top_p: float = DEFAULTS.top_p,
    seed: int | None = None,
    num_samples: int | None = None,
    device: str | torch.device | None = None,
    repetition_penalty: float = DEFAULTS.repetition_penalty,
    stop: Sequence[str] = (),
) -> str | list[str]:
    """Continue a prompt.

    Args:
        model: From `load_model_for_generation`.
        tokenizer: The one the model was trained with.
        prompt: Text to continue. Empty text starts as a new book does, after an end-of-text
            token; of a text longer than the context the newest part counts.
        max_new_tokens: Write at most this many tokens; fewer where the text comes to an end.
        temperature: Below 1 plays safe, above 1 ventures; 0 always takes the likeliest token.
        top_k: Sample among the k likeliest tokens; 0 among all.
        top_p: Sample within this probability mass; 1 within all of it.
        seed: The same seed gives the same text; None draws from torch's own generator.
        num_samples: Continue the prompt so many times at once, and return a list.
        device: Move the model there first, and leave it there; None writes where it is.
        repetition_penalty: Above 1 makes tokens less likely that stood in the text before.
        stop: End the text before any of these strings.

    Returns:
        The prompt and its continuation; with `num_samples` a list of them. Bytes that form no
        character become U+FFFD.

    Raises:
        UserError: A value is out of its range, there is no such device, or model and tokenizer do
            not belong together.
    """
    settings = _checked(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_samples=1 if num_samples is None else num_samples,
        repetition_penalty=repetition_penalty,
        stop=stop,
    )
    if device is not None:
        model.to(choose_device(device))
    texts = continue_prompt(model, tokenizer, prompt, settings, seed)
    return texts if num_samples is not None else texts[0]


def stream_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = DEFAULTS.max_new_tokens,
    temperature: float = DEFAULTS.temperature,
    top_k: int = DEFAULTS.top_k,
    top_p: float = DEFAULTS.top_p,
    seed: int | None = None,
    device: str | torch.device | None = None,
    repetition_penalty: float = DEFAULTS.repetition_penalty,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue a prompt, and yield the continuation as it is written.

    The pieces put together are what `generate_text` returns after the prompt. Arguments are its
    own, and checked at once.

    Yields:
        A few characters at a time, never half of one.

    Raises:
        UserError: As `generate_text`.
    """
    settings = _checked(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
    )
    if device is not None:
        model.to(choose_device(device))
    writing = Writing(model, tokenizer, [prompt], settings, seed)
    return (piece for _, piece in writing.pieces())


def _checked(stop: Sequence[str], **values: Any) -> GenerationConfig:
    values["stop"] = stop if isinstance(stop, str) else list(stop)
    return config_from_dict({"generation": values}, "generation settings").generation


def _generators(seed: int | None, first: int, number: int) -> list[torch.Generator] | None:
    """A generator for each row, so that each text depends on its own number alone."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed: should be a whole number from 0 to 2**63 - 1, not {seed!r}")
    digests = [hashlib.sha256(f"{seed} {row}".encode()).digest() for row in range(first, first + number)]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:7])) for digest in digests]
