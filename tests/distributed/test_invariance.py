"""The curve of a run does not depend on how many processes walk it, nor on where it was interrupted."""

from __future__ import annotations

import shutil

import pytest
import torch

pytestmark = pytest.mark.distributed

# Two processes of 2 micro-batches each; warmup ends at update 6, epochs begin at 6.6, 13.25 and 19.9.
ACCUMULATING = {"training__per_gpu_batch_size": 2, "model__dropout": 0.1}
# Shares of 3 + 2 on two processes, of 1 + 2 + 2 on three.
UNEVEN = {"training__global_batch_size": 5}
# Validating at every update, any stop comes just before a validation.
EVERY = {"training__eval_interval": 1, "training__max_updates": 12}
ODD_NAME = "out #1: [x"
# In warmup, in mid-epoch, after the second epoch began.
STOPS = [(1, 2, "SIGUSR1"), (0, 8, "SIGTERM"), (1, 13, "SIGINT")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One output folder per run, by name."""
    base = tmp_path_factory.mktemp("runs")
    return lambda name: base / name


@pytest.fixture(scope="module")
def scene(folders, config_of):
    """Describe a training run: `scene(folder name, resume=..., signal=..., **config changes)`."""

    def describe(name, resume=None, signal=None, late=False, **changes):
        asked = dict(zip(("rank", "after", "name"), signal, strict=True)) if signal else None
        return {
            "do": "train",
            "folder": str(folders(name)),
            "config": config_of(**changes),
            "resume": resume and str(resume),
            "signal": asked,
            "late": late,
        }

    return describe


def interrupted(scene, name, stops, **changes):
    """A run that is stopped by one signal after the other and resumed each time."""
    resumes = [None] + ["auto"] * len(stops)
    return [
        scene(name, resume, stop, **changes) for resume, stop in zip(resumes, [*stops, None], strict=True)
    ]


@pytest.fixture(scope="module")
def alone(scene, play, folders):
    """Reference runs in one process, without Horovod."""
    return play(
        1,
        [
            scene("alone"),
            scene("alone dropout", model__dropout=0.1),
            scene("alone uneven", **UNEVEN),
            scene("alone muon", training__optimizer="muon", **UNEVEN),
            scene("alone straight", **ACCUMULATING),
            *interrupted(
                scene, "alone stopped", [(0, after, name) for _, after, name in STOPS], **ACCUMULATING
            ),
        ],
    )


@pytest.fixture(scope="module")
def pair(scene, play, folders):
    """The same runs on two processes."""
    results = play(
        2,
        [
            scene("pair"),
            scene("pair dropout", model__dropout=0.1),
            scene("pair uneven", **UNEVEN),
            scene("pair muon", training__optimizer="muon", **UNEVEN),
            scene("pair straight", **ACCUMULATING),
            *interrupted(scene, "pair stopped", STOPS, **ACCUMULATING),
            scene("pair half", signal=(1, 7, "SIGTERM")),
            *interrupted(scene, "pair late", STOPS[:1], late=True, **ACCUMULATING),
        ],
    )
    # What two processes saved, for one and for three to resume from.
    for name in ("resumed by 1", "resumed by 3"):
        shutil.copytree(folders("pair half"), folders(name))
    return results


def assert_same_curve(one, other, loss=1e-5):
    """Hold two runs against each other up to the rounding of float32 sums in another order."""
    assert [row["update"] for row in one.rows] == [row["update"] for row in other.rows]
    assert one.column("loss") == pytest.approx(other.column("loss"), abs=loss, rel=0)
    assert one.column("tokens") == other.column("tokens")
    assert one.column("learning_rate") == other.column("learning_rate")
    assert one.column("gradient_norm") == pytest.approx(other.column("gradient_norm"), rel=1e-3)
    for a, b in zip(one.validations, other.validations, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=loss, rel=0)
        assert a["tokens"] == b["tokens"]
    for name, tensor in one.state["model"].items():
        torch.testing.assert_close(tensor, other.state["model"][name], rtol=1e-3, atol=1e-4, msg=name)


def test_one_process_learns(alone, outcome_of, folders):
    losses = outcome_of(folders("alone")).column("loss")
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("kind", ["", " dropout"])
def test_accumulation_and_processes_are_the_same_thing(alone, pair, outcome_of, folders, kind):
    # Alone: 2 micro-batches of 4; two processes: one each. Dropout seeds belong to micro-batches.
    assert_same_curve(outcome_of(folders(f"alone{kind}")), outcome_of(folders(f"pair{kind}")))


def test_dropout_and_its_absence_differ(alone, outcome_of, folders):
    # Otherwise the test above proves nothing about dropout.
    plain, dropped = (outcome_of(folders(name)).column("loss") for name in ("alone", "alone dropout"))
    assert abs(plain[0] - dropped[0]) > 1e-4


@pytest.mark.parametrize("kind", ["uneven", "muon"])
def test_uneven_shares_on_two_processes(alone, pair, outcome_of, folders, kind):
    assert_same_curve(outcome_of(folders(f"alone {kind}")), outcome_of(folders(f"pair {kind}")))


def test_a_signal_to_one_rank_is_told_by_rank_0(pair, folders):
    log = (folders("pair half") / "logs" / "train_rank0.log").read_text()  # the signal came to rank 1
    assert "(SIGTERM); --resume auto resumes there" in log


@pytest.mark.parametrize("who", ["alone", "pair"])
def test_exact_resume(alone, pair, outcome_of, folders, assert_same_run, who):
    results = (alone if who == "alone" else pair)[0]
    updates = [result["update"] for result in results[5 : 5 + len(STOPS)]]
    # The signals did stop the run, each later than the last.
    assert all(stop[1] <= update for stop, update in zip(STOPS, updates, strict=True)), updates
    assert sorted(set(updates)) == updates and updates[-1] < 20
    assert results[5 + len(STOPS)]["finished"]
    assert_same_run(outcome_of(folders(f"{who} straight")), outcome_of(folders(f"{who} stopped")))


def test_all_ranks_stop_after_the_same_update(pair):
    assert [result["update"] for result in pair[0]] == [result["update"] for result in pair[1]]
    assert [result["finished"] for result in pair[0]] == [True] * 5 + [False] * 3 + [True, False, False, True]


def test_results_that_are_read_late_change_nothing(pair, outcome_of, folders, assert_same_run):
    # A stop that one rank asks for reaches both, although each reads it an update later.
    stopped = pair[0][-2]["update"]
    assert STOPS[0][1] < stopped < 20 and pair[1][-2]["update"] == stopped
    assert_same_run(outcome_of(folders("pair straight")), outcome_of(folders("pair late")))


@pytest.fixture(scope="module")
def three(pair, scene, play):
    """On three processes: uneven shares, and resuming what two had saved."""
    return play(3, [scene("three uneven", **UNEVEN), scene("resumed by 3", "auto")])


def test_uneven_shares_on_three_processes(alone, three, outcome_of, folders):
    assert_same_curve(outcome_of(folders("alone uneven")), outcome_of(folders("three uneven")))


def test_three_processes_resume_from_two(pair, three, outcome_of, folders):
    assert_same_curve(outcome_of(folders("pair")), outcome_of(folders("resumed by 3")))


@pytest.fixture(scope="module")
def alone_again(pair, scene, play):
    """On one process: resuming what two had saved, a stop before a validation, an odd folder."""
    return play(
        1,
        [
            scene("resumed by 1", "auto"),
            scene("every stopped", signal=(0, 8, "SIGTERM"), **EVERY),
            scene(ODD_NAME, training__max_updates=1),
        ],
    )


def test_one_process_resumes_from_two(pair, alone_again, outcome_of, folders):
    assert_same_curve(outcome_of(folders("pair")), outcome_of(folders("resumed by 1")))


def test_a_stop_before_a_validation_loses_neither_it_nor_the_best_model(
    alone_again, scene, play, outcome_of, folders
):
    stopped = alone_again[0][1]["update"]
    assert stopped < 12
    # Nothing is left to do but that validation.
    play(1, [scene("every stopped", "auto", **EVERY | {"training__max_updates": stopped})])
    outcome = outcome_of(folders("every stopped"))
    losses = {int(row["update"]): float(row["loss"]) for row in outcome.validations}
    assert list(losses) == list(range(1, stopped + 1))
    assert min(losses, key=losses.__getitem__) == stopped
    assert outcome.best["progress"]["update"] == stopped
    assert outcome.best["progress"]["best_validation_loss"] == losses[stopped]
    assert outcome.state["progress"]["validated_at"] == stopped


def test_folders_may_have_any_name(alone_again, folders):
    # A path is not YAML: "#" begins no comment in it.
    assert sorted(path.name for path in folders(ODD_NAME).iterdir()) == ["checkpoints", "logs", "runs"]


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "fusion_bytes"), [(4, "134217728"), (1, "4096")])
def test_four_processes_repeat_to_the_bit(
    scene, play, outcome_of, folders, assert_same_run, groups, fusion_bytes
):
    # The small buffer splits the gradients into many messages, as a large model's are.
    changes = {
        "training__per_gpu_batch_size": 1,
        "model__dropout": 0.1,
        "distributed__gradient_groups": groups,
    }
    label = f"{groups} {fusion_bytes}"
    names = [f"{name} {label}" for name in ("one", "two", "stopped")]
    scenes = [scene(names[0], **changes), scene(names[1], **changes)]
    if groups > 1:  # what is resumed is the same whatever travels together
        scenes += interrupted(scene, names[2], [(3, 8, "SIGTERM")], **changes)
    play(4, scenes, HOROVOD_FUSION_THRESHOLD=fusion_bytes)
    first = outcome_of(folders(names[0]))
    assert_same_run(first, outcome_of(folders(names[1])))
    if groups > 1:
        assert_same_run(first, outcome_of(folders(names[2])))
