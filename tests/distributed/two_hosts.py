"""Two hosts on one machine: network namespaces with names and addresses of their own, joined by a bridge.

With `serve_ssh` one reaches the other as `horovodrun` wants it: without a password.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path

HOSTS = {"h1": "10.99.0.11", "h2": "10.99.0.12"}
SSHD = "/usr/sbin/sshd"  # it wants to be called by its whole path
SSH_CONFIG = Path("/etc/ssh/ssh_config")
# A server that does not answer for 4 s is gone.
SSH_OPTIONS = """\
ConnectTimeout 3
ServerAliveInterval 2
ServerAliveCountMax 2
UserKnownHostsFile /dev/null
LogLevel ERROR
"""
SSHD_OPTIONS = """\
UsePAM no
StrictModes no
PidFile none
"""


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


def why_no_ssh() -> str | None:
    """What is missing for ssh between them, or None."""
    missing = [name for name in ("ssh", "ssh-keygen", SSHD) if shutil.which(name) is None]
    if missing or not SSH_CONFIG.exists():
        return f"no {', '.join(missing) or SSH_CONFIG} (Debian packages openssh-client, openssh-server)"
    return None


class TwoHosts:
    """Hosts h1 and h2, while entered."""

    def __init__(self, folder: Path) -> None:
        self._tag = uuid.uuid4().hex[:6]
        self._bridge = f"b{self._tag}"
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
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
        for daemon in self._daemons:
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait(60)
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", self._space(name)], check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], check=False)

    def serve_ssh(self) -> None:
        """Let the hosts reach each other by ssh, with a key that nobody else has."""
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, which systemd would have made
        for name in ("key", "host_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)]
            subprocess.run(words, check=True, timeout=120)
        (self._folder / "ssh_config").write_text(SSH_OPTIONS + f"IdentityFile {self._folder}/key\n")
        own = f"HostKey {self._folder}/host_key\nAuthorizedKeysFile {self._folder}/key.pub\n"
        (self._folder / "sshd_config").write_text(SSHD_OPTIONS + own)
        for host in HOSTS:
            sshd = self.command(host, [SSHD, "-D", "-f", str(self._folder / "sshd_config")])
            self._daemons.append(subprocess.Popen(sshd, start_new_session=True))
        end = time.monotonic() + 120
        for here, there in (("h1", "h2"), ("h2", "h1")):
            ssh = self.command(here, ["ssh", "-o", "StrictHostKeyChecking=no", there, "true"])
            while subprocess.run(ssh, stderr=subprocess.DEVNULL, timeout=120).returncode:
                assert time.monotonic() < end, f"no ssh from {here} to {there}"
                time.sleep(0.1)

    def command(self, host: str, command: list[str]) -> list[str]:
        """What runs a command on a host, under its name and with its /etc/hosts."""
        script = f"mount --bind {self._hosts_file} /etc/hosts; "
        if (self._folder / "ssh_config").exists():
            script += f"mount --bind {self._folder}/ssh_config {SSH_CONFIG}; "
        script += f'hostname {host}; exec "$@"'
        there = ["ip", "netns", "exec", self._space(host)]
        return [*there, "unshare", "--uts", "--mount", "sh", "-c", script, host, *command]

    def cut(self) -> None:
        """Pull h2's cable."""
        _ip("link", "set", self._outside("h2"), "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self._outside("h2"), "up")

    def shape(self, megabits: int) -> None:
        """Let each host send no more than so many Mbit/s from now on."""
        for host in HOSTS:
            words = f"qdisc replace dev eth0 root tbf rate {megabits}mbit burst 32kb latency 200ms"
            command = ["ip", "netns", "exec", self._space(host), "tc", *words.split()]
            subprocess.run(command, check=True, timeout=20)

    def sent(self, host: str) -> int:
        """Bytes that a host has sent to the other so far."""
        command = ["ip", "-n", self._space(host), "-s", "-j", "link", "show", "eth0"]
        shown = subprocess.run(command, check=True, timeout=20, capture_output=True)
        return json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"]

    def _space(self, host: str) -> str:
        return f"{host}-{self._tag}"

    def _outside(self, host: str) -> str:
        return f"{host}-{self._tag}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=120)
