"""HTML and XHTML pages to plain text: paragraphs, headings and line breaks stay, scripts and navigation go.

    page = read_page("<title>Emma</title><h1>Emma</h1><p>Emma Woodhouse, <i>handsome</i>, clever, and rich")
    page.text       # "Emma\\n\\nEmma Woodhouse, handsome, clever, and rich"

Tags are taken one after the other, as they stand, and no tree is built: a browser's rules for broken pages
make a tree of a small hostile page that takes a gigabyte or a minute. Here time and memory grow with
the page's size, whatever is in it.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

# Quoted values may have `>` in them; a tag with a quote that does not end is taken up to its `>` anyway.
# Neither pattern goes on beyond a `<` outside of quotes: the whole page is looked at a few times at most.
_TAG = re.compile(
    r"""<(?P<end>/?)(?P<name>[a-zA-Z][^\s/<>]*+)"""
    r"""(?P<attributes>(?:(?:[^'"<>]++|"[^"]*+"|'[^']*+')*+(?=>)|[^<>]*+))>"""
)


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_BLANK_LINE = _names(
    "p h1 h2 h3 h4 h5 h6 blockquote ul ol dl pre table figure figcaption caption hr center address section "
    "article header footer main aside fieldset details poem"
)
_NEW_LINE = _names("div br li tr dt dd body html head title legend summary option line")
_SPACE = _names("td th")
# What is in them is no markup.
_RAW = _names("script style textarea title iframe xmp noembed noframes")
_WITHOUT_CONTENT = _names("area base br col embed hr img input link meta source track wbr")
# No part of what a reader reads; of ruby, which says how a word is spoken, the word stays.
_LEFT_OUT = _names("nav template noscript object audio video canvas svg select button datalist rt rp")
# What a page says of a part of it: its use in an e-book, or the class of a printed book's page numbers.
_USE = re.compile(
    r"""\s(?:epub:type|role|class)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"'>]++))""", re.IGNORECASE
)
_LEFT_OUT_USES = _names(
    "pagebreak toc landmarks page-list loi lot cover copyright-page index navigation doc-pagebreak doc-toc "
    "doc-pagelist doc-cover doc-index pagenum pageno pagenumber page-number"
)
_AUTHOR = re.compile(r"""\sname\s*+=\s*+["']?(?:author|dc\.creator|dcterms\.creator)["'\s]""", re.IGNORECASE)
_CONTENT = re.compile(r"""\scontent\s*+=\s*+(?:"([^"]*+)"|'([^']*+)')""", re.IGNORECASE)
_XHTML = re.compile(r"<\?xml\s|<html\s[^<>]*xmlns\s*=", re.IGNORECASE)
# Where words may be cut at the end of a line, marks that only a program sees.
_NO_CHARACTERS = {0xAD: None, 0x200B: None, 0xFEFF: None}
_LONGEST_TITLE = 300


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
        text: Plain text.
        title, author: What the page calls itself; empty if it does not.
        links: How many links it has to other places.
        linked: How many characters of its text stand in them.
    """

    text: str
    title: str = ""
    author: str = ""
    links: int = 0
    linked: int = 0


class _Text:
    """Plain text as it grows: white space is one space, and lines break where tags say so."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._lines = 0
        self._space = False

    def add(self, text: str) -> int:
        """Add text; return how many characters that made."""
        words = " ".join(text.split())
        if not words:
            self._space = self._space or bool(text)
            return 0
        self._before(text[0].isspace())
        self._pieces.append(words)
        self._space = text[-1].isspace()
        return len(words)

    def add_as_it_is(self, text: str) -> None:
        """Add text whose white space counts."""
        if text:
            self._before(False)
            self._pieces.append(text)
            self._space = False

    def _before(self, space: bool) -> None:
        if self._pieces and self._lines:
            self._pieces.append("\n" * self._lines)
        elif self._pieces and (space or self._space):
            self._pieces.append(" ")
        self._lines, self._space = 0, False

    def end_line(self, lines: int) -> None:
        """What comes next begins a line, with an empty one before it if `lines` is 2."""
        self._lines = max(self._lines, lines)

    def space(self) -> None:
        """What comes next is another word."""
        self._space = True

    def __str__(self) -> str:
        return "".join(self._pieces).translate(_NO_CHARACTERS).strip("\n")


def read_page(page: str) -> Page:
    """Make plain text of a page.

    Args:
        page: HTML or XHTML, broken or not.
    """
    page = page.replace("\r\n", "\n").replace("\r", "\n")
    # There `<title/>` has no content; in HTML all that follows would be it.
    closes_itself = bool(_XHTML.search(page, 0, 4096))
    text = _Text()
    title = author = ""
    links = linked = kept_as_it_is = 0
    in_link = False
    # The element that is being left out, and how often its name is open.
    left_out, depth = "", 0
    place = 0

    def say(content: str) -> None:
        nonlocal linked
        if not content or left_out:
            return
        content = _unescape(content)
        if kept_as_it_is:
            text.add_as_it_is(content)
        else:
            added = text.add(content)
            linked += added if in_link else 0

    while (start := page.find("<", place)) >= 0:
        tag = _TAG.match(page, start)
        if tag is None:
            following = page[start + 1 : start + 2]
            if following not in ("!", "?", "/"):
                say(page[place : start + 1])  # a plain "less than"
                place = start + 1
                continue
            say(page[place:start])
            mark = "-->" if page.startswith("<!--", start) else ">"
            end = page.find(mark, start + 1)
            place = len(page) if end < 0 else end + len(mark)
            continue
        say(page[place:start])
        place = tag.end()
        name, attributes = tag["name"].lower().rpartition(":")[2], tag["attributes"]
        closing = bool(tag["end"])
        empty = name in _WITHOUT_CONTENT or (closes_itself and attributes.endswith("/"))
        if name in _RAW and not closing and not empty:
            end, after = _end_of_raw(page, name, place)
            if name == "title" and not title and not left_out:
                title = " ".join(_unescape(page[place:end]).split())[:_LONGEST_TITLE]
            place = after
            continue
        if left_out:
            block = name in _BLANK_LINE or name in _NEW_LINE
            if left_out in ("span", "a") and block and name != "br":
                left_out = ""  # somebody forgot to end it
            else:
                if name == left_out and not empty:
                    depth += -1 if closing else 1
                if depth <= 0:
                    left_out = ""
                    if name in _BLANK_LINE:
                        text.end_line(2)
                continue
        if not closing and attributes and name == "meta" and not author and _AUTHOR.search(attributes + " "):
            found = _CONTENT.search(attributes)
            author = " ".join(_unescape(found[1] or found[2] or "").split())[:_LONGEST_TITLE] if found else ""
        if not closing and not empty and _is_left_out(name, attributes):
            left_out, depth = name, 1
            continue
        if name in _BLANK_LINE:
            text.end_line(2)
        elif name in _NEW_LINE:
            text.end_line(1)
        elif name in _SPACE:
            text.space()
        if name == "pre" and not empty:
            kept_as_it_is = max(0, kept_as_it_is + (-1 if closing else 1))
        elif name == "a" and not empty:
            in_link = not closing and "href" in attributes
            links += in_link
    say(page[place:])
    return Page(str(text), title, author, links, linked)


def _end_of_raw(page: str, name: str, place: int) -> tuple[int, int]:
    """Where the content of a script and the like ends, and where the page goes on."""
    end = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(page, place)
    if end is None:
        return len(page), len(page)
    closed = page.find(">", end.end())
    return end.start(), len(page) if closed < 0 else closed + 1


def _is_left_out(name: str, attributes: str) -> bool:
    if name in _LEFT_OUT:
        return True
    # What a whole page is, the book says.
    if not attributes or name in ("body", "html"):
        return False
    return any(
        not _LEFT_OUT_USES.isdisjoint("".join(use.groups("")).lower().split())
        for use in _USE.finditer(attributes)
    )


def _unescape(text: str) -> str:
    if "&" not in text:
        return text
    try:
        return html.unescape(text)
    except ValueError:
        return text  # a number of thousands of digits, which is no character


def full_title(title: str, author: str) -> str:
    """Return a book's title with its author, if that does not name them."""
    if not author or author.casefold() in title.casefold():
        return title
    return f"{title} ({author})" if title else author
