"""`horovod-transformer report`: a page of a training run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import CommandParser, parse_options
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import path_of

DESCRIPTION = """\
Write one self-contained HTML page of a training run, or of several side by side, the best first: a
verdict, curves, figures, differences of configs, samples, environment, methods for a paper. It can be
mailed and printed.
`train` writes the page of its own run, runs/structured/NAME/report.html, when it ends."""

EXAMPLES = """\
examples:
  %(prog)s runs/structured/first --output report.html
  %(prog)s runs --output all.html          # all runs there, sorted by their result
"""


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    parser = CommandParser("horovod-transformer report", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "runs",
        nargs="+",
        type=path_of("RUN"),
        metavar="RUN",
        help="runs/structured/NAME, or a folder that holds runs",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=path_of("--output"),
        metavar="FILE",
        help="the page; replaced if it is there",
    )
    options, overrides = parse_options(parser, arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a report shows a run as it was")
    if Path(options.output).is_dir():
        raise UserError(f"--output {options.output}: is a folder; it names the page's file")

    from horovod_transformer.reports.runs import write_run_report

    print(f"written to {write_run_report(options.runs, options.output)}")
    return 0
