"""The Python half of check_slurm.sh: what the ranks of the check do, and the report on it.

check_cluster.py config FOLDER [--cpu]    write FOLDER/config.yaml, the small run of the check
check_cluster.py ranks FOLDER [--cpu]     on all ranks: devices, a sum, all-reduce rates, bf16
check_cluster.py doomed FOLDER ARGUMENTS  on all ranks: train, and kill the last rank on the way
check_cluster.py report FOLDER [--cpu]    write FOLDER/report.md and print it; 1 if anything failed
"""

from __future__ import annotations

import csv
import json
import os
import platform
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.system.console import counted

UPDATES = 30
# The last rank dies when so many updates are in the table; the newest checkpoint is then one of before.
DIES_AFTER = 17
# Nats by which two curves of one run may differ: sums in another order; bf16 rounding.
SAME_CURVE, SAME_IN_BF16 = 5e-3, 5e-2
GPU_BYTES = [4_096, 2**20, 2**24, 2**27, 2**29]
CPU_BYTES = [4_096, 2**20, 2**24]
# Below these, in GB/s, NCCL has probably not found the fast way.
SLOW_IN_NODE, SLOW_BETWEEN_NODES = 50.0, 5.0


def write_config(folder: Path, cpu: bool) -> None:
    """Write the config of the check: a small model on the plays that come with the installation."""
    ranks = int(os.environ["CHECK_RANKS"])
    shape = {"vocab_size": 512, "d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128, "max_seq_len": 64}
    if not cpu:
        shape = {"vocab_size": 2048, "d_model": 384, "n_layers": 6, "n_heads": 6, "d_ff": 1536}
        shape["max_seq_len"] = 256
    per_rank = 2 if cpu else 8
    training = {
        "max_updates": UPDATES,
        "epochs": 1000,
        "warmup_updates": 5,
        "global_batch_size": per_rank * ranks,
        "per_gpu_batch_size": per_rank,
        "precision": "fp32",
        "device": "cpu" if cpu else "cuda",
        "log_interval": 1,
        "eval_interval": UPDATES,
        "eval_blocks": 8,
        "save_interval": 5,
    }
    data = {"source": "sample", "tokenizer": "bpe", "data_dir": str(folder / "data"), "num_workers": 0}
    config = {"model": shape, "training": training, "data": data, "distributed": {"stall_timeout": 60}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def look_at_ranks(folder: Path, cpu: bool) -> None:
    """Let all ranks meet, add up and exchange; rank 0 writes what they found. *Collective.*"""
    import torch

    from horovod_transformer.distributed import collectives, gather_objects, setup_horovod

    began = time.monotonic()
    world_size, rank, local_rank, use_cuda = setup_horovod(device="cpu" if cpu else "cuda")
    found: dict[str, Any] = {"seconds_to_meet": time.monotonic() - began, "world_size": world_size}
    device = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    mine = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "local_rank": local_rank,
        "device": torch.cuda.get_device_name(device) if use_cuda else "CPU",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "bf16": use_cuda and torch.cuda.is_bf16_supported(including_emulation=False),
    }
    found["ranks"] = gather_objects(mine, "ranks")
    numbers = torch.arange(1000, dtype=torch.float64) * (rank + 1)
    expected = torch.arange(1000, dtype=torch.float64) * (world_size * (world_size + 1) // 2)
    found["sum_is_right"] = bool((collectives.allreduce(numbers.to(device), "check").cpu() == expected).all())
    found["allreduce"] = [
        measure_allreduce(size, device, world_size) for size in (GPU_BYTES if use_cuda else CPU_BYTES)
    ]
    if use_cuda:
        found["products"] = measure_products(device)
    if rank == 0:
        found["versions"] = versions()
        (folder / "ranks.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure_allreduce(size: int, device: Any, world_size: int) -> dict[str, float]:
    """Time sums of `size` bytes of float32 over all ranks. *Collective.*

    Returns:
        Bytes, median seconds, and the bus bandwidth 2 (n - 1) / n x bytes / seconds in GB/s.
    """
    import torch

    from horovod_transformer.distributed import collectives

    values = torch.zeros(size // 4, device=device)

    def once() -> float:
        began = time.perf_counter()
        collectives.allreduce(values, f"rate.{size}")
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(3):
        once()
    seconds = statistics.median(once() for _ in range(10))
    return {
        "bytes": size,
        "seconds": seconds,
        "gb_per_s": 2 * (world_size - 1) / world_size * size / seconds / 1e9,
    }


def measure_products(device: Any) -> dict[str, float]:
    """Rates of a matrix product of 8192 x 8192 in TFLOP/s, and how far bf16 is from float32."""
    import torch

    left, right = torch.randn(2, 8192, 8192, device=device)
    found: dict[str, float] = {}
    results = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = left.to(dtype), right.to(dtype)
        for repeat in range(13):
            if repeat == 3:
                torch.cuda.synchronize()
                began = time.perf_counter()
            product = a @ b
        torch.cuda.synchronize()
        found[name] = 10 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12
        results[name] = product.float()
    difference = (results["bf16"] - results["fp32"]).norm() / results["fp32"].norm()
    return found | {"relative_difference": float(difference)}


def versions() -> dict[str, Any]:
    """What runs here."""
    import horovod
    import horovod.torch as hvd
    import torch

    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "horovod": horovod.__version__,
        "horovod_operations": [
            name for name, built in (("NCCL", hvd.nccl_built()), ("Gloo", hvd.gloo_built())) if built
        ],
        "kernel": platform.release(),
    }


def train_until_killed(folder: Path, arguments: Sequence[str]) -> int:
    """Train as one rank of the run whose last rank gets SIGKILL. *Collective.*"""
    from horovod_transformer.commands import train

    def kill() -> None:
        while len(read_curve(folder / "killed")) < DIES_AFTER:
            time.sleep(0.01)
        (folder / "killed_at").write_text(repr(time.time()), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)

    if int(os.environ["SLURM_PROCID"]) == int(os.environ["SLURM_NTASKS"]) - 1:
        threading.Thread(target=kill, daemon=True).start()
    return train.main(arguments)


def read_curve(run: Path) -> dict[int, float]:
    """The loss of each update in a run's table; empty as long as there is none.

    Raises:
        ValueError: An update stands there twice.
    """
    curve: dict[int, float] = {}
    for table in (run / "runs" / "structured").glob("*/train.csv"):
        with open(table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row.get("update") or not row.get("loss"):
                    continue  # being written
                if int(row["update"]) in curve:
                    raise ValueError(f"{table}: update {row['update']} stands there twice")
                curve[int(row["update"])] = float(row["loss"])
    return curve


def furthest_apart(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest difference of two whole curves.

    Raises:
        ValueError: One of them lacks updates.
    """
    whole = list(range(1, UPDATES + 1))
    for curve in (one, other):
        if sorted(curve) != whole:
            raise ValueError(f"updates {sorted(set(whole) - set(curve)) or sorted(curve)} are missing")
    return max(abs(one[update] - other[update]) for update in whole)


class Report:
    """Rows of what was checked, and what they amount to."""

    def __init__(self, folder: Path, cpu: bool) -> None:
        self.folder, self.cpu = folder, cpu
        self.met = (folder / "ranks.json").exists()
        self.rows: list[tuple[str, str, str]] = []
        self.failed: list[str] = []

    def check(self, name: str, look: Callable[[], tuple[bool, str]]) -> None:
        """Add a row; a check that breaks has failed."""
        try:
            good, found = look()
        except (OSError, ValueError, KeyError) as error:
            good, found = False, f"{type(error).__name__}: {error}"
        self.rows.append((name, "ok" if good else "FAILED", found))
        if not good:
            self.failed.append(name)

    def ranks(self) -> tuple[bool, str]:
        """All ranks met, each on a device of its own."""
        if not self.met:
            log = (self.folder / "ranks.log").read_text(encoding="utf-8", errors="replace")
            errors = [line for line in log.splitlines() if "error: " in line]
            return False, f"nothing else was tried; {errors[0] if errors else 'ranks.log tells why'}"
        found = self.found()
        expected = int(os.environ["CHECK_RANKS"])
        devices = sorted({each["device"] for each in found["ranks"]})
        hosts = sorted({each["host"] for each in found["ranks"]})
        text = f"{found['world_size']} of {expected} on {', '.join(hosts)}: {', '.join(devices)}"
        return found["world_size"] == expected, f"{text}; Horovod was up in {found['seconds_to_meet']:.1f} s"

    def operations(self) -> tuple[bool, str]:
        """What Horovod adds up with."""
        built = self.found()["versions"]["horovod_operations"]
        good = ("Gloo" if self.cpu else "NCCL") in built and self.found()["sum_is_right"]
        return good, f"built with {', '.join(built)}; the sum over ranks is " + (
            "right" if self.found()["sum_is_right"] else "WRONG"
        )

    def rates(self) -> tuple[bool, str]:
        """How fast ranks exchange; slow is not wrong, but said."""
        found = self.found()
        text = ", ".join(
            f"{row['bytes'] / 2**20:g} MiB {row['gb_per_s']:.2f} GB/s ({row['seconds'] * 1e3:.3g} ms)"
            for row in found["allreduce"]
        )
        hosts = {each["host"] for each in found["ranks"]}
        slow = SLOW_BETWEEN_NODES if len(hosts) > 1 else SLOW_IN_NODE
        if not self.cpu and found["world_size"] > 1 and found["allreduce"][-1]["gb_per_s"] < slow:
            text += f"; SLOW, below {slow:g} GB/s: NCCL_DEBUG=INFO tells which way NCCL goes"
        return True, text

    def bf16(self) -> tuple[bool, str]:
        """The GPUs' own bf16, and a run with it beside the one in float32."""
        found = self.found()
        products = found["products"]
        apart = furthest_apart(read_curve(self.folder / "all"), read_curve(self.folder / "bf16"))
        text = (
            f"products of 8192 x 8192 at {products['bf16']:.0f} TFLOP/s (fp32 {products['fp32']:.0f}), "
            f"relative difference {products['relative_difference']:.1e}; losses within {apart:.1e} of fp32's"
        )
        return all(each["bf16"] for each in found["ranks"]) and apart < SAME_IN_BF16, text

    def same_curve(self) -> tuple[bool, str]:
        """One rank against all."""
        one, all_ranks = read_curve(self.folder / "one"), read_curve(self.folder / "all")
        apart = furthest_apart(one, all_ranks)
        text = f"losses of {UPDATES} updates within {apart:.1e} nats, from {one[1]:.3f} to {one[UPDATES]:.3f}"
        return apart < SAME_CURVE and one[UPDATES] < one[1], text

    def kill_and_resume(self) -> tuple[bool, str]:
        """The killed run ended, went on, and arrived where the other did."""
        ended, code = (self.folder / "killed_end").read_text().split()
        seconds = float(ended) - float((self.folder / "killed_at").read_text())
        apart = furthest_apart(read_curve(self.folder / "all"), read_curve(self.folder / "killed"))
        text = (
            f"the last rank got SIGKILL after update {DIES_AFTER}, the others ended {seconds:.1f} s later "
            f"(srun: {code}); resumed, its losses are within {apart:.1e} nats"
        )
        return code != "0" and apart < SAME_CURVE, text

    def found(self) -> dict[str, Any]:
        """What the ranks wrote."""
        return json.loads((self.folder / "ranks.json").read_text(encoding="utf-8"))

    def write(self) -> int:
        """Look at everything, write and print the report; 1 if anything failed."""
        self.check("ranks", self.ranks)
        if self.met:
            self.check("Horovod", self.operations)
            self.check("all-reduce", self.rates)
            if not self.cpu:
                self.check("bf16", self.bf16)
            self.check("one rank against all", self.same_curve)
            self.check("kill and resume", self.kill_and_resume)
        nodes, ranks = os.environ.get("SLURM_JOB_NUM_NODES", "1"), os.environ["CHECK_RANKS"]
        what = f"{counted(int(nodes), 'node')}, {counted(int(ranks), 'process', 'processes')}"
        what += ", CPU ONLY" if self.cpu else ""
        verdict = f"THIS CLUSTER WORKS: {what}"
        if self.failed:
            verdict = f"NOT YET: {', '.join(self.failed)} failed ({what}); {self.folder}/*.log tell more"
        elif self.cpu:
            verdict += "; GPUs, NCCL and bf16 were not looked at"
        lines = [f"# Cluster check, job {os.environ.get('SLURM_JOB_ID', '?')}: {what}", ""]
        lines += ["| check | result | found |", "| --- | --- | --- |"]
        lines += [f"| {name} | {result} | {text} |" for name, result, text in self.rows]
        if self.met:
            lines += ["", *(f"- {key}: {value}" for key, value in self.found()["versions"].items())]
            lines += [f"- rank {rank}: {each}" for rank, each in enumerate(self.found()["ranks"])]
        lines += ["", verdict, ""]
        (self.folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
        print("\n".join(lines), end="", flush=True)
        return 1 if self.failed else 0


def main(arguments: Sequence[str]) -> int:
    """Do one part of the check."""
    action, place, *rest = arguments
    folder, cpu = Path(place), "--cpu" in rest
    if action == "config":
        write_config(folder, cpu)
    elif action == "ranks":
        look_at_ranks(folder, cpu)
    elif action == "doomed":
        return train_until_killed(folder, rest)
    elif action == "report":
        return Report(folder, cpu).write()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
