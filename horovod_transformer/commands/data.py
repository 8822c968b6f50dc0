"""`horovod-transformer data`: check prepared data, look into it, and count what is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import path_of

DESCRIPTION = """\
Look at a folder that `prepare` wrote.

  verify DIR   read every block and compare it with the manifest: sizes, hashes, ids, books, splits
  show DIR     print a block as text, with its book borders
  stats DIR    books, tokens, bytes per token, what was dropped"""

EXAMPLES = """\
examples:
  horovod-transformer data verify data/mine
  horovod-transformer data show data/mine --split validation --block 17
"""


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer data", DESCRIPTION, EXAMPLES, "{verify,show,stats} DIR")
    parser.add_argument("what", choices=("verify", "show", "stats"), help="what to do")
    parser.add_argument("folder", type=path_of("DIR"), metavar="DIR", help="prepared data")
    parser.add_argument(
        "--split", default="train", help="show: train, validation or test (default: %(default)s)"
    )
    parser.add_argument(
        "--block", type=int, default=0, help="show: which block, from 0; negative from the end"
    )
    parser.add_argument("--json", action="store_true", help="stats: as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Verify, show or count prepared data as the command line says; 2 if something is wrong with it."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name, what in (("split", "show"), ("block", "show"), ("json", "stats")):
        if options.what != what and getattr(options, name) != parser.get_default(name):
            raise UserError(f"--{name}: only `data {what}` has this option")

    # Imported late: a mistake on the command line should not wait for these libraries.
    from horovod_transformer.data.inspection import show, stats, verify

    if options.what == "show":
        print(show(options.folder, options.split, options.block))
        return 0
    if options.what == "stats":
        found = stats(options.folder)
        print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else _table(found))
        return 0
    checked, wrong = verify(options.folder)
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        raise UserError(
            f"{options.folder}: is not what was prepared ({len(wrong)} found wrong); "
            "`horovod-transformer prepare --force` makes it again"
        )
    counts = ", ".join(f"{count:,} {name}" for name, count in checked.items())
    print(f"{options.folder}: sound ({counts} blocks read and compared)")
    return 0


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['folder']}: {found['tokens']:,} tokens ({found['megabytes_on_disk']:,} MB), blocks of "
        f"{found['block_size']}, tokenizer {found['tokenizer']}"
    ]
    for name, split in found["splits"].items():
        lines.append(
            f"  {name:<10} {split['books']:,} books, {split['tokens']:,} tokens, {split['blocks']:,} blocks, "
            f"{split['tokens_per_book']:,.0f} tokens per book, {split['bytes_per_token']:.2f} bytes per token"
        )
    left_out = {**found["dropped"], "unreadable": found["unreadable"], "re-encoded": found["reencoded"]}
    lines.append("  " + ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in left_out.items()))
    return "\n".join(lines)
