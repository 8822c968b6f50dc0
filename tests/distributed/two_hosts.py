"""Two hosts on one machine: network namespaces with names and addresses of their own, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

HOSTS = {"h1": "10.99.0.11", "h2": "10.99.0.12"}


def why_not() -> str | None:
    """What is missing for two hosts here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian package iproute2)"
    probe = f"probe{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    _ip("netns", "delete", probe)
    return None


class TwoHosts:
    """Hosts h1 and h2, while entered."""

    def __init__(self, folder: Path) -> None:
        self._tag = uuid.uuid4().hex[:6]
        self._bridge = f"b{self._tag}"
        self._hosts_file = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in HOSTS.items())]
        self._hosts_file.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> TwoHosts:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for name, address in HOSTS.items():
            space, outside = self._space(name), self._outside(name)
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", self._space(name)], check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], check=False)

    def command(self, host: str, command: list[str]) -> list[str]:
        """What runs a command on a host, under its name and with its /etc/hosts."""
        script = f'mount --bind {self._hosts_file} /etc/hosts; hostname {host}; exec "$@"'
        there = ["ip", "netns", "exec", self._space(host)]
        return [*there, "unshare", "--uts", "--mount", "sh", "-c", script, host, *command]

    def cut(self) -> None:
        """Pull h2's cable."""
        _ip("link", "set", self._outside("h2"), "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self._outside("h2"), "up")

    def _space(self, host: str) -> str:
        return f"{host}-{self._tag}"

    def _outside(self, host: str) -> str:
        return f"{host}-{self._tag}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20)
