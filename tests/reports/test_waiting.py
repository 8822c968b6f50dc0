"""What is said of the time that processes wait for each other."""

from __future__ import annotations

import pytest

from horovod_transformer.reports.waiting import about_waiting

ALWAYS = ["global_batch_size", "fewer machines"]


@pytest.mark.parametrize(
    ("share", "hosts", "processes", "hierarchical", "compression", "told"),
    [
        (0.14, 2, 8, "off", "none", []),
        (0.4, 1, 2, "off", "none", ["more processes than cores", "busy"]),
        (0.4, 2, 8, "off", "none", ["hierarchical: on", "fp16", *ALWAYS]),
        (0.4, 2, 8, "on", "none", ["fp16", *ALWAYS]),
        (0.4, 2, 2, "off", "fp16", ALWAYS),
    ],
)
def test_what_would_help(share, hosts, processes, hierarchical, compression, told):
    line = about_waiting(share, hosts, processes, hierarchical, compression)
    assert line.startswith(f"{share:.0%} of an update is waiting for other processes' gradients")
    every = {"hierarchical: on", "fp16", "global_batch_size", "fewer machines", "more processes", "busy"}
    assert {word for word in every if word in line} == {word for word in every if word in " ".join(told)}
