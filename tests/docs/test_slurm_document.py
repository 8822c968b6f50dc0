"""docs/slurm.md and docs/recipes.md: what they name is there, and their samples do what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def document(read_document):
    return read_document("docs/slurm.md")


def fence(document, begins: str) -> str:
    """The one sample that begins so."""
    (text,) = [fence.text for fence in document.fences if fence.text.startswith(begins)]
    return text


def test_names(document, check_names):
    made = {
        "./mycluster.sh",
        "gcc/12",
        "cuda/12.4",
        "check-JOB/report.md",
        "sweep.sh",
        "results/rates",
        "kept/",
    }
    made |= {
        "/local/$USER/$SLURM_JOB_ID",
        "manifest.json",
        "data-manifest.json",
        "runs/NAME/data-manifest.json",
    }
    made |= {"runs/NAME/checkpoints/best_model.pt", "runs/NAME/tables/config.yaml", "mycluster.sh"}
    made |= {
        "results/rates/runs/learning_rate-0.001-weight_decay-0.1",
        "notebooks/data/preprocessed/v1/manifest.json",
    }
    check_names(document, made)


def test_names_in_the_recipes(read_document, check_names):
    check_names(read_document("docs/recipes.md"), set())


def read_site(root: Path, file: Path, *names: str) -> list[str]:
    """What scripts take from a site's file."""
    echo = "; ".join(f'echo "${name}"' for name in names)
    program = f"set -euo pipefail; script=test; source scripts/site.sh; {echo}"
    finished = subprocess.run(
        ["bash", "-c", program],
        cwd=root,
        env={"SITE": str(file), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_the_sample_of_a_sites_file_is_read(root: Path, document, tmp_path: Path):
    sample = fence(document, "# mycluster.sh")
    assert len(sample.splitlines()) <= 11
    file = tmp_path / "mycluster.sh"
    file.write_text(sample + "\nlocal_disk=/local/$SLURM_JOB_ID\n")
    found = read_site(root, file, "gpu_partition", "gpus_per_node", "modules", "local_disk", "train_time")
    assert found == ["gpu", "2", "gcc/12 cuda/12.4", "/local/", "1-00:00:00"]


def test_every_name_of_a_sites_file_is_explained_with_its_default(root: Path, document, tmp_path: Path):
    rows = [row.split("|") for row in document.prose if row.startswith("| `")]
    rows = [row for row in rows if len(row) == 5]  # name, what, not given
    names = [name for row in rows for name in re.findall("`([a-z_]+)`", row[1])]
    script = (root / "scripts/site.sh").read_text()
    known = re.findall(
        r"(?<!shellcheck )\b([a-z_]+)=", script[script.index("# What holds") : script.index("set +u")]
    )
    assert sorted(names) == sorted(known)
    (tmp_path / "least.sh").write_text("gpus_per_node=1\n")
    found = read_site(root, tmp_path / "least.sh", "cores_per_gpu", "memory_per_gpu_gb", "train_time")
    said = {row[1].strip(): row[3].strip() for row in rows}
    assert [said["`cores_per_gpu`, `memory_per_gpu_gb`"], said["`train_time`"]] == [
        f"{found[0]}, {found[1]}",
        found[2],
    ]


def test_its_scripts_are_those_that_are_tested(root: Path, document):
    scripts = set(re.findall(r"scripts/\w+\.sh", " ".join(document.commands() + document.code_spans())))
    tests = "".join(path.read_text() for path in (root / "tests" / "slurm").glob("test_*.py"))
    assert scripts >= {"scripts/submit.sh", "scripts/train_zaratan.sh"}
    for script in scripts:
        assert (root / script).is_file() and script in tests


def test_the_sample_of_a_sweep_writes_its_job_array(root: Path, document, tmp_path: Path, run_python):
    (tmp_path / "configs").symlink_to(root / "configs")
    done = run_python("-c", fence(document, "from pathlib import Path"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "sweep.sh").read_text()
    assert "#SBATCH --array=0-3%2\n" in written
    assert (
        "  1) run=(--run_name learning_rate-0.001-weight_decay-0.3 --resume auto --output_dir results/rates"
        in written
    )


def test_the_archive_has_what_is_to_be_kept(document, tmp_path: Path):
    for name in (
        "runs/NAME/checkpoints/best_model.pt",
        "runs/NAME/checkpoints/last.pt",
        "runs/NAME/run.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "runs/NAME/checkpoints/update_00000500.pt").hardlink_to(
        tmp_path / "runs/NAME/checkpoints/best_model.pt"
    )
    manifest = tmp_path / "notebooks/data/preprocessed/v1/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    commands = [
        line for line in fence(document, "cp notebooks/").splitlines() if not line.startswith("rsync")
    ]
    subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, check=True)
    kept = subprocess.run(
        ["tar", "-tf", "NAME.tar"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    files = [name.removeprefix("runs/NAME/") for name in kept.split() if not name.endswith("/")]
    assert sorted(files) == ["checkpoints/best_model.pt", "data-manifest.json", "run.json"]
    subprocess.run(["sha256sum", "-c", "NAME.tar.sha256"], cwd=tmp_path, check=True)
