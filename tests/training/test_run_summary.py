"""What a run is going to be, in figures, and what is said about one that cannot go well."""

from __future__ import annotations

import pytest

from horovod_transformer.config import Config
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.size import count_parameters
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.run_summary import RunSummary
from tests.conftest import TINY, TINY_LLAMA


def wider(**changes):
    return TINY.model_copy(update=changes)


@pytest.mark.parametrize(
    "shape",
    [
        TINY,
        wider(d_ff=100, n_layers=3),
        wider(d_model=64),
        wider(positions="learned"),
        TINY_LLAMA,
        TINY_LLAMA.model_copy(update={"tie_embeddings": False, "qk_norm": False, "n_kv_heads": None}),
    ],
)
def test_parameters_are_those_of_the_real_model(shape):
    config = Config(model=shape)
    model = build_model(config.model)
    assert count_parameters(config.model) == sum(p.numel() for p in model.parameters())


def test_parameters_of_the_default_model():
    assert count_parameters(Config().model) == 123_653_376


def run_plan(blocks, block_size=512, **training):
    config = Config().with_overrides({f"training.{key}": value for key, value in training.items()})
    return RunSummary.of(
        config.model, config.training, BatchPlan.of(config.training, blocks, block_size, 0, 1)
    )


def test_the_default_run_on_the_sample_is_called_hopeless():
    # 38 plays are about 3,300 blocks: 13 updates of 256.
    plan = run_plan(3_300)
    assert (plan.updates, plan.warmup) == (13, 1)
    told = plan.warnings()
    assert any("a run of 13 updates learns little" in line for line in told)
    assert any("1,686,300 tokens for 123,653,376 parameters" in line for line in told)


def test_a_warmup_that_never_ends_is_called_out():
    assert (
        run_plan(3_300, warmup_updates=700)
        .warnings()[0]
        .startswith("the learning rate rises during 700 of 13 updates: set training.warmup_updates to null")
    )
    assert not any("rises" in line for line in run_plan(3_300).warnings())


def test_a_run_that_can_learn_is_told_in_figures():
    # About BookCorpusOpen.
    plan = run_plan(3_300_000)
    assert plan.warnings() == []
    assert (plan.updates, plan.warmup) == (12_891, 700)
    assert plan.epochs == pytest.approx(1.0, abs=1e-3)
    assert plan.describe() == (
        "12,891 updates = 1.00 epochs = 1,686,300,000 tokens predicted, 14 per parameter; the learning rate "
        "rises for 700 of them (5%); checkpoints take up to 5.9 GB"
    )


def test_max_updates_shortens_the_run():
    plan = run_plan(3_300_000, max_updates=1_000)
    assert (plan.updates, plan.warmup) == (1_000, 100)


def test_a_run_that_is_cut_short_is_not_blamed_for_it():
    assert run_plan(3_300_000, max_updates=12).warnings() == []
    # A warm-up that never ends is a mistake all the same.
    assert len(run_plan(3_300_000, max_updates=12, warmup_updates=700).warnings()) == 1


@pytest.mark.parametrize("max_updates", [None, 4])
def test_its_tokens_are_those_that_the_table_counts(max_updates):
    training = Config().with_overrides({"training.global_batch_size": 8, "training.epochs": 3}).training
    training = training.model_copy(update={"max_updates": max_updates})
    plan = BatchPlan.of(training, 53, 16, 5, 1)
    run = RunSummary.of(Config().model, training, plan)
    counted = sum(plan.target_tokens(update) for update in range(run.updates))
    if max_updates is None:
        assert (run.tokens, run.epochs) == (counted, 3.0)
    else:
        assert counted <= run.tokens <= counted + 5
