"""What ranks meet through: rank 0 hears their reports, and keeps what Horovod's Gloo tells the other ranks.

One thread serves all over HTTP, which is what Gloo speaks. Gloo asks for every other rank's addresses,
twice, on a new connection each time: with 512 ranks that is 655,000 requests. So a request costs no
thread here, and one that comes too early is answered when there is an answer, instead of being repeated
every 10 ms.

Anyone may connect. A report counts only with a signature made for this very start, and Gloo's requests
only below a path that nobody else can guess. A connection that says nothing or nonsense is closed, and
keeps no other waiting.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.job_secret import JobSecret

BACKLOG = 4096  # the system may allow less
QUIET_S = 10.0  # a request that is not complete by then is given up
HOLD_S = 1.0  # Gloo hears after this long that a key is not there yet, and asks again
MAX_HEAD = 8 * 2**10
MAX_REPORT = 64 * 2**10
MAX_VALUE = 16 * 2**20  # Gloo's addresses: 136 bytes for each of the other ranks
MAX_COMPLAINTS = 5  # lines about strangers
LOOK_S = 0.1

REPORT_PATH = "/report/"
HELLO_PATH = "/hello/"
SIGNATURE = "Signature"

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Too Large",
}


class _Connection:
    """One request, and what is left to send of its answer."""

    __slots__ = ("socket", "host", "received", "needed", "unsent", "rank", "until")

    def __init__(self, connected: socket.socket, host: str) -> None:
        self.socket, self.host = connected, host
        self.received = bytearray()
        self.needed = 0  # bytes of the whole request; 0 until its head is there
        self.unsent = memoryview(b"")
        self.rank = -1  # whose report this is
        self.until = time.monotonic() + QUIET_S


class RendezvousServer:
    """Serves the ranks of one start of a job, from when it is made until it is closed.

    Args:
        host: The one address to listen on.
        port: 0 takes a free one.
        secret: What reports have to be signed with.
        size: Ranks of the job, this one included.

    Attributes:
        address: Where it listens: host and port.
        nonce: A word made up at this start, which signatures are made for.

    Raises:
        UserError: The port is taken.
    """

    def __init__(self, host: str, port: int, secret: JobSecret, size: int) -> None:
        self._secret, self._size = secret, size
        self.nonce = secrets.token_hex(16)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind((host, port))
        except OSError as error:
            self._listener.close()
            raise UserError(
                f"rank 0 cannot listen on {host}:{port} ({error.strerror}); set MASTER_PORT to a free port"
            ) from None
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        # As Horovod makes it of `gloo_address`.
        token = gloo_address(secret, self.nonce, self.address).partition("/")[2]
        self._gloo_path = f"/{token}:{self.address[1]}/".encode()

        self._values: dict[bytes, bytes] = {}  # Gloo's, by the path they were put under
        self._waiting: dict[bytes, list[_Connection]] = {}  # for a value
        self._held: deque[tuple[float, bytes, _Connection]] = deque()  # the same, the oldest first
        self._incomplete: dict[_Connection, None] = {}  # the oldest first
        self._reports: dict[int, tuple[dict[str, Any], _Connection]] = {}
        self._complained: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._changed = threading.Condition()  # guards the reports, and the answers
        self._answers: list[dict[str, Any]] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="rendezvous")
        self._thread.start()

    def wait_for_reports(self, deadline: float) -> dict[int, dict[str, Any]]:
        """Return the other ranks' reports, by rank: all of them, or those that are there at the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._reports) == self._size - 1, deadline - time.monotonic())
            return {rank: report for rank, (report, _) in self._reports.items()}

    def answer(self, answers: list[dict[str, Any]]) -> None:
        """Send each rank its answer, by rank; a rank that reports later gets it at once."""
        with self._changed:
            self._answers = answers
            reported, self._reports = self._reports, {}
            for rank, (_, connection) in reported.items():
                self._answer_report(rank, connection)

    def close(self) -> None:
        """Stop listening once all answers have been sent, after two seconds at most."""
        self._closing = True
        self._thread.join()

    def _serve(self) -> None:
        leave_at = None
        while True:
            for key, events in self._selector.select(LOOK_S):
                with self._changed:
                    if key.data is None:
                        self._accept()
                    elif events & selectors.EVENT_WRITE:
                        self._send(key.data)
                    else:
                        self._receive(key.data)
            with self._changed:
                self._give_up()
                if self._closing:
                    leave_at = leave_at or time.monotonic() + 2
                    keys = list(self._selector.get_map().values())
                    sending = any(key.data is not None and key.data.unsent for key in keys)
                    if not sending or time.monotonic() > leave_at:
                        break
        for key in keys:
            key.fileobj.close()  # type: ignore[union-attr]
        for _, _, connection in self._held:
            connection.socket.close()
        self._selector.close()

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                connected, (host, *_) = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # it has left already, or there are no more descriptors
                if self._incomplete:
                    self._drop(next(iter(self._incomplete)))
                return
            connected.setblocking(False)
            connection = _Connection(connected, host)
            self._incomplete[connection] = None
            if len(self._incomplete) > BACKLOG:
                self._drop(next(iter(self._incomplete)))
            self._receive(connection)  # most are here already
            if connection in self._incomplete:
                self._watch(connection, selectors.EVENT_READ)

    def _receive(self, connection: _Connection) -> None:
        try:
            received = connection.socket.recv(2**17)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received or connection not in self._incomplete:
            self._drop(connection)  # it has left, or sends more than one request
            return
        connection.received += received
        if not connection.needed:
            head = connection.received.find(b"\r\n\r\n", 0, MAX_HEAD)
            if head < 0:
                if len(connection.received) > MAX_HEAD:
                    self._reply(connection, 400)
                return
            length = _content_length(connection.received[:head])
            most = MAX_VALUE if connection.received.find(self._gloo_path, 0, MAX_HEAD) >= 0 else MAX_REPORT
            if length is None or length > most:
                self._reply(connection, 400 if length is None else 413)
                return
            connection.needed = head + 4 + length
        if len(connection.received) >= connection.needed:
            self._handle(connection)

    def _handle(self, connection: _Connection) -> None:
        """Answer a request that is complete."""
        head, _, body = bytes(connection.received).partition(b"\r\n\r\n")
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0]
        token, key = path[: len(self._gloo_path)], path[len(self._gloo_path) :]
        if secrets.compare_digest(token, self._gloo_path):
            if method == b"PUT":
                self._values[key] = body
                for waiting in self._waiting.pop(key, []):
                    self._reply(waiting, 200, body)
                self._reply(connection, 200)
            elif method == b"DELETE":  # a rank has what it wants; the others may not
                self._reply(connection, 200)
            elif key in self._values:
                self._reply(connection, 200, self._values[key])
            else:
                self._incomplete.pop(connection, None)
                self._unwatch(connection)
                self._waiting.setdefault(key, []).append(connection)
                self._held.append((time.monotonic() + HOLD_S, key, connection))
        elif method == b"GET" and path.startswith(HELLO_PATH.encode()):
            theirs = path[len(HELLO_PATH) :].decode("latin-1")
            hello = {"job": self._secret.job, "nonce": self.nonce}
            hello["signature"] = self._secret.sign("hello", theirs, self.nonce)
            self._reply(connection, 200, json.dumps(hello).encode())
        elif method == b"PUT" and path.startswith(REPORT_PATH.encode()):
            self._take_report(connection, path[len(REPORT_PATH) :].decode("latin-1"), head, body)
        else:
            self._refuse(connection, "a request that no rank makes")

    def _take_report(self, connection: _Connection, rank: str, head: bytes, body: bytes) -> None:
        text = body.decode("latin-1")
        signature = _header(head, SIGNATURE)
        if not self._secret.has_signed(signature, "report", self.nonce, rank, text):
            signed = "an unsigned report" if not signature else "a report with a wrong signature"
            self._refuse(connection, signed)
            return
        number = int(rank)  # signed by a rank of ours: a number it is
        if number in self._reports:
            self._reply(connection, 409)
            return
        connection.rank = number
        if self._answers is not None:
            self._answer_report(number, connection)
            return
        self._reports[number] = (json.loads(text), connection)
        self._incomplete.pop(connection, None)
        self._watch(connection, selectors.EVENT_READ)  # a rank that dies while it waits has not come
        self._changed.notify_all()

    def _answer_report(self, rank: int, connection: _Connection) -> None:
        assert self._answers is not None
        text = json.dumps(self._answers[rank])
        signature = self._secret.sign("answer", self.nonce, str(rank), text)
        self._reply(connection, 200, json.dumps({"answer": text, "signature": signature}).encode())

    def _refuse(self, connection: _Connection, what: str) -> None:
        if connection.host not in self._complained and len(self._complained) < MAX_COMPLAINTS:
            self._complained.add(connection.host)
            tell(
                f"refused {what} from {connection.host}: it comes from another job or a stranger, and this "
                "job goes on without it",
                sys.stderr,
            )
        self._reply(connection, 403)

    def _reply(self, connection: _Connection, status: int, body: bytes = b"") -> None:
        self._incomplete.pop(connection, None)
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        connection.unsent = memoryview(head.encode() + body)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            self._drop(connection)
            return
        connection.until = time.monotonic() + QUIET_S
        self._watch(connection, selectors.EVENT_WRITE)

    def _give_up(self) -> None:
        """Answer or close the connections that have waited too long."""
        now = time.monotonic()
        while self._incomplete and (oldest := next(iter(self._incomplete))).until < now:
            self._drop(oldest)
        while self._held and self._held[0][0] < now:
            _, key, connection = self._held.popleft()
            waiting = self._waiting.get(key, [])
            if connection in waiting:
                waiting.remove(connection)
                self._reply(connection, 404)
        for selected in list(self._selector.get_map().values()):
            if selected.data is not None and selected.data.unsent and selected.data.until < now:
                self._drop(selected.data)

    def _drop(self, connection: _Connection) -> None:
        self._incomplete.pop(connection, None)
        if self._reports.get(connection.rank, (None, None))[1] is connection:
            del self._reports[connection.rank]
        self._unwatch(connection)
        connection.socket.close()

    def _watch(self, connection: _Connection, events: int) -> None:
        self._unwatch(connection)
        self._selector.register(connection.socket, events, connection)

    def _unwatch(self, connection: _Connection) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)


def gloo_address(secret: JobSecret, nonce: str, address: tuple[str, int]) -> str:
    """Return what Horovod takes for the host of its rendezvous server, so that its requests say a secret.

    Horovod puts `http://`, the host, `:`, the port, `/` and a key together. A host that is `HOST:PORT/WORD`
    makes that `http://HOST:PORT/WORD:PORT/key`.

    Args:
        secret: The job's, of which the word is made.
        nonce: The server's.
        address: Where it listens.
    """
    host, port = address
    return f"{host}:{port}/{secret.sign('gloo', nonce)}"


def _content_length(head: bytes | bytearray) -> int | None:
    """How long a request's body is; None if it says nonsense."""
    text = _header(bytes(head), "Content-Length") or "0"
    # Longer numbers are refused before they are read: they take long.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def _header(head: bytes, name: str) -> str:
    """A request's header; empty if it is not there."""
    for line in head.decode("latin-1").split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == name.lower():
            return value.strip()
    return ""
