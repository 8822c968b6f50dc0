"""Ranks exchange values, agree on mistakes, start equal and prove it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from horovod_transformer.checkpoint.manager import Takeover
from horovod_transformer.distributed.messages import decode, encode
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


GATHER_LIMIT, SLICE = 96, 1000


@pytest.fixture(scope="module")
def of_three(play, tmp_path_factory):
    """Three ranks exchange what is above the limits; then one of them sends pickles."""
    folder = tmp_path_factory.mktemp("marks")
    scenes = [
        {"do": "in_slices", "gather_limit": GATHER_LIMIT, "slice": SLICE},
        {"do": "intruder", "rank": 1, "folder": str(folder)},
        {"do": "exchange"},
    ]
    return folder, play(3, scenes)


def test_what_is_above_the_limit_is_gathered_in_slices(of_three):
    for rank in of_three[1]:
        assert rank[0]["gathered"] and rank[0]["objects"]
        assert rank[0]["largest_gather"] <= GATHER_LIMIT // 3


def test_a_broadcast_goes_in_slices_and_the_watchdog_sees_each(of_three):
    # 44 rows of 7 float32 and four scalars are 1,248 bytes: a second slice, and a step for the third rank.
    for rank in of_three[1]:
        assert rank[0]["broadcast"]
        assert rank[0]["handed_on"] <= SLICE
        assert rank[0]["beats"] == 3


@pytest.mark.more
def test_more_than_32_bits_can_count_arrives_whole(play):
    """Takes 10 GB; Horovod's own allgather ends in a segmentation fault."""
    if psutil.virtual_memory().available < 14e9:
        pytest.skip("needs 14 GB of free memory")
    length = 2**31 + 2**20
    expected = [[1, 1], [2, 2], [length, 5, 5], [3.0, 3.0]]
    assert play(2, [{"do": "huge", "bytes": length}], timeout=500) == [[expected]] * 2


def test_a_pickle_from_a_rank_is_one_error_and_runs_nothing(of_three):
    folder, ranks = of_three
    for number in (0, 2):
        assert len(ranks[number][1]) == 3
        for told in ranks[number][1]:
            assert "sent what is no message of this program" in told
    assert ranks[1][1] == ["sent"] * 3
    assert list(folder.iterdir()) == []
    # And the ranks are still in step.
    assert all(rank[2]["all_well"] == number for number, rank in enumerate(ranks))


def test_all_that_a_run_starts_from_arrives_as_it_was():
    start = Start(
        TrainState("r", {"seed": 1}, loss_scale={"scale": 2.0}),
        model={"w": torch.ones(3)},
        optimizer={"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"betas": (0.9, 0.95), "lr": 1e-3}]},
        notes=["a"],
        takeover=Takeover((Path("a.pt"),), Path("b.pt"), 3, True),
    )
    kinds = (Start, TrainState, Takeover)
    message, tensors = encode(start, kinds)
    got, room = decode(message, 0, kinds)
    for place, tensor in zip(room, tensors, strict=True):
        place.copy_(tensor)
    assert repr(got) == repr(start)
