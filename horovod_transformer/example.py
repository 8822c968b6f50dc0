"""A complete run in a few lines: books, training on Horovod processes, text.

    from horovod_transformer.example import TransformerTrainingExample

    example = TransformerTrainingExample()
    example.run_complete_workflow(train=True, generate=True)

`python horovod_transformer.example.py` is the same as a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.checkpoint.run_paths import BEST, shown_checkpoints
from horovod_transformer.commands.command_line import config_parser, parse_options
from horovod_transformer.config import Config, load_config
from horovod_transformer.errors import UserError

DESCRIPTION = """\
The whole workflow on the quickstart config: prepare the plays that come with the installation,
train on two Horovod processes (one on a single GPU), write text from the best checkpoint."""

PROMPTS = ("Once upon a time", "The future of", "")


class TransformerTrainingExample:
    """Prepares, trains and generates with one config.

    Args:
        config_path: A YAML config.
        processes: Horovod processes to train on; 1 trains without Horovod. None: two, or one where Horovod is
            missing or there is a single GPU.
        overrides: Dotted config keys to values, as on the command line.

    Raises:
        UserError: The config does not hold.
    """

    def __init__(
        self,
        config_path: str | Path = "configs/quickstart.yaml",
        processes: int | None = None,
        overrides: dict[str, str] | None = None,
    ) -> None:
        self.config_path = Path(config_path)
        self.processes = processes
        self.overrides = dict(overrides or {})
        self.config: Config = load_config(self.config_path, self.overrides)

    def run_complete_workflow(
        self, train: bool = True, generate: bool = True, checkpoint_path: str | Path | None = None
    ) -> list[str]:
        """Do the steps that are asked for.

        Args:
            train: Prepare the data if need be, and train.
            generate: Write a passage for each of PROMPTS.
            checkpoint_path: What to generate from; None takes the config's best_model.pt.

        Returns:
            The passages, prompts included; empty without `generate`.

        Raises:
            UserError: The books or the checkpoint are missing, or training ended badly.
        """
        if train:
            self.prepare_data()
            self.train()
        if not generate:
            return []
        return self.generate(checkpoint_path or shown_checkpoints(self.config.paths) / BEST)

    def prepare_data(self) -> None:
        """Turn the config's books into blocks of tokens; quick when that is done already."""
        from horovod_transformer.prepare.prepare import prepare

        prepare(self.config)

    def train(self) -> None:
        """Train as `horovod-transformer launch -np N -- horovod-transformer train --config F` would."""
        from horovod_transformer.distributed import usual_processes
        from horovod_transformer.launch.subcommand import run_subcommand

        arguments = ["--config", str(self.config_path)]
        for key, value in self.overrides.items():
            arguments += [f"--{key}", str(value)]
        processes = self.processes
        if processes is None:
            processes = usual_processes(self.config.training.device)
        run_subcommand(processes, "train", arguments)

    def generate(self, checkpoint_path: str | Path) -> list[str]:
        """Write and print a passage for each prompt."""
        from horovod_transformer.generation import write_passages

        return write_passages(checkpoint_path, self.config.generation, PROMPTS)


def main(arguments: Sequence[str]) -> int:
    """Run the example as a program."""
    parser = config_parser("python horovod_transformer.example.py", DESCRIPTION)
    parser.set_defaults(config="configs/quickstart.yaml")
    parser.add_processes("Horovod processes (default: 2; 1 without Horovod or on a single GPU)")
    parser.add_argument("--no_train", action="store_true", help="only generate, from --checkpoint")
    parser.add_argument("--no_generate", action="store_true", help="only prepare and train")
    parser.add_argument("--checkpoint", metavar="PATH", help="generate from this checkpoint")
    options, overrides = parse_options(parser, arguments)
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes {options.processes}: should be at least 1")
    example = TransformerTrainingExample(options.config, options.processes, overrides)
    example.run_complete_workflow(
        train=not options.no_train, generate=not options.no_generate, checkpoint_path=options.checkpoint
    )
    return 0
