"""What `train` loads: start-up is seconds that every rank of every run pays."""

from __future__ import annotations

import yaml

from tests.distributed.conftest import BASE, write_corpus

# Each takes a quarter of a second or more, and a run on CPUs needs none.
UNNEEDED = ["datasets", "matplotlib", "pandas", "torch._dynamo"]


def test_a_whole_run_loads_nothing_that_it_does_not_need(run_python, tmp_path):
    config = tmp_path / "config.yaml"
    values = {**BASE, "data": {"data_dir": str(write_corpus(tmp_path / "data")), "num_workers": 0}}
    config.write_text(yaml.safe_dump(values))
    program = (
        "import sys; from src.train import main; code = main(sys.argv[1:]); "
        f"print('loaded', code, [name for name in {UNNEEDED} if name in sys.modules])"
    )
    run = ["--config", str(config), "--output_dir", str(tmp_path), "--training.max_updates", "6"]
    run += ["--training.optimizer", "muon", "--training.warmup_updates", "1"]
    run += ["--model.gradient_checkpointing", "true"]  # torch's own loads torch._dynamo
    for resume in ([], ["--resume", "auto", "--training.max_updates", "8"]):
        done = run_python("-c", program, *run, *resume)
        assert done.stdout.splitlines()[-1] == "loaded 0 []", done.stdout + done.stderr
