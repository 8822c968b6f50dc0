"""The law that was fitted to some prepared data, kept in its folder as `law.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from horovod_transformer.errors import UserError
from horovod_transformer.planning.law import Law, Point, usual_law
from horovod_transformer.system.files import write_text
from horovod_transformer.system.paths import readable

LAW_FILE, LAW_PAGE = "law.json", "law.html"
_NUMBERS = [field.name for field in fields(Law) if field.name != "source"]


def keep_law(data_dir: Path, law: Law, points: Sequence[Point]) -> Path:
    """Write a law, the runs that it was fitted to, and their page; `prepare --force` removes all of it.

    Returns:
        The page.
    """
    # Imported late: every rank of a training run loads this module, and none draws a page.
    from horovod_transformer.reports.ladder import LadderRun, ladder_page

    path, page = data_dir / LAW_FILE, data_dir / LAW_PAGE
    runs = [
        LadderRun(
            point.parameters,
            point.tokens,
            point.bits_per_byte,
            law.bits_per_byte(point.parameters, point.unique, point.tokens),
        )
        for point in points
    ]
    write_text(page, ladder_page(readable(data_dir), law.formula(), law.error, runs))
    content = {"law": asdict(law), "points": [asdict(point) for point in points]}
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return page


def law_for(data_dir: Path | None, unique: int) -> Law:
    """The law that was fitted to this data; without one the usual one for so much text.

    Args:
        data_dir: A folder of prepared data; None if nothing is prepared.
        unique: Tokens of the training split.

    Raises:
        UserError: There is a `law.json` that is damaged.
    """
    if data_dir is None or not (data_dir / LAW_FILE).is_file():
        return usual_law(unique)
    path = data_dir / LAW_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["law"]
        numbers = {name: found[name] for name in _NUMBERS}
        if not all(type(value) in (int, float) and 0 <= value < math.inf for value in numbers.values()):
            raise ValueError
        return Law(**numbers, source=str(found["source"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{readable(path)}: cannot be read as a law; remove it, or calibrate again") from None
