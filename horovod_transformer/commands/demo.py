"""`make demo`: books in, two Horovod processes, a loss curve, an honest score, text out."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

from horovod_transformer.commands.command_line import config_parser, parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import StoppedError, UserError
from horovod_transformer.launch.subcommand import program_as_typed, run_subcommand
from horovod_transformer.reports.formats import duration
from horovod_transformer.system.console import counted, is_quiet, narrate, tell, telling_time

if TYPE_CHECKING:
    from horovod_transformer.config import Config

DESCRIPTION = """\
The whole path on the plays that come with the installation: prepare, train on two Horovod
processes (one where Horovod is missing, or on a single GPU), draw the loss curve, score held-out
plays beside `xz -9`, write three passages. All of it takes a few minutes more than the training that
--minutes asks for. Everything goes to demo/; an earlier demo's run is archived there, not removed."""

FOLDER = Path("demo")
RUN = FOLDER / "run"
# What --minutes decides.
OURS = ("training.max_updates", "training.epochs")
# Enough updates to be past the warm-up of caches and of Horovod's own.
CALIBRATION_UPDATES = 12
# Seconds beside --minutes that all else may take. Where it takes longer, on a slow or busy machine, training
# gets what is left; but so many updates it gets.
REST_S = 90.0
FEWEST_UPDATES = 20
# Curve, score, compressor and text together take about as long as so many updates.
UPDATES_TIME_AFTERWARDS = 60
PROMPTS = ("", "To be, or not to be", "Enter the KING and the CLOWN.")


EXAMPLES = """\
examples:
  %(prog)s --minutes 1
  %(prog)s --minutes 20 --data.source ~/books --data.data_dir data/demo
"""


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = config_parser("horovod-transformer demo", DESCRIPTION, EXAMPLES)
    parser.set_defaults(config="configs/quickstart.yaml")
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="M", help="training time (default: %(default)s)"
    )
    parser.add_processes("Horovod processes (default: 2; 1 without Horovod or on a single GPU)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the demo."""
    options, overrides = parse_options(make_parser(), arguments)

    from horovod_transformer.checkpoint.run_paths import BEST, run_paths, shown_checkpoints
    from horovod_transformer.config import load_config

    config = load_config(options.config, overrides)
    for key in OURS:
        if key in overrides:
            raise UserError(f"--{key}: the demo trains for so long as --minutes says")
    if not 0 < options.minutes < 24 * 60:
        raise UserError(f"--minutes {options.minutes:g}: should be above 0 and below a day")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes {options.processes}: should be at least 1")
    # What the training processes need to find the same config.
    shared = ["--config", options.config]
    for key, value in overrides.items():
        shared += [f"--{key}", value]

    began = time.monotonic()
    _heading("1/5  Books to blocks of tokens")
    from horovod_transformer.prepare.prepare import prepare

    prepare(config)

    processes = options.processes or _usual_processes(config)
    on_processes = f"on {counted(processes, 'process', 'processes')}"
    minutes = f"{options.minutes:g} minute{'' if options.minutes == 1 else 's'}"
    _heading(f"2/5  Training {on_processes}")
    if options.processes is None and processes == 1:
        narrate(_why_one_process())
    narrate(f"first a calibration: {CALIBRATION_UPDATES} updates, thrown away: how many fit into {minutes}?")
    started = time.monotonic()
    with telling_time("calibrating"):
        per_update = _seconds_per_update(config, processes, shared)
    around = max(0.0, time.monotonic() - started - CALIBRATION_UPDATES * per_update)
    left = 60 * options.minutes + REST_S - (time.monotonic() - began)
    seconds = min(60 * options.minutes, left - around - UPDATES_TIME_AFTERWARDS * per_update)
    updates = max(FEWEST_UPDATES, int(seconds / per_update))
    busy = "" if seconds == 60 * options.minutes else ", with all else: the machine is slow or busy"
    narrate(f"about {updates:,} updates fit{busy}; now the run itself\n")
    _train(processes, shared, RUN, updates)
    paths = config.with_paths_in(RUN).paths
    run = run_paths(paths, "demo").tables

    _heading("3/5  Loss curve")
    from horovod_transformer.reports.plotting import draw_curve, terminal_curve

    picture = FOLDER / "loss.png"
    draw_curve(run, picture, f"demo: {minutes} {on_processes}")
    narrate(f"{terminal_curve(run)}\nalso in {picture}")

    _heading("4/5  Held-out plays, in bits per byte")
    checkpoint = shown_checkpoints(paths) / BEST
    _score(config, checkpoint)

    _heading("5/5  Text")
    from horovod_transformer.generation import write_passages

    write_passages(checkpoint, config.generation, PROMPTS)
    program = program_as_typed()
    took = duration(time.monotonic() - began)
    print(f"\nDone in {took}, of which the training was to take {minutes}.")
    print(f"Its page:    {run / 'report.html'} (open it in a browser)")
    print(
        f'More text:   {program} generate --checkpoint {checkpoint} --prompt "O Romeo" --max_new_tokens 200'
    )
    print(f"Your books:  {program} demo --minutes 20 --data.source ~/books --data.data_dir data/books")
    print("What else:   the tour in README.md")
    return 0


def _heading(text: str) -> None:
    narrate(f"\n=== {text} ===")


def _usual_processes(config: Config) -> int:
    from horovod_transformer.distributed import usual_processes

    return usual_processes(config.training.device)


def _why_one_process() -> str:
    from horovod_transformer.distributed import horovod_is_installed

    why, more = "There is one GPU here, which two processes cannot share", ""
    if not horovod_is_installed():
        why, more = (
            "Horovod is not installed here",
            " `horovod-transformer doctor` says what Horovod needs.",
        )
    return (
        f"{why}, so one process trains. Left out: the second process, and the\n"
        f"summing of gradients between the two.{more}"
    )


def _train(
    processes: int,
    shared: list[str],
    folder: Path,
    updates: int,
    *more: str,
    output: IO[bytes] | None = None,
) -> None:
    arguments = [*shared, "--output", str(folder), "--run_name", "demo", *(["--quiet"] if is_quiet() else [])]
    run_subcommand(
        processes,
        "train",
        [*arguments, "--training.max_updates", str(updates), "--training.epochs", "1000", *more],
        output,
    )


def _seconds_per_update(config: Config, processes: int, shared: list[str]) -> float:
    """Measure the speed of this machine on a few updates."""
    from horovod_transformer.checkpoint.run_paths import run_paths
    from horovod_transformer.reports.run_records import read_table

    with tempfile.TemporaryDirectory(prefix="horovod-transformer-demo-") as name:
        folder = Path(name)
        few = ("--training.eval_blocks", "1", "--training.log_interval", "1", "--training.trackers", "[]")
        # Its warnings of a short run and the paths it names would mislead: only a failure is shown.
        with tempfile.TemporaryFile() as output:
            try:
                _train(processes, shared, folder, CALIBRATION_UPDATES, *few, output=output)
            except UserError as error:
                if not isinstance(error, StoppedError):
                    output.seek(0)
                    tell(output.read().decode(errors="replace"), sys.stderr)
                raise
        table = read_table(run_paths(config.with_paths_in(folder).paths, "demo").tables / "train.csv")
    seconds = [value for value in table["seconds"] if value is not None]
    middle = len(seconds) // 3
    return (seconds[-1] - seconds[middle]) / (len(seconds) - 1 - middle)


def _score(config: Config, checkpoint: Path) -> None:
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.evaluation.book_scores import books_of, score_books, xz_given_training_text
    from horovod_transformer.generation import load_model_for_generation
    from horovod_transformer.precision import bf16_unit

    model, tokenizer, _ = load_model_for_generation(checkpoint)
    data = open_prepared_data(config)
    held_out = books_of(data.validation, tokenizer)
    precision = "bf16" if bf16_unit(model.token_embedding.weight.device) else "fp32"
    # The compressor computes beside the model, on another core if there is one.
    with ThreadPoolExecutor(1) as beside:
        compressing = beside.submit(xz_given_training_text, data.train, held_out, tokenizer)
        score = score_books(model, held_out, tokenizer, precision, progress=True)
        narrate("compressing them with xz -9, given the other plays")
        with telling_time("compressing"):
            xz = compressing.result()
    titles = ", ".join(data.manifest.get("validation_books", []))
    print(f"held out: {counted(len(held_out), 'play')}, {score.bytes:,} bytes ({titles})")
    print(f"  this model                     {score.bits_per_byte:.3f}")
    print(f"  xz -9, given the other plays   {xz:.3f}")
