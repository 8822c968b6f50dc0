"""Two hosts: one host's result to the bit; a cut link ends both sides with its reason, a restart resumes."""

from __future__ import annotations

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
def on_one_host(config, run_job, outcome_of):
    """What two ranks of one host compute."""
    folder = config.with_name("one")
    launch = ["-m", "horovod_transformer", "launch", "-np", "2", "--", "python", "-m", "src.train"]
    job = run_job(1, *launch, "--config", str(config), "--output_dir", str(folder), "--run_name", "run")
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


def test_torchrun_goes_on_after_a_cut_link(
    hosts, root, config, on_one_host, outcome_of, assert_same_run, tmp_path
):
    folder = tmp_path / "two"
    with launched(root, folder) as job:
        for host, address in HOSTS.items():  # an agent and a rank on each
            command = [str(Path(sys.executable).with_name("torchrun")), "--nnodes", "2"]
            command += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two"]
            command += ["--rdzv-endpoint", f"{HOSTS['h1']}:29400", "--local-addr", address]
            job.start(hosts.command(host, [*command, "--max-restarts", "3", *training(config, folder)]))
        job.wait_for_update(CUT_AFTER_UPDATE)
        hosts.cut()
        job.wait_for("both sides to end", lambda: all(REASON in told for told in job.told), PATIENCE_S)
        hosts.mend()
        assert job.finish(PATIENCE_S) == [0, 0], "\n".join(job.told)
        assert any("resuming after update" in told for told in job.told)
    assert_same_run(on_one_host, outcome_of(folder))


def test_horovodrun_ends_at_a_cut_link_and_resumes(
    hosts, root, config, on_one_host, outcome_of, assert_same_run, tmp_path
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
    assert_same_run(on_one_host, outcome_of(folder))
