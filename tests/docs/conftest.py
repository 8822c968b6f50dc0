"""Helpers for testing documents: what is in a Markdown file, and commands run as a reader would."""

from __future__ import annotations

import contextlib
import keyword
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from horovod_transformer.commands.table import SUBCOMMANDS
from horovod_transformer.config import Config
from tests.conftest import PATIENCE_S

COMMAND_TIMEOUT_S = 2 * PATIENCE_S

# The configs as they are, but small enough for four processes on two cores.
SMALL: dict[str, dict[str, Any]] = {
    "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 64},
    "training": {
        "max_updates": 4,
        "warmup_updates": 2,
        "global_batch_size": 8,
        "per_gpu_batch_size": 2,
        "precision": "fp32",  # whatever this machine's CPU has
        "log_interval": 1,
        "eval_interval": 2,
        "eval_blocks": 8,
        "save_interval": 2,
    },
    "data": {"num_workers": 0},
}


@dataclass(frozen=True)
class Fence:
    """A fenced block of a Markdown file.

    Attributes:
        language: The word after the opening fence.
        line: Line number of its first line.
        text: What is inside.
    """

    language: str
    line: int
    text: str


@dataclass
class Document:
    """A Markdown file, taken apart.

    Attributes:
        headings: Level and text, in order; those inside fences do not count.
        contents: Link text and anchor of each line between the toc marks.
        fences: Its fenced blocks.
        prose: The lines outside fences and the table of contents.
    """

    path: Path
    headings: list[tuple[int, str]] = field(default_factory=list)
    contents: list[tuple[str, str]] = field(default_factory=list)
    fences: list[Fence] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)

    @property
    def anchors(self) -> list[tuple[str, str]]:
        """Text and anchor of every heading, as GitHub makes them."""
        seen: dict[str, int] = {}
        found = []
        for _, text in self.headings:
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = seen[anchor] = seen.get(anchor, -1) + 1
            found.append((text, f"{anchor}-{count}" if count else anchor))
        return found

    def commands(self) -> list[str]:
        """Commands of the bash fences, one a line, without comments."""
        found = []
        for fence in self.fences:
            if fence.language == "bash":
                joined = fence.text.replace("\\\n", " ")
                lines = [re.sub(r"(^|\s)#.*", "", line) for line in joined.splitlines()]
                found += [" ".join(line.split()) for line in lines if line.strip()]
        return found

    def code_spans(self) -> list[str]:
        """Everything between backticks in the prose; a span may go over a line's end."""
        paragraphs = re.split(r"\n\s*\n", "\n".join(self.prose))
        return [" ".join(span.split()) for text in paragraphs for span in re.findall(r"`([^`]+)`", text)]


def _read_document(path: Path) -> Document:
    document = Document(path)
    fence: tuple[str, int, list[str]] | None = None
    in_contents = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if fence is None:
                fence = (line[3:].strip(), number + 1, [])
            else:
                document.fences.append(Fence(fence[0], fence[1], "\n".join(fence[2])))
                fence = None
        elif fence is not None:
            fence[2].append(line)
        elif line.strip() in ("<!-- toc -->", "<!-- tocstop -->"):
            in_contents = line.strip() == "<!-- toc -->"
        elif in_contents:
            link = re.fullmatch(r"\s*[-*+] \[(.+)\]\(#(.+)\)", line)
            assert link, f"{path.name}:{number}: not a line of a table of contents: {line}"
            document.contents.append((link[1], link[2]))
        else:
            heading = re.fullmatch(r"(#{1,6}) (.+)", line)
            if heading:
                document.headings.append((len(heading[1]), heading[2]))
            document.prose.append(line)
    assert fence is None and not in_contents, f"{path.name}: a fence or the table of contents is not closed"
    return document


@pytest.fixture(scope="session")
def read_document(root: Path) -> Callable[[str], Document]:
    """Take a Markdown file of the repository apart: `read_document("README.md")`."""
    return lambda name: _read_document(root / name)


@pytest.fixture(scope="session")
def check_outline() -> Callable[[Document], None]:
    """Check that a document's headings form a tree, and that its table of contents lists them."""

    def check(document: Document) -> None:
        levels = [level for level, _ in document.headings]
        assert levels.count(1) == 1 and levels[0] == 1, "exactly one title, and first"
        for (before, _), (level, text) in zip(document.headings, document.headings[1:], strict=False):
            assert level <= before + 1, f"the heading {text!r} skips a level"
        assert document.contents == document.anchors

    return check


def run_to_the_end(
    arguments: Sequence[str],
    cwd: Path,
    root: Path,
    given: str = "",
    timeout: float = COMMAND_TIMEOUT_S,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does who has activated the environment; it never outlives its time.

    `python -m src...` works from any folder here: the repository's root is on the path.
    """
    foreign = ("HOROVOD_", "OMPI_", "PMI_", "SLURM_", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k != "WORLD_SIZE"}
    environment = {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **(more or {}),
    }
    process = subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        output, errors = process.communicate(given, timeout=timeout)
    except BaseException:
        # horovodrun's ranks are in sessions of their own: end the whole tree.
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(60)
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.fixture(scope="session")
def run_command(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_command(line or list of words, cwd, given="", timeout=...)`; see `run_to_the_end`."""

    def run(command: str | Sequence[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-c", command] if isinstance(command, str) else command
        return run_to_the_end(words, cwd, root, **options)

    return run


def shrink_configs(root: Path, folder: Path) -> None:
    """Write the repository's configs into `folder/configs`, made small."""
    (folder / "configs").mkdir(parents=True)
    for name in ("config.yaml", "quickstart.yaml"):
        values = yaml.safe_load((root / "configs" / name).read_text(encoding="utf-8"))
        for section, small in SMALL.items():
            values[section] |= small
        if values["data"]["tokenizer"] == "bpe":
            values["model"]["vocab_size"] = 512
        values.setdefault("generation", {})["max_new_tokens"] = 20
        (folder / "configs" / name).write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.fixture(scope="session")
def make_workspace(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Make a folder that looks like the repository's root to a command, with small configs."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("workspace")
        shrink_configs(root, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def prepared(make_workspace: Callable[[], Path], run_command: Callable[..., Any]) -> Path:
    """A workspace with the data of both configs, made from the plays; copy it, do not change it."""
    folder = make_workspace()
    for command in (
        "horovod-transformer prepare --config configs/quickstart.yaml",
        "horovod-transformer prepare --config configs/config.yaml --data.source sample",
    ):
        result = run_command(command, folder)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def workspace(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module's own copy of `prepared`; each of its tests needs what those before it made."""
    return Path(shutil.copytree(prepared, tmp_path_factory.mktemp("documents") / "workspace"))


# Who runs a command that a document's bash fence shows. A new command in a document fails the tests until
# it is listed here, and run there.
RUN_BY = {
    "git clone <this repository> horovod_transformer && cd horovod_transformer": "tests/docs/test_readme.py",
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "source .venv/bin/activate": ".ci/run",  # `make install` makes what is activated
    "horovod-transformer prepare --config configs/quickstart.yaml": "tests/docs/conftest.py",
    **dict.fromkeys(
        (
            "job=$(sbatch --parsable --array=1-8 scripts/prepare_zaratan.sh configs/config.yaml)",
            "sbatch --dependency=afterok:$job scripts/prepare_zaratan.sh configs/config.yaml --assemble",
        ),
        "tests/slurm/test_submitting.py",
    ),
    **{
        f"horovod-transformer data {what}": "tests/docs/test_notebook.py"
        for what in (
            "verify notebooks/data/preprocessed/v1",
            "show notebooks/data/preprocessed/v1 --split validation --block 0",
            "stats notebooks/data/preprocessed/v1",
        )
    },
    "python -m src.train --config configs/quickstart.yaml": "tests/docs/test_readme.py",
    "horovodrun -np 2 python -m src.train --config configs/quickstart.yaml": "tests/docs/test_readme.py",
    "horovodrun -np 4 python -m src.train --config configs/config.yaml": "tests/docs/test_readme.py",
    "horovodrun -np 2 python -m src.train --config configs/quickstart.yaml --profile": (
        "tests/distributed/test_profile.py"
    ),
    "horovod-transformer launch -np 2 --max-restarts 3 -- "
    "python -m src.train --config configs/quickstart.yaml": "tests/docs/test_readme.py",
    "python -m src.generate --checkpoint checkpoints/best_model.pt --config configs/quickstart.yaml "
    '--prompt "Once upon a time" --max_new_tokens 100': "tests/docs/test_readme.py",
    "horovod-transformer evaluate --checkpoint checkpoints/best_model.pt": "tests/docs/test_readme.py",
    "horovod-transformer doctor --config configs/quickstart.yaml": "tests/docs/test_readme.py",
    "sbatch scripts/train_zaratan.sh configs/config.yaml": "tests/slurm/test_train_zaratan.py",
    "sbatch --nodes=2 scripts/train_zaratan.sh configs/config.yaml": "tests/slurm/test_train_zaratan.py",
    "sbatch scripts/check_zaratan.sh": "tests/slurm/test_check_zaratan.py",
    "jupyter notebook notebooks/00_data_preprocessing.ipynb": "tests/docs/test_notebook.py",
    "jupyter nbconvert --to html --execute notebooks/00_data_preprocessing.ipynb "
    "--output-dir notebooks/data": ("tests/docs/test_notebook.py"),
    "tensorboard --logdir runs/": "tests/docs/test_example_document.py",
    "python horovod_transformer.example.py": "tests/docs/test_example_document.py",
    "python -m src.generate --checkpoint checkpoints/best_model.pt --config configs/config.yaml "
    '--prompt "Once upon a time" --max_new_tokens 100': "tests/docs/test_example_document.py",
    "horovod-transformer export --checkpoint checkpoints/best_model.pt --output exported/plays": (
        "tests/docs/test_guides.py"
    ),
    "horovod-transformer report runs/structured/first --output report.html": "tests/docs/test_guides.py",
}


@pytest.fixture(scope="session")
def check_commands(root: Path) -> Callable[[Document], None]:
    """Check that each command of a document is run by some test, and by which."""

    def check(document: Document) -> None:
        unknown = [command for command in document.commands() if command not in RUN_BY]
        assert not unknown, f"{document.path.name}: no test runs these commands (see RUN_BY): {unknown}"
        for command in document.commands():
            assert (root / RUN_BY[command]).is_file(), f"{RUN_BY[command]}, which should run {command!r}"

    return check


@pytest.fixture(scope="session")
def commands_run_by() -> Callable[[str], list[str]]:
    """The commands that a test file has to run, in order."""
    return lambda name: [command for command, place in RUN_BY.items() if place == f"tests/docs/{name}"]


# What running the documented commands makes; NAME is a run's. The test of the example sees that it does.
MADE_BY_RUNNING = {
    "runs/NAME",
    "runs/NAME/",
    "runs/NAME/checkpoints/",
    "runs/NAME/logs/train_rank0.log",
    "runs/NAME/evaluation/",
    "runs/NAME/tables/",
    "runs/structured/NAME",
    "checkpoints/best_model.pt",
    "checkpoints/last.pt",
    "logs/train_rank0.log",
    "runs/",
    "runs/structured/",
    "notebooks/data/preprocessed/v1/",
    "notebooks/data/preprocessed/v1",
    "notebooks/data/",
    "notebooks/data",
}


@pytest.fixture(scope="session")
def made_by_running() -> set[str]:
    """Paths that documents may name though they are not in the repository."""
    return MADE_BY_RUNNING


# A path with a slash, or a name with one of these endings.
_FILE = re.compile(
    r"[\w.\-]+(?:/[\w.\-]+)+/?|[\w.\-]+/|[\w\-]+(?:\.[\w\-]+)*\.(?:py|md|yaml|ipynb|toml|sh|txt)"
)


@pytest.fixture(scope="session")
def check_names(root: Path) -> Callable[[Document, set[str]], None]:
    """Check that the files, config keys, subcommands and make targets that a document names are there."""

    def check(document: Document, made: set[str]) -> None:
        words = [word for text in document.code_spans() + document.commands() for word in text.split()]
        files = {word for word in words if _FILE.fullmatch(word)}
        assert files, "nothing was found to check"
        missing = {
            name
            for name in files - MADE_BY_RUNNING - made
            if not any((base / name).exists() for base in (root, root / "horovod_transformer"))
        }
        assert not missing, f"{document.path.name} names files that are not there: {sorted(missing)}"

        known = {f"{section}.{key}" for section, values in Config().to_dict().items() for key in values}
        sections = "|".join(Config.model_fields)
        key = re.compile(rf"(?:--)?((?:{sections})\.[a-z_0-9]+):?")
        keys = {match[1] for word in words if (match := key.fullmatch(word))}
        unknown = sorted(keys - files - known)
        assert not unknown, f"{document.path.name} names config keys that do not exist: {unknown}"

        for command in re.findall(r"horovod-transformer ([a-z]+)", " ".join(words)):
            if command == "help":  # of `help SUBCOMMAND`
                continue
            assert command in SUBCOMMANDS, f"{document.path.name}: no such subcommand: {command}"
            name = f"{command}_" if keyword.iskeyword(command) else command
            assert (root / f"horovod_transformer/commands/{name}.py").is_file(), command
        targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.M)
        for target in re.findall(r"\bmake ([a-z]+)", " ".join(words)):
            assert target in targets, f"{document.path.name}: no such make target: {target}"

    return check
