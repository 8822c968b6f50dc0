"""HTML to plain text: what a reader reads stays, in its lines; no page takes long, whatever is in it."""

from __future__ import annotations

import time

import pytest

from horovod_transformer.books.pages import full_title, read_page

TEXTS = {
    "paragraphs": ("<p>One  two\nthree.</p>\n<p>Four.", "One two three.\n\nFour."),
    "inline tags": ("<p>a <i>b</i>c <b>d</b><br/>e<br>\n f", "a bc d\ne\nf"),
    "space between tags": ("<p><b>a</b> <i>b</i>\n<u>c</u>", "a b c"),
    "headings": ("<h1>A</h1>text<h2>B</h2>more", "A\n\ntext\n\nB\n\nmore"),
    "verse": ("<div>a</div><div>b</div><p>c", "a\nb\n\nc"),
    "lists": ("<ul><li>a<li>b</ul>c", "a\nb\n\nc"),
    "tables": ("<table><tr><td>a<td>b</tr><tr><td>c</table>", "a b\nc"),
    "entities": ("<p>&amp;lt; &eacute;&#8212;&#x2014;&nbsp;&bogus; AT&T", "&lt; é—— &bogus; AT&T"),
    "scripts": ("<script>if (a<b) '</p>';</script><style>p{}</style>x<SCRIPT>y</SCRIPT >z", "xz"),
    "comments": ("a<!-- <p> -- > -->b<!DOCTYPE x><?php x ?>c", "abc"),
    "navigation": ("<nav><p>Home<nav>x</nav><p>y</nav><p>text", "text"),
    "page numbers": (
        '<p>the <span class="x pagenum">[12]</span>end <a id="p" epub:type="pagebreak">3</a>.',
        "the end .",
    ),
    "a page number that nobody ended": ("<p>the <span class=pagenum>[12] <p>end", "the\n\nend"),
    "a table of contents inside": ('a<section epub:type="toc"><section>b</section>c</section>d', "a\n\nd"),
    "as it stands": ("<pre>a\n  b\n\nc</pre>d", "a\n  b\n\nc\n\nd"),
    "soft hyphens": ("<p>Donau&shy;dampf\u00adschiff\u200b", "Donaudampfschiff"),
    "ruby": ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>字", "漢字"),
    "XHTML that ends what it begins": (
        '<?xml version="1.0"?><html><head><title/><script src="a"/></head><nav/><p>a<a id="x"/>b<span/>c</p>',
        "abc",
    ),
    "other signs": ("1 < 2 and 3 > 2 <3 a<", "1 < 2 and 3 > 2 <3 a<"),
    "a tag that never ends": ('<p>a<p class="x', 'a<p class="x'),
    "a quote that never ends": ("<p>a<p title=it's>b", "a\n\nb"),
    "a bracket in a value": ('<p>a<img alt="a > b" title="<p>">b', "ab"),
    "other name spaces": ("<html:p>a</html:p><html:p>b</html:p>", "a\n\nb"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_a_page(name: str) -> None:
    page, wanted = TEXTS[name]
    assert read_page(page).text == wanted


def test_title_and_author() -> None:
    page = read_page(
        "<head><title>Emma\n &amp; Co</title><META content='Jane Austen' NAME=\"author\"></head><p>x"
    )
    assert (page.title, page.author, page.text) == ("Emma & Co", "Jane Austen", "x")
    assert read_page('<meta name="dc.creator" content="J. A."><title/><p>x').author == "J. A."
    assert full_title("Emma", "Jane Austen") == "Emma (Jane Austen)"
    assert full_title("Emma, by Jane Austen", "Jane Austen") == "Emma, by Jane Austen"
    assert full_title("", "Jane Austen") == "Jane Austen" and full_title("Emma", "") == "Emma"


def test_links_are_counted() -> None:
    page = read_page('<a href="x">One</a><a href="y">Two</a> <a id="z">three</a>')
    assert (page.links, page.linked) == (2, 6)


K = 60_000
HOSTILE = {
    "deep": "<div>" * K,
    "deep, ended by another": "<x>" * K + "</y>" * K,
    "deep navigation": "<nav>" * K + "</nav>" * K,
    "styles that a browser repeats": "<p>" + "".join(f"<b a={n}>" for n in range(K)) + "<p>x" * K,
    "attributes": "<p " + " ".join(f"a{n}" for n in range(K)) + ">",
    "classes": "<p " + " class=pagenu" * K + ">",
    "a huge class": '<p class="' + "pagenu " * K + '">',
    "a huge value": '<p a="' + "x" * 20 * K + '">',
    "a huge value that never ends": '<p a="' + "x" * 20 * K,
    "quotes": '<a "' * K,
    "quotes in quotes": "<a '\"'" * K,
    "tags that never end": "<a " * K,
    "comments that never end": "<!--" * K,
    "declarations that never end": "<!" * K,
    "scripts that never end": "<script>" * K,
    "scripts that end badly": "<script></script" * K,
    "signs": "<" * K + "&" * K + "&#" * K,
    "a huge number": "&#" + "9" * K + ";",
    "white space": " " * 20 * K + "<pre>" + "\n" * 20 * K,
    "an author without a quote": "<meta name=author content=" * K + ">",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_page_takes_long(name: str) -> None:
    """What grows with the square of the size would take minutes here; a time-out is for what hangs."""
    began = time.process_time()
    read_page(HOSTILE[name])
    assert time.process_time() - began < 30
