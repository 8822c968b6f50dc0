"""What this machine has and lacks for training: one small check per row, and what fixes it.

A check fails only where training could not run, even as a single process; what costs speed, several
processes or a later surprise is a warning. Everything heavy is imported inside the check that needs
it, so that a missing PyTorch is a row and not a traceback.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from horovod_transformer.config import Config
from horovod_transformer.errors import UserError

State = Literal["ok", "warn", "fail"]

OLDEST_PYTHON = (3, 11)
# PyTorch's headers, against which Horovod is built, need C++20.
OLDEST_GCC = 10
# Below this in the home folder, caches and virtual environments soon run into its quota.
HOME_BYTES = 1e9
# Seconds that a program asked about the machine may take.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Row:
    """What one check found.

    Attributes:
        name: What was looked at.
        state: `ok`; `warn`, training runs but; `fail`, training cannot run.
        found: What is there.
        fix: What to do about it; empty if nothing.
    """

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Plan:
    """What is going to be trained, and where this machine keeps things.

    Attributes:
        config: The run's config.
        config_path: The file it came from, to name in commands.
        output_dir: As for `train`.
        hosts: The table of host names.
    """

    config: Config
    config_path: str = "configs/config.yaml"
    output_dir: Path = Path()
    hosts: Path = Path("/etc/hosts")

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints will go."""
        return self.output_dir / self.config.paths.checkpoint_dir


def examine(plan: Plan) -> list[Row]:
    """Run all checks; one that breaks is a row of its own."""
    return [run_check(name, check, plan) for name, check in CHECKS.items()]


def run_check(name: str, check: Callable[[Plan], Row], plan: Plan) -> Row:
    """Run one check and make a row even of its failure."""
    try:
        return check(plan)
    except UserError as error:
        return Row(name, "fail", str(error))
    except ModuleNotFoundError as error:
        return Row(name, "fail", f"cannot be looked at: no module {error.name}", "make install")
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [""]
        return Row(
            name, "fail", f"this check crashed: {type(error).__name__}: {reason[0]}", "please report it"
        )


def check_python(plan: Plan) -> Row:
    """The interpreter."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Row("Python", "fail", f"{found}; needs 3.11", "make install PYTHON=python3.11")
    return Row("Python", "ok", found)


def check_packages(plan: Plan) -> Row:
    """What the package requires, by the metadata it was installed with."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("horovod_transformer") or []
    except metadata.PackageNotFoundError:
        return Row("packages", "warn", "horovod_transformer itself is not installed", "make install")
    required = [Requirement(line) for line in lines]
    required = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in required:
        there = next(iter(metadata.distributions(name=requirement.name)), None)
        if there is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(there.version, prereleases=True):
            wrong.append(f"{requirement.name} is {there.version}, needs {requirement.specifier}")
    if wrong:
        return Row("packages", "fail", "; ".join(wrong), "make install")
    return Row("packages", "ok", f"all {len(required)} are there")


def check_compiler(plan: Plan) -> Row:
    """A C++ compiler that can build Horovod; training itself needs none."""
    fix = "apt install g++, dnf install gcc-toolset-12 or module load gcc/11; then make install"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        return Row("compiler", "warn", f"no {' or '.join(names)} on PATH; Horovod cannot be built", fix)
    text = _ask(compiler, "-dumpversion")
    version = re.match(r"\d+", text)
    if version is None or int(version[0]) < OLDEST_GCC:
        found = f"{compiler} is version {text or 'unknown'}; C++20 needs {OLDEST_GCC} or newer"
        return Row("compiler", "warn", found, fix)
    return Row("compiler", "ok", f"{compiler} {text}")


def check_torch(plan: Plan) -> Row:
    """PyTorch and the GPUs it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Row("PyTorch", "fail", f"cannot be imported: {_first_line(error)}", "make install")
    found = str(torch.__version__)
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if gpus:
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
        return Row("PyTorch", "ok", f"{found}; {len(gpus)} GPU(s): {names}")
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            found += " is for CPUs, but there is an NVIDIA driver here"
            return Row("PyTorch", "warn", found, "make install")
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else f"for CUDA {torch.version.cuda}"
        found += f" sees no GPU though there is an NVIDIA driver ({why})"
        fix = "nvidia-smi shows GPUs and driver; a driver older than this CUDA must be updated"
        return Row("PyTorch", "warn", found, fix)
    return Row("PyTorch", "ok", f"{found}; no GPU, trains on the CPU")


def check_horovod(plan: Plan) -> Row:
    """Horovod and the operations it was built with."""
    alone = "training runs as one process only"
    try:
        version = metadata.version("horovod")
    except metadata.PackageNotFoundError:
        return Row("Horovod", "warn", f"not installed; {alone}", "make install")
    try:
        import torch

        from horovod_transformer.distributed import built_operations

        built = built_operations()
    except Exception as error:
        found = f"{version} cannot be imported: {_first_line(error)}; {alone}"
        return Row("Horovod", "warn", found, "REBUILD=1 make install")
    found = f"{version} with {', '.join(built) or 'no operations'}"
    if torch.cuda.is_available() and "NCCL" not in built:
        found += ", without NCCL: GPUs cannot train together"
        return Row("Horovod", "warn", found, "REBUILD=1 HOROVOD_BUILD=cuda make install")
    if "Gloo" not in built and "MPI" not in built:
        return Row("Horovod", "warn", f"{found}; {alone}", "REBUILD=1 make install")
    if not (shutil.which("horovodrun") or shutil.which("horovodrun", path=str(Path(sys.executable).parent))):
        found += ", no horovodrun: `horovod-transformer launch` starts ranks without it"
        return Row("Horovod", "warn", found, "REBUILD=1 make install")
    return Row("Horovod", "ok", found)


def check_tokenizer(plan: Plan) -> Row:
    """The vocabulary that the data is cut into tokens with."""
    if plan.config.data.tokenizer == "bpe":
        return Row("tokenizer", "ok", "trained on the books by `prepare`, kept with the prepared data")
    from horovod_transformer.prepare.tokenizer_choice import read_tokenizer
    from horovod_transformer.tokenizer import gpt2_tokenizer

    if plan.config.data.tokenizer != "gpt2":
        return Row(
            "tokenizer", "ok", f"{plan.config.data.tokenizer}: {read_tokenizer(plan.config.data.tokenizer)}"
        )
    size = gpt2_tokenizer().vocab_size
    return Row("tokenizer", "ok", f"GPT-2's vocabulary, {size:,} entries, its checksum is right")


def check_dataset(plan: Plan) -> Row:
    """The prepared blocks, opened as training would."""
    from horovod_transformer.data.dataset import open_prepared_data

    fix = f"horovod-transformer prepare --config {plan.config_path}"
    try:
        data = open_prepared_data(plan.config)
    except UserError as error:
        return Row("dataset", "fail", str(error), fix)
    found = (
        f"{plan.config.data.data_dir}: {len(data.train):,} training and {len(data.validation):,} validation "
        f"blocks of {data.train.block_size} tokens"
    )
    return Row("dataset", "ok", found)


def check_run(plan: Plan) -> Row:
    """What training on this data would be, and whether it can learn."""
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.data.loader import plan_batches
    from horovod_transformer.training.run_summary import RunSummary

    try:
        updates = plan_batches(plan.config.training, open_prepared_data(plan.config).train, 1)
    except UserError:
        return Row("run", "warn", "not known before the data is there", "see dataset")
    run = RunSummary.of(plan.config.model, plan.config.training, updates)
    warnings = run.warnings()
    return Row("run", "warn" if warnings else "ok", run.describe(), "; ".join(warnings))


def check_disk(plan: Plan) -> Row:
    """Room for checkpoints, and the right to write them."""
    from horovod_transformer.checkpoint.disk_space import checkpoint_bytes, run_bytes

    folder = existing_parent(plan.checkpoint_dir)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Row("disk", "fail", f"{folder} cannot be written to", "another folder with --output_dir")
    one, kept = checkpoint_bytes(plan.config.model), plan.config.training.keep_checkpoints
    need = run_bytes(plan.config.model, kept)
    room, kind = _room(folder)
    found = (
        f"checkpoints in {plan.checkpoint_dir} take {_size(need)} ({kept} kept, the best, one being written, "
        f"{_size(one)} each), {_size(room)} {kind}"
    )
    if room < need:
        fix = "make room, --output_dir on a larger disk, or a lower training.keep_checkpoints"
        return Row("disk", "fail", found, fix)
    more = "; training.keep_every adds more with time" if plan.config.training.keep_every else ""
    return Row("disk", "ok", found + more)


def check_home(plan: Plan) -> Row:
    """What is left in the home folder, which clusters keep small."""
    room, kind = _room(existing_parent(Path.home()))
    found = f"{_size(room)} {kind} in {Path.home()}"
    if room < HOME_BYTES:
        return Row("home", "warn", found, "pip cache purge; keep data, .venv and checkpoints on scratch")
    return Row("home", "ok", found)


def check_host_name(plan: Plan) -> Row:
    """Whether other machines can reach this one by what its own name resolves to.

    Gloo listens on that address, whatever network interface it is told to use; Debian gives
    127.0.1.1 to the machine's own name, and ranks on other machines then meet "Connection refused".
    """
    name = socket.gethostname()
    address = hosts_entry(plan.hosts, name) or _ask("getent", "ahostsv4", name).partition(" ")[0]
    if not address:
        found = f"{name} resolves to nothing; ranks on several machines would not find each other"
        return Row("host name", "warn", found, f"add a line `ADDRESS {name}` to {plan.hosts}")
    if address.startswith("127."):
        found = f"{name} is {address} for itself: fine on one machine, on several the ranks cannot connect"
        fix = f"in {plan.hosts}, give {name} this machine's address on the network instead of {address}"
        return Row("host name", "warn", found, fix)
    return Row("host name", "ok", f"{name} is {address}")


def hosts_entry(hosts: Path, name: str) -> str | None:
    """The first IPv4 address that a hosts file gives to a name; None if it has none."""
    try:
        lines = hosts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if name.lower() in map(str.lower, names) and "." in address:
            return address
    return None


def check_slurm(plan: Plan) -> Row:
    """Slurm; without it nothing is lacking."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        nodes, cores = os.environ.get("SLURM_JOB_NUM_NODES", "?"), os.environ.get("SLURM_CPUS_ON_NODE", "?")
        return Row("Slurm", "ok", f"in job {job}: {nodes} node(s), {cores} core(s) on this one")
    if shutil.which("sbatch") is None:
        return Row("Slurm", "ok", "not here; horovodrun starts training without it")
    version = _ask("sbatch", "--version")
    if not version:
        return Row("Slurm", "warn", "sbatch is here but does not answer", "sbatch --version says why")
    return Row("Slurm", "ok", f"{version}; submit with sbatch scripts/train_zaratan.sh {plan.config_path}")


CHECKS: dict[str, Callable[[Plan], Row]] = {
    "Python": check_python,
    "packages": check_packages,
    "compiler": check_compiler,
    "PyTorch": check_torch,
    "Horovod": check_horovod,
    "tokenizer": check_tokenizer,
    "dataset": check_dataset,
    "run": check_run,
    "disk": check_disk,
    "home": check_home,
    "host name": check_host_name,
    "Slurm": check_slurm,
}


def existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def quota_left(report: str) -> int | None:
    """Bytes left by the tightest limit in what `quota -w` printed; None where there is no limit.

    Its columns are file system, blocks of 1 KiB in use (with * when over), soft limit, hard limit.
    """
    left = []
    for line in report.splitlines():
        match = re.match(r"\s*/?\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)\s", line + " ")
        if match:
            used, soft, hard = map(int, match.groups())
            left += [1024 * max(0, limit - used) for limit in (soft, hard) if limit]
    return min(left, default=None)


def _room(folder: Path) -> tuple[int, str]:
    """Bytes that may still be written, and whether the disk or the home folder's quota ends them."""
    free = shutil.disk_usage(folder).free
    if shutil.which("quota") and folder.resolve().is_relative_to(Path.home().resolve()):
        # Its exit code 1 means "over a limit": the table is printed all the same.
        left = quota_left(_ask("quota", "-w"))
        if left is not None and left < free:
            return left, "left of your quota"
    return free, "free"


def _ask(*command: str) -> str:
    """What a program prints, stripped; nothing if it is missing, fails to start or takes too long."""
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _size(number: float) -> str:
    unit, size = next((u for u in (("TB", 1e12), ("GB", 1e9)) if number >= u[1]), ("MB", 1e6))
    return f"{number / size:,.1f} {unit}"
