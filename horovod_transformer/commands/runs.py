"""`horovod-transformer runs`: the runs of a folder, listed or deleted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from horovod_transformer.commands.command_line import config_parser, parse_with_config
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.reports.formats import byte_size
from horovod_transformer.system.console import tell
from horovod_transformer.system.paths import readable

# Imported late, here and below: no `--help` should wait for it.
if TYPE_CHECKING:
    from horovod_transformer.checkpoint.run_folders import RunStatus
    from horovod_transformer.config_sections import PathsConfig

DESCRIPTION = """\
List the runs below runs/: name, when each began, how far it has come, its lowest validation loss, what it
takes on the disk. All that a run writes is in its folder, runs/NAME: copy that to keep a run elsewhere, and
resume or generate from runs/NAME/checkpoints/last.pt. checkpoints/last.pt and best_model.pt lead to the run
that wrote a checkpoint last."""

EXAMPLES = """\
examples:
  %(prog)s
  %(prog)s --output /scratch/me/books
  %(prog)s --delete trial-1 trial-2
"""


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = config_parser("horovod-transformer runs", DESCRIPTION, EXAMPLES)
    parser.add_output("DIR", "the folder that holds runs/", "--output_dir", dest="output_dir")
    parser.add_argument(
        "--delete", nargs="+", action="extend", metavar="NAME", help="delete these runs, after a question"
    )
    parser.add_argument("--yes", action="store_true", help="delete without the question")
    return parser


def main(arguments: Sequence[str]) -> int:
    """List runs, or delete some."""
    options, config = parse_with_config(make_parser(), arguments)

    from horovod_transformer.checkpoint.run_folders import own_folders, run_of_checkpoint, status_of
    from horovod_transformer.checkpoint.run_paths import BEST, RUNS, shown_checkpoints

    paths = config.with_paths_in(options.output_dir).paths if options.output_dir else config.paths
    runs = Path(paths.output_dir, RUNS)
    found: dict[str, RunStatus] = {}
    for own in own_folders(runs):
        try:
            status = status_of(own, runs)
        except PermissionError as error:
            tell(f"note: {own} is left out: {error.filename} may not be read", sys.stderr)
        else:
            found[status.name] = status
    if options.delete:
        names = dict.fromkeys(name.rstrip("/") for name in options.delete)
        return _delete([run for name in names if (run := _named(name, found, runs))], paths, options.yes)
    for cut_short in sorted(runs.glob(".*.deleted")):
        name = readable(cut_short.name[1:].removesuffix(".deleted"))
        print(f"{cut_short}: not all of run {name} is deleted; --delete {name} goes on with it")
    if not found:
        print(f"no run in {runs} yet; horovod-transformer train begins one")
    else:
        shown = run_of_checkpoint(paths, shown_checkpoints(paths) / BEST)
        ordered = sorted(found.values(), key=lambda run: (run.began or datetime.min, run.name))
        for line in table([row(run) for run in ordered]):
            print(line)
        if shown:
            print(f"{shown_checkpoints(paths) / BEST} leads to {readable(shown)}")
    return 0


def row(run: RunStatus) -> tuple[str, ...]:
    """What the list says of a run."""
    total = "?" if run.updates is None else f"{run.updates:,}"
    loss = run.lowest_validation_loss()
    state = "running" if run.is_running else "finished" if run.is_finished else "unfinished"
    return (
        readable(run.name),
        f"{run.began:%Y-%m-%d %H:%M}" if run.began else "-",
        f"{run.update:,} of {total}",
        "replaced" if run.is_replaced else state,
        "-" if loss is None else f"{loss:.4f}",
        byte_size(run.bytes_on_disk()),
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns, under a heading."""
    rows = [("run", "began", "updates", "state", "validation loss", "size"), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]


def _named(name: str, found: dict[str, RunStatus], runs: Path) -> RunStatus | None:
    """The run of a name; None if all that was left of it by a deletion that was cut short is gone now."""
    from horovod_transformer.checkpoint.run_folders import deleted_name, finish_deletion
    from horovod_transformer.checkpoint.run_paths import is_run_name

    if name in found:
        return found[name]
    if is_run_name(name):
        try:
            if finish_deletion(runs / name):
                print(f"deleted {deleted_name(runs / name)}")
                return None
        except OSError as error:
            raise UserError(f"{error.filename or name}: cannot be removed: {error.strerror}") from None
    known = ", ".join(found) or "none"
    raise UserError(f"--delete {readable(name)}: no such run in {runs}; there are {known}")


def _delete(doomed: list[RunStatus], paths: PathsConfig, yes: bool) -> int:
    from horovod_transformer.checkpoint.run_folders import delete_run

    if doomed and not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UserError("--delete: nobody is here to be asked; --yes deletes without the question")
        for line in table([row(run) for run in doomed]):
            print(line)
        try:
            answer = input("delete for good? [y/N] ")
        except (EOFError, KeyboardInterrupt) as error:
            print("\nnothing deleted")
            return 130 if isinstance(error, KeyboardInterrupt) else 0
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return 0
    for run in doomed:
        size = byte_size(run.bytes_on_disk())
        delete_run(run, paths)
        print(f"deleted {run.folder}: {size}")
    return 0
