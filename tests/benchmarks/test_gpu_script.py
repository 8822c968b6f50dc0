"""benchmarks/gpu.py works from end to end, in small, without a GPU."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_small_on_a_cpu(run_python, tmp_path):
    done = run_python("benchmarks/gpu.py", "--tiny", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (path for path in tmp_path.glob("*.json") if not path.name.endswith(".trace.json"))
    results = json.loads(path.read_text())
    checks = {key: value for key, value in results.items() if key.startswith("check: ")}
    for what in ("check: the host does not wait", "check: the host does not wait, muon"):
        assert checks.pop(what) == "left out: there is no GPU here"
    assert len(checks) == 5 and set(checks.values()) == {"ok"}
    assert results["chip"] == "cpu" and results["environment"]["packages"]["torch"]
    assert len(results["speed"]) == 3 and all(row["tokens_per_second"] > 0 for row in results["speed"])
    assert [row["batch"] for row in results["generation, tokens/s"]] == [1, 64]
    assert json.loads(path.with_suffix(".trace.json").read_text())["traceEvents"]


def test_without_a_gpu_it_says_so(run_python):
    done = run_python("benchmarks/gpu.py")
    assert done.returncode == 2
    assert "sees no GPU here" in done.stderr.splitlines()[-1]
