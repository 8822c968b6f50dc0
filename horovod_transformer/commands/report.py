"""`horovod-transformer report`: a page of a training run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.paths import path_of

DESCRIPTION = """\
Write one self-contained HTML page of a training run, or of several side by side, the best first: a
verdict, curves, figures, differences of configs, samples, environment, methods for a paper. It can be
mailed and printed.
`train` writes the page of its own run, runs/structured/NAME/report.html, when it ends."""

EXAMPLES = """\
examples:
  %(prog)s                                            # all runs here, the best first
  %(prog)s runs/structured/first --output first.html
  %(prog)s runs/structured/first runs/structured/second --output both.html
"""


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer report", DESCRIPTION, EXAMPLES, "[RUN ...]")
    parser.add_argument(
        "runs",
        nargs="*",
        default=["runs"],
        type=path_of("RUN"),
        metavar="RUN",
        help="runs/structured/NAME, or a folder of runs (default: runs)",
    )
    parser.add_output("FILE", "the page; replaced if it is there (default: report.html)")
    parser.set_defaults(output="report.html")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    options, overrides = parse_options(make_parser(), arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a report shows a run as it was")
    if Path(options.output).is_dir():
        raise UserError(f"--output {options.output}: is a folder; it names the page's file")

    from horovod_transformer.reports.runs import write_run_report

    page = write_run_report(options.runs, options.output)
    print(f"written to {page}")
    tell(f"next: open {page} in a browser")
    return 0
