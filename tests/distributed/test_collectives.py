"""Ranks exchange values, agree on mistakes, start equal and prove it."""

from __future__ import annotations

import pickle

import pytest
import torch

from horovod_transformer.distributed import collectives
from horovod_transformer.training.resume import Start, TrainState

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(play, config_of, tmp_path_factory):
    """Each rank's results of: exchange, unequal, set-up fresh, a short run, set-up resumed, mistakes."""
    base = tmp_path_factory.mktemp("runs")
    config = config_of(training__max_updates=4)
    run = {"config": config, "folder": str(base / "run")}
    checkpoint = base / "run" / "checkpoints" / "last.pt"
    muon = config_of(training__optimizer="muon")
    return play(
        2,
        [
            {"do": "exchange"},
            {"do": "unequal", "rank": 1},
            {"do": "set_up", "config": config, "folder": str(base / "fresh")},
            {"do": "train", **run},
            {"do": "set_up", "config": config, "folder": str(base / "resumed"), "resume": str(checkpoint)},
            {"do": "train", **run, "config": config_of(training__global_batch_size=1)},
            {"do": "train", **run, "resume": "missing.pt"},
            {"do": "train", **run, "config": config_of(training__seed=8), "resume": str(checkpoint)},
            {"do": "train", **run, "config": muon, "resume": str(checkpoint)},
        ],
    )


def test_every_rank_gets_what_rank_0_gave(results):
    expected = [2.5, [0, 3], [[0, 3], [1, 4], [2, 5]], [1, 2**40], [{"text": "né", "none": None}, [1, 2.0]]]
    for rank in results:
        assert rank[0]["broadcast"] == expected
        assert rank[0]["main_value"] == {"rank": 0}


def test_averages_and_sums_are_over_all_ranks(results):
    for rank in results:
        assert rank[0]["average"] == 0.5
        assert rank[0]["average_of_tensor"] == 1.0
        assert rank[0]["sum"] == [1, 2**41]
        assert rank[0]["gathered"] == [1.5, 1.5]


def test_waiting_leaves_the_core_to_others(results):
    """Horovod's own waiting takes all of the second that rank 0 is late."""
    assert results[1][0]["busy_seconds"] < 0.5


def test_one_ranks_mistake_is_everyones(results):
    for number, rank in enumerate(results):
        assert rank[0]["raise_on_all_ranks"] == "on rank 1: no such thing"
        assert rank[0]["from_main"] == "only rank 0 looked"
        assert rank[0]["all_well"] == number


def test_a_single_changed_bit_is_found_on_every_rank(results):
    for rank in results:
        assert rank[1]["error"] == (
            "after the change the weights of ranks [1] differ from those of rank 0, in weight; nothing more "
            "is written, resume from the last checkpoint"
        )
    assert results[0][1]["before"] == results[1][1]["before"]


@pytest.mark.parametrize(("number", "update", "steps"), [(2, 0, []), (4, 4, [4.0])], ids=["fresh", "resumed"])
def test_setting_up_changes_nothing(results, number, update, steps):
    for rank in results:
        assert rank[number]["weights_unchanged"]
        assert rank[number]["optimizer_unchanged"]
        assert rank[number]["optimizer_steps"] == steps
        assert rank[number]["progress"] == update
    assert results[0][number]["digest"] == results[1][number]["digest"]


def test_fresh_and_resumed_weights_differ(results):
    assert results[0][2]["digest"] != results[0][4]["digest"]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (5, "training.global_batch_size = 1: 2 processes cannot share an update of 1 blocks"),
        (6, "missing.pt: no such checkpoint file"),
        (7, "was trained with seed = 1337, now it is 8"),
        (8, "trained with training.optimizer = adamw, now it is muon"),
    ],
    ids=["batch", "no checkpoint", "seed", "optimizer"],
)
def test_a_mistake_is_every_ranks(results, number, told):
    assert told in results[0][number]["mistake"]
    assert results[0][number] == results[1][number]


def test_tensors_of_a_checkpoint_are_not_pickled():
    # Horovod pickles at most 2 GB; the state of a large model goes tensor by tensor.
    start = Start(
        TrainState("r", {}), model={"w": torch.ones(3)}, optimizer={"state": {0: {"m": torch.ones(2)}}}
    )
    tensors: list[torch.Tensor] = []
    outline = pickle.dumps(collectives._outline(start, tensors))
    assert [len(tensor) for tensor in tensors] == [3, 2]
    assert b"torch._utils" not in outline
