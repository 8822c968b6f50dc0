"""What to think of a result, in a sentence: a model beside others, and whether it still improved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError
from horovod_transformer.reports.run_records import RunRecords, read_table
from horovod_transformer.system.console import counted

# A loss within this share of the lowest one is level with it: validation is measured on few books.
LEVEL = 0.002


@dataclass(frozen=True)
class Result:
    """How well a model predicts held-out text, in bits per byte, and how well others do.

    Attributes:
        bits: Of the model.
        on: What text that is: `2 held-out books`.
        xz: Of `xz -9`, given the training books; None if not known.
        frequencies: Of knowing only how often each token comes; None if not known.
        guessing: Of giving each token the same chance; None if not known.
        others: Names of other models, and theirs.
        trend: How the loss went at the end of the run, see `trend`; None if not known.
    """

    bits: float
    on: str
    xz: float | None = None
    frequencies: float | None = None
    guessing: float | None = None
    others: Sequence[tuple[str, float]] = ()
    trend: str | None = None


def verdict(result: Result) -> str:
    """What to think of it, in a sentence; of a model that is worse than knowing nothing also what to do."""
    said = f"{result.bits:.2f} bits per byte on {result.on}"
    if result.guessing is not None and result.bits >= result.guessing:
        return (
            f"Worse than knowing nothing: {said}, and giving every token the same chance takes "
            f"{result.guessing:.2f}. Is this text of another language or kind than the training books? "
            "Then hold out books like those. Otherwise training went wrong: lower training.learning_rate "
            "or train longer."
        )
    if result.frequencies is not None and result.bits >= result.frequencies:
        return (
            f"It has learned next to nothing: {said}, and knowing only how often each token comes takes "
            f"{result.frequencies:.2f}. Train longer, take a smaller model or more books, and see whether "
            "the held-out text is like the training books."
        )
    beside = [
        (result.xz, "xz needs"),
        (result.frequencies, "knowing only how often each token comes"),
        *((bits, name) for name, bits in result.others),
    ]
    known = [f"{_than(result.bits, bits)} {name}" for bits, name in beside if bits]
    if not known and result.guessing:
        known = [f"{_than(result.bits, result.guessing)} giving every token the same chance"]
    if known:
        said += f": {', '.join(known)}"
    return f"{said}; {result.trend}." if result.trend else f"{said}."


def verdict_of(prediction: dict[str, Any], run_trend: str | None) -> str:
    """What to think of what an `evaluation.json` says of prediction; what in it is no number is passed over.

    Args:
        prediction: Anybody may have written it.
        run_trend: How the run's validation loss went, see `trend`.
    """
    bits, books = (known_number(prediction.get(key)) for key in ("bits_per_byte", "books"))
    if bits is None:
        return "The loss is no finite number: the training has diverged. Take an earlier checkpoint."
    beside = prediction.get("beside")
    others = [one for one in beside if isinstance(one, dict)] if isinstance(beside, list) else []
    return verdict(
        Result(
            bits,
            counted(int(books), "held-out book") if books else "held-out text",
            known_number(prediction.get("xz_bits_per_byte")),
            known_number(prediction.get("token_frequencies_bits_per_byte")),
            known_number(prediction.get("guessing_bits_per_byte")),
            [(str(one.get("checkpoint")), known_number(one.get("bits_per_byte")) or 0) for one in others],
            run_trend,
        )
    )


def compared(bits: float, other: float) -> str:
    """How many bits that is beside another number of them: `16 % fewer`, `2 % more` or `as many`."""
    share = round(100 * abs(1 - bits / other))
    if not share:
        return "as many"
    return f"{share} % {'fewer' if bits < other else 'more'}"


def _than(bits: float, other: float) -> str:
    words = compared(bits, other)
    return f"{words} {'as' if words == 'as many' else 'than'}"


def verdict_of_run(run: RunRecords) -> str:
    """What to think of a run: by its evaluation, or until there is one by its validation losses."""
    losses = run.validation.get("loss", [])
    run_trend = trend(run.validation.get("update", []), losses)
    prediction = run.evaluation.get("prediction")
    if isinstance(prediction, dict):
        return verdict_of(prediction, run_trend)
    bits = run.validation.get("bits_per_byte", [])
    known = [(loss, bit) for loss, bit in zip(losses, bits, strict=False) if loss and bit and loss > 0 < bit]
    if not known:
        return "How well it predicts is not known: it has not been validated yet (training.eval_interval)."
    loss, best = min(known)
    vocabulary = run.config.get("model.vocab_size")
    guessing = None
    if isinstance(vocabulary, int) and 1 < vocabulary < 1e9:
        # A token of guessing takes log(vocabulary) nats where one of this model takes `loss`.
        guessing = best * math.log(vocabulary) / loss
    return verdict(Result(best, "held-out blocks", guessing=guessing, trend=run_trend))


def trend(updates: Sequence[float | None], losses: Sequence[float | None]) -> str | None:
    """How a run's validation loss went at its end, in a few words; None for fewer than three validations."""
    known = [
        (update, loss)
        for update, loss in zip(updates, losses, strict=False)
        if update is not None and loss is not None
    ]
    if len(known) < 3:
        return None
    at, lowest = min(known, key=lambda pair: pair[1])
    last, before = known[-1][1], min(loss for _, loss in known[:-1])
    if last > lowest * (1 + LEVEL):
        return f"best at update {at:,.0f}, worse after that"
    return "still improving at its end" if last < before * (1 - LEVEL) else "level at its end"


def trend_of(checkpoint: str | Path) -> str | None:
    """The trend of the run in whose folder a checkpoint lies, by whatever links; None if there is none."""
    try:
        table = read_table(Path(checkpoint).resolve().parent.parent / "tables" / "val.csv")
    except (UserError, OSError, ValueError):  # the last where a name has a NUL character
        return None
    return trend(table["update"], table.get("loss", []))


def known_number(value: Any) -> float | None:
    """A figure of a file that anybody may have written; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < 1e6 else None
