"""Four qualities of written text as numbers: coherence, relevance, diversity, length.

Each number is computed for the model's continuations of some prompts and for what the books have
there, cut to the same lengths: alone it says little, beside the human one it does.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sacrebleu.metrics import BLEU

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import OTHER_PROMPTS, relevance
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.system.console import ProgressBar
from horovod_transformer.tokenizer import Tokenizer

# Prompts continued in one call of `generate`: bounds the memory of the key-value cache.
BATCH = 16
# Passages of the books from which the rarity of words is taken.
REFERENCE_PASSAGES = 1000
# How far the end of a prompt is moved to the end of a word.
WORD_TOKENS = 16

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


@dataclass(frozen=True)
class Measure:
    """One row of the comparison.

    Attributes:
        key: Its name in JSON.
        quality: Which of the four it belongs to.
        label: A few words.
        meaning: How it is computed, how it is to be read, and where it comes from.
        decimals: To show.
    """

    key: str
    quality: str
    label: str
    meaning: str
    decimals: int = 3


MEASURES = (
    Measure(
        "coherence",
        "coherence",
        "lexical cohesion",
        "Cosine of the rarity-weighted words of a text's two halves, less the same for halves of different "
        "texts. 0: no more in common than strangers. The block comparison of TextTiling (Hearst 1997, "
        "Computational Linguistics 23(1)). Text that repeats itself scores high: read it beside the share "
        "of repeated 4-grams.",
    ),
    Measure(
        "relevance",
        "relevance",
        "nats per token from the prompt",
        "How much likelier the model finds a continuation after its own prompt than after other prompts: "
        "pointwise mutual information per token (after Li et al. 2016, arXiv:1510.03055). Around 0: the "
        "prompt makes no difference. For human text it says how well the model makes use of a prompt.",
    ),
    Measure(
        "own_prompt_first",
        "relevance",
        "own prompt fits best",
        f"Share of continuations that are likelier after their own prompt than after each of up to "
        f"{OTHER_PROMPTS} others; with {OTHER_PROMPTS} others, chance gives {1 / (OTHER_PROMPTS + 1):.2f}.",
        2,
    ),
    *(
        Measure(
            f"distinct_{n}",
            "diversity",
            f"distinct-{n}",
            f"Different {f'{n}-grams of words' if n > 1 else 'words'} over all of them, all texts together "
            "(Li et al. 2016, arXiv:1510.03055). Falls with the amount of text: compare only within a row.",
        )
        for n in (1, 2, 3)
    ),
    Measure(
        "self_bleu",
        "diversity",
        "self-BLEU",
        "BLEU (0 to 100) of each text against all others (Zhu et al. 2018, arXiv:1802.01886), by sacrebleu. "
        "High: the texts are all alike.",
        1,
    ),
    Measure(
        "repeated_4grams",
        "diversity",
        "repeated 4-grams",
        "Share of a text's 4-grams of words that stood in it before (seq-rep-4, Welleck et al. 2020, "
        "arXiv:1908.04319). High: it goes in circles.",
    ),
    Measure(
        "tokens", "length", "tokens", "Tokens up to the end of the text or to the limit, uncut.", decimals=1
    ),
    Measure("characters", "length", "characters", "The same in characters.", decimals=1),
    Measure(
        "ended",
        "length",
        "came to an end",
        "Share of continuations that reach an end of text within the limit. Books end rarely.",
        2,
    ),
)


@dataclass(frozen=True)
class Value:
    """A measured number; None where there was nothing to measure.

    Attributes:
        value: A mean over texts, or a figure of all texts together.
        standard_error: Of the mean, over texts; None where it is no mean.
    """

    value: float | None
    standard_error: float | None = None

    @classmethod
    def mean(cls, numbers: Iterable[float | None]) -> Value:
        """Average what there is."""
        array = np.array([number for number in numbers if number is not None], dtype=float)
        if not len(array):
            return cls(None)
        error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
        return cls(float(array.mean()), error)


@dataclass(frozen=True)
class Sample:
    """A prompt from a book with both its continuations, as token ids without end-of-text.

    Attributes:
        prompt: The prompt, `prompt_tokens` of them.
        human: What the book has next.
        human_ended: Whether the book ends there.
        model: What the model wrote.
        model_ended: Whether it ended the text itself.
    """

    prompt: list[int]
    human: list[int]
    human_ended: bool
    model: list[int]
    model_ended: bool

    @property
    def shared_length(self) -> int:
        """Tokens that both continuations have: the quality of texts is compared at equal length."""
        return min(len(self.human), len(self.model))


def draw_passages(
    books: Sequence[np.ndarray],
    number: int,
    prompt_tokens: int,
    new_tokens: int,
    seed: int,
    tokenizer: Tokenizer | None = None,
) -> list[tuple[list[int], list[int], bool]]:
    """Cut prompts and what follows them out of books, one from each of `number` equal stretches.

    Args:
        books: Token ids of each book.
        number: Passages.
        prompt_tokens: Length of each prompt.
        new_tokens: Most tokens to take after it; fewer where the book ends, at least one.
        seed: The same seed gives the same passages.
        tokenizer: Prompts then end where a word does, if one does within `WORD_TOKENS` tokens.

    Returns:
        For each passage the prompt, the continuation, and whether the book ends within it.

    Raises:
        UserError: The books have too few places for a prompt.
    """
    places = [max(0, len(book) - prompt_tokens) for book in books]
    starts = np.cumsum([0, *places])
    if starts[-1] < number:
        places_there = int(starts[-1])
        fewer = f"--samples {places_there} or fewer, or " if places_there >= 2 else ""
        raise UserError(
            f"the books have only {places_there} places for a prompt of {prompt_tokens} tokens, but "
            f"{number} samples were asked for; take {fewer}--samples 0 (scores alone), or longer "
            f"books: a text of {prompt_tokens + number} tokens is enough for {number} samples"
        )
    edges = np.linspace(0, starts[-1], number + 1).astype(int)
    drawn = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    passages = []
    for place, edge in zip(drawn, edges[1:], strict=True):
        index = int(np.searchsorted(starts, place, side="right")) - 1
        book, start = books[index], int(place - starts[index]) + prompt_tokens
        if tokenizer is not None:
            last = min(int(edge - starts[index]) + prompt_tokens, len(book), start + WORD_TOKENS)
            start = next((end for end in range(start, last) if _word_ends(book, end, tokenizer)), start)
        following = book[start : start + new_tokens].tolist()
        ended = len(following) < new_tokens
        passages.append((book[start - prompt_tokens : start].tolist(), following, ended))
    return passages


def _word_ends(book: np.ndarray, end: int, tokenizer: Tokenizer) -> bool:
    """Whether there is white space just before or just after this place between two tokens of a book."""
    before, after = (tokenizer.decode_bytes([token]) for token in book[end - 1 : end + 1])
    return before[-1:].isspace() or after[:1].isspace()


def write_samples(
    model: TransformerLM,
    tokenizer: Tokenizer,
    passages: Sequence[tuple[list[int], list[int], bool]],
    settings: GenerationConfig,
    seed: int,
    progress: bool = False,
) -> list[Sample]:
    """Have the model continue each passage's prompt, many at a time.

    Args:
        model: The model.
        tokenizer: The one it was trained with.
        passages: From `draw_passages`; prompts of one length.
        settings: How tokens are drawn, and how many at most.
        seed: Decides the draws.
        progress: Show a bar, or now and then a line, on stderr.
    """
    device = model.token_embedding.weight.device
    end = tokenizer.eos_token_id
    generator = torch.Generator(device).manual_seed(seed)
    bar = ProgressBar("writing", len(passages), unit="sample") if progress else None
    samples: list[Sample] = []
    for start in range(0, len(passages), BATCH):
        part = passages[start : start + BATCH]
        prompts = torch.tensor([prompt for prompt, _, _ in part], device=device)
        rows = model.continue_rows(prompts, settings, end, generator=generator)
        written = rows[:, prompts.shape[1] :].tolist()
        for (prompt, human, human_ended), new in zip(part, written, strict=True):
            ended = end in new
            samples.append(Sample(prompt, human, human_ended, new[: new.index(end)] if ended else new, ended))
        if bar:
            bar.advance(len(samples))
    if bar:
        bar.close()
    return samples


def measure_samples(
    model: TransformerLM, tokenizer: Tokenizer, books: Sequence[np.ndarray], samples: Sequence[Sample]
) -> dict[str, dict[str, Value]]:
    """All of `MEASURES` for the model's continuations and for the human ones.

    Args:
        model: Judges relevance, of its own text and of the human one.
        tokenizer: Turns ids into text.
        books: Where the rarity of words is taken from.
        samples: Two at least.

    Returns:
        `{"model": {key: value}, "human": {key: value}}`.
    """
    prompts = [sample.prompt for sample in samples]
    longest = max(sample.shared_length for sample in samples)
    rarity = word_rarity(reference_texts(books, tokenizer, max(1, longest)))
    measured = {}
    for writer in ("model", "human"):
        whole: list[list[int]] = [getattr(sample, writer) for sample in samples]
        ended = [float(getattr(sample, f"{writer}_ended")) for sample in samples]
        cut = [ids[: sample.shared_length] for ids, sample in zip(whole, samples, strict=True)]
        texts = [tokenizer.decode(ids) for ids in cut]
        words = [words_of(text) for text in texts]
        gains, firsts = relevance(model, prompts, cut)
        measured[writer] = {
            "coherence": Value.mean(cohesion(words, rarity)),
            "relevance": Value.mean(gains),
            "own_prompt_first": Value.mean(firsts),
            **{f"distinct_{n}": Value(distinct(words, n)) for n in (1, 2, 3)},
            "self_bleu": Value.mean(self_bleu(texts)),
            "repeated_4grams": Value.mean(repeated(text, 4) for text in words),
            "tokens": Value.mean(len(ids) for ids in whole),
            "characters": Value.mean(len(tokenizer.decode(ids)) for ids in whole),
            "ended": Value.mean(ended),
        }
    return measured


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without digits and punctuation."""
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Share of different n-grams among all n-grams of all texts; none reaches over two texts."""
    grams = [gram for words in texts for gram in _ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated(words: Sequence[str], n: int) -> float | None:
    """Share of n-grams that occurred earlier in the same text."""
    grams = _ngrams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> list[float | None]:
    """BLEU of each text, 0 to 100, with all the others as references; None for an empty text."""
    # effective_order: a text of three words has no 4-grams, which is not its fault.
    bleu = BLEU(lowercase=True, effective_order=True)
    scores: list[float | None] = []
    for index, text in enumerate(texts):
        others = [other for place, other in enumerate(texts) if place != index and other.strip()]
        scores.append(bleu.sentence_score(text, others).score if text.strip() and others else None)
    return scores


def reference_texts(books: Sequence[np.ndarray], tokenizer: Tokenizer, length: int) -> list[str]:
    """At most `REFERENCE_PASSAGES` passages of `length` tokens, evenly spread over the books."""
    starts = [(book, start) for book in books for start in range(0, len(book), length)]
    number = min(len(starts), REFERENCE_PASSAGES)
    chosen = (starts[place * len(starts) // number] for place in range(number))
    return [tokenizer.decode(book[start : start + length].tolist()) for book, start in chosen]


def word_rarity(texts: Sequence[str]) -> Callable[[str], float]:
    """Inverse document frequency: log((1 + texts) / (1 + texts that have the word)).

    A word that every text has weighs nothing (Spärck Jones 1972, smoothed by one text).
    """
    having = Counter(word for text in texts for word in set(words_of(text)))
    return lambda word: math.log((1 + len(texts)) / (1 + having[word]))


def cohesion(texts: Sequence[Sequence[str]], rarity: Callable[[str], float]) -> list[float | None]:
    """What the halves of each text have in common beyond what halves of different texts have.

    Args:
        texts: The words of each text.
        rarity: Weight of a word.

    Returns:
        For each text the cosine of its first half with its second, less the mean cosine of its
        first half with the others' second halves; None for fewer than two words.
    """
    halves = [
        (_weights(words[: len(words) // 2], rarity), _weights(words[len(words) // 2 :], rarity))
        for words in texts
        if len(words) >= 2
    ]
    if len(halves) < 2:
        return [None] * len(texts)
    table = np.array([[_cosine(first, second) for _, second in halves] for first, _ in halves])
    own = table.diagonal()
    others = (table.sum(axis=1) - own) / (len(halves) - 1)
    differences = iter((own - others).tolist())
    return [next(differences) if len(words) >= 2 else None for words in texts]


def _weights(words: Sequence[str], rarity: Callable[[str], float]) -> dict[str, float]:
    return {word: count * rarity(word) for word, count in Counter(words).items()}


def _cosine(first: dict[str, float], second: dict[str, float]) -> float:
    norms = math.hypot(*first.values()) * math.hypot(*second.values())
    return sum(weight * second.get(word, 0.0) for word, weight in first.items()) / norms if norms else 0.0
