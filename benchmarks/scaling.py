"""How does the link between two machines decide the speed of training?

    sudo .venv/bin/python benchmarks/scaling.py [--rates 10000 1000 100] [--compression none] [--updates 4]
        [--ranks-per-host 2 [--hierarchical]] [--groups 1] [--in-two] [--hosts 3] [--model third]

Makes two network namespaces, joined by one link, and trains a model of 30 million parameters on two ranks,
one in each, with one thread each; three hosts are joined by a switch. Each host shapes what it sends with
`tc tbf`, from rate to rate (Mbit/s). Adds a row per update to benchmarks/results/scaling.csv;
benchmarks/scaling_model.py makes sense of them. With several ranks on each host it is
benchmarks/results/scaling_hosts.csv. Needs root and iproute2. `tc` shapes bandwidth only: the latency is that
of one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

HOSTS = ("scaling0", "scaling1", "scaling2")
SWITCH = "scalings"
PORT = "29455"
RESULTS = Path(__file__).with_name("results") / "scaling.csv"
RESULTS_OF_HOSTS = RESULTS.with_name("scaling_hosts.csv")
# d = 384, 6 layers, GPT-2's vocabulary: 30 million parameters, 120 MB of gradients.
SHAPE = {
    "model.d_model": 384,
    "model.n_layers": 6,
    "model.n_heads": 6,
    "model.d_ff": 1536,
    "model.max_seq_len": 256,
    "training.global_batch_size": 4,  # for two hosts; two more for each one more
    "training.per_gpu_batch_size": 2,
    "training.device": "cpu",
    "training.precision": "fp32",
    "data.source": "sample",
    "data.data_dir": "data/scaling",
    "data.num_workers": 0,
}
# Two thirds of the first one's bytes are in the embedding, and one third of the second's.
MODELS = {"30M": (50_257, 6), "third": (25_600, 11)}  # vocabulary, layers


def main() -> int:
    """Be the one who starts both ranks, or one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=int, nargs="+", default=[10_000, 5_000, 2_000, 1_000, 500, 200, 100])
    parser.add_argument("--compression", choices=("none", "fp16", "bf16"), default="none")
    parser.add_argument("--updates", type=int, default=4, help="at each rate")
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--groups", type=int, default=1, help="as distributed.gradient_groups")
    parser.add_argument("--hierarchical", action="store_true", help="as distributed.hierarchical: on")
    parser.add_argument("--in-two", action="store_true", help="the embedding's gradient leaves in two parts")
    parser.add_argument("--hosts", type=int, choices=(2, 3), default=2)
    parser.add_argument("--model", choices=MODELS, default="30M")
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options)
        return 0
    return start_on_hosts(options.ranks_per_host, options.hosts)


def start_on_hosts(ranks_per_host: int, number_of_hosts: int = 2) -> int:
    """Run this very command as the ranks of some hosts; return the worst exit code."""
    hosts = HOSTS[:number_of_hosts]
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks_per_host * len(hosts)),
        "MASTER_ADDR": "10.98.0.1",
        "MASTER_PORT": PORT,
        "OMP_NUM_THREADS": "1",
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and not without cleaning up
    with joined(hosts), contextlib.ExitStack() as ended:
        ranks = [
            subprocess.Popen(
                # A host of its own: its network, its name, and what its name stands for.
                [
                    "ip",
                    "netns",
                    "exec",
                    host,
                    "unshare",
                    "--uts",
                    "sh",
                    "-c",
                    'hostname "$0" && exec "$@"',
                    host,
                ]
                + [sys.executable, *sys.argv],
                env={**environment, "RANK": str(ranks_per_host * number + place)},
            )
            for number, host in enumerate(hosts)
            for place in range(ranks_per_host)
        ]
        for rank in ranks:
            ended.callback(rank.kill)
        return max([abs(rank.wait()) for rank in ranks])


@contextlib.contextmanager
def joined(hosts: Sequence[str]) -> Iterator[None]:
    """Network namespaces, two with one link, more with a switch between them; gone when left."""
    places = [Path("/etc/netns", host) for host in hosts]
    names = "".join(f"10.98.0.{number} {host}\n" for number, host in enumerate(hosts, 1))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for host, place in zip(hosts, places, strict=True):
            ip("netns", "add", host)
            place.mkdir(parents=True)
            place.joinpath("hosts").write_text(f"127.0.0.1 localhost\n{names}")
        if len(hosts) == 2:
            ip("link", "add", "eth0", "netns", hosts[0], "type", "veth", "peer", "eth0", "netns", hosts[1])
        else:
            ip("netns", "add", SWITCH)
            ip("-n", SWITCH, "link", "add", "switch", "type", "bridge")
            ip("-n", SWITCH, "link", "set", "switch", "up")
            for host in hosts:
                ip("link", "add", "eth0", "netns", host, "type", "veth", "peer", host, "netns", SWITCH)
                ip("-n", SWITCH, "link", "set", host, "master", "switch", "up")
        for number, host in enumerate(hosts, 1):
            ip("-n", host, "address", "add", f"10.98.0.{number}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in [*hosts, SWITCH][: len(hosts) + (len(hosts) > 2)]:
            subprocess.run(["ip", "netns", "delete", host], check=False)
        for place in places:
            place.joinpath("hosts").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                place.rmdir()


def run_rank(options: argparse.Namespace) -> None:
    """Train at each rate in turn; rank 0 writes the rows. *Collective.*"""
    import torch

    from horovod_transformer import distributed
    from horovod_transformer.config import load_config
    from horovod_transformer.data.dataset import open_prepared_data
    from horovod_transformer.data.loader import plan_batches, training_loader
    from horovod_transformer.distributed import gather_objects
    from horovod_transformer.model.size import flops_per_update
    from horovod_transformer.model.transformer import build_model
    from horovod_transformer.prepare.prepare import prepare
    from horovod_transformer.training.optim.optimizer import build_optimizer
    from horovod_transformer.training.step import UpdateStep

    rates, compression, updates = options.rates, options.compression, options.updates
    ranks = options.ranks_per_host * options.hosts
    settings = SHAPE | {"training.global_batch_size": max(4, ranks)}
    config = load_config("configs/config.yaml", {key: str(value) for key, value in settings.items()})
    world_size, rank, local_rank, _ = distributed.setup_horovod(
        require_distributed=True,
        device="cpu",
        flops_per_update=flops_per_update(config.model, config.training, ranks),
        hierarchical="on" if options.hierarchical else "off",
        compression=compression,
    )
    distributed.run_on_rank0(lambda: prepare(config, progress=False) and None)
    data = open_prepared_data(config)
    plan = plan_batches(config.training, data.train, world_size, exact=False)
    torch.manual_seed(0)
    vocab_size, layers = MODELS[options.model]
    shape = config.model.model_copy(update={"vocab_size": vocab_size, "n_layers": layers})
    model = build_model(shape)
    optimizer = distributed.distribute_optimizer(
        build_optimizer(model, config.training),
        model.named_parameters(),
        plan.micro_batches,
        compression,
        options.groups,
        late_tokens=plan.piece_size * plan.block_size if options.in_two else 0,
    )
    step = UpdateStep(model, optimizer, plan, torch.device("cpu"), "fp32", 1.0, False, compression)
    read = training_loader(data.train, plan, rank, range(len(rates) * updates))
    batches = ({name: ids.where(ids < 0, ids % vocab_size) for name, ids in batch.items()} for batch in read)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for number, rate in enumerate(rates):
        gather_objects(rate, "before the link changes")
        if local_rank == 0:
            shape_link(rate)
        gather_objects(rate, "after the link has changed")
        for update in range(number * updates, (number + 1) * updates):
            began = time.perf_counter()
            tokens = step.run(update, batches, 1e-4).tokens
            seconds = time.perf_counter() - began
            phases = step.timer.take()
            if rank == 0 and update > 0:  # the very first warms up
                row: dict[str, object] = {
                    "date": date.today().isoformat(),
                    "compression": compression,
                    "mbit_per_s": rate,
                    "seconds": round(seconds, 4),
                    "tokens_per_update": tokens,
                    "parameters": parameters,
                }
                if options.ranks_per_host > 1:
                    row["ranks_per_host"] = options.ranks_per_host
                    row["hierarchical"] = options.hierarchical
                    row["groups"] = options.groups
                    row["hosts"], row["model"], row["in_two"] = options.hosts, options.model, options.in_two
                    row["backward"] = round(phases["backward"], 4)
                    row["cpu"] = cpu_name()
                write_row(row, RESULTS if options.ranks_per_host == 1 else RESULTS_OF_HOSTS)
    gather_objects(0, "end")


def cpu_name() -> str:
    """What /proc/cpuinfo calls the first core."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    return name.replace(",", "").strip()


def shape_link(rate: int) -> None:
    """Let this namespace send no more than `rate` Mbit/s."""
    # A burst of 10 ms, as the manual of tbf asks for.
    burst, limit = max(16_000, rate * 1_250), max(400_000, rate * 12_500)
    words = f"qdisc replace dev eth0 root tbf rate {rate}mbit burst {burst} limit {limit}"
    subprocess.run(["tc", *words.split()], check=True)


def write_row(row: dict[str, object], results: Path) -> None:
    """Add a row to the results, and print it."""
    fresh = not results.exists()
    results.parent.mkdir(exist_ok=True)
    with open(results, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


if __name__ == "__main__":
    sys.exit(main())
