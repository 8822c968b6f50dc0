"""The longest exact copies, against a search that tries everything."""

from __future__ import annotations

import numpy as np
import pytest

from horovod_transformer.evaluation import copied_text as copies
from horovod_transformer.evaluation.copied_text import longest_copies, overlapping_chunks


def brute_force(sample: list[int], text: list[int]) -> int:
    joined = " " + " ".join(map(str, text)) + " "
    runs = [sample[a:b] for a in range(len(sample)) for b in range(a + 1, len(sample) + 1)]
    return max((len(run) for run in runs if " " + " ".join(map(str, run)) + " " in joined), default=0)


@pytest.mark.parametrize("vocabulary", [2, 5, 300])
def test_as_if_everything_were_tried(vocabulary):
    source = np.random.default_rng(vocabulary)
    text = source.integers(0, vocabulary, 400)
    samples = [source.integers(0, vocabulary, n).tolist() for n in (0, 1, 7, 40)]
    samples += [text[100:131].tolist(), [vocabulary, *text[50:67].tolist(), vocabulary, *text[:3].tolist()]]
    found = longest_copies(samples, [text])
    assert [length for length, _ in found] == [brute_force(sample, text.tolist()) for sample in samples]
    for sample, (length, start) in zip(samples, found, strict=True):
        assert not length or brute_force(sample[start : start + length], text.tolist()) == length
    assert found[4] == (31, 0)


def test_runs_across_chunks_are_found(monkeypatch):
    monkeypatch.setattr(copies, "CHUNK", 64)
    text = np.random.default_rng(0).integers(0, 300, 16 * 40)
    blocks = text.reshape(-1, 16)
    samples = [text[start : start + 30].tolist() for start in (0, 55, 250, 610)]
    chunks = list(overlapping_chunks(blocks, 30))
    assert len(chunks) > 5
    assert longest_copies(samples, chunks) == [(30, 0)] * 4
    assert longest_copies(samples, overlapping_chunks(blocks, 0)) != [(30, 0)] * 4


def test_nothing_in_common():
    assert longest_copies([[1, 2, 3]], [np.array([7, 8, 9])]) == [(0, 0)]
    assert longest_copies([], [np.array([7])]) == []
