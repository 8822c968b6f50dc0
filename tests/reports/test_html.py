"""Templates: what is put into them cannot act, what they lack is an error, and an installation has them."""

from __future__ import annotations

import re
import shutil
import zipfile

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from horovod_transformer.reports import html

NASTY = "</title><b a='1'>&amp;\"\x00\x1b[31m\ud800\tA\n"
ESCAPED = "&lt;/title&gt;&lt;b a=&#39;1&#39;&gt;&amp;amp;&#34;\ufffd\ufffd[31m\ufffd\tA\n"


def test_all_that_is_put_in_is_escaped():
    page = html.render("page.html.j2", title=NASTY)
    assert f"<title>{ESCAPED}</title>" in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page and page.startswith("<!DOCTYPE html>\n")


def test_our_own_markup_is_not():
    page = html.render("page.html.j2", title=Markup("<i>{}</i>").format(NASTY))
    assert f"<title><i>{ESCAPED}</i></title>" in page


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="title"):
        html.render("page.html.j2")


def test_templates_do_not_switch_the_escaping_off(root):
    folder = root / "horovod_transformer/reports/templates"
    pages = sorted(folder.glob("*.html.j2"))
    assert len(pages) == 6
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape", text), path
        if path.name not in ("page.html.j2", "macros.html.j2"):
            assert text.startswith('{% extends "page.html.j2" %}'), path  # the security policy is in there


def test_a_wheel_has_them(root, run_python, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(root / "horovod_transformer", copy / "horovod_transformer")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = run_python("-c", program, cwd=copy)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    room = "horovod_transformer/reports/templates"
    names = {f"{room}/{path.name}" for path in (root / room).iterdir()}
    assert f"{room}/style.css" in names and names <= set(zipfile.ZipFile(wheel).namelist())
