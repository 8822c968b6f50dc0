"""The keys of the config as people read them: what each takes, its default, what it means."""

from __future__ import annotations

import json
import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from horovod_transformer.config import OUR_CONFIGS, Config

# What keeps a number within 32 or 64 bits says nothing to a reader.
_MACHINE_LIMIT = 2**31


@dataclass(frozen=True)
class ConfigKey:
    """A key of the config.

    Attributes:
        name: Section and key: `training.seed`.
        kind: What it takes, in words.
        default: As it is given on the command line.
        choices: What it takes, if that is one of a few words.
    """

    name: str
    kind: str
    default: str
    choices: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """`training` of `training.seed`."""
        return self.name.partition(".")[0]

    @property
    def short_name(self) -> str:
        """`seed` of `training.seed`."""
        return self.name.partition(".")[2]


def config_keys() -> dict[str, ConfigKey]:
    """Return each key of the config by its dotted name, in the order of the sections."""
    keys = {}
    for section, field in Config.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key, value in field.annotation.model_fields.items():
            name = f"{section}.{key}"
            default = value.default if isinstance(value.default, str) else json.dumps(value.default)
            limits = _limits(value.metadata) or _limits_of(value.annotation)
            kind = _type_words(value.annotation)
            keys[name] = ConfigKey(
                name, f"{kind}, {limits}" if limits else kind, default, _choices(value.annotation)
            )
    return keys


def key_comments() -> dict[str, str]:
    """Return what the comments of `configs/config.yaml` say of each key; empty if that file is not here."""
    try:
        lines = (OUR_CONFIGS / "config.yaml").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    comments: dict[str, str] = {}
    section = name = ""
    for line in lines:
        if found := re.fullmatch(r"(\w+):", line):
            section, name = found[1], ""
        # A key may be commented out, where another one stands in its place.
        elif found := re.fullmatch(r"  (?:# )?(\w+):(?: .*?)??(?:\s+# (.*))?", line):
            name = f"{section}.{found[1]}"
            comments[name] = found[2] or ""
        elif (found := re.fullmatch(r"\s+#\s+(.*)", line)) and name:
            comments[name] += f" {found[1]}"
        else:
            name = ""
    return {name: comment for name, comment in comments.items() if comment}


def _type_words(annotation: Any) -> str:
    """`int`, `auto|fp32|bf16`, `text|list|null`: what YAML may hold for this annotation."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _type_words(parts[0])
    if kind is Literal:
        return "|".join(map(str, parts))
    if kind in (Union, types.UnionType):
        return "|".join(map(_type_words, parts))
    names = {int: "int", float: "number", bool: "true|false", str: "text", list: "list", type(None): "null"}
    return names.get(kind or annotation, "keys and values")  # a section within a section


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    words = _type_words(annotation)
    return tuple(words.split("|")) if get_origin(annotation) is Literal or annotation is bool else ()


def _limits_of(annotation: Any) -> str:
    """The limits of the first of several types that has some: of the number in `int|null`."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _limits(_flat(parts[1:])) or _limits_of(parts[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next(filter(None, map(_limits_of, parts)), "")
    return ""


def _flat(metadata: Any) -> list[Any]:
    return [inner for outer in metadata for inner in getattr(outer, "metadata", [outer])]


def _limits(metadata: Any) -> str:
    words = {Gt: ("above", "gt"), Ge: ("at least", "ge"), Lt: ("below", "lt"), Le: ("at most", "le")}
    found = {}
    for limit in _flat(metadata):
        if type(limit) in words:
            word, attribute = words[type(limit)]
            if abs(value := getattr(limit, attribute)) < _MACHINE_LIMIT:
                found[word] = value
    return ", ".join(f"{word} {value:g}" for word, value in found.items())
