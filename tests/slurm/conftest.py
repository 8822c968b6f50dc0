"""A Slurm for the tests of this folder, and what their jobs work on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Test files import slurm_cluster by its own name.
sys.path.insert(0, str(HERE))

from slurm_cluster import SlurmCluster, Submitter, missing_programs  # noqa: E402


@pytest.fixture(scope="session")
def slurm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes with four H100s each, if anyone asks; installs Slurm where it can."""
    if missing_programs():
        install(root, "slurm-wlm", "munge")
    if missing_programs():
        pytest.skip(f"there is no Slurm here (no {', '.join(missing_programs())})")
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def install(root: Path, *packages: str) -> None:
    """Install Debian packages, if this user may."""
    script = root / "scripts" / "install_system_packages.sh"
    subprocess.run([str(script), *packages], timeout=300, check=False)


@pytest.fixture(scope="session")
def prepared_data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 280 blocks of 32 tokens, of a vocabulary of 300."""
    folder = tmp_path_factory.mktemp("prepared")
    for number in range(3):
        lines = (
            f"On day {number * 1000 + line} the sea was calm, said the captain.\n" for line in range(100)
        )
        (folder / f"book{number}.txt").write_text("".join(lines))
    command = [sys.executable, "-m", "horovod_transformer", "prepare", "--config", "configs/config.yaml"]
    command += ["--data.source", f"{folder}/*.txt", "--data.data_dir", str(folder / "data")]
    command += ["--data.tokenizer", "bpe", "--model.vocab_size", "300", "--model.max_seq_len", "32"]
    subprocess.run(command, cwd=root, timeout=500, check=True)
    return folder / "data"


@pytest.fixture(scope="session")
def new_submitter(root: Path, slurm: SlurmCluster) -> Callable[[Path], Submitter]:
    """Make a copy of the repository in an empty folder, and what submits jobs from it.

    So no test writes into the user's own runs.
    """

    def make(folder: Path) -> Submitter:
        checkout = folder / "checkout"
        checkout.mkdir()
        for name in ("configs", "scripts", "sites", "src", "horovod_transformer"):
            (checkout / name).symlink_to(root / name)
        (checkout / ".venv").symlink_to(sys.prefix)
        return Submitter(slurm, checkout)

    return make


@pytest.fixture
def submitter(new_submitter: Callable[[Path], Submitter], tmp_path: Path) -> Submitter:
    """Submits jobs from a checkout of the test's own."""
    return new_submitter(tmp_path)
