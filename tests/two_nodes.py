"""Two machines on one: two network namespaces that reach each other over one link, and share the disk.

The link is a veth pair, or a wire of our own (two TUN devices and a thread between them) that delays packets or answers
them with resets, as a proxy or a firewall would that has forgotten its connections.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = "link0"  # its name on both
_CLONE_NEWNET, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x40000000, 0x400454CA, 0x0001, 0x1000
_RESET, _HAS_ACK = 0x04, 0x10


@dataclass(frozen=True)
class Node:
    """A network namespace."""

    name: str
    address: str

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Run a Python module of the product there; with its own sessions, so that whole trees can be counted."""
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", *words],
            env={**environment, "GLOO_SOCKET_IFNAME": LINK},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self) -> list[int]:
        """Of all processes there."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def send(self, number: signal.Signals) -> None:
        """A signal to all processes there."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def unplug(self) -> None:
        """Take the link down."""
        _ip("-n", self.name, "link", "set", LINK, "down")


def why_not() -> str:
    """Why there can be no two nodes here; empty if there can."""
    if not shutil.which("ip"):
        return "there is no `ip` command (iproute2)"
    try:
        with two_nodes():
            return ""
    except (subprocess.CalledProcessError, OSError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"network namespaces and veth pairs cannot be made here: {said.strip()}"


@contextmanager
def two_nodes(wire: Wire | None = None) -> Iterator[tuple[Node, Node]]:
    """Two namespaces with a link; all that runs there at the end is killed."""
    nodes = [Node(f"shardclip-{os.getpid()}-{number}", f"10.77.0.{number + 1}") for number in range(2)]
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        if wire is None:
            _ip(
                "link",
                "add",
                LINK,
                "netns",
                nodes[0].name,
                "type",
                "veth",
                "peer",
                "name",
                LINK,
                "netns",
                nodes[1].name,
            )
        else:
            wire.join(nodes)
        for node in nodes:
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", LINK)
            _ip("-n", node.name, "link", "set", "lo", "up")
            _ip("-n", node.name, "link", "set", LINK, "up")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            if Path(f"/run/netns/{node.name}").exists():
                node.send(signal.SIGKILL)
                _ip("netns", "del", node.name)
        if wire is not None:
            wire.close()


class Wire:
    """Carries IP packets between two namespaces; `delay_s` and `is_cut` may change while it does."""

    def __init__(self) -> None:
        self.delay_s, self.is_cut = 0.0, False
        self._ends: list[int] = []
        self._is_closed = threading.Event()

    def join(self, nodes: Sequence[Node]) -> None:
        """Make a device in each namespace, and carry from now on."""
        # A thread's own namespace: the rest of this process stays where it is.
        opener = threading.Thread(target=lambda: self._ends.extend(_open_tun(node) for node in nodes))
        opener.start()
        opener.join()
        assert len(self._ends) == len(nodes), "no TUN devices"
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._carrier.start()

    def close(self) -> None:
        self._is_closed.set()
        self._carrier.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        under_way: deque[tuple[float, int, bytes]] = deque()  # when it arrives, where
        with selectors.DefaultSelector() as selector:
            for end, other in zip(self._ends, reversed(self._ends), strict=True):
                selector.register(end, selectors.EVENT_READ, other)
            while not self._is_closed.is_set():
                rest_s = under_way[0][0] - time.monotonic() if under_way else 0.05
                for key, _ in selector.select(max(0.0, min(rest_s, 0.05))):
                    packet = os.read(key.fd, 65536)
                    if self.is_cut:
                        self._put(key.fd, reset_of(packet))
                    else:
                        under_way.append((time.monotonic() + self.delay_s, key.data, packet))
                while under_way and under_way[0][0] <= time.monotonic():
                    self._put(*under_way.popleft()[1:])

    @staticmethod
    def _put(end: int, packet: bytes) -> None:
        with suppress(OSError):  # a link that is down takes none
            if packet:
                os.write(end, packet)


def reset_of(packet: bytes) -> bytes:
    """The answer of a machine that does not know the connection of an IPv4 packet; empty where there is none."""
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return b""
    length = (packet[0] & 15) * 4
    source, destination, segment = packet[12:16], packet[16:20], packet[length:]
    from_port, to_port, _, acknowledged, _, flags = struct.unpack(">HHIIBB", segment[:14])
    if flags & _RESET or not flags & _HAS_ACK:
        return b""
    tcp = struct.pack(">HHIIBBHHH", to_port, from_port, acknowledged, 0, 5 << 4, _RESET, 0, 0, 0)
    pseudo = destination + source + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack(">H", _checksum(pseudo + tcp)) + tcp[18:]
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + destination + source
    return header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + tcp


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _open_tun(node: Node) -> int:
    with open(f"/run/netns/{node.name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"no way into {node.name}")
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", LINK.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
