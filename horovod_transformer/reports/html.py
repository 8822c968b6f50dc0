"""Pages that need nothing but themselves: no script, no font, no picture is fetched.

What a page shows is untrusted: all text is escaped, and the page forbids scripts and resources in
its own security policy.
"""

from __future__ import annotations

import html
from typing import Any


def page(title: str, body: str) -> str:
    """Put a body, HTML already, into a whole page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>{body}</body>
</html>
"""


def escape(value: Any) -> str:
    """Escape text for HTML; control characters, which HTML forbids, become U+FFFD."""
    clean = "".join(c if c in "\n\t" or c.isprintable() or c.isspace() else "\ufffd" for c in str(value))
    return html.escape(clean, quote=True)


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2328; --soft: #66717c; --line: #d9dee3; --wash: #f4f6f8;
  --paper: #fff; --accent: #2f6f9f }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ea; --soft: #98a3ad; --line: #353c43;
  --wash: #20262b; --paper: #171b1f; --accent: #7db5dd } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem }
h1 { font-size: 1.7rem; margin: 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
h3 { font-size: .8rem; margin: 0 0 .3rem; color: var(--soft); font-weight: 600 }
h4 { font-size: .8rem; margin: 0 0 .3rem; color: var(--accent) }
h4 span { color: var(--soft); font-weight: 400 }
.note, dd, summary { color: var(--soft); font-size: .9rem; margin: .4rem 0; overflow-wrap: anywhere }
.cards { display: flex; flex-wrap: wrap; gap: .75rem }
.cards div { flex: 1 1 9rem; background: var(--wash); border-radius: .5rem; padding: .8rem 1rem }
.cards b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums }
.cards span { color: var(--soft); font-size: .85rem }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 }
th, td { text-align: left; font-weight: 400; padding: .3rem .6rem; vertical-align: top }
.quality thead th { color: var(--soft); font-size: .85rem }
.quality td, .quality thead th:nth-child(n+3) { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.quality td span { display: inline-block; min-width: 4.5em; color: var(--soft); font-size: .85rem }
.quality .first > * { border-top: 1px solid var(--line) }
.quality .group { font-weight: 600; text-transform: capitalize }
.figures { width: auto } .figures thead th { color: var(--soft); font-size: .85rem }
.figures td, .figures thead th { text-align: right; font-variant-numeric: tabular-nums }
.figures tbody tr > * { border-top: 1px solid var(--line) }
.facts { width: auto; font-size: .9rem } .facts th { color: var(--soft) }
.facts td { overflow-wrap: anywhere }
dt { font-weight: 600; font-size: .9rem; margin-top: .6rem } dd { margin: 0 }
section { background: var(--wash); border-radius: .5rem; padding: 1rem; margin: .8rem 0 }
.text { font: .95rem/1.45 Georgia, serif; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  unicode-bidi: isolate }
.prompt { color: var(--soft); border-left: 3px solid var(--line); padding-left: .8rem; margin-bottom: .9rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem }
figure { margin: 0; break-inside: avoid } figcaption { font-size: .85rem; color: var(--soft) }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--soft); font-size: 11px }
svg .grid { stroke: var(--line) } svg .restart { stroke: var(--soft); stroke-dasharray: 3 3 }
svg .skipped { stroke: #c0392b; stroke-width: 2 } svg polyline { fill: none; stroke-width: 1.6 }
.raw { opacity: .3; stroke-width: 1 !important }
.key i { display: inline-block; width: 1.4rem; height: .25rem; vertical-align: middle;
  margin: 0 .4rem 0 1rem }
pre { background: var(--wash); padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap }
@media print { body { max-width: none; padding: 0; font-size: 11pt } section, tr { break-inside: avoid }
  h2 { break-after: avoid }
  :root { --ink: #000; --soft: #444; --line: #bbb; --wash: #f4f4f4; --paper: #fff } }
@media screen and (max-width: 40rem) { .charts { grid-template-columns: 1fr } }
@media print { .charts { grid-template-columns: 1fr 1fr } }
@media screen and (max-width: 40rem) { .pair { grid-template-columns: 1fr } }
"""
