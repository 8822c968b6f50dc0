"""What a run starts from: nothing, an earlier checkpoint's weights, or all of an earlier run's state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager, newest_good_checkpoint
from horovod_transformer.config import ModelConfig, config_from_dict
from horovod_transformer.errors import UserError


@dataclass
class TrainState:
    """How far a run has come; all of it is in every checkpoint.

    Attributes:
        run_name: Names the run's folders.
        identity: What must not change in mid-run: seed, global batch and data.
        update: Optimizer updates done, skipped ones included.
        tokens: Tokens predicted so far.
        skipped_updates: Updates whose gradients were not finite.
        skipped_in_a_row: How many of these came last.
        best_validation_loss: Lowest so far, nats; infinite before the first.
        validated_at: Update of the latest validation.
        loss_scale: State of the fp16 loss scale.
    """

    run_name: str
    identity: dict[str, Any]
    update: int = 0
    tokens: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    best_validation_loss: float = math.inf
    validated_at: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)


@dataclass
class Start:
    """The state a run begins with; None means fresh.

    Attributes:
        progress: Zero for a fresh run.
        model: State dict.
        optimizer: State dict.
        notes: Lines for the user about how it was found.
    """

    progress: TrainState
    model: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def find_start(
    fresh: TrainState,
    folder: CheckpointManager,
    model: ModelConfig,
    decay_updates: int,
    resume: str | Path | None,
    init_from: str | Path | None,
    new_name: str | None,
) -> Start:
    """Read what a run starts from; on rank 0.

    A fresh run moves what an earlier one left in the checkpoint folder aside.

    Args:
        fresh: TrainState of a run that begins now.
        folder: The run's checkpoints.
        model: Shape that the weights must fit.
        decay_updates: Where the learning rate schedule ends now.
        resume: Checkpoint to go on from, or `auto`.
        init_from: Checkpoint whose weights a fresh run takes.
        new_name: Run name that overrides the checkpoint's.

    Raises:
        UserError: No such checkpoint, a broken one, or one of another model, batch or corpus.
    """
    start = Start(fresh)
    folder.require_writable()
    folder.clear_leftovers()
    path, contents = _read(folder.folder, resume, init_from, start.notes)
    if contents is None or init_from:
        aside = folder.archive()
        if aside:
            start.notes.append(f"moved the earlier run's checkpoints to {aside}")
    if contents is None:
        return start
    _require_same_model(config_from_dict(contents["config"], str(path)).model, model, path)
    start.model = contents["model"]
    if init_from:
        start.notes.append(f"starting with the weights of {path}")
        return start
    try:
        start.progress = TrainState(**contents["progress"])
        aimed_at = contents["scheduler"]["decay_updates"]
    except (TypeError, KeyError):
        raise UserError(f"{path}: its record of progress is not of this program's making") from None
    _require_same_run(start.progress.identity, fresh.identity, path)
    start.progress.run_name = new_name or start.progress.run_name
    start.optimizer = contents["optimizer"]
    start.notes.append(f"going on after update {start.progress.update} from {path}")
    abandoned = folder.archive(after_update=start.progress.update) if resume != "auto" else None
    if abandoned:
        start.notes.append(f"moved later checkpoints to {abandoned}")
    if aimed_at != decay_updates:
        start.notes.append(
            f"the learning rate schedule now ends at update {decay_updates}, no longer at {aimed_at}"
        )
    return start


def _read(
    folder: Path, resume: str | Path | None, init_from: str | Path | None, notes: list[str]
) -> tuple[Path, dict[str, Any] | None]:
    if resume == "auto":
        found = newest_good_checkpoint(folder)
        if not found:
            notes.append(f"--resume auto: no checkpoint in {folder} yet, starting afresh")
            return folder, None
        path, contents, complaints = found
        notes += [f"passed over a broken checkpoint: {text}" for text in complaints]
        return path, contents
    chosen = resume or init_from
    return (Path(chosen), load_checkpoint(chosen)) if chosen else (folder, None)


def _require_same_model(before: ModelConfig, now: ModelConfig, path: Path) -> None:
    # The rest changes how the model is computed, not which weights it has.
    for key in ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff"):
        old, new = getattr(before, key), getattr(now, key)
        if old != new:
            raise UserError(f"{path}: its model has {key} = {old}, but the config says model.{key} = {new}")


def _require_same_run(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise UserError(
                f"{path}: was trained with {key} = {before.get(key)}, now it is {value}: going on would "
                "repeat or skip data; set it back, or start a new run from these weights with --init_from"
            )
