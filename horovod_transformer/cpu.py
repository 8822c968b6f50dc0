"""What kind of CPU this is, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_field(name: str, path: Path = CPUINFO) -> str:
    """What Linux says of the first CPU under a name (`vendor_id`, `model name`); empty if it says nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""  # not Linux
    fields = (line.partition(":") for line in lines)
    return next((text.strip() for field, _, text in fields if field.strip() == name), "")


def cpu_flags(path: Path = CPUINFO) -> list[str]:
    """This CPU's flags by Linux's names: what the CPU has and the kernel lets programs use."""
    return cpu_field("flags", path).split()
