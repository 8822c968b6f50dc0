"""Two hosts under torchrun: one host's result to the bit; a cut link ends both sides, a restart resumes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.distributed.conftest import job_environment
from tests.distributed.two_hosts import HOSTS, TwoHosts, why_not

pytestmark = pytest.mark.distributed

STALL_TIMEOUT_S = 8


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, root):
    subprocess.run(
        [str(root / "scripts" / "install_system_packages.sh"), "iproute2"], timeout=300, check=False
    )
    if reason := why_not():
        pytest.skip(reason)
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as two:
        yield two


@contextmanager
def torchrun(hosts, root, config, folder, restarts):
    """One agent and one rank on each host."""
    agents, outputs = [], []
    with ExitStack() as stack:
        for host, address in HOSTS.items():
            command = [
                str(Path(sys.executable).with_name("torchrun")),
                "--nnodes",
                "2",
                "--nproc-per-node",
                "1",
            ]
            command += [
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                f"{HOSTS['h1']}:29400",
                "--rdzv-id",
                "two",
            ]
            command += ["--local-addr", address, "--max-restarts", str(restarts), "-m", "src.train"]
            command += ["--config", str(config), "--output_dir", str(folder), "--run_name", "run"]
            outputs.append(folder / f"{host}.out")
            file = stack.enter_context(open(outputs[-1], "wb"))
            agents.append(
                subprocess.Popen(
                    hosts.command(host, command),
                    cwd=root,
                    env=job_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            yield agents, outputs
        finally:
            for agent in agents:
                with suppress(psutil.NoSuchProcess):
                    for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
                        with suppress(psutil.NoSuchProcess, ProcessLookupError):
                            process.send_signal(signal.SIGKILL)
                agent.wait(10)


def finish(agents, outputs, timeout):
    end = time.monotonic() + timeout
    codes = [agent.wait(max(1.0, end - time.monotonic())) for agent in agents]
    return codes, [output.read_text(errors="replace") for output in outputs]


def wait_for_update(agents, outputs, folder, update):
    table = folder / "runs" / "structured" / "run" / "train.csv"
    end = time.monotonic() + 90
    while not table.exists() or len(table.read_text().splitlines()) <= update:
        told = "\n".join(output.read_text(errors="replace") for output in outputs)
        assert time.monotonic() < end and all(agent.poll() is None for agent in agents), told
        time.sleep(0.05)


def test_two_hosts_compute_what_one_computes_and_survive_a_cut_link(
    hosts, root, write_config, run_job, outcome_of, assert_same_run, tmp_path
):
    changes = {"training__max_updates": 100, "training__epochs": 20, "training__save_interval": 10}
    config = write_config(
        tmp_path / "config.yaml", **changes, distributed__stall_timeout=float(STALL_TIMEOUT_S)
    )
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    launch = ["-m", "horovod_transformer", "launch", "-np", "2", "--", "python", "-m", "src.train"]
    alone = run_job(1, *launch, "--config", str(config), "--output_dir", str(one), "--run_name", "run")
    assert alone.process.returncode == 0, alone.stderr

    with torchrun(hosts, root, config, two, restarts=3) as (agents, outputs):
        wait_for_update(agents, outputs, two, 22)
        hosts.cut()
        cut_at = time.monotonic()
        said = "no progress for 8 s (distributed.stall_timeout)"
        while not all(said in output.read_text(errors="replace") for output in outputs):
            assert time.monotonic() - cut_at < STALL_TIMEOUT_S + 20, [
                output.read_text() for output in outputs
            ]
            time.sleep(0.1)
        print(f"both sides ended {time.monotonic() - cut_at:.1f} s after the cut")
        hosts.mend()
        codes, told = finish(agents, outputs, 150)
    assert codes == [0, 0], "\n".join(told)
    assert any("resuming after update" in text for text in told)
    assert_same_run(outcome_of(one), outcome_of(two))
