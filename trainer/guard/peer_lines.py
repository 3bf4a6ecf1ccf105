"""A line from every process of a run to rank 0, beside the process group: short JSON messages over TCP."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from core.distributed import broadcast_object, gather_objects, is_main, rank, world_size
from core.errors import PeerLostError

CONNECT_S = 30.0
SEND_S = 1.0  # a message is a few bytes: whoever cannot take it for so long has stopped reading
_NEWLINE = b"\n"


class Line:
    """A connection to the process `rank`; messages are JSON objects, one a line."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self.connection, self.rank = connection, rank
        self._unread = b""
        connection.settimeout(SEND_S)

    def send(self, **message: Any) -> None:
        """Send a message; that a line is broken is found by reading it."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + _NEWLINE)

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come (waits for some), or None at the end of the line."""
        try:
            data = self.connection.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._unread = (self._unread + data).split(_NEWLINE)
        return [json.loads(line) for line in lines] if data else None

    def close(self) -> None:
        """Hang up; in a forked child it closes the child's copy alone."""
        self.connection.close()


def everybody() -> list[tuple[str, int]]:
    """Host name and process id of every rank; collective."""
    return gather_objects((socket.gethostname(), os.getpid()))


def connect(hosts: Sequence[str]) -> list[Line]:
    """The lines of this rank: to all others on rank 0, to rank 0 elsewhere; collective.

    Args:
        hosts: name of every rank's machine.

    Raises:
        PeerLostError: a process cannot be reached.
    """
    is_local = _is_local(hosts)
    listener = _listen(is_local) if is_main() else None
    token = secrets.token_hex(16)
    # The address that the process group itself was started with: it is known to lead to rank 0.
    host = "127.0.0.1" if is_local else os.environ.get("MASTER_ADDR", hosts[0])
    host, port, token = broadcast_object((host, listener.getsockname()[1] if listener else 0, token))
    if listener is None:
        return [_call(host, port, token)]
    deadline = time.monotonic() + CONNECT_S
    with listener:
        return [_answer(listener, token, deadline) for _ in range(world_size() - 1)]


def _is_local(hosts: Sequence[str]) -> bool:
    """Whether all ranks are on this machine; launchers say so, and names may be alike on several."""
    local_world_size = os.environ.get("LOCAL_WORLD_SIZE")
    return int(local_world_size) == world_size() if local_world_size else len(set(hosts)) == 1


def _listen(is_local: bool) -> socket.socket:
    if is_local:  # not a port that others could reach
        return socket.create_server(("127.0.0.1", 0), backlog=world_size())
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=world_size(), dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=world_size())


def _call(host: str, port: int, token: str) -> Line:
    try:
        line = Line(socket.create_connection((host, port), CONNECT_S), 0)
    except OSError as error:
        raise PeerLostError(
            f"process {rank()} cannot reach process 0 at {host}:{port} ({error}). Open the ports between the nodes, "
            "or set peer_timeout_s=0 to do without the watch over lost processes."
        ) from error
    line.send(rank=rank(), token=token)
    return line


def _answer(listener: socket.socket, token: str, deadline: float) -> Line:
    while True:
        listener.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError as error:
            raise PeerLostError(
                f"a process has not called process 0 within {CONNECT_S:g} s. Open the ports between the nodes, or set "
                "peer_timeout_s=0 to do without the watch over lost processes."
            ) from error
        line = Line(connection, 0)
        hello = _first_message(line, deadline)
        if hello.get("token") == token:
            line.rank = int(hello["rank"])
            return line
        line.close()  # a stranger on the port


def _first_message(line: Line, deadline: float) -> dict[str, Any]:
    while time.monotonic() < deadline:
        try:
            messages = line.receive()
        except ValueError:
            return {}
        if messages is None:
            return {}
        if messages:
            return messages[0] if isinstance(messages[0], dict) else {}
    return {}
