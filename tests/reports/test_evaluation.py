"""evaluation.json and evaluation.html."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import BookScore
from horovod_transformer.evaluation.evaluate import Evaluation
from horovod_transformer.evaluation.text_quality import MEASURES, Sample, Value
from horovod_transformer.reports.evaluation import summary_lines, table_lines, to_html, to_json, write_report

HOSTILE = "</p><script>alert(1)</script><img src=x onerror='a'>&amp;\"\x00\x1b[31m"


def hostile_evaluation(tokenizer) -> Evaluation:
    ids = tokenizer.encode(HOSTILE)
    sample = Sample(ids, ids, True, ids, False)
    values = {measure.key: Value(None) for measure in MEASURES} | {"coherence": Value(-0.5, 0.25)}
    return Evaluation(
        model={"checkpoint": HOSTILE, "updates": HOSTILE, "parameters": 1234567, "context": 8},
        settings={HOSTILE: HOSTILE, "samples": 12, "prompt_tokens": 4},
        books=1,
        score=BookScore(nats=math.nan, tokens=10, bytes=20, correct=5),
        guessing=4.5,
        frequencies=3.0,
        counted_in="training blocks",
        xz_bits_per_byte=None,
        quality={"model": values, "human": values},
        samples=[sample] * 12,
    )


def test_page_escapes_what_it_shows(tiny_tokenizer):
    page = to_html(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer))
    assert "<script" not in page and "<img" not in page and "\x00" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&amp;amp;" in page
    # Nothing is fetched: the policy forbids it, and there is nothing to fetch.
    assert "default-src 'none'" in page
    assert not re.search(r"(?<!\w)(src|href)\s*=(?!x)|url\(|@import|https?:", page.split("</style>")[0])
    assert "1,234,567 parameters" in page and "−0.500" in page
    assert page.count("<section>") == 8 and "8 of 12" in page


def test_tags_of_the_page_close(tiny_tokenizer):
    from html.parser import HTMLParser

    class Checker(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(to_html(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer)))
    assert checker.open == []


def test_json_is_strict_and_files_are_whole(tiny_tokenizer, tmp_path):
    hostile = to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer)
    json_path, page_path = write_report(hostile, tmp_path / "new")
    values = json.loads(json_path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert values["prediction"]["loss"] is None and values["prediction"]["accuracy"] == 0.5
    assert len(values["samples"]) == 12 and values["samples"][0]["prompt"] == HOSTILE
    assert {path.name for path in json_path.parent.iterdir()} == {json_path.name, page_path.name}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(hostile, tmp_path / "file")


def test_table_for_the_terminal(tiny_tokenizer):
    lines = table_lines(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer))
    assert len(lines) == 1 + len(MEASURES)
    assert lines[1].split() == ["coherence", "lexical", "cohesion", *["−0.500", "±", "0.250"] * 2]
    assert len({len(line) for line in lines}) == 1


def test_summary_for_the_terminal(tiny_tokenizer):
    evaluation = hostile_evaluation(tiny_tokenizer)
    lines = summary_lines(evaluation, to_json(evaluation, tiny_tokenizer))
    assert lines[0] == "1 held-out book, 10 tokens, 20 bytes"
    assert lines[1] == "  loss nan nats per token, perplexity inf, accuracy 50.0 %"
    assert lines[2] == "  nan bits per byte"
    assert lines[3:5] == [
        "    3.000 knowing only how often each token comes, counted in training blocks",
        "    4.500 giving every token the same chance",
    ]
    assert lines[5] == "12 continuations of prompts of 4 tokens, ± one standard error"
    assert lines[-1].startswith("The loss is no finite number") and len(lines) == 8 + len(MEASURES)
    evaluation = replace(
        evaluation, xz_bits_per_byte=2.25, interval=(1.0, 2.0), copies=[(n, 0) for n in range(12)]
    )
    lines = summary_lines(evaluation, to_json(evaluation, tiny_tokenizer))
    assert lines[2] == "  nan bits per byte, 95 % over books: 1.000 to 2.000"
    assert lines[3] == "    2.250 xz -9, given the training books"
    assert lines[-2] == "  longest exact copy from the training text: median 6 tokens, most 11"
    few = replace(evaluation, books=3, interval=None, extremes=(0.5, 2.5), xz_bits_per_byte=None)
    values = to_json(few, tiny_tokenizer)
    assert summary_lines(few, values)[2] == "  nan bits per byte, range over 3 books: 0.500 to 2.500"
    assert "bits per byte, range over 3 books: 0.500 to 2.500" in to_html(values)


def test_the_same_verdict_everywhere_and_what_else_there_is_sorted(tiny_tokenizer):
    evaluation = replace(
        hostile_evaluation(tiny_tokenizer),
        books=2,
        score=BookScore(nats=20 * 1.5 * math.log(2), tokens=10, bytes=20),
        xz_bits_per_byte=2.0,
        others=[("other.pt", BookScore(nats=20 * math.log(2), tokens=30, bytes=20))],
    )
    values = to_json(evaluation, tiny_tokenizer)
    said = (
        "1.50 bits per byte on 2 held-out books: 25 % fewer than xz needs, 50 % fewer than knowing only how "
        "often each token comes, 50 % more than other.pt."
    )
    assert values["verdict"] == summary_lines(evaluation, values)[-1] == said
    page = to_html(values)
    assert f'<p class="verdict">{said}</p>' in page
    (table,) = re.findall(r'<table class="figures bars">.*?</table>', page, re.S)
    rows = re.findall(r"<tr(?: class=.own.)?><th>([^<]+)</th><td>([\d.]+)</td>", table)
    assert [name.partition(",")[0] for name, _ in rows] == [
        "other.pt",
        "this model",
        "xz -9",
        "knowing only how often each token comes",
        "giving every token the same chance",
    ]
    assert [bits for _, bits in rows] == ["1.000", "1.500", "2.000", "3.000", "4.500"]


def test_the_human_column_needs_no_wide_screen(tiny_tokenizer):
    """Names of groups are rows, so that three columns are left."""
    page = to_html(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer))
    (table,) = re.findall(r'<table class="quality">.*?</table>', page, re.S)
    assert max(row.count("<td>") + row.count("<th") for row in table.split("<tr>")) == 3
