"""A run in the words of a paper: a methods paragraph and BibTeX, from what the run has recorded of itself."""

from __future__ import annotations

from typing import Any

from horovod_transformer.reports.formats import any_value, duration, number
from horovod_transformer.reports.run_records import RunRecords, best_validation, last_known
from horovod_transformer.system.console import counted
from horovod_transformer.system.machine import installed_version

# Of this software; CITATION.cff has it, too.
YEAR = 2026
_OPTIMIZERS = {
    "adamw": "AdamW (Loshchilov and Hutter, 2019)",
    "muon": "Muon (Jordan et al., 2024) for the matrices of its layers and AdamW for the rest",
}
_SCHEDULES = {
    "linear": "falling linearly",
    "cosine": "falling along a cosine",
    "constant": "then staying as it is",
}
_SOFTWARE = (("torch", "PyTorch"), ("horovod", "Horovod"), ("numpy", "NumPy"), ("tokenizers", "tokenizers"))


def methods(run: RunRecords) -> str:
    """What was trained, on what, how and how long, in a paragraph; what was not recorded is left out."""
    parts = (_model(run), _data(run), _training(run), _hardware(run), _result(run), _software(run))
    return " ".join(part for part in parts if part)


def bibtex(run: RunRecords) -> str:
    """The software that made a run, and Horovod, as BibTeX."""
    version = _packages(run).get("horovod_transformer") or installed_version("horovod_transformer")
    commit = run.environment.get("git_commit")
    note = f"Version {version or 'not known'}" + (f", commit {commit}" if commit else "")
    return f"{software_entry(note)}\n\n{_HOROVOD}"


def software_entry(note: str) -> str:
    """The BibTeX entry of this software."""
    return (
        "@software{horovod_transformer,\n"
        "  author = {{The horovod\\_transformer authors}},\n"
        "  title = {horovod\\_transformer: training {GPT}-style language models on books "
        "through {Horovod}},\n"
        f"  year = {{{YEAR}}},\n"
        f"  note = {{{note}}}\n}}"
    )


_HOROVOD = """\
@misc{sergeev2018horovod,
  author = {Alexander Sergeev and Mike Del Balso},
  title = {{Horovod}: fast and easy distributed deep learning in {TensorFlow}},
  year = {2018},
  eprint = {1802.05799},
  archivePrefix = {arXiv}
}"""


def _model(run: RunRecords) -> str:
    config, parameters = run.config, run.environment.get("parameters")
    size = f" with {number(parameters)} parameters" if isinstance(parameters, int) else ""
    facts = {
        "model.n_layers": "{} layers",
        "model.d_model": "width {}",
        "model.n_heads": "{} attention heads",
        "model.d_ff": "feed-forward width {}",
        "model.positions": "{} positions",
        "model.max_seq_len": "a context of {} tokens",
        "model.dropout": "dropout {}",
    }
    known = ", ".join(words.format(_of(config, key)) for key, words in facts.items() if key in config)
    return f"We trained a decoder-only transformer{size}{f' ({known})' if known else ''}."


def _data(run: RunRecords) -> str:
    config, known = run.config, run.environment
    tokenizer = "GPT-2's byte-level BPE" if config.get("data.tokenizer") == "gpt2" else "a byte-level BPE"
    said = f"Text was split with {tokenizer} of {_of(config, 'model.vocab_size')} tokens." if config else ""
    books, held_out = known.get("books"), known.get("validation_books")
    tokens, digest = known.get("training_tokens"), known.get("data_fingerprint")
    if isinstance(books, int) and isinstance(tokens, int):
        said += f" The training set has {counted(books, 'book')} and {number(tokens)} tokens"
        if isinstance(held_out, int):
            said += f"; {counted(held_out, 'further book was', 'further books were')} held out whole"
        said += "."
    return said + (f" (Digest of the prepared data: {str(digest)[:16]}.)" if digest else "")


def _training(run: RunRecords) -> str:
    config = run.config
    updates, tokens = last_known(run.train["update"]), last_known(run.train.get("tokens"))
    epochs = last_known(run.train.get("epoch"))
    made = counted(int(updates or 0), "update")
    took = f"{number(tokens)} tokens or {number(epochs, 2)} epochs"
    if not config:
        return f"Training took {made}, {took}."
    optimizer = str(config.get("training.optimizer"))
    rate, ratio = config.get("training.learning_rate"), config.get("training.min_learning_rate_ratio")
    warmup = run.environment.get("warmup_updates", config.get("training.warmup_updates"))
    rises = "its first updates" if warmup is None else f"{any_value(warmup)} updates"
    falls = _SCHEDULES.get(str(config.get("training.schedule")), str(config.get("training.schedule")))
    end = "" if config.get("training.schedule") == "constant" else f" to {any_value(ratio)} of that"
    end = end if ratio else end.removesuffix(" of that")
    blocks, length = _of(config, "training.global_batch_size"), _of(config, "model.max_seq_len")
    return (
        f"Training took {made} of {blocks} blocks of {length} tokens, {took} in all, with "
        f"{_OPTIMIZERS.get(optimizer, optimizer)}, weight decay "
        f"{_of(config, 'training.weight_decay')} and gradients clipped at a norm of "
        f"{_of(config, 'training.max_grad_norm')}. The learning rate rose over {rises} to {any_value(rate)}, "
        f"{falls}{end}. The seed was {config.get('training.seed')}."
    )


def _hardware(run: RunRecords) -> str:
    known = run.environment
    processes, hosts = known.get("world_size"), known.get("hosts")
    cards = known.get("cards") or known.get("gpus")
    what = known.get("cpu")
    if isinstance(cards, list) and cards:
        what = ", ".join(dict.fromkeys(map(str, cards)))
    if not isinstance(processes, int):
        return f"It took {duration(run.seconds)}."
    where = f"{counted(processes, 'process', 'processes')}"
    where += f" on {counted(hosts, 'machine')}" if isinstance(hosts, int) else ""
    where += f" ({what})" if what else ""
    precision = f", in {known['precision']}" if known.get("precision") else ""
    hours = run.seconds / 3600
    took = f"{hours:.1f} hours" if hours >= 2 else duration(run.seconds)
    return f"It ran as {where}{precision}, and took {took}."


def _result(run: RunRecords) -> str:
    loss, update = best_validation(run)
    if loss is None:
        return ""
    column = run.validation.get("bits_per_byte", [])
    bits = min((value for value in column if value is not None), default=None)
    beside = "" if bits is None else f" ({bits:.3f} bits per byte)"
    return f"The lowest validation loss was {loss:.4f} nats per token{beside}, at update {number(update)}."


def _software(run: RunRecords) -> str:
    packages = _packages(run)
    version, commit = packages.get("horovod_transformer"), run.environment.get("git_commit")
    said = "Software: horovod_transformer" + (f" {version}" if version else "")
    said += f" (commit {commit})" if commit else ""
    others = [f"{name} {packages[key]}" for key, name in _SOFTWARE if packages.get(key)]
    python = run.environment.get("python")
    return ", ".join([said, *others, *([f"Python {python}"] if python else [])]) + "."


def _packages(run: RunRecords) -> dict[str, Any]:
    packages = run.environment.get("packages")
    return packages if isinstance(packages, dict) else {}


def _of(config: dict[str, Any], key: str) -> str:
    return any_value(config.get(key))
