"""`prepare` killed at seeded moments of every phase: the next run goes on, to the same bytes."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from horovod_transformer.tokenizer import train_bpe

WORDS = ["the", "sea", "was", "calm", "and", "so", "said", "captain", "né", "Brême", "1851", "—", "\n\n"]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen books, one of them twice: some six units."""
    folder = tmp_path_factory.mktemp("books")
    for seed in range(12):
        text = " ".join(random.Random(seed).choices(WORDS, k=200 + 30 * seed))
        (folder / f"{seed:02}.txt").write_text(text, encoding="utf-8")
    (folder / "copy.txt").write_bytes((folder / "03.txt").read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["path", "bpe"])
def test_killed_at_any_moment_the_next_run_goes_on(
    books: Path, tmp_path: Path, tokenizer: str, run_python
) -> None:
    if tokenizer == "path":
        path = tmp_path / "tokenizer.json"
        texts = [file.read_text(encoding="utf-8") for file in sorted(books.iterdir())]
        path.write_text(train_bpe(texts, 280).to_dict()["tokenizer_json"])
        tokenizer = str(path)
    kills_of_a_phase = 5 if tokenizer != "bpe" else 1
    program = ["tests/prepare/kill_program.py", books, tmp_path / "out", tokenizer, kills_of_a_phase]
    done = run_python(*map(str, program), timeout=1100)  # some fifty runs
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    by_phase = Counter(kill["phase"] for kill in kills)
    for phase in ("listing", "tokenizing", "writing", "assembling", "renaming"):
        assert by_phase[phase] >= kills_of_a_phase
    assert len(kills) >= 5 * kills_of_a_phase
    for kill in kills:
        assert kill["sound"] and kill["same"], kill
        # The last thing to go is the lock; one that stays is taken over, as its owner is dead.
        lock = [".v1.lock"] if kill["left"] == [".v1.lock", "v1"] else []
        assert kill["left_at_last"] == [*lock, "v1"], kill
        # What was finished is not made again, and what was not is.
        if not kill["appeared_whole"]:
            assert kill["made_again"] == kill["all"] - kill["finished"], kill
    assert any(0 < kill["finished"] < kill["all"] for kill in kills)
