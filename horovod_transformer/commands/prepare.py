"""`horovod-transformer prepare`: books to fixed blocks of tokens on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import command_line, config_parser, parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell

DESCRIPTION = """\
Turn books into fixed blocks of tokens on disk, split by book into train and validation.

Empty books, short ones and copies are dropped and counted. The result is a Hugging Face
DatasetDict with a manifest.json; it appears in data.data_dir when it is complete, and not before.
Run again with the same settings and files, it is left as it is."""

DATA_DIR = "data.data_dir"

EXAMPLES = """\
examples:
  the plays that come with the installation (seconds):
    %(prog)s --config configs/quickstart.yaml
  your own .txt, .md, .epub and .html files, one book each (also .zip and .tar.gz of them, .jsonl, .parquet):
    %(prog)s --data.source ~/books --output data/mine
  BookCorpus from parquet files with the columns `text` (whole books) and, if you like, `title`:
    %(prog)s --data.source '~/bookcorpusopen/*.parquet'

memory: 0.3 GB a process, and the longest book about ten times over; however large the corpus is.
disk: 2 bytes a token (4 if the vocabulary has more than 65,536 entries), twice that while it runs.

docs/data.md has more: tables of sentences, data sets of the hub, several nodes.
A run that is stopped leaves what it has finished beside the data, in a folder that ends in `.units`; the
next one goes on from there.
"""


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = config_parser("horovod-transformer prepare", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--force", action="store_true", help="replace prepared data that was made with other settings"
    )
    parser.add_output("DIR", "where the data goes, the same as --data.data_dir")
    parser.add_processes("processes that tokenize (default: one per usable core)", positive)
    parser.add_argument(
        "--units", type=share, metavar="I/N", help="do only share I of N of the work, on one of N nodes"
    )
    parser.add_argument("--assemble", action="store_true", help="put together what --units made")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Prepare data as the command line says."""
    options, overrides = parse_options(make_parser(), arguments)

    from horovod_transformer.config import load_config  # no `--help` should wait for it

    if options.output is not None:
        if DATA_DIR in overrides:
            raise UserError(f"--output: --{DATA_DIR} says the same; give one of them")
        overrides[DATA_DIR] = options.output
    config = load_config(options.config, overrides)
    if options.assemble and (options.units or options.processes):
        raise UserError(
            "--assemble goes with neither --units nor --processes: it is the last step, in one process"
        )

    # Imported late: a mistake on the command line should not wait for these libraries.
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.data.held_out import held_out_warnings
    from horovod_transformer.data.manifest import MANIFEST
    from horovod_transformer.prepare.prepare import assemble_shards, prepare, prepare_shards

    try:
        if options.units:
            node, nodes = options.units
            prepare_shards(config, node, nodes, workers=options.processes, force=options.force)
        elif options.assemble:
            assemble_shards(config, force=options.force)
        else:
            prepare(config, force=options.force, workers=options.processes)
        if not options.units and (Path(config.data.data_dir) / MANIFEST).is_file():
            data = open_prepared_data(config)
            for line in held_out_warnings(data.train, data.validation):
                tell(f"warning: {line}", sys.stderr)
            # What training reads otherwise is in the data now.
            kept = {
                key: value for key, value in overrides.items() if key == DATA_DIR or key.startswith("model.")
            }
            tell(f"next: {command_line('train', options.config, kept)}")
    except KeyboardInterrupt:
        print("stopped; run it again to go on with what is finished", file=sys.stderr)
        return 130
    return 0


def positive(text: str) -> int:
    """Read a number from 1 up, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def share(text: str) -> tuple[int, int]:
    """Read a share such as 3/8, for argparse."""
    first, _, second = text.partition("/")
    number, of = positive(first), positive(second)
    if number > of:
        raise ValueError
    return number, of
