"""Licence notes go, books stay: each form of front and end matter, and texts that only look like it."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from horovod_transformer.books.cleaning import STEPS, clean, cut_gutenberg, cut_smashwords
from horovod_transformer.books.sources import open_books
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare

BOTH = ["smashwords", "gutenberg"]
STORY = "\n\n".join(
    f"Chapter {n}\n\nThe sea was calm that morning, and nobody on the pier spoke a word of it. " * 8
    for n in range(1, 12)
).strip()

SMASHWORDS = {
    "as most of them are": """\
# The Long Pier

## By A. N. Author

Copyright 2011 by A. N. Author

Smashwords Edition

***

Smashwords Edition, License Notes

This ebook is licensed for your personal enjoyment only. This ebook may not be re-sold or given away to \
other people. If you would like to share this book with another person, please purchase an additional copy \
for each recipient. If you did not purchase it, please return to Smashwords.com and purchase \
your own copy. Thank you for respecting the hard work of this author.

***

""",
    "wrapped lines": """\
THE LONG PIER

SMASHWORDS EDITION

* * * * *

PUBLISHED BY:
A. N. Author on Smashwords

The Long Pier
Copyright \u00a9 2010 by A. N. Author

All rights reserved. Without limiting the rights under copyright reserved above, no part of
this publication may be reproduced.

This is a work of fiction. Names are the product of the author's imagination.

Smashwords Edition License Notes
This ebook is licensed for your personal enjoyment only. This
ebook may not be re-sold or given away to other people. Thank
you for respecting the author's work.

* * * * *

""",
    "no empty lines": "The Long Pier\nby A. N. Author\nPublished by A. N. Author at Smashwords\n"
    "This ebook is licensed for your personal use only.\nAll rights reserved.\n",
    "distributed": "The Long Pier\n\nDistributed by Smashwords\n\nISBN 978-0-00-000000-2\n\n"
    "Cover art by B. C.\n\n",
}


@pytest.mark.parametrize("name", SMASHWORDS)
def test_front_matter_of_smashwords_goes(name: str) -> None:
    story = STORY.replace("\n\n", "\n") if name == "no empty lines" else STORY
    text, cut = clean(SMASHWORDS[name] + story, BOTH)
    assert text == story
    assert cut == {"smashwords": len(SMASHWORDS[name])}
    assert clean(text, BOTH) == (text, {}), "a second time there is nothing to cut"


def gutenberg(start: str, end: str, produced: str = "") -> str:
    header = "The Project Gutenberg EBook of The Long Pier, by A. N. Author\n\nFor the use of anyone "
    licence = "\n\nSection 1.  General Terms of Use and Redistributing. " + "Electronic works. " * 900
    return f"{header}anywhere.\n\nLanguage: English\n\n{start}\n\n{produced}\n{STORY}\n\n\n{end}\n{licence}"


GUTENBERG = {
    "today": gutenberg(
        "*** START OF THE PROJECT GUTENBERG EBOOK THE LONG PIER ***",
        "*** END OF THE PROJECT GUTENBERG EBOOK THE LONG PIER ***",
    ),
    "with a typist": gutenberg(
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE LONG PIER ***",
        "End of the Project Gutenberg EBook of The Long Pier, by A. N. Author\n\n"
        "*** END OF THIS PROJECT GUTENBERG EBOOK THE LONG PIER ***",
        "Produced by B. C. and the Online Distributed Proofreading\nTeam at https://www.pgdp.net\n\n",
    ),
    "a long title": gutenberg(
        "***START OF THE PROJECT GUTENBERG EBOOK THE LONG PIER, OR\nWHAT THE SEA SAID THAT MORNING***",
        "***END OF THE PROJECT GUTENBERG EBOOK THE LONG PIER, OR\nWHAT THE SEA SAID THAT MORNING***",
        "E-text prepared by B. C.\n\n",
    ),
    "no closing asterisks": gutenberg(
        "*** START OF THE PROJECT GUTENBERG EBOOK THE LONG PIER",
        "End of Project Gutenberg's The Long Pier, by A. N. Author",
    ),
    "small print": gutenberg(
        "**START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START**\n\nWhy is this here? You know: "
        "lawyers.\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
        "End of Project Gutenberg Etext of The Long Pier, by A. N. Author",
    ),
    "small print, otherwise": gutenberg(
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.07.02.92*END*",
        "End of The Project Gutenberg Etext of The Long Pier",
    ),
}


@pytest.mark.parametrize("name", GUTENBERG)
def test_what_stands_around_a_gutenberg_book_goes(name: str) -> None:
    text, cut = clean(GUTENBERG[name], BOTH)
    assert text == STORY
    assert cut == {"gutenberg": len(GUTENBERG[name]) - len(STORY)}
    assert clean(text, BOTH) == (text, {})


def test_one_end_alone_is_cut_alone() -> None:
    start = "*** START OF THE PROJECT GUTENBERG EBOOK THE LONG PIER ***\n\n"
    end = "\n\n*** END OF THE PROJECT GUTENBERG EBOOK THE LONG PIER ***\nlicence"
    assert cut_gutenberg(start + STORY) == cut_gutenberg(STORY + end) == STORY


LOOKALIKES = {
    "nothing": STORY,
    "empty": "",
    "white space": " \n\n \n",
    "odd line ends": "\r\n \u2028 The sea.\x0c\r\n" + STORY + "\n\n \n",
    "Smashwords in a story": "She had found the novel on Smashwords and read it twice.\n\n" + STORY,
    "Smashwords in the middle": STORY + "\n\n" + SMASHWORDS["as most of them are"] + STORY,
    "Smashwords at the end": STORY + "\n\nDiscover other titles by A. N. Author at Smashwords.com\n",
    "a licence of another kind": "This ebook is licensed for your personal enjoyment only.\n\n" + STORY,
    "a copyright page without Smashwords": "Copyright 2011 by A. N. Author\n\nAll rights reserved.\n\n"
    + STORY,
    "about Project Gutenberg": "He read what Project Gutenberg had.\n\n"
    + STORY
    + "\n\nThe end of Project Gutenberg.",
    "marks in mid-line": f"It said *** START OF THE PROJECT GUTENBERG EBOOK X *** there.\n\n{STORY}",
    "marks far inside": f"{STORY * 6}\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n{STORY * 6}",
    "marks with nothing between": "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK X ***",
    "other asterisks": "***\n\n*** The End ***\n\n" + STORY,
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_is_not_marked_stays_to_the_byte(name: str) -> None:
    text = LOOKALIKES[name]
    cleaned, cut = clean(text, BOTH)
    assert cut == {} and cleaned is text


def test_front_matter_that_never_ends_is_not_the_book() -> None:
    """Every paragraph is a licence: no more than 10,000 characters and half of the text go."""
    note = SMASHWORDS["as most of them are"]
    for copies in (2, 4, 100):
        text = note * copies
        cut = len(text) - len(cut_smashwords(text))
        assert 0 < cut <= min(10_000, len(text) / 2)


def test_steps_are_taken_as_told() -> None:
    text = SMASHWORDS["distributed"] + STORY
    assert clean(text, []) == (text, {}) and clean(text, ["gutenberg"]) == (text, {})
    assert clean(text, ["smashwords"])[0] == STORY
    assert list(STEPS) == BOTH


def test_the_sample_stays_as_it_is() -> None:
    for play in open_books("sample"):
        assert clean(play.text, BOTH) == (play.text, {})


def test_random_texts_keep_what_is_between() -> None:
    """Whatever stands around: nothing is added, nothing reordered, nothing cut but ends."""
    chosen = random.Random(0)
    pieces = [
        *SMASHWORDS.values(),
        *re.split(r"(?<=\n\n)", GUTENBERG["with a typist"])[:9],
        STORY[:3000],
        "***\n",
        " \n\n",
    ]
    for _ in range(300):
        text = "".join(chosen.choices(pieces, k=chosen.randrange(1, 8)))
        cleaned, cut = clean(text, BOTH)
        assert cleaned in text and len(text) - len(cleaned) == sum(cut.values())


POEM = "The grey ships went out on the tide, and the pier stood empty until the spring.\n"
MARKED = GUTENBERG["today"]


@pytest.mark.parametrize("lines", [3, 6, 12, 24])
@pytest.mark.parametrize("place", ["between", "before", "after", "between bare marks"])
def test_a_short_text_without_marks_beside_books_with_them_is_kept(place: str, lines: int) -> None:
    poem = POEM * lines
    assert 200 < len(poem) < 2000
    end, start = (
        "*** END OF THE PROJECT GUTENBERG EBOOK A ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK B ***",
    )
    head, tail = MARKED.partition("*** END")[0], MARKED.partition("PIER ***")[2]
    texts = {
        "between": f"{MARKED}\n\n{poem}\n\n{MARKED}",
        "before": f"{poem}\n\n{MARKED}",
        "after": f"{MARKED}\n\n{poem}",
        "between bare marks": f"{head}{end}\n\n{poem}\n\n{start}{tail}",
    }
    if place == "between bare marks" and lines < 6:
        pytest.skip("of two marks without a notice a few lines may be the first one's title or the other's")
    cleaned = cut_gutenberg(texts[place])
    assert poem.strip() in cleaned and STORY in cleaned


def test_real_pauses_of_notices_are_no_books() -> None:
    """The longest of a header of 1994 and of one of 2002, in which nothing speaks of Project Gutenberg."""
    states = "Alabama, Alaska, Arkansas, Connecticut, Delaware, District of Columbia, Florida, Georgia,\n" * 9
    months = "We are now trying to release all our books one month in advance of the official dates.\n" * 5
    header = f"The Project Gutenberg Etext of The Long Pier\n\n{months}\n\n"
    header += f"We need your donations in\n{states}"
    assert 700 < len(states) < 1000
    start = "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"
    text = f"{header}\n\nArtwork by e-text volunteers.\n{start}\n\n{STORY}"
    assert cut_gutenberg(text) == STORY
    # Files joined to one: a licence, the name of its file, a header.
    joined = f"{MARKED}\n\npier10.txt\n\n{MARKED}"
    assert cut_gutenberg(joined) == f"{STORY}\n\n{STORY}"


@pytest.mark.parametrize(
    "text",
    [
        " " * 400_000,
        "\n" * 400_000,
        "* " * 200_000,
        "Smashwords\n" * 40_000,
        "GUTENBERG *** START OF THE " * 15_000,
        "Produced by \n" * 30_000,
        "x" * 400_000,
    ],
)
def test_it_is_quick_on_anything(text: str) -> None:
    began = time.process_time()
    clean(text, BOTH)
    clean("*** START OF THE PROJECT GUTENBERG EBOOK X ***\nSmashwords Edition\n" + text, BOTH)
    assert time.process_time() - began < 5  # each character with each takes minutes


def test_prepare_cleans_before_it_looks_for_copies_and_counts(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for n in range(3):
        (books / f"plain {n}.txt").write_text(f"Number {n}. {STORY}")
    (books / "sold.txt").write_text(SMASHWORDS["as most of them are"] + f"Number 0. {STORY}")
    (books / "scanned.txt").write_text(GUTENBERG["today"])
    model = {"vocab_size": 280, "max_seq_len": 16}
    data = {"source": str(books), "data_dir": str(tmp_path / "v1"), "tokenizer": "bpe"}
    config = config_from_dict({"model": model, "data": data}, "test")
    manifest = prepare(config, progress=False, workers=1)
    assert manifest["cleaned"] == {
        "smashwords": {"books": 1, "characters": len(SMASHWORDS["as most of them are"])},
        "gutenberg": {"books": 1, "characters": len(GUTENBERG["today"]) - len(STORY)},
    }
    assert manifest["dropped"]["counts"]["duplicate"] == 1
    assert sum(split["books"] for split in manifest["splits"].values()) == 4
    with pytest.raises(UserError, match=r"data\.clean was \['smashwords', 'gutenberg'\], now it is \[\]"):
        prepare(config.with_overrides({"data.clean": "[]"}), progress=False, workers=1)
    as_it_is = config.with_overrides({"data.clean": "[]", "data.data_dir": str(tmp_path / "v2")})
    manifest = prepare(as_it_is, progress=False, workers=1)
    assert manifest["cleaned"] == {} and manifest["dropped"]["counts"]["duplicate"] == 0


SECOND = STORY.replace("sea", "moor").replace("pier", "hill")
NOT_KNOWN = "Ende dieses Projekt Gutenberg Etextes"
TWO_BOOKS = {
    "new": (GUTENBERG["today"], GUTENBERG["today"]),
    "both styles": (GUTENBERG["with a typist"], GUTENBERG["with a typist"]),
    "old": (GUTENBERG["small print"], GUTENBERG["small print, otherwise"]),
    "new, then old": (GUTENBERG["a long title"], GUTENBERG["small print"]),
    "old, then new": (GUTENBERG["small print"], GUTENBERG["today"]),
}


@pytest.mark.parametrize("name", TWO_BOOKS)
def test_of_several_books_in_a_file_each_is_kept(name: str) -> None:
    first, second = TWO_BOOKS[name]
    text, cut = clean(f"{first}\n\n{second.replace(STORY, SECOND)}\n\n{first}", BOTH)
    assert text == f"{STORY}\n\n{SECOND}\n\n{STORY}"
    assert set(cut) == {"gutenberg"}


@pytest.mark.parametrize("unknown", ["the first one's end", "the second one's beginning", "both"])
def test_between_books_nothing_is_cut_whose_marks_are_not_known(unknown: str) -> None:
    end = "End of Project Gutenberg Etext of The Long Pier, by A. N. Author"
    for book in (GUTENBERG["small print"], GUTENBERG["today"].replace("*** END OF THE", "*** END OF THIS")):
        first, second = book, book.replace(STORY, SECOND)
        if unknown != "the second one's beginning":
            first = first.replace(end, NOT_KNOWN).replace("*** END OF THIS", NOT_KNOWN)
        if unknown != "the first one's end":
            second = second.replace("*END*", "*ENDE*").replace("*** START", "*** ANFANG")
        text, _ = clean(first[: first.index(STORY) + len(STORY) + 200] + second, BOTH)
        assert text.startswith(STORY) and text.endswith(SECOND)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_book_without_marks_beside_books_with_marks_is_kept(place: int) -> None:
    for name in GUTENBERG:
        books = [GUTENBERG[name], GUTENBERG["today"]]
        books.insert(place, SECOND)
        assert SECOND in cut_gutenberg("\n\n".join(books)), name


def test_names_with_a_hyphen_and_books_that_are_not_free() -> None:
    for kind in ("E-BOOK", "E-TEXT"):
        assert cut_gutenberg(GUTENBERG["today"].replace("GUTENBERG EBOOK", f"GUTENBERG {kind}")) == STORY
    book = GUTENBERG["today"].replace("THE PROJECT GUTENBERG", "THE COPYRIGHTED PROJECT GUTENBERG")
    assert cut_gutenberg(book) == STORY
