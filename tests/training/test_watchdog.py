"""The watchdog lets a rank be slow as long as it gets on."""

from __future__ import annotations

import pytest
import yaml

from tests.distributed.conftest import make_config, write_corpus

# An update of eight micro-batches of 0.4 s each, which is longer than the watchdog waits.
PROGRAM = """
import sys, time
from pathlib import Path
from horovod_transformer.config import load_config
from horovod_transformer.training.resume import StartRequest
from horovod_transformer.training.trainer import Trainer

folder = Path(sys.argv[1])
trainer = Trainer(load_config(folder / "config.yaml").with_paths_in(folder), StartRequest(None, None, "run"))
trainer.model.blocks[0].register_forward_hook(lambda *_: time.sleep(0.4))
began = time.monotonic()
print(trainer.train()["finished"], time.monotonic() - began > 3.2)
trainer.close()
"""


@pytest.mark.slow
def test_an_update_may_take_longer_than_the_watchdog_waits(run_python, tmp_path):
    changes = {"training__max_updates": 1, "training__warmup_updates": 1, "training__eval_blocks": 1}
    changes |= {"training__per_gpu_batch_size": 1, "distributed__stall_timeout": 3.0}
    config = make_config(write_corpus(tmp_path / "corpus"), **changes)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_python("-c", PROGRAM, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True"
