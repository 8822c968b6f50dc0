"""What a run starts from: nothing, another run's weights, or all of an earlier run's state.

What makes a resumed run the same, bit for bit, as one that was never stopped:

- restored from the checkpoint: weights, the optimizer's state (`Start.optimizer`), and `TrainState`:
  updates and tokens done, the fp16 loss scale, the best validation loss, which validation came last;
- derived from (seed, update), hence not saved: which blocks an update has and who computes them
  (`data.sampler.BatchPlan`), the learning rate (`training.schedule`), the seeds of dropout
  (`BatchPlan.dropout_seed`), the seeds of sample texts;
- kept: the kind of order that blocks come in (`order_of`), and how gradients are added up
  (`TrainState.exact_sums`);
- restored if there are as many processes: what rounding to bfloat16 left for the next update
  (`distributed.error_feedback`, under `optimizer`); otherwise dropped;
- kept unless the config asks for another: the precision (`PrecisionChoice.resuming`);
- refused if it is not the same: model shape, seed, global batch, data, tokenizer, optimizer (this
  file calls every check);
- dropped and computed again: rows of the tables and TensorBoard events after the checkpoint
  (`training.metrics.logger`);
- archived: checkpoints after the one that is resumed (`checkpoint.manager`), once the run has made
  an update: a start that fails leaves everything as it was.

With exact sums another number of processes gives the same bits (docs/exact.md). With fast ones it keeps
the curve but not the last bits: sums are then rounded in another order.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager, Takeover
from horovod_transformer.config import config_from_dict
from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.data.dataset import PreparedData
from horovod_transformer.data.epoch_order import BIJECTION, TABLE
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.errors import UserError
from horovod_transformer.precision import DTYPES, PrecisionChoice
from horovod_transformer.system.paths import readable
from horovod_transformer.tokenizer import tokenizer_from_dict

# In a checkpoint TrainState.data_fingerprint has the name it was born with: keys never change.
_KEY_IN_FILE = {"data_fingerprint": "identity"}


@dataclass
class TrainState:
    """How far a run has come; all of it is in every checkpoint, under `progress`.

    Attributes:
        run_name: Names the run's folders.
        data_fingerprint: What must not change in mid-run: seed, global batch and data.
        update: Optimizer updates done, skipped ones included.
        tokens: Tokens predicted so far.
        skipped_updates: Updates whose gradients were not finite.
        skipped_in_a_row: How many of these came last.
        best_validation_loss: Lowest so far, nats; infinite before the first.
        validated_at: Update of the latest validation.
        loss_scale: State of the fp16 loss scale; empty where there is none.
        precision: fp32, bf16 or fp16.
        exact_sums: State of `training.exact_sums`, empty before the first update; None: gradients are added
            up as floats.
        weights: Digest of the weights when this was saved, see `distributed.weights_digest`.
    """

    run_name: str
    data_fingerprint: dict[str, Any]
    update: int = 0
    tokens: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    best_validation_loss: float = math.inf
    validated_at: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)
    precision: str = ""
    exact_sums: dict[str, Any] | None = None
    weights: str = ""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps under `progress`."""
        return {_KEY_IN_FILE.get(key, key): value for key, value in vars(self).items()}

    @classmethod
    def from_state_dict(cls, values: dict[str, Any]) -> TrainState:
        """Read `state_dict()` back.

        Raises:
            TypeError, AttributeError: It is not one.
        """
        names = {name: key for key, name in _KEY_IN_FILE.items()}
        return cls(**{names.get(key, key): value for key, value in values.items()})


@dataclass
class Start:
    """The state a run begins with; None means fresh.

    Attributes:
        state: Zero for a fresh run.
        model: State dict.
        optimizer: State dict.
        notes: Lines for the user about how it was found.
        precision_reason: Why it is `state.precision`.
        takeover: What the run will change among the checkpoints of its folder.
        in_shared_folders: The run is one of commit efaa3e3, and goes on where that wrote.
    """

    state: TrainState
    model: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    precision_reason: str = ""
    takeover: Takeover = Takeover()
    in_shared_folders: bool = False


@dataclass(frozen=True)
class StartRequest:
    """What the user wants a run to start from.

    Attributes:
        resume: Checkpoint to resume, or `auto`.
        init_from: Checkpoint whose weights a fresh run takes.
        run_name: Name that overrides the checkpoint's.
    """

    resume: str | Path | None = None
    init_from: str | Path | None = None
    run_name: str | None = None

    def on_attempt(self, again: bool) -> StartRequest:
        """The request on a later start of the same launch: resume what the first start has begun.

        A requeued job runs its command line again. Taken at its word, `--resume PATH` would rewind
        the run each time, and `--init_from` would begin anew.
        """
        return replace(self, resume="auto", init_from=None) if again else self


def data_fingerprint(plan: BatchPlan, data: PreparedData) -> dict[str, Any]:
    """What decides which data each update sees, and so must not change in mid-run."""
    fingerprint = {
        "seed": plan.seed,
        "global_batch_size": plan.global_batch_size,
        "data": data.manifest.get("fingerprint") or f"{plan.blocks} x {plan.block_size}",
    }
    # Checkpoints are without it where the order is the one that was the only one at first.
    return fingerprint if plan.order == TABLE else {**fingerprint, "order": plan.order}


def order_of(fingerprint: dict[str, Any]) -> str:
    """The kind of order, see `data.epoch_order`, that a run with this `data_fingerprint` keeps."""
    return fingerprint.get("order", TABLE)


def find_start(
    fresh: TrainState,
    manager: CheckpointManager,
    model: ModelConfig,
    optimizer: str,
    data: PreparedData,
    decay_updates: int,
    request: StartRequest,
    precision: PrecisionChoice,
    settings: dict[str, Any],
) -> Start:
    """Read what a run starts from; on rank 0, which owns the folder.

    Nothing is moved, for much can fail before the first update: `Start.takeover` says what will be. A
    fresh run archives what an earlier one left in the folder, and one that resumes an older checkpoint
    archives what came later.

    Args:
        fresh: State of a run that begins now.
        manager: The run's checkpoints.
        model: The shape that the weights must fit.
        optimizer: As `training.optimizer`.
        data: What the run trains on.
        decay_updates: Where the learning rate schedule ends now.
        request: What was asked for.
        precision: What a fresh run computes in.
        settings: The run's whole config, plain values, to be compared with the checkpoint's.

    Raises:
        UserError: No such checkpoint, a broken one, one of another model, batch, tokenizer, corpus or
            optimizer, or of a precision that a rank cannot compute in.
    """
    start = Start(replace(fresh, precision=precision.name), precision_reason=precision.reason)
    manager.clear_leftovers()
    if request.resume == "auto":
        manager.finish_rewind()
    path, contents = _read(manager, request, start.notes)
    if contents is not None:
        before = config_from_dict(contents["config"], str(path))
        require_same_model(before.model, model, path)
        require_same_tokenizer(contents["tokenizer"], data, path)
        start.model = contents["model"]
    if contents is None or request.init_from:
        start.takeover = manager.fresh_start()
        if contents is not None:
            start.notes.append(f"starting with the weights of {path}")
        return start
    try:
        start.state = TrainState.from_state_dict(contents["progress"])
        aimed_at = contents["scheduler"]["decay_updates"]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: its record of progress is not of this program's making") from None
    _choose_precision(start, precision, path)
    if start.state.exact_sums is None and fresh.exact_sums is not None:
        start.notes.append("gradients are added up as floats, as the run began (distributed.sums: fast)")
    require_same_run(start.state.data_fingerprint, fresh.data_fingerprint, path)
    require_same_optimizer(before.training.optimizer, optimizer, path)
    start.state.run_name = request.run_name or start.state.run_name
    start.optimizer = contents["optimizer"]
    start.notes.append(f"resuming after update {start.state.update} from {path}")
    changed = changed_settings(before.to_dict(), settings)
    if changed:
        start.notes.append(f"settings changed since: {', '.join(changed)}")
    start.takeover = manager.resume(path, start.state.update, rewinds=request.resume != "auto")
    if manager.best_loss(without=start.takeover.archived) > start.state.best_validation_loss:
        # Archived with the later ones, or a kill came before the best checkpoint got its second name.
        if start.state.validated_at == start.state.update:
            start.takeover = replace(start.takeover, is_best=True)
        else:
            start.state.best_validation_loss = math.inf
            start.notes.append(
                "best_model.pt was of a later update or is gone; the next validation writes one"
            )
    if aimed_at != decay_updates:
        start.notes.append(
            f"the learning rate schedule now ends at update {decay_updates}, no longer at {aimed_at}"
        )
    return start


def _choose_precision(start: Start, precision: PrecisionChoice, path: Path) -> None:
    """Resume in the checkpoint's precision, unless another is asked for."""
    before = start.state.precision
    if before not in tuple(DTYPES):
        raise UserError(f"{path}: its record of progress is not of this program's making")
    precision = precision.resuming(before, path)
    start.state.precision, start.precision_reason = precision.name, precision.reason


def _read(
    manager: CheckpointManager, request: StartRequest, notes: list[str]
) -> tuple[Path, dict[str, Any] | None]:
    if request.resume == "auto":
        found = manager.newest_good()
        if not found:
            notes.append(f"--resume auto: no checkpoint in {manager.folder} yet, starting afresh")
            return manager.folder, None
        path, contents, complaints = found
        notes += [f"passed over a broken checkpoint: {text}" for text in complaints]
        return path, contents
    chosen = request.resume or request.init_from
    return (Path(chosen), load_checkpoint(chosen)) if chosen else (manager.folder, None)


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say which keys of the config have another value, such as `training.learning_rate 0.0001 -> 0.011`.

    Where a run writes is left out: a folder may have been moved.
    """
    return [
        f"{section}.{key} {_shown(value)} -> {_shown(new[section][key])}"
        for section in old
        if section != "paths"
        for key, value in old[section].items()
        if value != new[section][key]
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def require_same_model(before: ModelConfig, now: ModelConfig, path: Path) -> None:
    """Refuse weights of another shape.

    Raises:
        UserError: A key differs.
    """
    # The rest changes how the model is computed, not which weights it has.
    keys = ["architecture", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "positions"]
    keys += ["kv_heads", "head_width", "qk_norm", "tie_embeddings", "rms_norm_eps", "rope_scaling"]
    keys += {"learned": ["max_seq_len"], "rotary": ["rope_theta"]}.get(now.positions, [])
    for key in keys:
        old, new = getattr(before, key), getattr(now, key)
        if old != new:
            key = {"kv_heads": "n_kv_heads", "head_width": "head_dim"}.get(key, key)
            raise UserError(f"{path}: its model has {key} = {old}, but the config says model.{key} = {new}")


def require_same_tokenizer(before: dict[str, Any] | None, data: PreparedData, checkpoint: str | Path) -> None:
    """Check that the ids of prepared data mean to a checkpoint's weights what they were trained on.

    Nothing can be compared where either side has no tokenizer: blocks that were made elsewhere.

    Args:
        before: The checkpoint's `tokenizer`.
        data: The data that training is to continue with.
        checkpoint: The checkpoint's path, for the message.

    Raises:
        UserError: The tokenizers differ.
    """
    if before is None or data.tokenizer is None:
        return
    old = tokenizer_from_dict(before)
    if old.fingerprint != data.tokenizer.fingerprint:
        raise UserError(
            f"{readable(checkpoint)}: was trained with another tokenizer ({old}) than "
            f"{readable(data.folder)} was prepared with ({data.tokenizer}): its ids would "
            f"mean other words; prepare the books with --data.tokenizer {readable(checkpoint)}"
        )


def require_same_run(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse to resume where the same updates would see other data.

    The order of blocks need not be what a fresh run would take: a resumed run keeps its own.

    Raises:
        UserError: Seed, global batch or data differ, or the order is not known here.
    """
    if order_of(before) not in (TABLE, BIJECTION):
        raise UserError(
            f"{path}: was trained with blocks in the order `{order_of(before)}`, which this version does not "
            "know; resume it with the version that began it"
        )
    for key, value in now.items():
        if key != "order" and before.get(key) != value:
            raise UserError(
                f"{path}: was trained with {key} = {before.get(key)}, now it is {value}: resuming would "
                "repeat or skip data; set it back, or start a new run from these weights with --init_from"
            )


def require_same_optimizer(before: str, now: str, path: Path) -> None:
    """Refuse the state of another optimizer.

    Raises:
        UserError: `training.optimizer` differs.
    """
    if before != now:
        raise UserError(
            f"{path}: was trained with training.optimizer = {before}, now it is {now}: set it back, or start "
            "a new run from its weights with --init_from"
        )
