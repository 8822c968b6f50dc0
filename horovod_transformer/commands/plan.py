"""`horovod-transformer plan`: which model to train on these books, on this machine, in this time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from horovod_transformer.commands.command_line import config_parser, parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.planning.rates import DEVICES, find_device
from horovod_transformer.system.paths import path_of

if TYPE_CHECKING:
    from horovod_transformer.planning.corpus import Corpus
    from horovod_transformer.planning.plan import Plan

DESCRIPTION = """\
Which model to train on these books, on this machine, in this time: sizes that fit, what each takes and
what to expect of it, one recommended, the command that starts it. --write makes a config of it.

The books are those of --data.source, or prepared data in --data.data_dir."""

EXAMPLES = """\
examples:
  horovod-transformer plan --data.source ~/books --hours 2 --write my.yaml
  horovod-transformer plan --data.data_dir data/quickstart --gpu h100 --gpus 4 --hours 8
  horovod-transformer plan --config my.yaml --sweep training.learning_rate=2e-3,4e-3 --write sweep.sh
"""

SECONDS_TO_MEASURE = 60.0
HERE = "here"


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = config_parser("horovod-transformer plan", DESCRIPTION, EXAMPLES)
    add_machine_options(parser)
    parser.add_argument(
        "--write", type=path_of("--write"), metavar="FILE", help="write a config; never over one"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        metavar="KEY=A,B,C",
        help="no plan, but a run of --config for each value, of several keys each combination: here, one "
        "after another, or with --write as a Slurm job array",
    )
    parser.add_argument(
        "--calibrate",
        type=float,
        metavar="MINUTES",
        help="first train small models on the prepared data for so long, and fit what to expect to them",
    )
    return parser


def add_machine_options(parser: CommandParser) -> None:
    """Add what a plan is made for: `--gpu`, `--gpus`, `--hours`."""
    names = ", ".join(device.name for device in DEVICES)
    parser.add_argument("--gpu", default=HERE, metavar="NAME", help=f"here (default), or one of {names}")
    parser.add_argument("--gpus", type=int, metavar="N", help="how many (default: those here, else 1)")
    parser.add_argument(
        "--hours", type=float, default=1.0, metavar="H", help="for training (default: %(default)g)"
    )


def main(arguments: Sequence[str]) -> int:
    """Make a plan, print it and, if that is wished, write its config."""
    options, overrides = parse_options(make_parser(), arguments)
    if options.write is not None and Path(options.write).exists():
        raise UserError(f"--write {options.write}: is there already; name another file")
    if options.sweep:
        from horovod_transformer.commands.plan_sweep import sweep

        if overrides:
            raise UserError(f"--{next(iter(overrides))}: a sweep's runs share --config; write it there")
        sweep(options.config, options.sweep, options.write)
        return 0

    # Imported late: `--help` should not wait for it.
    from horovod_transformer.config import load_config
    from horovod_transformer.data.manifest import MANIFEST
    from horovod_transformer.planning.config_file import config_text
    from horovod_transformer.planning.corpus import estimate_corpus, prepared_corpus
    from horovod_transformer.planning.words import describe, start_line
    from horovod_transformer.system.files import write_text

    config = load_config(options.config, overrides)
    data_dir = Path(config.data.data_dir)
    prepared = "data.source" not in overrides and (data_dir / MANIFEST).is_file()
    if options.calibrate is not None:
        if not prepared:
            raise UserError(f"--calibrate: needs prepared data, and {data_dir} has none; run `prepare` first")
        run_calibration(data_dir, options.calibrate)
    corpus = prepared_corpus(data_dir) if prepared else estimate_corpus(config.data)
    plan, measured = plan_for(
        corpus, options.gpu, options.gpus, options.hours, data_dir if prepared else None
    )
    describe(plan, measured)
    file = options.write or "FILE"
    if options.write is not None:
        source = None if prepared else absolute_source(config.data.source)
        known = prepared or "data.data_dir" in overrides
        folder = config.data.data_dir if known else f"data/{Path(options.write).stem}"
        write_text(Path(options.write), config_text(plan, folder, source))
        print(f"\nwritten: {options.write}")
    else:
        print("\nadd --write FILE for its config, then:")
    if not prepared:
        print(f"next: horovod-transformer prepare --config {shlex.quote(file)}")
    print(f"{'next' if prepared else 'then'}: {start_line(plan, file)}")
    return 0


def plan_for(
    corpus: Corpus, gpu: str, number: int | None, hours: float, data_dir: Path | None
) -> tuple[Plan, set[int]]:
    """Make a plan for GPUs by name, or for this machine, which is measured.

    Args:
        corpus: The books.
        gpu: `here`, or a kind of GPU.
        number: Of GPUs; None: those that are here, or one.
        hours: For training.
        data_dir: The prepared data, which may hold a law of its own.

    Returns:
        The plan, and the parameters of the models whose speed was measured.

    Raises:
        UserError: There is no such GPU, or no model that can be trained so.
    """
    if not 0 < hours < 24 * 365:
        raise UserError(f"--hours {hours:g}: should be above 0 and below a year")
    if number is not None and not 1 <= number <= 4096:
        raise UserError(f"--gpus {number}: should be from 1 to 4096")

    from horovod_transformer.model.size import count_parameters
    from horovod_transformer.planning.law_file import law_for
    from horovod_transformer.planning.machine import completed_speeds, gpus, modelled_speed
    from horovod_transformer.planning.plan import candidates, make_plan

    law = law_for(data_dir, corpus.tokens)
    if gpu != HERE:
        device = find_device(gpu)
        machine = gpus(device, number or 1)
        speeds = {
            count_parameters(model): modelled_speed(device, machine.processes, model, training)
            for model, training in candidates(corpus, machine)
        }
        return make_plan(corpus, machine, speeds, hours, law), set()
    from horovod_transformer.training.speed import machine_here, measure_speeds

    machine = machine_here(number)
    cases = candidates(corpus, machine)
    measured = measure_speeds(cases, SECONDS_TO_MEASURE)
    speeds = completed_speeds(measured, [model for model, _ in cases], machine.processes)
    return make_plan(corpus, machine, speeds, hours, law), set(measured)


def run_calibration(data_dir: Path, minutes: float) -> None:
    """Train a ladder of small models on prepared data, and keep the law that fits them in its folder."""
    from horovod_transformer.planning.calibrate import calibrate, ladder, ladder_models
    from horovod_transformer.planning.corpus import prepared_corpus
    from horovod_transformer.planning.law_file import keep_law
    from horovod_transformer.planning.machine import completed_speeds
    from horovod_transformer.planning.shapes import training_of
    from horovod_transformer.training.speed import machine_here, measure_speeds

    if not 0 < minutes < 24 * 60:
        raise UserError(f"--calibrate {minutes:g}: should be above 0 and below a day, in minutes")
    # One process trains each of them, whatever there is.
    corpus, machine = prepared_corpus(data_dir), replace(machine_here(None), processes=1)
    models = ladder_models(corpus)
    cases = [(model, training_of(model, corpus, corpus.tokens, machine)) for model in models]
    speeds = completed_speeds(measure_speeds(cases, SECONDS_TO_MEASURE), models, 1)
    law, points = calibrate(corpus, str(data_dir), ladder(corpus, speeds, minutes, machine))
    page = keep_law(data_dir, law, points)
    print(f"the law of these books: {law.formula()}, give or take {law.error:.2f}; its page: {page}")


def absolute_source(source: str | list[str]) -> str | list[str]:
    """The source as a config elsewhere may name it."""
    if isinstance(source, list):
        return [str(absolute_source(each)) for each in source]
    if source == "sample" or source.startswith("hub:"):
        return source
    return str(Path(source).expanduser().absolute())
