"""The config as text: what is in effect, and what its keys mean."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from horovod_transformer.commands.config_keys import ConfigKey, config_keys, key_comments
from horovod_transformer.config import Config, load_config, read_config_file
from horovod_transformer.errors import UserError, no_such

_WIDTH = 100


def shown(path: str, overrides: Mapping[str, Any]) -> str:
    """All of the config in effect as YAML, each value with where it comes from.

    Args:
        path: The config file.
        overrides: The keys that the command line sets.

    Raises:
        UserError: The config does not hold.
    """
    config, defaults, in_file = load_config(path, overrides), Config().to_dict(), read_config_file(path)
    rows = []
    for section, values in config.to_dict().items():
        rows.append((f"{section}:", ""))
        for key, value in values.items():
            if f"{section}.{key}" in overrides:
                origin = "command line"
            elif key in in_file.get(section, {}):
                origin = path
            else:  # of global_batch_size and gradient_accumulation_steps one turns the other off
                origin = "default" if value == defaults[section][key] else "follows from another key"
            rows.append((f"  {key}: {_yaml(value)}", f"# {origin}"))
    width = min(max(len(text) for text, _ in rows), 60)
    return "\n".join(f"{text:<{width}}  {origin}".rstrip() for text, origin in rows)


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def explained(name: str) -> str:
    """What a key means, what it takes, its default; or the same, shorter, of all keys of a section.

    Args:
        name: `training.seed`, `seed` or `training`; hyphens may stand for underscores.

    Raises:
        UserError: There is no such key.
    """
    keys, comments = config_keys(), key_comments()
    name = name.strip("-.").replace("-", "_")
    if name in Config.model_fields:
        return "\n".join(_briefly(key, comments) for key in keys.values() if key.section == name)
    found = [key for key in keys.values() if name in (key.name, key.short_name)]
    if not found:
        known = [*keys, *(key.short_name for key in keys.values()), *Config.model_fields]
        raise UserError(f"{name}: {_no_such_key(name, known)}")
    return "\n\n".join(_at_length(key, comments) for key in found)


def _no_such_key(name: str, known: list[str]) -> str:
    section, _, key = name.partition(".")
    elsewhere = [full for full in config_keys() if key and full.endswith(f".{key}")]
    if elsewhere:
        return f"no such key; did you mean {' or '.join(elsewhere)}?"
    words = no_such("key", name, known)
    return words if "did you mean" in words else "no such key; `horovod-transformer config explain` lists all"


def _at_length(key: ConfigKey, comments: Mapping[str, str]) -> str:
    meaning = textwrap.fill(comments.get(key.name, ""), _WIDTH, initial_indent="  ", subsequent_indent="  ")
    rows = [key.name, meaning, f"  takes:    {key.kind}", f"  default:  {key.default}"]
    rows.append(f"  as in:    --{key.name} {_example(key)}")
    return "\n".join(filter(None, rows))


def _example(key: ConfigKey) -> str:
    if key.choices:
        return next(choice for choice in key.choices if choice != key.default)
    return "VALUE" if key.default == "null" or "[" in key.default else key.default


def _briefly(key: ConfigKey, comments: Mapping[str, str]) -> str:
    head = f"{key.name} ({key.kind}; default {key.default})"
    return f"{head}\n    {textwrap.shorten(comments.get(key.name, ''), _WIDTH - 4, placeholder=' ...')}"


def overview() -> str:
    """The names of all keys, section by section."""
    lines = []
    for section in Config.model_fields:
        names = ", ".join(key.short_name for key in config_keys().values() if key.section == section)
        lines.append(textwrap.fill(f"{section}: {names}", _WIDTH, subsequent_indent="  "))
    lines.append("\n`horovod-transformer config explain SECTION` or `... explain SECTION.KEY` tells more")
    return "\n".join(lines)
