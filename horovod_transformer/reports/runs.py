"""One page for a run, or for several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError
from horovod_transformer.reports.charts import COLOURS, Chart, Curve, draw, smoothed
from horovod_transformer.reports.html import escape, page
from horovod_transformer.reports.run_records import RunRecords, read_run
from horovod_transformer.reports.shares import draw_shares
from horovod_transformer.system.files import write_text
from horovod_transformer.system.machine import installed_version

# Samples of one run on the page, evenly spread over its training.
SHOWN_SAMPLES = 6
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
        runs: Folders, see `read_run`.
        target: The HTML file.

    Raises:
        UserError: A run cannot be read, or the page cannot be written.
    """
    records = [read_run(run) for run in runs]
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, run_page(records))
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror or error}") from None
    return path


def run_page(runs: Sequence[RunRecords]) -> str:
    """The page, as HTML."""
    names = [escape(run.name) for run in runs]
    title = f"Training run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} training runs"
    key = "".join(
        f'<i style="background:{COLOURS[place % len(COLOURS)]}"></i>{name}'
        for place, name in enumerate(names)
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        "".join(f'<p class="note">{_sentence(run)}</p>' for run in runs),
        "<h2>Curves</h2>",
        f'<p class="note key">{key}</p>' if len(runs) > 1 else "",
        f'<div class="charts">{"".join(draw(chart) for chart in _charts(runs))}{_time_shares(runs)}</div>',
        f'<p class="note">{_legend(runs)}</p>',
        "<h2>Figures</h2>",
        _table(runs, _figures),
    ]
    if any(run.evaluation for run in runs):
        parts += ["<h2>Evaluation on whole held-out books</h2>", _table(runs, _evaluated)]
    if len(runs) > 1:
        parts += ["<h2>Where the configs differ</h2>", _differences(runs)]
    if any(run.samples for run in runs):
        parts += ["<h2>Samples through training</h2>", *(_samples(run, len(runs) > 1) for run in runs)]
    parts += ["<h2>Environment</h2>", _table(runs, _environment)]
    if len(runs) == 1:
        parts += ["<h2>Config</h2>", _table(runs, lambda run: run.config)]
    parts += ["<h2>How to cite</h2>", f"<pre>{escape(_citation(runs))}</pre>"]
    return page(title, "\n".join(parts))


def _last(column: Sequence[float | None] | None) -> float | None:
    return next((value for value in reversed(column or []) if value is not None), None)


def _best(run: RunRecords) -> tuple[float | None, float | None]:
    """Lowest validation loss, and its update."""
    losses = run.validation.get("loss", [])
    found = [(loss, place) for place, loss in enumerate(losses) if loss is not None]
    if not found:
        return None, None
    loss, place = min(found)
    return loss, run.validation["update"][place]


def _sentence(run: RunRecords) -> str:
    """What a run is, in a sentence."""
    shape, world = run.config, run.environment.get("world_size")
    model = (
        f"a model of {shape.get('model.n_layers')} layers, width {shape.get('model.d_model')} and a "
        f"context of {shape.get('model.max_seq_len')} tokens"
    )
    where = f" on {world} process{'es' if world != 1 else ''}" if world else ""
    loss, update = _best(run)
    reached = (
        f"; its lowest validation loss is {loss:.4f}, at update {update:,.0f}" if loss is not None else ""
    )
    return (
        f"<b>{escape(run.name)}</b>: {escape(model)}, trained with {escape(shape.get('training.optimizer'))} "
        f"for {_number(_last(run.train['update']), 0)} updates and "
        f"{_number(_last(run.train.get('tokens')), 0)} tokens in {_duration(run.seconds)}"
        f"{escape(where)}{reached}."
    )


def _charts(runs: Sequence[RunRecords]) -> list[Chart]:
    marks: dict[str, Any] = {
        "restarts": [update for run in runs for update in run.restarts],
        "skipped": [update for run in runs for update in run.skipped],
    }
    losses, validation, bits = [], [], []
    for run, colour in zip(runs, _colours(runs), strict=True):
        updates, values = run.train["update"], run.train.get("loss", [])
        losses += [Curve(updates, values, colour, "raw"), Curve(updates, smoothed(values), colour)]
        seen = run.validation.get("update", [])
        validation.append(Curve(seen, run.validation.get("loss", []), colour, dots=True))
        bits.append(Curve(seen, run.validation.get("bits_per_byte", []), colour, dots=True))
    charts = [
        Chart("training loss, nats per token: each logged update, and smoothed", losses, **marks),
        Chart("validation loss, nats per token", validation, **marks),
        Chart("bits per byte of held-out text", bits, **marks),
    ]
    for column, title in _TRAIN_CHARTS.items():
        curves = [
            Curve(run.train["update"], run.train.get(column, []), colour)
            for run, colour in zip(runs, _colours(runs), strict=True)
        ]
        charts.append(Chart(title, curves, **marks))
    return charts


def _time_shares(runs: Sequence[RunRecords]) -> str:
    """Where each run's time went, for runs whose tables have the columns."""
    charts = ""
    for run in runs:
        columns = {
            column.removeprefix("time_").replace("_", " "): values
            for column, values in run.train.items()
            if column.startswith("time_")
        }
        # What computes below, what waits above it.
        parts = {name: columns.pop(name) for name in _COMPUTING if name in columns} | columns
        title = "where the time goes, on rank 0" + (f": {run.name}" if len(runs) > 1 else "")
        charts += draw_shares(title, run.train["update"], parts)
    return charts


def _colours(runs: Sequence[RunRecords]) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(runs))]


def _legend(runs: Sequence[RunRecords]) -> str:
    text = "Across: optimizer updates."
    if any(run.restarts for run in runs):
        text += " Dashed: the run was started again there."
    if any(run.skipped for run in runs):
        text += " Red at the foot: an update that was skipped, its gradients were not finite."
    if any("time_forward" in run.train for run in runs):
        text += (
            " Of the time, forward includes the loss and its gradient at the head, gradient wait is what the "
            "sum over the ranks took beyond the backward pass, other is validation, sample texts and records."
        )
    return text


def _figures(run: RunRecords) -> dict[str, str]:
    loss, update = _best(run)
    bits = [value for value in run.validation.get("bits_per_byte", []) if value is not None]
    validating = sum(value or 0 for value in run.validation.get("seconds", []))
    return {
        "updates": _number(_last(run.train["update"]), 0),
        "tokens": _number(_last(run.train.get("tokens")), 0),
        "epochs": _number(_last(run.train.get("epoch")), 2),
        "last training loss": _number(_last(run.train.get("loss")), 4),
        "lowest validation loss": f"{_number(loss, 4)} (update {_number(update, 0)})" if update else "–",
        "lowest bits per byte": _number(min(bits, default=None), 4),
        "time training": _duration(run.seconds),
        "of it validating": _share(validating, run.seconds),
        "of it held up by checkpoints": "not known" if run.stall is None else _share(*run.stall),
        "tokens per second, median": _number(_median(run.train.get("tokens_per_second", [])), 0),
        "most memory": f"{_number(_last(run.train.get('memory_gib')), 2)} GiB",
        "started again": {0: "never", 1: "once"}.get(len(run.restarts), f"{len(run.restarts)} times"),
        "skipped updates": _number(_last(run.train.get("skipped_updates")), 0),
    }


def _evaluated(run: RunRecords) -> dict[str, str]:
    prediction = run.evaluation.get("prediction")
    if not isinstance(prediction, dict):
        return {}
    keys = ("bits_per_byte", "loss", "perplexity", "accuracy", "xz_bits_per_byte", "books", "bytes")
    return {
        key.replace("_", " "): _shown(prediction.get(key)) for key in keys if prediction.get(key) is not None
    }


def _environment(run: RunRecords) -> dict[str, str]:
    values = dict(run.environment)
    packages = values.pop("packages", None)
    if isinstance(packages, dict):
        values["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if isinstance(values.get("command"), list):
        values["command"] = " ".join(map(str, values["command"]))
    return {key.replace("_", " "): _shown(value) for key, value in values.items() if value not in (None, [])}


def _differences(runs: Sequence[RunRecords]) -> str:
    keys = {key for run in runs for key in run.config}
    differing = sorted(key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1)
    if not differing:
        return '<p class="note">They do not.</p>'
    return _table(runs, lambda run: {key: run.config.get(key) for key in differing})


def _table(runs: Sequence[RunRecords], rows_of: Callable[[RunRecords], dict[str, Any]]) -> str:
    """A row for each fact, a column for each run."""
    columns = [rows_of(run) for run in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    head = ""
    if len(runs) > 1:
        head = "<tr><th></th>" + "".join(f"<td><b>{escape(run.name)}</b></td>" for run in runs) + "</tr>"
    rows = "".join(
        f"<tr><th>{escape(key)}</th>"
        + "".join(f"<td>{escape(_shown(column.get(key, '–')))}</td>" for column in columns)
        + "</tr>"
        for key in keys
    )
    return f'<table class="facts">{head}{rows}</table>'


def _samples(run: RunRecords, named: bool) -> str:
    number = len(run.samples)
    places = sorted(
        {round(i * (number - 1) / (SHOWN_SAMPLES - 1)) for i in range(SHOWN_SAMPLES)} if number else []
    )
    name = f"{run.name}, " if named else ""
    return "".join(
        f"<section><h3>{escape(name)}update {update:,}, prompt {escape(prompt)}</h3>"
        f'<p class="text">{escape(text)}</p></section>'
        for update, prompt, text in (run.samples[place] for place in places)
    )


def _citation(runs: Sequence[RunRecords]) -> str:
    packages = runs[0].environment.get("packages")
    version = packages.get("horovod_transformer") if isinstance(packages, dict) else None
    version = version or installed_version("horovod_transformer")
    commit = runs[0].environment.get("git_commit")
    note = f"version {version or 'not known'}" + (f", commit {commit}" if commit else "")
    return (
        "@software{horovod_transformer,\n"
        "  title = {horovod\\_transformer: training GPT-style language models on books through Horovod},\n"
        f"  note = {{{note}}}\n}}"
    )


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if value is None or isinstance(value, bool | list):
        return json.dumps(value)  # as a config file has it
    return f"{value:,}" if isinstance(value, int) else str(value)


def _median(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _share(part: float, whole: float) -> str:
    return f"{part:,.2f} s, {part / whole:.2%}" if whole else f"{part:,.2f} s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
