"""`horovod-transformer plan`: which model to train on these books, on this machine, in this time."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import config_parser, parse_options
from horovod_transformer.config import Config, load_config
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import count_parameters, flops_per_token
from horovod_transformer.planning.config_file import config_text, describe_corpus
from horovod_transformer.planning.corpus import Corpus, estimate_corpus, prepared_corpus
from horovod_transformer.planning.law import usual_law
from horovod_transformer.planning.machine import Machine, gpus, modelled_speed
from horovod_transformer.planning.plan import Plan, candidates, make_plan
from horovod_transformer.planning.rates import DEVICES, find_device
from horovod_transformer.reports.formats import byte_size, duration
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import write_text
from horovod_transformer.system.machine import memory_bytes, usable_cores
from horovod_transformer.system.paths import path_of

DESCRIPTION = """\
Which model to train on these books, on this machine, in this time: sizes that fit, what each takes and
what to expect of it, one recommended, the command that starts it. --write makes a config of it.

The books are those of --data.source, or prepared data in --data.data_dir."""

EXAMPLES = """\
examples:
  horovod-transformer plan --data.source ~/books --hours 2 --write my.yaml
  horovod-transformer plan --data.data_dir data/quickstart --gpu h100 --gpus 4 --hours 8
"""

# Together; and for one model, its first update apart.
SECONDS_TO_MEASURE, SECONDS_EACH = 60.0, 3.0
HERE = "here"
GPUS_OF_A_NODE = 4


def main(arguments: Sequence[str]) -> int:
    """Make a plan, print it and, if that is wished, write its config."""
    parser = config_parser("horovod-transformer plan", DESCRIPTION, EXAMPLES)
    names = ", ".join(device.name for device in DEVICES)
    parser.add_argument("--gpu", default=HERE, metavar="NAME", help=f"here (default), or one of {names}")
    parser.add_argument("--gpus", type=int, metavar="N", help="how many (default: those here, else 1)")
    parser.add_argument(
        "--hours", type=float, default=1.0, metavar="H", help="for training (default: %(default)g)"
    )
    parser.add_argument(
        "--write", type=path_of("--write"), metavar="FILE", help="write a config; never over one"
    )
    options, overrides = parse_options(parser, arguments)
    if not 0 < options.hours < 24 * 365:
        raise UserError(f"--hours {options.hours:g}: should be above 0 and below a year")
    if options.gpus is not None and not 1 <= options.gpus <= 4096:
        raise UserError(f"--gpus {options.gpus}: should be from 1 to 4096")
    if options.write is not None and Path(options.write).exists():
        raise UserError(f"--write {options.write}: is there already; name another file")
    config = load_config(options.config, overrides)
    prepared = "data.source" not in overrides and _is_prepared(config)
    corpus = prepared_corpus(config.data.data_dir) if prepared else estimate_corpus(config.data)
    plan, measured = plan_for(corpus, options.gpu, options.gpus, options.hours)
    describe(plan, measured)
    file = options.write or "FILE"
    if options.write is not None:
        source = None if prepared else _absolute(config.data.source)
        known = prepared or "data.data_dir" in overrides
        data_dir = config.data.data_dir if known else f"data/{Path(options.write).stem}"
        write_text(Path(options.write), config_text(plan, data_dir, source))
        print(f"\nwritten: {options.write}")
    else:
        print("\nadd --write FILE for its config, then:")
    if not prepared:
        print(f"next: horovod-transformer prepare --config {shlex.quote(file)}")
    print(f"{'then' if not prepared else 'next'}: {start_line(plan, file)}")
    return 0


def plan_for(corpus: Corpus, gpu: str, number: int | None, hours: float) -> tuple[Plan, set[int]]:
    """Make a plan for GPUs by name, or for this machine, which is measured.

    Returns:
        The plan, and the parameters of the models whose speed was measured.
    """
    law = usual_law(corpus.tokens)
    if gpu != HERE:
        device = find_device(gpu)
        machine = gpus(device, number or 1)
        speeds = {
            count_parameters(model): modelled_speed(device, machine.processes, model, training)
            for model, training in candidates(corpus, machine)
        }
        return make_plan(corpus, machine, speeds, hours, law), set()
    machine = machine_here(number)
    speeds, measured = measure(corpus, machine)
    return make_plan(corpus, machine, speeds, hours, law), measured


def machine_here(number: int | None) -> Machine:
    """This machine: its GPUs if it has some, else its cores."""
    from horovod_transformer.launch.gpus import GpuCount

    there = GpuCount().result()
    if not there:
        if number is not None:
            raise UserError(f"--gpus {number}: this machine has none; name a kind, as --gpu h100")
        return Machine(f"{usable_cores()} CPU cores here", 1, memory_bytes(), on_gpu=False, here=True)
    if number is not None and number > there:
        raise UserError(f"--gpus {number}: this machine has {there}")
    import torch

    card = torch.cuda.get_device_properties(0)
    processes = number or there
    return Machine(f"{processes} x {card.name} here", processes, card.total_memory, on_gpu=True, here=True)


def measure(corpus: Corpus, machine: Machine) -> tuple[dict[int, float], set[int]]:
    """Measure this machine's tokens/s, from small models to large ones, for about a minute.

    What is too large for that is modelled: as many operations a second as the last one that was measured.

    Returns:
        Parameters -> tokens/s of all processes together, and the parameters of what was measured.
    """
    from horovod_transformer.training.speed import measure_tokens_per_second

    speeds: dict[int, float] = {}
    measured: set[int] = set()
    began, operations, last = time.monotonic(), 0.0, 0.0
    for model, training in candidates(corpus, machine):
        parameters = count_parameters(model)
        flops = flops_per_token(model, parameters, model.max_seq_len)
        batch = (training.global_batch_size or 0) * model.max_seq_len
        left = SECONDS_TO_MEASURE - (time.monotonic() - began)
        expected = 3 * batch * flops / operations if operations else 0.0
        if expected < left and (not operations or not last > SECONDS_TO_MEASURE / 2):
            before = time.monotonic()
            one = measure_tokens_per_second(model, training, SECONDS_EACH)
            last = time.monotonic() - before
            operations = one * flops
            measured.add(parameters)
            tell(f"measured: {parameters / 1e6:,.1f}M parameters, {one:,.0f} tokens/s")
        else:
            one = operations / flops
        speeds[parameters] = one * machine.processes
    return speeds, measured


def describe(plan: Plan, measured: set[int]) -> None:
    """Print the books, the machine, the table and what in it is measured, modelled and guessed."""
    print(f"\nbooks:    {plan.corpus.source}: {describe_corpus(plan.corpus)}")
    print(f"machine:  {plan.machine.name}, {byte_size(plan.machine.memory_bytes)} of memory each")
    print(f"time:     {plan.hours:g} hours\n")
    head = (
        "",
        "size",
        "layers",
        "width",
        "tokens",
        "epochs",
        "tokens/s",
        "time",
        "memory",
        "disk",
        "bits per byte",
    )
    rows = [head, *(_row(plan, place, measured) for place in _worth_showing(plan))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]))
    print(f"\n* recommended: {plan.reason}.")
    how = (
        "measured here; with ~ modelled from the largest one measured"
        if measured
        else "~ modelled from one rate (docs/recipes.md)"
    )
    print(f"tokens/s: {how}. Memory and disk: reckoned. Bits per byte of held-out books:")
    print(f"guessed, by a law {plan.law.source}; repeated tokens count as in arXiv:2305.16264.")


def _worth_showing(plan: Plan) -> list[int]:
    """All options that can be trained, and the first larger one that cannot, for its reason."""
    places = [place for place, option in enumerate(plan.options) if not option.obstacle]
    after = places[-1] + 1
    return [*places, after] if after < len(plan.options) else places


def _row(plan: Plan, place: int, measured: set[int]) -> tuple[str, ...]:
    option = plan.options[place]
    low, high = option.bits_per_byte - option.error, option.bits_per_byte + option.error
    return (
        "*" if place == plan.recommended else "",
        f"{option.parameters / 1e6:,.1f}M",
        str(option.model.n_layers),
        str(option.model.d_model),
        f"{option.tokens / 1e6:,.1f}M",
        f"{option.epochs:.2g}",
        ("" if option.parameters in measured else "~") + f"{option.tokens_per_second:,.0f}",
        duration(option.seconds),
        byte_size(option.device_bytes),
        byte_size(option.disk_bytes),
        option.obstacle or f"{option.bits_per_byte:.2f} ({low:.2f} to {high:.2f})",
    )


def start_line(plan: Plan, file: str) -> str:
    """The command that starts the recommended run."""
    config, machine = shlex.quote(file), plan.machine
    train = f"horovod-transformer train --config {config}"
    if machine.here:
        return (
            train
            if machine.processes == 1
            else f"horovod-transformer launch -np {machine.processes} -- {train}"
        )
    nodes = -(-machine.processes // GPUS_OF_A_NODE)
    each = -(-machine.processes // nodes)
    minutes = math.ceil(plan.choice.seconds / 60 * 1.1) + 10
    kind = machine.name.rpartition(" ")[2].partition("-")[0]
    where = f"--nodes={nodes} --ntasks-per-node={each} --gres=gpu:{kind}:{each}"
    return (
        f"sbatch {where} --time={minutes // 60:02d}:{minutes % 60:02d}:00 scripts/train_zaratan.sh {config}"
    )


def _is_prepared(config: Config) -> bool:
    return (Path(config.data.data_dir) / "manifest.json").is_file()


def _absolute(source: str | list[str]) -> str | list[str]:
    """The source as a config elsewhere may name it."""
    if isinstance(source, list):
        return [str(_absolute(each)) for each in source]
    if source == "sample" or source.startswith("hub:"):
        return source
    return str(Path(source).expanduser().absolute())
