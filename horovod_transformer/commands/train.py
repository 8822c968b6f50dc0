"""`horovod-transformer train`, or `python -m src.train`: train on prepared blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from horovod_transformer.commands.command_line import (
    command_line,
    config_parser,
    parse_with_config,
    whole_number,
)
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import EXIT_START_AGAIN, UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.launch_environment import launched_rank, start_timeout, this_process
from horovod_transformer.system.paths import default_config, path_of

if TYPE_CHECKING:
    from horovod_transformer.config import Config
    from horovod_transformer.config_sections import PathsConfig

DESCRIPTION = """\
Train a model on prepared blocks: alone as one process, under `horovod-transformer launch -np N`,
`horovodrun -np N`, `torchrun` or `srun` as N. The same global batch walks the same loss curve on any number
of processes. Stopped by a signal (SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, Ctrl-C) it saves a checkpoint and ends
with exit code 75, start me again (under horovodrun: 0); a mistake of yours ends with 2."""

EXAMPLES = """\
examples:
  %(prog)s --config configs/quickstart.yaml
  horovod-transformer launch -np 4 -- %(prog)s --config configs/config.yaml --resume auto
"""


def make_parser() -> CommandParser:
    """The arguments of training, without the config's dotted overrides."""
    parser = config_parser("horovod-transformer train", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--resume",
        type=path_of("--resume"),
        metavar="PATH|auto",
        help="resume this checkpoint; auto: the newest good one, or start afresh if there is none",
    )
    parser.add_argument(
        "--init_from",
        type=path_of("--init_from"),
        metavar="PATH",
        help="start a fresh run with the weights of this checkpoint",
    )
    parser.add_argument(
        "--run_name", metavar="NAME", help="the run's folder is runs/NAME (default: the time)"
    )
    parser.add_output(
        "DIR", "put runs/, and the links in checkpoints/ and logs/, here", "--output_dir", dest="output_dir"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would be, and how long it would take; no more",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="3",
        metavar="UPDATES",
        help="record so many updates (default: %(const)s) as a trace, print where their time went",
    )
    parser.add_argument(
        "--profile_rank", default="0", metavar="RANK", help="the rank to record (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Train as the command line says."""
    options, config = parse_with_config(make_parser(), arguments)
    window = None if options.profile is None else whole_number("--profile", options.profile, least=1)
    profile_rank = whole_number("--profile_rank", options.profile_rank)
    if window is not None:
        os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")  # read when Horovod starts

    if options.dry_run:
        return _dry_run(config)
    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.distributed import run_on_rank0, setup_horovod
    from horovod_transformer.model.size import flops_per_update
    from horovod_transformer.training.metrics.profiling import ProfileRequest
    from horovod_transformer.training.run import run_distributed_training
    from horovod_transformer.training.watchdog import Watchdog

    stall_timeout = config.distributed.stall_timeout
    # Training has a watchdog of its own, which takes over. Loading a large checkpoint may take longer
    # than an update.
    limit = (
        max(2.0 * start_timeout(this_process().size), stall_timeout) if stall_timeout is not None else None
    )
    why = "in the start-up; the longer of distributed.stall_timeout and 2 x HOROVOD_START_TIMEOUT"
    with Watchdog(limit, launched_rank(), why):
        flops = flops_per_update(config.model, config.training, this_process().size)
        world_size, rank, local_rank, _ = setup_horovod(
            device=config.training.device,
            flops_per_update=flops,
            hierarchical=config.distributed.hierarchical,
            compression=config.distributed.compression,
        )
        if profile_rank >= world_size:
            raise UserError(f"--profile_rank {profile_rank}: the ranks are 0 to {world_size - 1}")
        outcome = run_distributed_training(
            config,
            rank,
            world_size,
            local_rank,
            resume_checkpoint=options.resume,
            run_name=options.run_name,
            output_dir=options.output_dir,
            init_from=options.init_from,
            profile=None if window is None else ProfileRequest(window, profile_rank),
        )
    if rank == 0:
        _report(Path(outcome["records_dir"]))
        if outcome["finished"]:
            _say_what_next(config.with_paths_in(options.output_dir or config.paths.output_dir).paths)
        else:
            from horovod_transformer.launch.resume_command import resume_command

            tell(f"resume with: {resume_command(outcome['run_name'])}")
    if outcome["finished"] or this_process().launcher == "horovodrun":
        return 0  # of another code horovodrun would make a traceback
    # Launchers end all ranks once one has left with such a code: leave together, all files closed.
    run_on_rank0(lambda: None)
    return EXIT_START_AGAIN


def _dry_run(config: Config) -> int:
    """Say what the run would be; measured by one process, so it is refused to several."""
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.training.dry_run import describe_run

    if this_process().size > 1:
        raise UserError("--dry-run: is for one process; run it without a launcher")
    data = open_prepared_data(config)
    print("\n".join(describe_run(config.model, config.training, config.distributed, data)))
    return 0


def _say_what_next(paths: PathsConfig) -> None:
    from horovod_transformer.checkpoint.run_paths import BEST, shown_checkpoints

    checkpoint = shown_checkpoints(paths) / BEST
    named = {} if checkpoint == Path("checkpoints", BEST) else {"checkpoint": str(checkpoint)}
    for command in ("generate", "evaluate"):
        tell(f"next: {command_line(command, default_config(), named)}")


def _report(run: Path) -> None:
    """Write the page of a run; a page that fails does not make the run fail."""
    from horovod_transformer.reports.runs import write_run_report

    try:
        tell(f"report: {write_run_report([run], run / 'report.html')}")
    except UserError as error:
        tell(f"no report: {error}")
    except Exception as error:  # the exit code decides whether the job is started again
        tell(f"no report: {type(error).__name__}: {error}")
