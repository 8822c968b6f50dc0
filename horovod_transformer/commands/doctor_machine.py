"""The doctor's checks of the machine: Python, packages, compiler, GPUs, Horovod, network, Slurm.

Everything heavy is imported inside the check that needs it, so that a missing PyTorch is a row and not a
traceback.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path

from horovod_transformer.commands.doctor_checks import (
    CheckContext,
    Row,
    ask,
    existing_parent,
    first_line,
    free_bytes,
)
from horovod_transformer.reports.formats import byte_size
from horovod_transformer.system.console import counted
from horovod_transformer.system.machine import usable_address

OLDEST_PYTHON = (3, 11)
# PyTorch's headers, against which Horovod is built, need C++20.
OLDEST_GCC = 10
# Below this in the home folder, caches and virtual environments soon run into its quota.
HOME_BYTES = 1e9


def check_python(context: CheckContext) -> Row:
    """The interpreter."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Row("Python", "fail", f"{found}; needs 3.11", "make install PYTHON=python3.11")
    return Row("Python", "ok", found)


def check_packages(context: CheckContext) -> Row:
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


def check_compiler(context: CheckContext) -> Row:
    """A C++ compiler that can build Horovod; training itself needs none."""
    fix = "apt install g++, dnf install gcc-toolset-12 or module load gcc/11; then make install"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        return Row("compiler", "warn", f"no {' or '.join(names)} on PATH; Horovod cannot be built", fix)
    text = ask(compiler, "-dumpversion")
    version = re.match(r"\d+", text)
    if version is None or int(version[0]) < OLDEST_GCC:
        found = f"{compiler} is version {text or 'unknown'}; C++20 needs {OLDEST_GCC} or newer"
        return Row("compiler", "warn", found, fix)
    return Row("compiler", "ok", f"{compiler} {text}")


def check_torch(context: CheckContext) -> Row:
    """PyTorch and the GPUs it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Row("PyTorch", "fail", f"cannot be imported: {first_line(error)}", "make install")
    found = str(torch.__version__)
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if gpus:
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
        return Row("PyTorch", "ok", f"{found}; {counted(len(gpus), 'GPU')}: {names}")
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


def check_horovod(context: CheckContext) -> Row:
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
        found = f"{version} cannot be imported: {first_line(error)}; {alone}"
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


def check_home(context: CheckContext) -> Row:
    """What is left in the home folder, which clusters keep small."""
    try:
        home = Path.home()
    except RuntimeError:  # a container's user whom no passwd file knows
        return Row("home", "warn", "no home folder: caches have no place", "export HOME=/some/folder")
    room, kind = free_bytes(existing_parent(home))
    found = f"{byte_size(room)} {kind} in {home}"
    if room < HOME_BYTES:
        return Row("home", "warn", found, "pip cache purge; keep data, .venv and checkpoints on scratch")
    return Row("home", "ok", found)


def check_host_name(context: CheckContext) -> Row:
    """Whether other machines can reach this one by what its own name resolves to.

    Gloo listens on that address, unless HOROVOD_GLOO_IFACE names a network interface. Debian gives 127.0.1.1
    to the machine's own name, and ranks on other machines then meet "Connection refused".
    """
    name = socket.gethostname()
    address = hosts_entry(context.hosts, name) or ask("getent", "ahostsv4", name).partition(" ")[0]
    if address and not address.startswith("127.") and usable_address(name):
        return Row("host name", "ok", f"{name} is {address}")
    fix = f"in {context.hosts}, give {name} this machine's address on the network"
    if address.startswith("127."):
        found = f"{name} is {address} for itself: fine on one machine, on several the ranks cannot connect"
        return Row("host name", "warn", found, f"{fix} instead of {address}")
    leads = f"{name} resolves to nothing"
    if address:
        leads = f"{name} is {address}, which is no address of this machine"
    from horovod_transformer.distributed.hosts import gloo_uses_interface

    if gloo_uses_interface():
        return Row("host name", "warn", f"{leads}: fine on one machine, on several ranks cannot start", fix)
    return Row("host name", "warn", f"{leads}; several ranks would not start, not even on this machine", fix)


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


def check_load(context: CheckContext) -> Row:
    """Whether other work wants the cores, which costs training and timings of it."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    found = f"{load:.1f} processes wanted a core in the last minute, of {counted(cores, 'core')}"
    if load > cores:
        return Row("load", "warn", f"{found}: training would share them", "a quieter moment or machine")
    return Row("load", "ok", found)


def check_slurm(context: CheckContext) -> Row:
    """Slurm; without it nothing is lacking."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        nodes, cores = os.environ.get("SLURM_JOB_NUM_NODES", "?"), os.environ.get("SLURM_CPUS_ON_NODE", "?")
        return Row("Slurm", "ok", f"in job {job}; nodes: {nodes}, cores on this one: {cores}")
    if shutil.which("sbatch") is None:
        return Row("Slurm", "ok", "not here; horovodrun starts training without it")
    version = ask("sbatch", "--version")
    if not version:
        return Row("Slurm", "warn", "sbatch is here but does not answer", "sbatch --version says why")
    return Row("Slurm", "ok", f"{version}; submit with sbatch scripts/train_zaratan.sh {context.config_path}")
