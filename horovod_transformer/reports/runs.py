"""One page for a run, or for several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from horovod_transformer.errors import UserError
from horovod_transformer.reports.area_chart import draw_shares
from horovod_transformer.reports.charts import COLOURS, Chart, Curve, draw, smoothed
from horovod_transformer.reports.formats import any_value, duration, number, seconds_and_share
from horovod_transformer.reports.html import PAGE_BEGINS, render
from horovod_transformer.reports.methods import bibtex, methods
from horovod_transformer.reports.run_records import (
    RunRecords,
    best_validation,
    evaluated_on,
    last_known,
    read_runs,
)
from horovod_transformer.reports.verdict import verdict_of_run
from horovod_transformer.reports.waiting import about_waiting
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import may_be_replaced, write_text

# Samples of one run on the page, evenly spread over its training.
SHOWN_SAMPLES = 6
# Of more runs only the best are drawn: there are no more colours.
MOST_RUNS = len(COLOURS)
# Keys in which the configs differ, beside each run's result.
RANKED_KEYS = 6
# Keys that decide no result.
_OF_NO_RESULT = (
    "paths.",
    "generation.",
    "training.sample_",
    "training.log_",
    "training.save_",
    "training.keep_",
    "training.trackers",
    "data.num_workers",
)
_COMPUTING = ("forward", "backward", "optimizer")
# Column -> title; those of train.csv.
_TRAIN_CHARTS = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm, before clipping",
    "tokens_per_second": "tokens per second",
    "mfu": "share of the hardware's peak (MFU)",
}


def write_run_report(runs: Sequence[str | Path], target: str | Path) -> Path:
    """Read runs and write their page, whole or not at all.

    Args:
        runs: Folders, see `read_runs`.
        target: The HTML file; a page that is there is replaced, anything else is left alone.

    Raises:
        UserError: A run cannot be read, or the page cannot be written.
    """
    path = Path(target)
    if not may_be_replaced(path, PAGE_BEGINS):  # a run's table, a checkpoint
        raise UserError(f"--output {path}: is there already and is no page; name another file, or remove it")
    records = read_runs(runs, tell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, run_page(records))
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror or error}") from None
    return path


def run_page(runs: Sequence[RunRecords]) -> str:
    """The page, as HTML; several runs are sorted by their result, the best first."""
    several = len(runs) > 1
    runs = sorted(runs, key=_result)
    ranking = _ranking(runs) if several else None
    notes = _notes(runs)
    runs = runs[:MOST_RUNS]
    samples = max(1, SHOWN_SAMPLES // len(runs))
    shown = [
        {"name": run.name, "summary": _summary(run), "samples": _spread_samples(run, samples)} for run in runs
    ]
    return render(
        "runs.html.j2",
        title=f"{len(ranking[1])} training runs" if ranking else f"Training run {runs[0].name}",
        verdict=_best_of(runs) if several else verdict_of_run(runs[0]),
        ranking=ranking,
        notes=notes,
        runs=shown,
        colours=COLOURS,
        charts=[*(draw(chart, _last_update(runs)) for chart in _charts(runs)), *_time_shares(runs)],
        restarted=any(run.restarts for run in runs),
        skipped=any(run.skipped for run in runs),
        timed=any("time_forward" in run.train for run in runs),
        values=_rows(runs, _figures),
        evaluations=_rows(runs, _evaluated),
        differences=_differences(runs),
        sampled=any(run.samples for run in runs),
        environment=_rows(runs, _environment),
        config=_rows(runs, lambda run: run.config),
        methods=[(run.name, methods(run)) for run in runs],
        citation=bibtex(runs[0]),
    )


def _result(run: RunRecords) -> tuple[float, float]:
    """What runs are sorted by: bits per byte, which compare between tokenizers, then loss."""
    bits = [value for value in run.validation.get("bits_per_byte", []) if value is not None]
    loss = best_validation(run)[0]
    return min(bits, default=math.inf), math.inf if loss is None else loss


def _best_of(runs: Sequence[RunRecords]) -> str:
    """Which of several runs, sorted, is the best, and by how much."""
    best, second = runs[:2]
    of_best, of_second = _result(best), _result(second)
    if math.isinf(min(of_best)):
        return "None of these runs has been validated yet."
    place, unit = (0, "bits per byte") if math.isfinite(of_best[0]) else (1, "nats per token")
    said = f"Best: {best.name}, {of_best[place]:.3f} {unit} on held-out blocks"
    if math.isfinite(of_second[place]):
        said += f"; next: {second.name}, {of_second[place]:.3f}"
    return f"{said}."


def _ranking(runs: Sequence[RunRecords]) -> tuple[list[str], list[list[str]]]:
    """A row for each run: its result, what that took, and the values in which the configs differ."""
    differing = [key for key in _differing(runs) if not key.startswith(_OF_NO_RESULT)][:RANKED_KEYS]
    heads = ["run", "bits per byte", "validation loss", "updates", "time"]
    rows = []
    for place, run in enumerate(runs):
        bits, loss = (value if math.isfinite(value) else None for value in _result(run))
        row = [
            f"★ {run.name}" if place == 0 and loss is not None else run.name,
            number(bits, 3),
            number(loss, 4),
            number(last_known(run.train["update"])),
            duration(run.seconds),
        ]
        rows.append([*row, *(any_value(run.config.get(key, "–")) for key in differing)])
    return [*heads, *(key.partition(".")[2] for key in differing)], rows


def _notes(runs: Sequence[RunRecords]) -> list[str]:
    """What to know before comparing several runs, sorted."""
    notes = []
    if len(runs) > MOST_RUNS:
        notes.append(f"Below the table are the best {MOST_RUNS}.")
    data = {run.environment.get("data_fingerprint") for run in runs}
    if None in data:  # runs of an earlier version did not record it
        data = {run.config.get("data.data_dir") for run in runs}
    if len(data) > 1:
        notes.append("They were validated on different data: only runs on the same compare.")
    return notes


def _last_update(runs: Sequence[RunRecords]) -> float:
    """Where the x-axis of all curves ends."""
    return max(last_known(run.train["update"]) or 0 for run in runs)


def _summary(run: RunRecords) -> str:
    """What a run is, in a sentence that follows its name."""
    shape, world = run.config, run.environment.get("world_size")
    where = f" on {world} process{'es' if world != 1 else ''}" if world else ""
    updates, tokens = last_known(run.train["update"]), last_known(run.train.get("tokens"))
    loss, update = best_validation(run)
    reached = (
        f"; its lowest validation loss is {loss:.4f}, at update {update:,.0f}" if loss is not None else ""
    )
    return (
        f"a model of {shape.get('model.n_layers')} layers, width {shape.get('model.d_model')} and a context "
        f"of {shape.get('model.max_seq_len')} tokens, trained with {shape.get('training.optimizer')} "
        f"for {number(updates)} updates and {number(tokens)} tokens in {duration(run.seconds)}"
        f"{where}{reached}"
    )


def _charts(runs: Sequence[RunRecords]) -> list[Chart]:
    marks: dict[str, Any] = {
        "restarts": [update for run in runs for update in run.restarts],
        "skipped": [update for run in runs for update in run.skipped],
    }
    single = len(runs) == 1
    losses, bits = [], []
    for run, colour in zip(runs, _colours(runs), strict=True):
        updates, values = run.train["update"], run.train.get("loss", [])
        seen, validated = run.validation.get("update", []), run.validation.get("loss", [])
        names = ("training", "training, smoothed", "validation") if single else ("", "", "")
        # Of several runs each has one colour; of a single one validation has another.
        second = COLOURS[1] if single else colour
        losses += [
            Curve(updates, values, colour, "raw", label=names[0]),
            Curve(updates, smoothed(values), colour, label=names[1]),
            Curve(seen, validated, second, "dashed", dots=True, label=names[2]),
        ]
        bits.append(Curve(seen, run.validation.get("bits_per_byte", []), colour, dots=True))
    how = "" if single else "; lines: training, smoothed; dots: validation"
    charts = [
        Chart(f"loss, nats per token{how}", losses, **marks, may_cut=True),
        Chart("bits per byte of held-out text", bits, **marks, may_cut=True),
    ]
    for column, title in _TRAIN_CHARTS.items():
        curves = [
            Curve(run.train["update"], run.train.get(column, []), colour)
            for run, colour in zip(runs, _colours(runs), strict=True)
        ]
        charts.append(Chart(title, curves, **marks, may_cut=column != "learning_rate"))
    return charts


def _time_shares(runs: Sequence[RunRecords]) -> list[Markup]:
    """Where each run's time went, for runs whose tables have the columns; of many only the best's."""
    charts = []
    for run in runs if len(runs) <= 2 else runs[:1]:
        columns = {
            column.removeprefix("time_").replace("_", " "): values
            for column, values in run.train.items()
            if column.startswith("time_")
        }
        # What computes below, what waits above it.
        parts = {name: columns.pop(name) for name in _COMPUTING if name in columns} | columns
        title = "where the time goes, on rank 0" + (f": {run.name}" if len(runs) > 1 else "")
        charts.append(draw_shares(title, run.train["update"], parts))
    return charts


def _colours(runs: Sequence[RunRecords]) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(runs))]


def _figures(run: RunRecords) -> dict[str, str]:
    loss, update = best_validation(run)
    bits = [value for value in run.validation.get("bits_per_byte", []) if value is not None]
    validating = sum(value or 0 for value in run.validation.get("seconds", []))
    return {
        "updates": number(last_known(run.train["update"])),
        "tokens": number(last_known(run.train.get("tokens"))),
        "epochs": number(last_known(run.train.get("epoch")), 2),
        "last training loss": number(last_known(run.train.get("loss")), 4),
        "lowest validation loss": f"{number(loss, 4)} (update {number(update)})" if update else "–",
        "lowest bits per byte": number(min(bits, default=None), 4),
        "time training": duration(run.seconds),
        "of it validating": seconds_and_share(validating, run.seconds),
        "of it held up by checkpoints": "not known" if run.stall is None else seconds_and_share(*run.stall),
        "of an update waiting": what_it_waited(run),
        "tokens per second, median": number(_median(run.train.get("tokens_per_second", []))),
        "most memory": f"{number(last_known(run.train.get('memory_gib')), 2)} GiB",
        "started again": {0: "never", 1: "once"}.get(len(run.restarts), f"{len(run.restarts)} times"),
        "skipped updates": number(last_known(run.train.get("skipped_updates"))),
    }


def what_it_waited(run: RunRecords) -> str:
    """What share of its updates rank 0 waited for other processes, and what would shorten that."""
    processes, hosts = (run.environment.get(key, 1) for key in ("world_size", "hosts"))
    if processes == 1:
        return "a single process waits for no other"
    share = run.waiting_share
    if share is None or not isinstance(processes, int) or not isinstance(hosts, int):
        return "not known"
    settings = (str(run.config.get(f"distributed.{key}")) for key in ("hierarchical", "compression"))
    return about_waiting(share, hosts, processes, *settings)


def _evaluated(run: RunRecords) -> dict[str, Any]:
    prediction, model = run.evaluation.get("prediction"), run.evaluation.get("model")
    if not isinstance(prediction, dict) or not isinstance(model, dict):
        return {}
    keys = ("bits_per_byte", "loss", "perplexity", "accuracy", "xz_bits_per_byte", "books", "bytes")
    of = f"{model.get('checkpoint')}, after {any_value(model.get('updates'))} updates"
    where = {"evaluation": str(run.evaluation_file), "of checkpoint": of, "on": evaluated_on(run.evaluation)}
    return where | {
        key.replace("_", " "): any_value(prediction.get(key))
        for key in keys
        if prediction.get(key) is not None
    }


def _environment(run: RunRecords) -> dict[str, str]:
    values = dict(run.environment)
    packages = values.pop("packages", None)
    if isinstance(packages, dict):
        values["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if isinstance(values.get("command"), list):
        values["command"] = " ".join(map(str, values["command"]))
    return {
        key.replace("_", " "): any_value(value) for key, value in values.items() if value not in (None, [])
    }


def _differing(runs: Sequence[RunRecords]) -> list[str]:
    """The keys in which configs differ."""
    keys = {key for run in runs for key in run.config}
    return sorted(key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1)


def _differences(runs: Sequence[RunRecords]) -> list[tuple[str, list[str]]]:
    differing = _differing(runs)
    return _rows(runs, lambda run: {key: run.config.get(key) for key in differing})


def _rows(
    runs: Sequence[RunRecords], facts_of: Callable[[RunRecords], dict[str, Any]]
) -> list[tuple[str, list[str]]]:
    """For each fact its name and its value in each run."""
    columns = [facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, [any_value(column.get(name, "–")) for column in columns]) for name in names]


def _spread_samples(run: RunRecords, most: int) -> list[tuple[int, str, str]]:
    """Some of a run's samples, from the first to the last; a single one is the last."""
    number = len(run.samples)
    if most == 1:
        return run.samples[-1:]
    places = {round(i * (number - 1) / (most - 1)) for i in range(most)} if number else set()
    return [run.samples[place] for place in sorted(places)]


def _median(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None
