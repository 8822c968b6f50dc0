"""`horovod-transformer new`: a folder for some books, with a config that fits them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.commands.plan import absolute_source, add_machine_options, plan_for
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import FOLDER_CONFIG, path_of

DESCRIPTION = """\
Make a folder with a config.yaml that fits your books, this machine and your time; `plan` decides what is
in it, and each value says why. In that folder no command needs an option: prepare, train, generate,
evaluate and report take its config.yaml, and the paths in it count from there."""

EXAMPLES = """\
examples:
  horovod-transformer new letters --source ~/letters
  horovod-transformer new novels --source ~/novels --source '~/more/*.txt' --gpu h100 --gpus 4 --hours 8
"""

# Below the new folder.
DATA = "data"


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer new", DESCRIPTION, EXAMPLES, "NAME")
    parser.add_argument("name", type=path_of("NAME"), metavar="NAME", help="the folder to make")
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="PATH",
        help="books: a file, folder or glob; or `sample`",
    )
    add_machine_options(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Make the folder."""
    options = make_parser().parse_args(arguments)
    folder = Path(options.name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already, and not empty; choose another name")

    # Imported late: `--help` should not wait for it.
    from horovod_transformer.config_sections import DataConfig
    from horovod_transformer.planning.config_file import config_text
    from horovod_transformer.planning.corpus import estimate_corpus
    from horovod_transformer.planning.words import describe, start_line
    from horovod_transformer.system.files import write_text

    source = absolute_source(options.source if len(options.source) > 1 else options.source[0])
    corpus = estimate_corpus(DataConfig(source=source))
    plan, measured = plan_for(corpus, options.gpu, options.gpus, options.hours, None)
    describe(plan, measured)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FOLDER_CONFIG, config_text(plan, DATA, source))
    print(f"\nwritten: {folder / FOLDER_CONFIG}")
    print(f"next: cd {shlex.quote(str(folder))} && horovod-transformer prepare")
    if plan.machine.here:
        print(f"then: {start_line(plan, FOLDER_CONFIG)}")
    else:  # submitted from the repository, where paths of the config would count from
        place = folder.absolute()
        paths = shlex.join(["--data.data_dir", str(place / DATA), "--output", str(place)])
        print(f"then, from the repository: {start_line(plan, str(place / FOLDER_CONFIG))} {paths}")
    return 0
