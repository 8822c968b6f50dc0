"""One page for a run, or for several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from horovod_transformer.errors import UserError
from horovod_transformer.reports.area_chart import draw_shares
from horovod_transformer.reports.charts import COLOURS, Chart, Curve, draw, smoothed
from horovod_transformer.reports.formats import any_value, duration, number, seconds_and_share
from horovod_transformer.reports.html import PAGE_BEGINS, render
from horovod_transformer.reports.run_records import RunRecords, read_run
from horovod_transformer.reports.waiting import about_waiting
from horovod_transformer.system.files import may_be_replaced, write_text
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
        target: The HTML file; a page that is there is replaced, anything else is left alone.

    Raises:
        UserError: A run cannot be read, or the page cannot be written.
    """
    path = Path(target)
    if not may_be_replaced(path, PAGE_BEGINS):  # a run's table, a checkpoint
        raise UserError(f"--output {path}: is there already and is no page; name another file, or remove it")
    records = [read_run(run) for run in runs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, run_page(records))
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror or error}") from None
    return path


def run_page(runs: Sequence[RunRecords]) -> str:
    """The page, as HTML."""
    shown = [{"name": run.name, "summary": _summary(run), "samples": _spread_samples(run)} for run in runs]
    return render(
        "runs.html.j2",
        title=f"Training run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} training runs",
        runs=shown,
        colours=COLOURS,
        charts=[*(draw(chart, _last_update(runs)) for chart in _charts(runs)), *_time_shares(runs)],
        restarted=any(run.restarts for run in runs),
        skipped=any(run.skipped for run in runs),
        timed=any("time_forward" in run.train for run in runs),
        figures=_rows(runs, _figures),
        evaluations=_rows(runs, _evaluated),
        differences=_differences(runs),
        sampled=any(run.samples for run in runs),
        environment=_rows(runs, _environment),
        config=_rows(runs, lambda run: run.config),
        citation=_citation(runs),
    )


def _last(column: Sequence[float | None] | None) -> float | None:
    return next((value for value in reversed(column or []) if value is not None), None)


def _best(run: RunRecords) -> tuple[float | None, float | None]:
    """Lowest validation loss, and its update."""
    losses = run.validation.get("loss", [])
    updates = run.validation.get("update", [])
    pairs = zip(losses, updates, strict=False)
    known = [(loss, update) for loss, update in pairs if loss is not None and update is not None]
    return min(known, default=(None, None))


def _last_update(runs: Sequence[RunRecords]) -> float:
    """Where the x-axis of all curves ends."""
    return max(_last(run.train["update"]) or 0 for run in runs)


def _summary(run: RunRecords) -> str:
    """What a run is, in a sentence that follows its name."""
    shape, world = run.config, run.environment.get("world_size")
    where = f" on {world} process{'es' if world != 1 else ''}" if world else ""
    updates, tokens = _last(run.train["update"]), _last(run.train.get("tokens"))
    loss, update = _best(run)
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
        losses += [
            Curve(updates, values, colour, "raw", label="training" if single else ""),
            Curve(updates, smoothed(values), colour, label="training, smoothed" if single else ""),
            # Of several runs each has one colour; of a single one validation has another.
            Curve(
                seen,
                validated,
                COLOURS[1] if single else colour,
                "dashed",
                True,
                "validation" if single else "",
            ),
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
    """Where each run's time went, for runs whose tables have the columns."""
    charts = []
    for run in runs:
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
    loss, update = _best(run)
    bits = [value for value in run.validation.get("bits_per_byte", []) if value is not None]
    validating = sum(value or 0 for value in run.validation.get("seconds", []))
    return {
        "updates": number(_last(run.train["update"])),
        "tokens": number(_last(run.train.get("tokens"))),
        "epochs": number(_last(run.train.get("epoch")), 2),
        "last training loss": number(_last(run.train.get("loss")), 4),
        "lowest validation loss": f"{number(loss, 4)} (update {number(update)})" if update else "–",
        "lowest bits per byte": number(min(bits, default=None), 4),
        "time training": duration(run.seconds),
        "of it validating": seconds_and_share(validating, run.seconds),
        "of it held up by checkpoints": "not known" if run.stall is None else seconds_and_share(*run.stall),
        "of an update waiting": what_it_waited(run),
        "tokens per second, median": number(_median(run.train.get("tokens_per_second", []))),
        "most memory": f"{number(_last(run.train.get('memory_gib')), 2)} GiB",
        "started again": {0: "never", 1: "once"}.get(len(run.restarts), f"{len(run.restarts)} times"),
        "skipped updates": number(_last(run.train.get("skipped_updates"))),
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


def _evaluated(run: RunRecords) -> dict[str, str]:
    prediction = run.evaluation.get("prediction")
    if not isinstance(prediction, dict):
        return {}
    keys = ("bits_per_byte", "loss", "perplexity", "accuracy", "xz_bits_per_byte", "books", "bytes")
    return {
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


def _differences(runs: Sequence[RunRecords]) -> list[tuple[str, list[str]]]:
    keys = {key for run in runs for key in run.config}
    differing = sorted(key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1)
    return _rows(runs, lambda run: {key: run.config.get(key) for key in differing})


def _rows(
    runs: Sequence[RunRecords], facts_of: Callable[[RunRecords], dict[str, Any]]
) -> list[tuple[str, list[str]]]:
    """For each fact its name and its value in each run."""
    columns = [facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, [any_value(column.get(name, "–")) for column in columns]) for name in names]


def _spread_samples(run: RunRecords) -> list[tuple[int, str, str]]:
    """Some of a run's samples, from the first to the last."""
    number = len(run.samples)
    places = (
        {round(i * (number - 1) / (SHOWN_SAMPLES - 1)) for i in range(SHOWN_SAMPLES)} if number else set()
    )
    return [run.samples[place] for place in sorted(places)]


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


def _median(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None
