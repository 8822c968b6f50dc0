"""Scenes that the ranks of one Horovod job go through, one after the other; run by the fixture `play`.

    horovodrun -np N python tests/distributed/rank_programs.py FOLDER

FOLDER/scenes.json lists the scenes, each an object with the key `do`; rank r writes what came out
of each to FOLDER/rank<r>.json. One launch costs ten seconds, hence many scenes behind one.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import math
import os
import pickle
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from horovod_transformer import distributed, precision
from horovod_transformer.checkpoint import manager
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config import config_from_dict
from horovod_transformer.distributed import collectives, devices
from horovod_transformer.distributed import exchange as exchange_module
from horovod_transformer.errors import UserError
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training import setup, trainer
from horovod_transformer.training.resume import StartRequest
from horovod_transformer.training.run import run_distributed_training
from horovod_transformer.training.step import UpdateStep
from tests.training.metrics.fake_device import fake_reader

TELL_AFTER_S = 100
LATE_S = 1.0  # rank 0 comes so much later than the others


def train(scene: dict[str, Any]) -> Any:
    """Train, with mishaps.

    `signal` reaches one rank once some updates are in the table; `poison` makes a gradient of one rank
    NaN in one update; `drift` changes one bit of one rank's weights before one update; `slow_writer`
    keeps the writer of each checkpoint busy for so many seconds; `late` has results read one update late,
    as on a GPU; `cpu_flags` are each rank's CPU's.
    """
    real_flags = precision.cpu_flags
    if scene.get("cpu_flags"):
        precision.cpu_flags = lambda: scene["cpu_flags"][distributed.get_rank()]
    setup.UpdateStep = mishap(scene)
    if scene.get("slow_writer"):
        manager.save_checkpoint = slowed(scene["slow_writer"])
    folder = Path(scene["folder"])
    wanted = scene.get("signal")
    if wanted and wanted["rank"] == distributed.get_rank():
        table = folder / "runs" / "structured" / "run" / "train.csv"
        arguments = (table, wanted["after"], getattr(signal, wanted["name"]))
        threading.Thread(target=signal_after, args=arguments, daemon=True).start()
    try:
        return run_distributed_training(
            config_from_dict(scene["config"], "scene"),
            distributed.get_rank(),
            distributed.get_world_size(),
            distributed.get_local_rank(),
            resume_checkpoint=scene.get("resume"),
            run_name="run",
            output_dir=folder,
        )
    except (UserError, RuntimeError) as error:
        return {"mistake": str(error)}
    finally:
        setup.UpdateStep, manager.save_checkpoint = UpdateStep, save_checkpoint
        precision.cpu_flags = real_flags


def mishap(scene: dict[str, Any]) -> type[UpdateStep]:
    """An `UpdateStep` to which what the scene says happens."""

    class Mishap(UpdateStep):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            if scene.get("late"):
                self.defers_results, self._reader = True, fake_reader()

        def start(self, update: int, *arguments: Any, **more: Any) -> Any:
            parameter = self.model.blocks[0].feed_forward.expand.bias
            for what in ("poison", "drift"):
                wanted = scene.get(what)
                if not wanted or (wanted["rank"], wanted["update"]) != (distributed.get_rank(), update):
                    continue
                if what == "poison":
                    hook = parameter.register_hook(lambda gradient: gradient * math.nan)
                    try:
                        return super().start(update, *arguments, **more)
                    finally:
                        hook.remove()
                with torch.no_grad():
                    parameter[0] = torch.nextafter(parameter[0], torch.tensor(math.inf))
            return super().start(update, *arguments, **more)

    return Mishap


def slowed(seconds: float) -> Any:
    """A `save_checkpoint` on a slow disk."""

    def save(path: Path, contents: dict[str, Any]) -> None:
        time.sleep(seconds)
        save_checkpoint(path, contents)

    return save


def signal_after(table: Path, update: int, number: int) -> None:
    """Send this process a signal as soon as the table has this update."""
    while True:
        time.sleep(0.002)
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        if rows and int(rows[-1].split(",")[0]) >= update:
            os.kill(os.getpid(), number)
            return


def set_up(scene: dict[str, Any]) -> Any:
    """Put a run together without training; tell what its weights and optimizer state are then."""
    config = config_from_dict(scene["config"], "scene")
    config = config.with_overrides({"paths.checkpoint_dir": scene["folder"] + "/checkpoints"})
    run = trainer.Trainer(config, StartRequest(resume=scene.get("resume")))
    run.close()
    if scene.get("resume"):
        expected = load_checkpoint(scene["resume"])
        model, state = expected["model"], expected["optimizer"]["state"]
    else:
        torch.manual_seed(config.training.seed)
        model, state = build_model(config.model).state_dict(), {}
    mine = run.step.optimizer.state_dict()["state"]
    return {
        "digest": distributed.weights_digest(run.model),
        "weights_unchanged": all(torch.equal(model[k], v) for k, v in run.model.state_dict().items()),
        "optimizer_unchanged": mine.keys() == state.keys()
        and all(torch.equal(mine[p][k], state[p][k]) for p in state for k in state[p]),
        "optimizer_steps": sorted({float(entry["step"]) for entry in mine.values()}),
        "progress": run.state.update,
    }


def device(scene: dict[str, Any]) -> Any:
    """Choose a device while one rank finds what the scene says."""
    real = devices._look
    if distributed.get_rank() == scene["rank"]:
        devices._look = lambda wanted: devices.RankDevice(**scene["finds"])
    try:
        chosen, _ = distributed.choose_device("auto")
        return chosen.type
    except UserError as error:
        return str(error)
    finally:
        devices._look = real


def unequal(scene: dict[str, Any]) -> Any:
    """Change one bit of one rank's weights, then ask whether all are equal."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    before = distributed.require_equal_weights(model, "the start")
    if distributed.get_rank() == scene["rank"]:
        with torch.no_grad():
            model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(math.inf))
    try:
        distributed.require_equal_weights(model, "the change")
    except RuntimeError as error:
        return {"before": before, "error": str(error)}
    return {"before": before, "error": None}


def repeat_sums(scene: dict[str, Any]) -> Any:
    """Sum the same gradients again and again, ready at changing times; return the different results."""
    rank = distributed.get_rank()
    torch.manual_seed(rank)
    parameters = [torch.nn.Parameter(torch.zeros(3000)) for _ in range(24)]
    values = [torch.randn(3000) for _ in parameters]
    named = [(f"repeat.{number}", parameter) for number, parameter in enumerate(parameters)]
    optimizer = distributed.distribute_optimizer(
        torch.optim.SGD(parameters, lr=1.0), named, 1, gradient_groups=scene["groups"]
    )
    chance = random.Random(rank)
    for parameter in parameters[::4]:
        parameter.register_hook(lambda _: time.sleep(chance.choice([0.0, 0.0, 0.015])))
    results = set()
    for _ in range(scene["times"]):
        sum((p * v).sum() for p, v in zip(parameters, values, strict=True)).backward()
        distributed.synchronize(optimizer)
        with distributed.skip_synchronize(optimizer):
            optimizer.step()
        results.add(hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in parameters)).hexdigest())
        optimizer.zero_grad()
    return sorted(results)


def exchange(scene: dict[str, Any]) -> Any:
    """Go through every collective of `distributed`, ranks passing values of different types."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    given: Any = None
    if rank == 0:
        given = {
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "transposed": torch.arange(6.0).reshape(2, 3).t(),
            "whole": torch.tensor([1, 2**40]),
            "nested": [{"text": "né", "none": None}, (1, 2.0)],
        }
    got = distributed.broadcast(given)
    results: dict[str, Any] = {
        "broadcast": [
            float(got["scalar"]),
            list(got["empty"].shape),
            got["transposed"].tolist(),
            got["whole"].tolist(),
            got["nested"],
        ],
        "average": distributed.metric_average(float(rank), "a"),
        "average_of_tensor": distributed.metric_average(torch.tensor([rank * 2]), "b"),
        "sum": distributed.allreduce(torch.tensor([rank, 2**40]), "c").tolist(),
        # Rank 0 has nothing to give, in a dtype that Horovod does not know.
        "gathered": distributed.allgather(
            torch.full((2 * rank,), 1.5, dtype=torch.bfloat16), "d", range(0, 2 * size, 2)
        ).tolist(),
    }

    def fail_on_last() -> str:
        if rank == size - 1:
            raise UserError("no such thing")
        return "fine"

    def fail() -> None:
        raise UserError("only rank 0 looked")

    for name, act in (
        ("raise_on_all_ranks", lambda: distributed.raise_on_all_ranks(fail_on_last)),
        ("from_main", lambda: distributed.run_on_rank0(fail)),
    ):
        try:
            act()
            results[name] = None
        except UserError as error:
            results[name] = str(error)
    results["all_well"] = distributed.raise_on_all_ranks(lambda: rank)
    results["main_value"] = distributed.run_on_rank0(lambda: {"rank": rank})
    if rank == 0:
        time.sleep(LATE_S)
    before = time.process_time()
    distributed.allreduce(torch.zeros(1), "e")
    results["busy_seconds"] = time.process_time() - before
    return results


def in_slices(scene: dict[str, Any]) -> Any:
    """Exchange what is far larger than the limits; tell whether all of it came, and in what slices."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    limits = collectives.GATHER_LIMIT_BYTES, exchange_module.SLICE_BYTES
    collectives.GATHER_LIMIT_BYTES, exchange_module.SLICE_BYTES = scene["gather_limit"], scene["slice"]
    sent = []
    allgather_bytes, hand_on = collectives.allgather_bytes, collectives.hand_on

    def counting(what: Any) -> Any:
        def call(flat: torch.Tensor, name: str) -> torch.Tensor:
            sent.append(flat.numel())
            return what(flat, name)

        return call

    collectives.allgather_bytes, collectives.hand_on = counting(allgather_bytes), counting(hand_on)
    try:
        lengths = [0, 300, 7, 50][:size]
        whole = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        mine = whole.split(lengths)[rank]
        gathered = distributed.allgather(mine, "in slices", lengths)
        texts = [str(number) * length for number, length in enumerate([0, 300, 7, 50][:size])]
        objects = distributed.gather_objects(texts[rank], "in slices")
        largest_gather = max(sent)
        sent.clear()
        numbers = torch.Generator().manual_seed(1)
        state = {
            number: {"m": torch.randn(rows, 7, generator=numbers), "step": torch.tensor(float(number))}
            for number, rows in enumerate([40, 0, 1, 3])
        }
        beats: list[int] = []
        got = distributed.broadcast(state if rank == 0 else None, on_slice=lambda: beats.append(1))
        return {
            "gathered": torch.equal(gathered, whole),
            "objects": objects == texts,
            "largest_gather": largest_gather,
            "broadcast": got.keys() == state.keys()
            and all(torch.equal(got[n][key], state[n][key]) for n in state for key in ("m", "step")),
            "beats": len(beats),
            "handed_on": max(sent),
        }
    finally:
        collectives.allgather_bytes, collectives.hand_on = allgather_bytes, hand_on
        collectives.GATHER_LIMIT_BYTES, exchange_module.SLICE_BYTES = limits


def intruder(scene: dict[str, Any]) -> Any:
    """Gather and broadcast while the scene's rank sends pickles that would make a folder where unpickled."""
    import horovod.torch as hvd

    results = []
    for number, length in enumerate((0, 8, 400)):
        mark = Path(scene["folder"]) / f"{distributed.get_rank()}.{number}"
        name = f"intruder {number}"
        try:
            if distributed.get_rank() == scene["rank"]:
                message = pickle.dumps(Trap(str(mark)))
                # Once as Horovod would send it, then with headers that promise too little and too much.
                message = (length.to_bytes(8, "big") if number else b"") + message
                flat = torch.frombuffer(bytearray(message), dtype=torch.uint8)
                hvd.allgather(flat, name=f"gather.object.{name}")
                results.append("sent")
            else:
                results.append(distributed.gather_objects("value", name))
        except UserError as error:
            results.append(str(error))
    return results


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def huge(scene: dict[str, Any]) -> Any:
    """Gather, broadcast and add up so many bytes; tell what came, as lowest and highest values."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    length = scene["bytes"] // size
    mine = torch.full((length,), rank + 1, dtype=torch.int8)
    gathered = distributed.allgather(mine, "huge", [length] * size)
    found = [[int(part.min()), int(part.max())] for part in gathered.split(length)]
    del mine, gathered
    given = {"weights": torch.full((scene["bytes"],), 5, dtype=torch.int8)} if rank == 0 else None
    weights = distributed.broadcast(given)["weights"]
    found.append([len(weights), int(weights.min()), int(weights.max())])
    del given, weights
    total = distributed.allreduce(torch.full((scene["bytes"] // 4,), rank + 1.0), "huge")
    found.append([float(total.min()), float(total.max())])
    return found


def broadcast(scene: dict[str, Any]) -> Any:
    """Broadcast so many bytes; tell whether they have come."""
    state = {"weights": torch.arange(scene["bytes"] // 4, dtype=torch.int32)}
    got = distributed.broadcast(state if distributed.get_rank() == 0 else None)
    return torch.equal(got["weights"], state["weights"])


def main(folder: Path) -> None:
    """Join the job, play all scenes, write what came out."""
    # A job that hangs is ended after 120 s: by then it is to be seen where each rank waits.
    faulthandler.dump_traceback_later(TELL_AFTER_S)
    distributed.setup_horovod()
    distributed.set_threads(1)
    acts = {
        "train": train,
        "set_up": set_up,
        "unequal": unequal,
        "device": device,
        "exchange": exchange,
        "repeat_sums": repeat_sums,
        "in_slices": in_slices,
        "intruder": intruder,
        "huge": huge,
        "broadcast": broadcast,
    }
    results = [acts[scene["do"]](scene) for scene in json.loads((folder / "scenes.json").read_text())]
    (folder / f"rank{distributed.get_rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
