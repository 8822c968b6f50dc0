"""Peak memory of an update, ours and Hugging Face's GPT-2 of the same shape, each in a process of its own.

    .venv/bin/python benchmarks/memory.py

124M parameters, B=4, T=512, fp32, three updates. GB as the kernel counts them (the process's resident peak),
PyTorch itself included. Ours a second time with gradient checkpointing, which costs time: see the last row.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from side_by_side import GPT2_124M, TINY, Row, hugging_face, part, python
from update import our_update, their_update

from horovod_transformer.model.transformer import build_model
from horovod_transformer.system.machine import return_large_blocks


def peak_gb() -> float:
    """The most this process has held so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError("no VmHWM in /proc/self/status")


def alone(who: str, tiny: bool) -> None:
    """Three updates of one contender; prints its peak and the seconds of an update."""
    shape = TINY if tiny else GPT2_124M
    torch.manual_seed(0)
    tokens = torch.randint(0, shape.vocab_size, (4, shape.max_seq_len))
    if who == "theirs":  # as it comes out of the box
        model = hugging_face(shape).train()
        update = their_update(lambda: model(input_ids=tokens, labels=tokens).loss, model)
    else:
        if who == "checkpointed":
            return_large_blocks()  # as training does
        shape = shape.model_copy(update={"gradient_checkpointing": who == "checkpointed"})
        update = our_update(build_model(shape).train(), shape, tokens)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"gb": peak_gb(), "seconds": min(seconds)}))


def measure(rounds: int, tiny: bool) -> list[Row]:
    """Each contender in its own process, in turn."""
    names = ("ours", "checkpointed", "theirs")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            output = python(__file__, "--alone", name, *(["--tiny"] if tiny else []))
            found[name].append(json.loads(output.splitlines()[-1]))
    gb = {name: statistics.median(each["gb"] for each in found[name]) for name in names}
    seconds = {name: statistics.median(each["seconds"] for each in found[name]) for name in names}
    shape = "tiny, B=4" if tiny else "124M, B=4, T=512"
    return [
        Row(f"peak, {shape}", "GB", gb["ours"], gb["theirs"], smaller_is_better=True),
        Row(f"peak, checkpointed, {shape}", "GB", gb["checkpointed"], gb["theirs"], smaller_is_better=True),
        Row(
            f"an update, checkpointed, {shape}", "s", seconds["checkpointed"], seconds["ours"],
            peer_name="not checkpointed", smaller_is_better=True,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        alone(sys.argv[2], "--tiny" in sys.argv)
    else:
        part("memory", __doc__, measure, rounds=1)
