"""The doctor's checks of the run that a config describes: tokenizer, data, length, checkpoints.

Everything heavy is imported inside the check that needs it, so that a missing PyTorch is a row and not a
traceback.
"""

from __future__ import annotations

import os
from pathlib import Path

from horovod_transformer.commands.doctor_checks import CheckContext, Row, existing_parent, free_bytes
from horovod_transformer.errors import UserError
from horovod_transformer.reports.formats import byte_size


def check_tokenizer(context: CheckContext) -> Row:
    """The vocabulary that the data is cut into tokens with."""
    name = context.config.data.tokenizer
    if name == "bpe":
        return Row("tokenizer", "ok", "trained on the books by `prepare`, kept with the prepared data")
    from horovod_transformer.prepare.tokenizer_choice import read_tokenizer
    from horovod_transformer.tokenizer import gpt2_tokenizer

    if name != "gpt2":
        return Row("tokenizer", "ok", f"{name}: {read_tokenizer(name)}")
    size = gpt2_tokenizer().vocab_size
    return Row("tokenizer", "ok", f"GPT-2's vocabulary, {size:,} entries, its checksum is right")


def check_dataset(context: CheckContext) -> Row:
    """The prepared blocks, opened as training would."""
    from horovod_transformer.data.dataset import open_prepared_data

    fix = f"horovod-transformer prepare --config {context.config_path}"
    try:
        data = open_prepared_data(context.config)
    except UserError as error:
        return Row("dataset", "fail", str(error), fix)
    found = (
        f"{context.config.data.data_dir}: {len(data.train):,} training and {len(data.validation):,} "
        f"validation blocks of {data.train.block_size} tokens"
    )
    return Row("dataset", "ok", found)


def check_run(context: CheckContext) -> Row:
    """What training on this data would be, and whether it can learn."""
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.data.loader import plan_batches
    from horovod_transformer.training.run_summary import RunSummary

    try:
        updates = plan_batches(context.config.training, open_prepared_data(context.config).train, 1)
    except UserError:
        return Row("run", "warn", "not known before the data is there", "see dataset")
    config = context.config
    run = RunSummary.of(config.model, config.training, updates, Path(config.data.data_dir))
    warnings = run.warnings()
    found = "; ".join(filter(None, (run.describe(), run.expected)))
    return Row("run", "warn" if warnings else "ok", found, "; ".join(warnings))


def check_disk(context: CheckContext) -> Row:
    """Room for checkpoints, and the right to write them."""
    from horovod_transformer.model.size import checkpoint_bytes, run_bytes

    folder = existing_parent(context.checkpoint_dir)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Row("disk", "fail", f"{folder} cannot be written to", "another folder with --output")
    one, kept = checkpoint_bytes(context.config.model), context.config.training.keep_checkpoints
    need = run_bytes(context.config.model, kept)
    room, kind = free_bytes(folder)
    found = (
        f"checkpoints in {context.checkpoint_dir} take {byte_size(need)} ({kept} kept, the best, one being "
        f"written, {byte_size(one)} each), {byte_size(room)} {kind}"
    )
    if room < need:
        fix = "make room, --output on a larger disk, or a lower training.keep_checkpoints"
        return Row("disk", "fail", found, fix)
    more = "; training.keep_every adds more with time" if context.config.training.keep_every else ""
    return Row("disk", "ok", found + more)


def check_waiting(context: CheckContext) -> Row:
    """What share of its updates the newest run here waited for other processes."""
    from horovod_transformer.checkpoint.run_folders import own_folders
    from horovod_transformer.checkpoint.run_paths import RUNS
    from horovod_transformer.reports.run_records import read_run
    from horovod_transformer.reports.runs import what_it_waited

    folder = context.output_dir or Path(context.config.paths.output_dir)
    for own in sorted(own_folders(folder / RUNS), key=lambda each: each.stat().st_mtime, reverse=True):
        try:
            run = read_run(own)
        except UserError:  # it has recorded nothing yet
            continue
        return Row("waiting", "ok", f"run {run.name}: {what_it_waited(run)}")
    return Row("waiting", "ok", "no run here has recorded anything yet")
