"""Kills `prepare` at chosen moments and runs it again; a program, as it forks and must have no threads.

    python tests/prepare/kill_program.py BOOKS FOLDER TOKENIZER KILLS_OF_A_PHASE

A moment is the n-th time that the package's code calls anything: between any two of these a process
may die. First an undisturbed run counts them, phase by phase; then, for each phase, seeded moments are
chosen, and for each of these a fresh run is killed by SIGKILL and a second one is left to finish.
Prints a line of JSON for each kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from horovod_transformer.config import config_from_dict
from horovod_transformer.prepare import workers
from horovod_transformer.prepare.prepare import prepare

# The phase begins when this function is called.
PHASES = {
    "open_books": "listing",
    "_fill": "tokenizing",
    "write_books": "writing",
    "assemble": "assembling",
    "sync_tree": "renaming",
}
# Beyond these a child counts as stuck.
CHILD_LIMIT_S = 500


def run(config: Any, kill_at: int | None, report: int) -> None:
    """Prepare in this process; die at a moment, or report what was done."""
    starts: list[tuple[int, str]] = [(1, "start")]
    state = {"number": 0, "made": 0}
    fill = workers._fill

    def counted(*arguments: Any) -> None:
        fill(*arguments)
        state["made"] += 1

    workers._fill = counted

    def see(frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "c_call") or "horovod_transformer" not in frame.f_code.co_filename:
            return
        state["number"] += 1
        if event == "call" and (phase := PHASES.get(frame.f_code.co_name)):
            starts.append((state["number"], phase))
        if state["number"] == kill_at:
            os.write(report, json.dumps({"phase": starts[-1][1]}).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(see)
    manifest = prepare(config, progress=False, workers=1, unit_bytes=3000)
    sys.setprofile(None)
    assert manifest["splits"]["train"]["books"] > 1
    said = {"starts": [*starts, (state["number"] + 1, "")], "made": state["made"]}
    os.write(report, json.dumps(said).encode())


def in_a_child(config: Any, kill_at: int | None = None) -> tuple[int, dict[str, Any]]:
    """Return the signal or code that a run ended with, and what it reported."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(CHILD_LIMIT_S)
            run(config, kill_at, writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said or b"{}")


def bytes_of(data_dir: Path) -> str:
    """One digest of all files but the manifest, which holds times."""
    digest = hashlib.sha256()
    for path in sorted(data_dir.rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", "report.json", "report.html"):
            digest.update(f"{path.relative_to(data_dir)}:".encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Do what the command line says."""
    books, folder, tokenizer, kills = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    data = {"source": books, "tokenizer": tokenizer, "data_dir": str(folder / "v1")}
    model = {"vocab_size": 300, "max_seq_len": 16}
    config = config_from_dict({"model": model, "data": data}, "kill test")
    folder.mkdir()
    code, whole = in_a_child(config)
    assert code == 0, code
    wanted = bytes_of(folder / "v1")
    shutil.rmtree(folder)
    chosen = random.Random(7)
    moments: dict[str, list[int]] = {}
    for (first, phase), (end, _) in zip(whole["starts"], whole["starts"][1:], strict=False):
        moments.setdefault(phase, []).extend(range(first, end))
    for numbers in moments.values():
        for moment in sorted(chosen.sample(numbers, kills)):
            folder.mkdir()
            code, said = in_a_child(config, moment)
            assert code == -signal.SIGKILL, code
            left = sorted(path.name for path in folder.iterdir())
            appeared = (folder / "v1").exists()
            finished = len(list(folder.glob("v1.units/*.arrow")))
            sound = not appeared or bytes_of(folder / "v1") == wanted
            began = time.perf_counter()
            code, again = in_a_child(config)
            same = code == 0 and bytes_of(folder / "v1") == wanted
            print(
                json.dumps(
                    {
                        **said,
                        "moment": moment,
                        "left": left,
                        "appeared_whole": appeared and sound,
                        "sound": sound,
                        "finished": finished,
                        "made_again": again.get("made", -1),
                        "all": whole["made"],
                        "same": same,
                        "left_at_last": sorted(path.name for path in folder.iterdir()),
                        "seconds": round(time.perf_counter() - began, 2),
                    }
                ),
                flush=True,
            )
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
