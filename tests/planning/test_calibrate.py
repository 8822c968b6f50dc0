"""The ladder: small models that share the time out, and the law that their ends give."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_transformer.config import load_config
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import count_parameters
from horovod_transformer.planning.calibrate import LADDER, PARTS, Rung, calibrate, ladder, ladder_models
from horovod_transformer.planning.corpus import Corpus, prepared_corpus
from horovod_transformer.planning.machine import Machine
from horovod_transformer.planning.plan import MOST_EPOCHS
from horovod_transformer.planning.shapes import training_of

HERE = Machine("2 CPU cores here", 1, 16_000_000_000, on_gpu=False, here=True, cores=2)
PLAYS = Corpus("data/plays", 36, 5_000_000, 1_800_000, 4096, "bpe", 256, counted=True)


def speeds_of(tokens_per_second: float) -> dict[int, float]:
    return {
        count_parameters(model): tokens_per_second / (place + 1)
        for place, model in enumerate(ladder_models(PLAYS))
    }


def test_all_runs_together_take_the_time_that_there_is_and_read_the_same_tokens_at_each_size() -> None:
    rungs = ladder(PLAYS, speeds_of(20_000), 20, HERE)
    assert len(rungs) == len(LADDER) * len(PARTS)
    assert sum(rung.seconds for rung in rungs) == pytest.approx(20 * 60, rel=0.01)
    for place in range(len(PARTS)):
        tokens = [rung.tokens for rung in rungs[place :: len(PARTS)]]
        assert max(tokens) == min(tokens)


def test_no_run_reads_the_books_more_often_than_a_plan_would() -> None:
    rungs = ladder(PLAYS, speeds_of(20_000), 10_000, HERE)
    assert max(rung.tokens for rung in rungs) <= MOST_EPOCHS * PLAYS.tokens


def test_too_little_time_is_refused_with_how_much_it_takes() -> None:
    with pytest.raises(
        UserError, match=r"--calibrate 1: the shortest run would have \d+ updates.* give it \d+ minutes"
    ):
        ladder(PLAYS, speeds_of(3_000), 1, HERE)


@pytest.mark.more
def test_a_ladder_is_trained_and_its_law_expects_what_it_saw(tmp_path: Path) -> None:
    from horovod_transformer.prepare.prepare import prepare

    config = load_config("configs/quickstart.yaml", {"data.data_dir": str(tmp_path / "data")})
    prepare(config, progress=False)
    corpus = prepared_corpus(tmp_path / "data")
    rungs = []
    for model in ladder_models(corpus)[:2]:
        for tokens in (2_048 * 20, 2_048 * 60):
            rungs.append(Rung(model, training_of(model, corpus, tokens, HERE), 1.0))
    law, points = calibrate(corpus, str(tmp_path / "data"), rungs)
    assert [point.tokens for point in points] == [rung.tokens for rung in rungs]
    assert points[1].bits_per_byte < points[0].bits_per_byte - 0.1
    for point in points:
        assert law.bits_per_byte(point.parameters, point.unique, point.tokens) == pytest.approx(
            point.bits_per_byte, abs=0.2
        )
    assert "fitted to 4 small models of these books" in law.source
