"""`sbatch scripts/check_zaratan.sh --cpu`: the check of a cluster, in its CPU form, on a real Slurm."""

from __future__ import annotations

import re

import pytest
from slurm_cluster import NO_GPU, Submitter

pytestmark = pytest.mark.slurm


@pytest.mark.slow
def test_two_nodes_pass_the_check_and_the_report_says_cpu(submitter: Submitter) -> None:
    job = submitter.submit("--nodes=2", "--gres=gpu:h100:1", "scripts/check_zaratan.sh", "--cpu")

    ended = submitter.wait(job, "COMPLETED", "FAILED", timeout=800)
    output = submitter.output(job)
    assert ended["JobState"] == "COMPLETED", output
    report = (submitter.checkout / f"check-{job}" / "report.md").read_text()
    assert output.endswith(report)
    assert "THIS CLUSTER WORKS: 2 nodes, 2 processes, CPU ONLY" in report.splitlines()[-1]
    for name in ("ranks", "Horovod", "all-reduce", "one rank against all", "kill and resume"):
        assert f"| {name} | ok |" in report
    assert "2 of 2 on n1, n2: CPU" in report


def test_without_gpus_the_check_fails_and_does_not_pass_on_the_cpu(submitter: Submitter) -> None:
    job = submitter.submit("scripts/check_zaratan.sh", HT_PROCESSES="1", **NO_GPU)

    ended = submitter.wait(job, "COMPLETED", "FAILED", timeout=800)
    output = submitter.output(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), output
    assert output.splitlines()[-1].startswith("NOT YET: ")
    # The reason stands in the report; nothing else was started, only to fail as well.
    assert re.search(r"\| ranks \| FAILED \| nothing else was tried; .*error: ", output), output
    assert not (submitter.checkout / f"check-{job}" / "all.log").exists()
