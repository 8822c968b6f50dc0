"""Two hosts: one process's result to the bit; a cut link ends both sides with its reason, they resume."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import PATIENCE_S
from tests.distributed.conftest import job_environment
from tests.distributed.two_hosts import HOSTS, TwoHosts, why_no_ssh, why_not

pytestmark = pytest.mark.distributed

STALL_TIMEOUT_S = 6
REASON = f"no progress for {STALL_TIMEOUT_S} s (distributed.stall_timeout)"
CUT_AFTER_UPDATE, UPDATES = 12, 60
BROADCAST_BYTES = 50_000_000
# 57 million parameters and their AdamW: 683 MB, 4.6 minutes at 20 Mbit/s.
LARGE = {"model__d_model": 768, "model__d_ff": 3072, "model__n_layers": 8, "model__n_heads": 12}
SLOW_MEGABITS = 20


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, root):
    packages = ("iproute2", "openssh-client", "openssh-server")
    subprocess.run([root / "scripts" / "install_system_packages.sh", *packages], timeout=300, check=False)
    if reason := why_not():
        pytest.skip(reason)
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as two:
        yield two


@pytest.fixture(scope="module")
def config(write_config, tmp_path_factory):
    changes = {"training__max_updates": UPDATES, "training__epochs": 20, "training__save_interval": 10}
    path = tmp_path_factory.mktemp("two_hosts") / "config.yaml"
    return write_config(path, **changes, distributed__stall_timeout=float(STALL_TIMEOUT_S))


@pytest.fixture(scope="module")
def on_one_process(config, run_job, outcome_of):
    """What a single process computes."""
    folder = config.with_name("one")
    job = run_job(1, *training(config, folder))
    assert job.process.returncode == 0, job.stderr
    return outcome_of(folder)


class Launched:
    """Launchers of one job and what they have said."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[Path] = []

    def start(self, command: list[str]) -> None:
        self._outputs.append(self._folder.with_name(f"output{len(self._outputs)}-{time.monotonic_ns()}"))
        with open(self._outputs[-1], "wb") as output:
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=self._root,
                    env=job_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    @property
    def told(self) -> list[str]:
        return [output.read_text(errors="replace") for output in self._outputs]

    def wait_for(self, what: str, true, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "\n".join([f"waited {seconds} s for {what}", *self.told])
            time.sleep(0.05)

    def wait_for_update(self, update: int) -> None:
        table = self._folder / "runs" / "structured" / "run" / "train.csv"

        def reached() -> bool:
            assert all(process.poll() is None for process in self.processes), self.told
            return table.exists() and len(table.read_text().splitlines()) > update

        self.wait_for(f"update {update}", reached, PATIENCE_S)

    def finish(self, seconds: float) -> list[int]:
        self.wait_for("the end", lambda: all(p.poll() is not None for p in self.processes), seconds)
        return [process.returncode for process in self.processes]

    def ranks(self) -> list[int]:
        """Processes that train into the folder, on whatever host: they have nothing else in common."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                is_rank = words[1:3] == ["-m", "src.train"] and str(self._folder) in words
                if is_rank and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def kill(self) -> None:
        for launcher in self.processes:
            with suppress(psutil.NoSuchProcess):
                for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                    with suppress(psutil.NoSuchProcess, ProcessLookupError):
                        process.send_signal(signal.SIGKILL)
            launcher.wait(60)
        for pid in self.ranks():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


@contextmanager
def launched(root, folder):
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        job = Launched(root, folder)
        stack.callback(job.kill)
        yield job


def training(config, folder):
    return ["-m", "src.train", "--config", str(config), "--output_dir", str(folder), "--run_name", "run"]


def start_torchrun(job, hosts, ranks_per_host, arguments):
    """Start torchrun's agents, one on each host."""
    for host, address in HOSTS.items():
        command = [str(Path(sys.executable).with_name("torchrun")), "--nnodes", "2"]
        command += ["--nproc-per-node", str(ranks_per_host), "--rdzv-backend", "c10d", "--rdzv-id", "two"]
        command += ["--rdzv-endpoint", f"{HOSTS['h1']}:29400", "--local-addr", address]
        job.start(hosts.command(host, [*command, *arguments]))


def test_torchrun_goes_on_after_a_cut_link(
    hosts, root, config, on_one_process, outcome_of, assert_same_run, tmp_path
):
    folder = tmp_path / "two"
    with launched(root, folder) as job:
        start_torchrun(job, hosts, 1, ["--max-restarts", "3", *training(config, folder)])
        job.wait_for_update(CUT_AFTER_UPDATE)
        hosts.cut()
        job.wait_for("both sides to end", lambda: all(REASON in told for told in job.told), PATIENCE_S)
        hosts.mend()
        assert job.finish(PATIENCE_S) == [0, 0], "\n".join(job.told)
        assert any("resuming after update" in told for told in job.told)
    assert_same_run(on_one_process, outcome_of(folder))


def test_horovodrun_ends_at_a_cut_link_and_resumes(
    hosts, root, config, on_one_process, outcome_of, assert_same_run, tmp_path
):
    if reason := why_no_ssh():
        pytest.skip(reason)
    hosts.serve_ssh()
    folder = tmp_path / "two"
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "-H", "h1:1,h2:1"]
    horovodrun += ["--network-interfaces", "eth0", sys.executable, *training(config, folder)]
    with launched(root, folder) as job:
        job.start(hosts.command("h1", horovodrun))
        job.wait_for_update(CUT_AFTER_UPDATE)
        assert len(job.ranks()) == 2
        hosts.cut()
        try:
            job.wait_for("both sides to end", lambda: not job.ranks(), PATIENCE_S)
            assert job.finish(60) == [1]
        finally:
            hosts.mend()
        assert REASON in job.told[0]  # h2's own line cannot get through
    with launched(root, folder) as job:
        job.start(hosts.command("h1", [*horovodrun, "--resume", "auto"]))
        assert job.finish(PATIENCE_S) == [0], job.told
        assert "resuming after update" in job.told[0]
    assert_same_run(on_one_process, outcome_of(folder))


@pytest.mark.parametrize(("interface", "ends"), [("", 1), ("eth0", 0)])
def test_a_named_interface_makes_up_for_host_names(hosts, root, tmp_path, interface, ends):
    """Debian gives 127.0.1.1 to a machine's own name, where no other one reaches it."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 h1 h2\n")
    script = f'mount --bind {tmp_path}/hosts /etc/hosts; exec "$@"'
    folder = tmp_path / "job"
    with launched(root, folder) as job:
        (folder / "scenes.json").write_text(json.dumps([{"do": "broadcast", "bytes": 1_000_000}]))
        program = [sys.executable, str(root / "tests" / "distributed" / "rank_programs.py"), str(folder)]
        for rank, host in enumerate(HOSTS):
            step = {"NUM_TASKS": 2, "NUM_NODES": 2, "NODELIST": ",".join(HOSTS.values()), "ID": 0}
            slurm = [f"SLURM_STEP_{key}={value}" for key, value in step.items()]
            slurm += ["SLURM_JOB_ID=1", f"SLURM_PROCID={rank}", f"SLURMD_NODENAME={host}"]
            named = ["env", *slurm, f"HOROVOD_GLOO_IFACE={interface}"]
            job.start(hosts.command(host, ["sh", "-c", script, "sh", *named, *program]))
        assert job.finish(PATIENCE_S) == [ends, ends], "\n".join(job.told)
        told = "\n".join(job.told)
    assert ("its own name stands for 127.0.1.1 there" in told) == (not interface), told


def test_a_broadcast_goes_once_to_each_host(hosts, root, tmp_path):
    """Two ranks on each of two hosts: Horovod's own broadcast would send it twice."""
    folder = tmp_path / "job"
    with launched(root, folder) as job:
        scenes = [{"do": "broadcast", "bytes": BROADCAST_BYTES}]
        (folder / "scenes.json").write_text(json.dumps(scenes))
        before = {host: hosts.sent(host) for host in HOSTS}
        program = root / "tests" / "distributed" / "rank_programs.py"
        start_torchrun(job, hosts, 2, [str(program), str(folder)])
        assert job.finish(90) == [0, 0], "\n".join(job.told)
    sent = {host: hosts.sent(host) - before[host] for host in HOSTS}
    assert [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)] == [[True]] * 4
    assert BROADCAST_BYTES < sent["h1"] < 1.2 * BROADCAST_BYTES
    assert sent["h2"] < 0.1 * BROADCAST_BYTES


@pytest.mark.more
@pytest.mark.timeout(1200)
def test_a_slow_link_is_no_reason_to_end_a_resume(root, config, write_config, run_job, tmp_path):
    """The state of a large model takes minutes to come; every limit is far below, and no rank is killed."""
    if reason := why_not():
        pytest.skip(reason)
    path, folder = tmp_path / "large.yaml", tmp_path / "large"
    changes = {"training__max_updates": 1, "training__eval_interval": 100, "distributed__stall_timeout": 30.0}
    write_config(path, **LARGE, **changes)
    job = run_job(1, *training(path, folder))
    assert job.process.returncode == 0, job.stderr
    size = (folder / "checkpoints" / "last.pt").stat().st_size
    with TwoHosts(tmp_path) as hosts, launched(root, folder) as job:
        hosts.shape(SLOW_MEGABITS)
        began = time.monotonic()
        start_torchrun(job, hosts, 2, [*training(path, folder), "--resume", "auto"])
        assert job.finish(900) == [0, 0], "\n".join(job.told)
        seconds = time.monotonic() - began
        sent = hosts.sent("h1")
    print(f"{size / 1e6:.0f} MB of state, {sent / 1e6:.0f} MB sent, {seconds:.0f} s")
    assert any("all 1 updates are done already" in told for told in job.told)
    assert size < sent < 1.2 * size
    assert seconds > 0.9 * 8 * sent / (SLOW_MEGABITS * 1e6), "the link was slow"
