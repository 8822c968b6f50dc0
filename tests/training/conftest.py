"""Real runs of one process, a few updates long."""

from __future__ import annotations

import pytest

from horovod_transformer import distributed
from horovod_transformer.config import config_from_dict
from horovod_transformer.training.run import run_distributed_training
from tests.distributed.conftest import BASE, write_corpus

ALONE = (0, 1, 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture
def train(corpus, tmp_path):
    """Train in `tmp_path`; dotted keys change the config, other arguments are handed on."""

    def run(changes=None, **arguments):
        values = {**BASE, "data": {"data_dir": str(corpus), "num_workers": 0}}
        short = {"training.max_updates": 4, "training.save_interval": 2, "training.device": "cpu"}
        config = config_from_dict(values, "test").with_overrides({**short, **(changes or {})})
        arguments = {"output_dir": tmp_path, **arguments}
        return run_distributed_training(config, *ALONE, **arguments)

    distributed.setup_horovod(device="cpu")
    return run
