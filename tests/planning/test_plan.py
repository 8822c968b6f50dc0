"""Plans: what fits, what is recommended and why, and the config that comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from horovod_transformer.config import load_config
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import count_parameters
from horovod_transformer.planning.config_file import config_text
from horovod_transformer.planning.corpus import Corpus
from horovod_transformer.planning.law import usual_law
from horovod_transformer.planning.machine import Machine, device_bytes, gpus, modelled_speed
from horovod_transformer.planning.plan import MOST_EPOCHS, Plan, candidates, make_plan
from horovod_transformer.planning.rates import find_device

PLAYS = Corpus("data/plays", 36, 5_000_000, 1_800_000, 4096, "bpe", None, counted=True)
BOOKS = Corpus("books", 17_868, 6_500_000_000, 1_600_000_000, 50_257, "gpt2", None, counted=False)
LAPTOP = Machine("2 CPU cores here", 1, 16_000_000_000, on_gpu=False, here=True)


def plan_on(machine: Machine, corpus: Corpus, hours: float, operations: float = 1e11) -> Plan:
    """A plan for a machine that computes so many operations a second, whatever the model."""
    speeds = {
        count_parameters(model): operations / (6 * count_parameters(model))
        for model, _ in candidates(corpus, machine)
    }
    return make_plan(corpus, machine, speeds, hours, usual_law(corpus.tokens))


def plan_on_gpus(kind: str, number: int, corpus: Corpus, hours: float) -> Plan:
    device = find_device(kind)
    machine = gpus(device, number)
    speeds = {
        count_parameters(model): modelled_speed(device, number, model, training)
        for model, training in candidates(corpus, machine)
    }
    return make_plan(corpus, machine, speeds, hours, usual_law(corpus.tokens))


def test_more_time_never_makes_the_expected_result_worse() -> None:
    expected = [plan_on(LAPTOP, PLAYS, hours).choice.bits_per_byte for hours in (0.02, 0.1, 0.5, 2, 10)]
    assert expected == sorted(expected, reverse=True)
    assert expected[0] > expected[-1] + 0.1


def test_a_run_takes_no_longer_than_there_is_and_reads_no_book_too_often() -> None:
    for hours in (0.05, 1, 100):
        for option in plan_on(LAPTOP, PLAYS, hours).options:
            assert option.obstacle or option.seconds <= hours * 3600 * 1.001
            assert option.epochs <= MOST_EPOCHS * 1.001


def test_what_is_recommended_is_the_smallest_of_the_best() -> None:
    plan = plan_on(LAPTOP, PLAYS, 1)
    best = min(option.bits_per_byte for option in plan.options if not option.obstacle)
    assert plan.choice.bits_per_byte <= best + 0.01
    assert all(
        option.obstacle or option.bits_per_byte > best + 0.01 for option in plan.options[: plan.recommended]
    )


def test_what_does_not_fit_into_the_memory_says_so_and_is_not_taken() -> None:
    plan = plan_on(replace(LAPTOP, memory_bytes=200_000_000), PLAYS, 1000)
    large = plan.options[-1]
    assert "needs" in large.obstacle and "has 0.2" in large.obstacle
    assert not plan.choice.obstacle


def test_no_model_is_recommended_that_would_learn_the_books_by_heart() -> None:
    plan = plan_on_gpus("h100", 8, PLAYS, 24)
    assert plan.choice.parameters < 4 * PLAYS.tokens < plan.options[plan.recommended + 1].parameters
    assert "too large for so little text" in plan.reason


def test_nothing_that_fits_is_a_mistake_of_one_line() -> None:
    with pytest.raises(
        UserError, match="nothing can be trained in 1 h on 2 CPU cores here: the smallest model needs"
    ):
        plan_on(replace(LAPTOP, memory_bytes=1000), PLAYS, 1)


def test_four_h100s_train_a_larger_model_on_a_large_corpus_than_one_and_in_the_same_time() -> None:
    one, four = plan_on_gpus("h100", 1, BOOKS, 8), plan_on_gpus("h100", 4, BOOKS, 8)
    assert four.choice.parameters >= one.choice.parameters
    assert four.choice.bits_per_byte < one.choice.bits_per_byte


def test_the_memory_of_the_124m_model_is_about_what_was_measured_on_a_gpu() -> None:
    # docs/gpu.md: 64 blocks of 512 tokens, one micro-batch, 13.4 GiB.
    config = load_config("configs/config.yaml", {"training.global_batch_size": "64"})
    machine = gpus(find_device("h200"), 1)
    measured = 13.4 * 2**30
    assert device_bytes(config.model, config.training, machine) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("hours", [0.02, 1, 50])
@pytest.mark.parametrize("processes", [1, 3, 8])
@pytest.mark.parametrize("corpus", [PLAYS, BOOKS, replace(PLAYS, tokens=20_000, text_bytes=60_000)])
def test_every_option_is_a_config_that_holds(
    tmp_path: Path, corpus: Corpus, processes: int, hours: float
) -> None:
    machine = replace(LAPTOP, processes=processes, memory_bytes=10**12)
    plan = plan_on(machine, corpus, hours, 1e13)
    for place in range(len(plan.options)):
        file = tmp_path / "config.yaml"
        file.write_text(config_text(replace(plan, recommended=place), "data/x", ["a b", "it's: #1"]))
        config = load_config(file)
        option = plan.options[place]
        assert config.model == option.model
        assert config.training == option.training
        assert config.data.source == ["a b", "it's: #1"]
        assert config.data.tokenizer == corpus.tokenizer
        assert (config.training.global_batch_size or 0) >= processes


def test_every_core_gets_a_pass_and_no_update_grows_for_it() -> None:
    one, eight = (plan_on(replace(LAPTOP, cores=cores), PLAYS, 1).choice.training for cores in (1, 8))
    assert eight.global_batch_size == one.global_batch_size
    assert (eight.global_batch_size or 0) // eight.per_gpu_batch_size >= 8


def test_each_value_of_the_config_says_why() -> None:
    text = config_text(plan_on(LAPTOP, PLAYS, 1), "data/x")
    assert yaml.safe_load(text)["model"]["positions"] == "rotary"
    bare = [row for row in text.splitlines() if row.startswith("  ") and "#" not in row]
    assert [row.split(":")[0].strip() for row in bare] == ["min_learning_rate_ratio", "tokenizer"]
