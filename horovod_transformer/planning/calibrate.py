"""A ladder of small models, trained on some prepared data, to which a law is fitted."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.errors import UserError
from horovod_transformer.launch.subcommand import run_subcommand
from horovod_transformer.model.size import count_parameters
from horovod_transformer.planning.corpus import Corpus
from horovod_transformer.planning.expectation import parameters_of_layers
from horovod_transformer.planning.law import Law, Point, fit
from horovod_transformer.planning.machine import Machine
from horovod_transformer.planning.plan import MOST_EPOCHS
from horovod_transformer.planning.shapes import model_of, training_of
from horovod_transformer.reports.run_records import read_run
from horovod_transformer.system.console import tell

# Layers, width, heads; each about twice as many parameters in its layers as the one before.
LADDER = ((2, 64, 4), (2, 96, 4), (2, 128, 4), (2, 192, 4))
# Each model reads so large a part of the tokens that the time allows, in a run of its own to the end.
PARTS = (1 / 4, 1 / 2, 1)
# Below this a run's end is mostly its warm-up.
FEWEST_UPDATES = 100
# A fit is never trusted further than this, in bits per byte: seeds alone differ by 0.02.
LEAST_ERROR = 0.03


@dataclass(frozen=True)
class Rung:
    """One run of the ladder.

    Attributes:
        model: Its shape.
        training: Its settings; they hold the length of the run.
        seconds: That it is expected to take.
    """

    model: ModelConfig
    training: TrainingConfig
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens that the run reads."""
        training = self.training
        assert training.max_updates is not None and training.global_batch_size is not None
        return training.max_updates * training.global_batch_size * self.model.max_seq_len


def ladder_models(corpus: Corpus) -> list[ModelConfig]:
    """The models of the ladder, from small to large."""
    return [model_of(shape, corpus) for shape in LADDER]


def ladder(corpus: Corpus, speeds: Mapping[int, float], minutes: float, machine: Machine) -> list[Rung]:
    """Share the time out: every model reads the same numbers of tokens.

    Args:
        corpus: The prepared data.
        speeds: Parameters of each model -> tokens/s.
        minutes: For all runs together.
        machine: Decides the size of micro-batches.

    Raises:
        UserError: The time is too short for runs that say anything.
    """
    models = ladder_models(corpus)
    seconds_per_token = sum(sum(PARTS) / speeds[count_parameters(model)] for model in models)
    most = min(int(minutes * 60 / seconds_per_token), MOST_EPOCHS * corpus.tokens)
    rungs = []
    for model in models:
        for part in PARTS:
            training = training_of(model, corpus, int(most * part), machine)
            rung = Rung(model, training, int(most * part) / speeds[count_parameters(model)])
            if (training.max_updates or 0) < FEWEST_UPDATES:
                need = minutes * FEWEST_UPDATES / max(1, training.max_updates or 0)
                raise UserError(
                    f"--calibrate {minutes:g}: the shortest run would have {training.max_updates} updates, "
                    f"which say nothing; give it {need:.0f} minutes or more"
                )
            rungs.append(rung)
    return rungs


def calibrate(corpus: Corpus, data_dir: str, rungs: Sequence[Rung]) -> tuple[Law, list[Point]]:
    """Train the ladder, one run after the other, and fit a law to how each ended.

    Args:
        corpus: The prepared data.
        data_dir: Where it is.
        rungs: The runs.

    Returns:
        The law and the runs that it was fitted to.

    Raises:
        StoppedError: A signal has stopped it.
        UserError: A run has failed.
    """
    points = []
    began, whole = time.monotonic(), sum(rung.seconds for rung in rungs)
    for number, rung in enumerate(rungs, 1):
        point = Point(
            parameters_of_layers(rung.model), corpus.tokens, rung.tokens, _train(rung, corpus, data_dir)
        )
        points.append(point)
        done = sum(each.seconds for each in rungs[:number])
        left = (time.monotonic() - began) * (whole - done) / done
        tell(
            f"{number}/{len(rungs)}: {count_parameters(rung.model) / 1e6:.1f}M parameters, "
            f"{rung.tokens / 1e6:.1f}M tokens: {point.bits_per_byte:.3f} bits per byte; "
            f"{left / 60:.0f} minutes left"
        )
    source = f"fitted to {len(points)} small models of these books"
    return fit(points, source, LEAST_ERROR), points


def _train(rung: Rung, corpus: Corpus, data_dir: str) -> float:
    """Run one training to its end in a folder of its own; bits per byte of all held-out blocks."""
    settings = {
        "model": rung.model.model_dump(),
        "training": {
            **rung.training.model_dump(exclude_unset=True),
            "eval_blocks": None,
            "eval_interval": 10**9,
            "save_interval": 10**9,
            "trackers": [],
        },
        "data": {"data_dir": data_dir, "tokenizer": corpus.tokenizer},
    }
    with tempfile.TemporaryDirectory(prefix="horovod-transformer-ladder-") as name:
        config = Path(name) / "config.yaml"
        config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        log = Path(name) / "log"
        with log.open("wb") as output:
            try:
                run_subcommand(
                    1, "train", ["--config", str(config), "--output", name, "--run-name", "rung"], output
                )
            except UserError as error:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise type(error)(f"{error}: {' '.join(last)}") from None
        found = read_run(Path(name) / "runs" / "rung").validation.get("bits_per_byte", [])
    if not found or found[-1] is None:
        raise UserError(f"{data_dir}: its manifest does not say how many bytes the held-out text has")
    return found[-1]
