"""Whatever becomes of a checkpoint's bytes: it is refused in one line, or holds what was written.

Hundreds of seeded damages and a number of hostile files, each loaded by a child process that has
little memory to spare and ten seconds, so that a crash, a hang and a greedy file are seen, too.
"""

from __future__ import annotations

import collections
import io
import json
import math
import multiprocessing
import os
import pickle
import pickletools
import random
import resource
import signal
import zipfile

import psutil
import pytest
import torch

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.model.transformer import build_model

ROUNDS = 60  # of each kind of damage
MORE_MEMORY = 1 << 30
CPU_SECONDS_EACH = 20
TENSOR_TRAITS = ("dtype", "shape", "requires_grad")


def real_contents():
    """A tiny model's checkpoint after two AdamW steps, as training writes it."""
    shape = {"vocab_size": 40, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 8}
    config = config_from_dict({"model": shape}, "fuzz")
    torch.manual_seed(0)
    model = build_model(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(0, 40, (4, 8))
    for _ in range(2):
        loss, count, _ = model.loss_sums(tokens, tokens)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"decay_updates": 9},
        "progress": {"run_name": "né", "update": 2, "best_validation_loss": math.inf, "tokens": 2**40},
        "config": config.to_dict(),
        "tokenizer": {"kind": "bpe", "merges": [["a", "b"], ["ab", "c"]], "none": None},
    }


class Anatomy:
    """A checkpoint's bytes, and which of them are the pickle, the numbers in it, the zip's headers."""

    def __init__(self, whole):
        self.whole = whole
        self.pickle, self.headers, self.storages = range(0), [], []
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            for entry in archive.infolist():
                name_length = int.from_bytes(
                    whole[entry.header_offset + 26 : entry.header_offset + 28], "little"
                )
                extra = int.from_bytes(whole[entry.header_offset + 28 : entry.header_offset + 30], "little")
                start = entry.header_offset + 30 + name_length + extra
                self.headers.append(range(entry.header_offset, entry.header_offset + 30 + name_length))
                if entry.filename.endswith("/data.pkl"):
                    self.pickle = range(start, start + entry.file_size)
                if "/data/" in entry.filename:
                    self.storages.append(entry.filename)
            self.headers.append(range(archive.start_dir, len(whole)))
        self.numbers = [
            (self.pickle.start + place + 1, {"BININT1": 1, "BININT2": 2, "BININT": 4}[opcode.name])
            for opcode, _, place in pickletools.genops(whole[self.pickle.start : self.pickle.stop])
            if opcode.name in ("BININT1", "BININT2", "BININT")
        ]


def rezipped(whole, change):
    """Pack the archive anew; `change` gets and returns a dict of name to content."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = change({name: archive.read(name) for name in archive.namelist()})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return packed.getvalue()


def flipped(whole, places):
    damaged = bytearray(whole)
    for place, bit in places:
        damaged[place] ^= 1 << bit
    return bytes(damaged)


def flip_anywhere(r, a):
    return flipped(a.whole, [(r.randrange(len(a.whole)), r.randrange(8))])


def flip_in_pickle(r, a):
    return flipped(a.whole, [(r.choice(a.pickle), r.randrange(8))])


def flip_in_zip_headers(r, a):
    return flipped(a.whole, [(r.choice(r.choice(a.headers)), r.randrange(8))])


def flip_many(r, a):
    return flipped(a.whole, [(r.randrange(len(a.whole)), r.randrange(8)) for _ in range(r.randint(2, 40))])


def truncate(r, a):
    return a.whole[: r.randrange(len(a.whole))]


def append(r, a):
    return a.whole + (r.randbytes(r.randint(1, 500)) if r.random() < 0.5 else a.whole[: r.randint(1, 5000)])


def two_ranges(r, a):
    length = r.choice([4, 64, 512, 4096])
    one, other = sorted(r.randrange(0, len(a.whole) - length) for _ in range(2))
    return length, one, max(other, one + 1)


def swap_ranges(r, a):
    length, one, other = two_ranges(r, a)
    length = min(length, other - one)
    damaged = bytearray(a.whole)
    damaged[one : one + length], damaged[other : other + length] = (
        damaged[other : other + length],
        damaged[one : one + length],
    )
    return bytes(damaged)


def duplicate_range(r, a):
    length, one, other = two_ranges(r, a)
    if r.random() < 0.5:  # inserted, or written over what was there
        return a.whole[:other] + a.whole[one : one + length] + a.whole[other:]
    return a.whole[:other] + a.whole[one : one + length] + a.whole[other + length :]


def blank_range(r, a):
    length, one, _ = two_ranges(r, a)
    return a.whole[:one] + r.choice([b"\0", b"\xff"]) * length + a.whole[one + length :]


def cut_range(r, a):
    length, one, _ = two_ranges(r, a)
    return a.whole[:one] + a.whole[one + length :]


def random_header(r, a):
    length = r.randint(1, 64)
    if r.random() < 0.5:
        return r.randbytes(length) + a.whole[length:]
    return a.whole[:-length] + r.randbytes(length)


def change_number(r, a):
    """Sizes, strides, offsets and counts in the pickle, which stays well-formed."""
    place, width = r.choice(a.numbers)
    return a.whole[:place] + r.randbytes(width) + a.whole[place + width :]


def change_entry(r, a):
    """A well-formed zip of other entries."""

    def change(entries):
        names = list(entries)
        one, other = r.sample(names, 2)
        what = r.choice(["drop", "rename", "swap", "shorten", "lengthen", "refill"])
        if what == "drop":
            del entries[one]
        elif what == "rename":
            entries[one + "x"] = entries.pop(one)
        elif what == "swap":
            entries[one], entries[other] = entries[other], entries[one]
        elif what == "shorten":
            entries[one] = entries[one][: len(entries[one]) // 2]
        elif what == "lengthen":
            entries[one] += b"\0" * 64
        else:
            storage = r.choice(a.storages)
            entries[storage] = r.randbytes(len(entries[storage]))
        return entries

    return rezipped(a.whole, change)


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def splice_pickle(r, a):
    """A pickle that makes a folder when it is run: alone, before ours, within ours, or after it."""
    # Protocol 2, as torch's own; without its header and its end it can stand within another pickle.
    trap = pickle.dumps(Trap(f"{os.environ['FUZZ_TRAP']}-{r.random()}"), protocol=r.choice([0, 2, 4]))
    ours = a.whole[a.pickle.start : a.pickle.stop]
    boundaries = [place for _, _, place in pickletools.genops(ours)][1:]
    cut = r.choice(boundaries)
    spliced = r.choice(
        [trap, trap[:-1] + b"0" + ours, ours[:cut] + trap[2:-1] + b"0" + ours[cut:], ours[:-1] + trap[2:]]
    )
    if r.random() < 0.2:
        return spliced

    def change(entries):
        name = next(name for name in entries if name.endswith("/data.pkl"))
        return {**entries, name: spliced}

    return rezipped(a.whole, change)


DAMAGES = [
    flip_anywhere,
    flip_in_pickle,
    flip_in_zip_headers,
    flip_many,
    truncate,
    append,
    swap_ranges,
    duplicate_range,
    blank_range,
    cut_range,
    random_header,
    change_number,
    change_entry,
    splice_pickle,
]


def hostile_files(contents):
    """Well-formed files that weights_only=True lets through, made to trip what comes after it."""

    def saved(**changes):
        file = io.BytesIO()
        torch.save({"format_version": 1, **contents, "checksum": "0" * 64, **changes}, file)
        return file.getvalue()

    endless: list = []
    endless.append(endless)
    twisted = torch.complex(torch.ones(2), torch.ones(2)).conj()
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    depth = 100_000
    deep = b"\x80\x02}(X\x0e\0\0\0format_versionK\x01" + b"".join(
        b"X" + len(key).to_bytes(4, "little") + key.encode() + b"]" * depth + b"a" * (depth - 1)
        for key in ("model", "optimizer", "scheduler", "progress", "config", "tokenizer", "checksum")
    )

    def with_deep_pickle(entries):
        name = next(name for name in entries if name.endswith("/data.pkl"))
        return {**entries, name: deep + b"u."}

    plain = saved()
    return {
        "a list that holds itself": saved(model=endless),
        "lists in lists, 100,000 deep": rezipped(plain, with_deep_pickle),
        "a tensor without data": saved(model={"w": torch.ones(3, device="meta")}),
        "a sparse tensor": saved(model={"w": torch.ones(3, 3).to_sparse()}),
        "a quantized tensor": saved(model={"w": quantized}),
        "a conjugated tensor": saved(model={"w": twisted}),
        "a repeated number, 8 GiB unfolded": saved(model={"w": torch.ones(1).expand(1 << 31)}),
        "a number of 5,000 digits": saved(progress={"update": 10**5000}),
        "a format version of 5,000 digits": saved(format_version=10**5000),
        "a format version of two lines": saved(format_version="1\n2"),
        "a format version that is a tensor": saved(format_version=torch.ones(3)),
        "a checksum that is a tensor": saved(checksum=torch.ones(3)),
        "a checksum that is None": saved(checksum=None),
        "keys that are numbers": saved(model={1: {2.5: {None: ()}}}),
        "a model that is a number": saved(model=3),
    }


def equal(one, other):
    """The same types and the same bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        same_kind = (one.dtype, one.shape, one.requires_grad) == (
            other.dtype,
            other.shape,
            other.requires_grad,
        )
        return same_kind and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def outcome_of(path, original):
    """Load a file: what came of it, in a word, or what should not have."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_EACH)
    try:
        contents = load_checkpoint(path)
    except UserError as error:
        text = str(error)
        return (
            "refused"
            if "\n" not in text and len(text) < 400
            else f"refused in {len(text)} letters: {text[:500]}"
        )
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "equal" if equal(contents, original) else "accepted though changed"


def load_them_all(folder, original, files):
    """In the child: write one line for each file before the next is read."""
    virtual = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MORE_MEMORY, -1))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a hang ends the child, even one outside Python
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    path = folder / "damaged.pt"
    with open(folder / "outcomes", "w", buffering=1) as report:
        for kind, content in files:
            path.write_bytes(content)
            print(json.dumps([kind, outcome_of(path, original)]), file=report)


@pytest.fixture
def outcomes_of(tmp_path, monkeypatch):
    """Load files in a child of little memory; returns [kind, outcome] for each."""
    monkeypatch.setenv("FUZZ_TRAP", str(tmp_path / "trap"))

    def load(original, files):
        child = multiprocessing.get_context("fork").Process(
            target=load_them_all, args=(tmp_path, original, files), daemon=True
        )
        child.start()
        child.join(600)
        child.kill()
        outcomes = [json.loads(line) for line in (tmp_path / "outcomes").read_text().splitlines()]
        culprit = files[len(outcomes)][0] if len(outcomes) < len(files) else None
        assert child.exitcode == 0 and culprit is None, f"ended with {child.exitcode} at: {culprit}"
        assert not list(tmp_path.glob("trap*")), "code of a file was run"
        return outcomes

    return load


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "original.pt"
    save_checkpoint(path, real_contents())
    return path


@pytest.mark.slow
def test_damage_is_refused_or_harmless(original, outcomes_of):
    anatomy, files = Anatomy(original.read_bytes()), []
    for damage in DAMAGES:
        for number in range(ROUNDS):
            content = damage(random.Random(f"{damage.__name__} {number}"), anatomy)
            files.append((damage.__name__, content))
    outcomes = outcomes_of(load_checkpoint(original), files)
    table = collections.Counter(map(tuple, outcomes))
    for damage in DAMAGES:
        counts = [f"{what} {table[(damage.__name__, what)]:3}" for what in ("refused", "equal")]
        print(f"{damage.__name__:20} {'   '.join(counts)}")
    wrong = {key: count for key, count in table.items() if key[1] not in ("refused", "equal")}
    assert not wrong
    assert len(outcomes) >= 500
    # The loader reads neither padding nor dates, but it does read the file.
    refused = sum(count for (_, what), count in table.items() if what == "refused")
    assert refused > len(outcomes) / 2
    assert all(table[(name, "equal")] == 0 for name in ("truncate", "splice_pickle"))


@pytest.mark.slow
def test_hostile_files_are_refused(original, outcomes_of):
    files = list(hostile_files(load_checkpoint(original)).items())
    outcomes = outcomes_of(load_checkpoint(original), files)
    assert [outcome for outcome in outcomes if outcome[1] != "refused"] == []


def test_the_trap_works(tmp_path):
    # Otherwise the spliced pickles above prove nothing.
    pickle.loads(pickle.dumps(Trap(str(tmp_path / "trap"))))
    assert (tmp_path / "trap").is_dir()
