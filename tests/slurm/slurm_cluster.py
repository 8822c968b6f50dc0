"""A real Slurm of two nodes on this machine, each posing as one with 96 cores and four H100 GPUs.

All of it (keys, sockets, configuration, state, logs) lies in one folder. It needs the programs of
Debian's `slurm-wlm` and `munge`, neither systemd nor root, and is up in a second. A GPU is a
character device such as /dev/null: jobs are given it, and run on the CPU all the same.
"""

from __future__ import annotations

import contextlib
import csv
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "sinfo")
# Slurm promises GPUs that are none. Where the machine has a real one, jobs must not fall for it: a module
# that hides it, loaded in the way of every module.
NO_GPU = {"HT_MODULES": "no-gpu", "BASH_FUNC_module%%": "() { export CUDA_VISIBLE_DEVICES=; }"}
# Daemons lie here, where PATH does not lead users who are not root.
SYSTEM_PATH = "/usr/sbin:/sbin"
NODES = ("n1", "n2")

GRES_CONF = "Name=gpu Type=h100 File=/dev/null,/dev/zero,/dev/full,/dev/random\n"

# A requeued job starts when its old credential has run out: 6 s with cred_expire=5, else two minutes.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
EnforcePartLimits=ALL
ReturnToService=2
KillWait=10
GresTypes=gpu
NodeName=DEFAULT CPUs=96 Sockets=2 CoresPerSocket=48 ThreadsPerCore=1 RealMemory=515000 Gres=gpu:h100:4
{nodes}
PartitionName=DEFAULT Nodes=n1,n2 MaxTime=7-00:00:00 State=UP
PartitionName=standard Default=YES
PartitionName=gpu
PartitionName=gpu-h100
PartitionName=accelerated
PartitionName=serial
"""
# What sinfo says when all are up: each node once in each partition.
IDLE = ["idle"] * len(NODES) * 5


class SlurmCluster:
    """Starts when entered, ends with all its jobs when left.

    Args:
        folder: Where everything lies. Its path must be short: a socket's has at most 107 characters.

    Attributes:
        environment: With it, `sbatch` and its like talk to this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            # A variable of another Slurm, or another job's, must not find its way into ours.
            **{name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}",
        }

    def __enter__(self) -> SlurmCluster:
        try:
            self._configure()
            # --force: munged would otherwise want a socket that all users can reach.
            options = [
                f"--{option}={self.folder / file}"
                for option, file in (
                    ("socket", "munge.socket"),
                    ("key-file", "munge.key"),
                    ("pid-file", "munge.pid"),
                    ("log-file", "munge.log"),
                    ("seed-file", "munge.seed"),
                )
            ]
            self._start("munged", "--force", "--num-threads=1", *options)
            self._start("slurmctld")
            for node in NODES:
                self._start("slurmd", "-N", node)
            wait_for("the nodes to be idle", lambda: self.run("sinfo", "-hN", "-o%T").split() == IDLE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
            self.run("scancel", "--full", "--user", getpass.getuser())
            wait_for("the jobs to end", lambda: not self.run("squeue", "-h"))
        for pid_file in (*self.folder.glob("slurm*.pid"), self.folder / "munge.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)

    def run(self, *command: str, timeout: float = 120) -> str:
        """Run a Slurm command and return what it prints.

        Raises:
            subprocess.SubprocessError: It failed or hangs.
        """
        return subprocess.run(
            command, env=self.environment, timeout=timeout, check=True, text=True, capture_output=True
        ).stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` knows about a job, by its names: JobState, Restarts, ExitCode, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        (self.folder / "state").mkdir(exist_ok=True)
        host = socket.gethostname().split(".")[0]
        controller_port, *node_ports = free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            for node, port in zip(NODES, node_ports, strict=True)
        ]
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host,
                controller_port=controller_port,
                user=getpass.getuser(),
                folder=self.folder,
                nodes="\n".join(nodes),
            )
        )
        (self.folder / "gres.conf").write_text(GRES_CONF)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def _start(self, *command: str) -> None:
        # The daemons go into the background by themselves. They keep our pipes open: send them nowhere.
        with open(self.folder / f"start-{command[0]}.log", "a") as log:
            subprocess.run(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=120,
                check=True,
            )


def tiny_run(data: Path, updates: int) -> list[str]:
    """Overrides that make the default config a run of seconds on a CPU."""
    values = {
        "model.vocab_size": 300,
        "model.d_model": 32,
        "model.n_layers": 1,
        "model.n_heads": 2,
        "model.d_ff": 64,
        "model.max_seq_len": 32,
        "training.device": "cpu",
        "training.max_updates": updates,
        "training.warmup_updates": 5,
        "training.epochs": 1000,
        "training.lr_decay_updates": 1000,
        "training.global_batch_size": 8,
        "training.per_gpu_batch_size": 2,
        "training.precision": "fp32",  # whatever this machine's CPU has
        "training.log_interval": 1,
        "training.eval_interval": 1000,
        "training.eval_blocks": 8,
        "data.data_dir": data,
        "data.num_workers": 0,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


class Submitter:
    """Submits jobs from a checkout and reads what they leave."""

    def __init__(self, slurm: SlurmCluster, checkout: Path) -> None:
        self.slurm, self.checkout = slurm, checkout

    def submit(self, *command: str, folder: Path | None = None, **variables: str) -> str:
        """Submit a job, from the checkout if no other folder is named; returns its number."""
        # Four ranks on two cores: one thread each.
        environment = {**self.slurm.environment, "OMP_NUM_THREADS": "1", **variables}
        finished = subprocess.run(
            ["sbatch", "--parsable", *command],
            cwd=folder or self.checkout,
            env=environment,
            timeout=120,
            text=True,
            capture_output=True,
        )
        assert finished.stdout, finished.stderr
        return finished.stdout.split()[0]

    def output(self, job: str, folder: Path | None = None) -> str:
        path = (folder or self.checkout) / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def updates(self, job: str) -> list[int]:
        """The updates that stand in the job's train.csv, in order."""
        path = self._table(job)
        if not path.exists():
            return []
        with open(path, newline="") as file:
            return [int(row["update"]) for row in csv.DictReader(file) if row["update"]]

    def losses(self, job: str) -> list[float]:
        """Their losses."""
        return self.read_losses(self._table(job))

    @staticmethod
    def read_losses(table: Path) -> list[float]:
        """The losses of a train.csv, in order."""
        with open(table, newline="") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def _table(self, job: str) -> Path:
        return self.checkout / "runs" / "structured" / f"slurm-{job}" / "train.csv"

    def wait(self, job: str, *states: str, timeout: float = 300) -> dict[str, str]:
        """Wait until a job is in one of these states; returns all about it."""
        self._wait(job, " or ".join(states), lambda: self.slurm.job(job)["JobState"] in states, timeout)
        return self.slurm.job(job)

    def wait_for_output(self, job: str, text: str) -> None:
        """Wait until a job has written this."""
        self._wait(job, f'"{text}"', lambda: text in self.output(job), timeout=300)

    def _wait(self, job: str, what: str, is_so: Callable[[], bool], timeout: float) -> None:
        try:
            wait_for(f"{what} of job {job}", is_so, timeout)
        except TimeoutError as error:
            raise AssertionError(
                f"{error}: {self.slurm.job(job)['JobState']}; its output:\n{self.output(job)}"
            ) from None

    def warn(self, job: str) -> None:
        """Send what Slurm sends when the time limit is near."""
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)


def missing_programs() -> list[str]:
    """Programs this cluster needs that are not installed."""
    path = f"{os.environ['PATH']}:{SYSTEM_PATH}"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def free_ports(count: int) -> list[int]:
    """Port numbers that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, is_so: Callable[[], bool], timeout: float = 300) -> None:
    """Return as soon as something is so.

    Raises:
        TimeoutError: It did not come to pass.
    """
    end = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.1)
