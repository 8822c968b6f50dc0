"""Real jobs, as the tests of distributed/ start them."""

from tests.distributed.conftest import corpus, outcome_of, start_job, write_config

__all__ = ["corpus", "outcome_of", "start_job", "write_config"]
