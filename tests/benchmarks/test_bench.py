"""`make bench` works, in small: parts run, their tables are shown, one line of JSON holds it all."""

from __future__ import annotations

import json

import pytest

from horovod_transformer.precision import cpu_bf16_unit
from horovod_transformer.system.machine import cpu_flags


@pytest.mark.slow
def test_a_part_in_small(run_python, tmp_path):
    done = run_python("benchmarks/bench.py", "--tiny", "--output", str(tmp_path), "update")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["machine"]["gflops_fp32"] > 0 and results["machine"]["cores"] >= 1
    (update,) = results["parts"]
    rows = {(row["what"], row["peer_name"]): row for row in update["rows"]}
    for peer in ("Hugging Face", "plain GPT"):
        row = rows["an update, tiny, fp32", peer]
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert "an update, tiny, fp32 | " in done.stdout
    # bf16 where the CPU has a unit for it, and a word where not.
    has_rows = ("an update, tiny, bf16", "plain GPT") in rows
    assert has_rows == bool(cpu_bf16_unit(cpu_flags())) != ("no unit for it" in done.stdout)
    assert not list(tmp_path.iterdir())  # what small shapes give is no result


def test_an_unknown_part_is_refused(run_python):
    done = run_python("benchmarks/bench.py", "speed")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "there are update, memory, processes, loading, startup, generation, prepare, demo"
    )
