"""`horovod-transformer prepare`: books to fixed blocks of tokens on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from horovod_transformer.commands.command_line import config_parser, parse_with_config
from horovod_transformer.errors import UserError

DESCRIPTION = """\
Turn books into fixed blocks of tokens on disk, split by book into train and validation.

Empty books, short ones and copies are dropped and counted. The result is a Hugging Face
DatasetDict with a manifest.json; it appears in data.data_dir when it is complete, and not before.
Run again with the same settings and files, it is left as it is."""

EXAMPLES = """\
examples:
  the plays that come with the installation (seconds):
    horovod-transformer prepare --config configs/quickstart.yaml
  your own .txt and .md files, one book each (also .jsonl; .txt and .jsonl also as .gz or .zst):
    horovod-transformer prepare --data.source ~/books --data.data_dir data/mine
  BookCorpus from parquet files with the columns `text` (whole books) and, if you like, `title`:
    horovod-transformer prepare --data.source '~/bookcorpusopen/*.parquet'
  other books with the tokenizer of a model that is to be trained on with them:
    horovod-transformer prepare --data.source ~/letters --data.tokenizer checkpoints/best_model.pt \\
      --data.data_dir data/letters
  bookcorpus, whose rows are sentences, a thousand of them to a document:
    horovod-transformer prepare --data.source '~/bookcorpus/*.parquet' --data.join_rows 1000
  a data set on the hub (its files are fetched into the hub's cache), or some files of one of its revisions:
    horovod-transformer prepare --data.source hub:OWNER/NAME
    horovod-transformer prepare --data.source 'hub:OWNER/NAME@REVISION/data/train-*.parquet'

on several nodes that share a file system (scripts/prepare_zaratan.sh does it under Slurm):
  prepare --units 1/8 ... prepare --units 8/8, each on one node; then prepare --assemble. With
  data.tokenizer bpe all of it twice: the first --assemble trains the tokenizer.

needs:
  memory: per process 0.3 GB, and the longest book about ten times over; the size of the corpus
          does not matter
  disk:   2 bytes per token (4 if the vocabulary has more than 65,536 entries), and twice that
          while it runs; English has about one token per 4 bytes

A run that is stopped or killed leaves what it has finished in data.data_dir with `.units` behind its
name; the next one goes on from there and removes it in the end.
"""


def main(arguments: Sequence[str]) -> int:
    """Prepare data as the command line says."""
    parser = config_parser("horovod-transformer prepare", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--force", action="store_true", help="replace prepared data that was made with other settings"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes that tokenize (default: one per usable core)",
    )
    parser.add_argument(
        "--units", type=share, metavar="I/N", help="do only share I of N of the work, on one of N nodes"
    )
    parser.add_argument("--assemble", action="store_true", help="put together what --units made")
    options, config = parse_with_config(parser, arguments)
    if options.assemble and (options.units or options.workers):
        raise UserError(
            "--assemble goes with neither --units nor --workers: it is the last step, in one process"
        )

    # Imported late: a mistake on the command line should not wait for these libraries.
    from horovod_transformer.prepare.prepare import assemble_shards, prepare, prepare_shards

    try:
        if options.units:
            node, nodes = options.units
            prepare_shards(config, node, nodes, workers=options.workers, force=options.force)
        elif options.assemble:
            assemble_shards(config, force=options.force)
        else:
            prepare(config, force=options.force, workers=options.workers)
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
