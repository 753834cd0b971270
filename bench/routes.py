"""One flow of a guest to a UNIX socket of the host, by a route, beside the same flow to TCP.

The client is `route_client.py`, which the guest runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from bench.peers import Tunstack
from bench.sample import Case
from bench.sandbox import SERVER_ADDRESS, BenchError
from bench.session import Plan, Session

DIRECTIONS = ("up", "down")
TCP = "tunstack, to TCP"
"""What the UNIX socket is compared with, in the place of a peer's name."""
_SERVICE = "10.0.2.50"
_PORT = 7010
_CHUNK = 1 << 18
_CLIENT = Path(__file__).with_name("route_client.py")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoutePlan(Plan):
    """And: directions."""

    directions: tuple[str, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        return self.rounds * len(self.directions) * 2 * (self.seconds + 0.4) + 2


class Routed(Tunstack):
    """tunstack with a route to the socket at `path`."""

    def __init__(self, mtu: int, path: str) -> None:
        self._path = path
        super().__init__(mtu)

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        command = super().command(mtu, pid)
        return [*command[:-1], "--route", f"{_SERVICE}=unix://{self._path}", command[-1]]


def measure(plan: RoutePlan, session: Session) -> None:
    """Carry out `plan`."""
    if "tunstack" not in plan.peers:
        return
    with tempfile.TemporaryDirectory(prefix="bench-routes-") as folder, contextlib.ExitStack() as stack:
        path = str(Path(folder, "service"))
        for server in (socket.socket(socket.AF_UNIX), socket.socket()):
            stack.callback(_close, server)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(path if server.family == socket.AF_UNIX else (SERVER_ADDRESS, _PORT))
            server.listen()
            threading.Thread(target=_serve, args=(server,), daemon=True).start()
        peer = Routed(1500, path)
        stack.callback(peer.close)
        for direction in plan.directions:
            case: Case = (("mtu", 1500), ("direction", direction))
            for number in range(1, plan.rounds + 1):
                for name, host in (("tunstack", _SERVICE), (TCP, SERVER_ADDRESS)):
                    session.turn(
                        "routes",
                        case,
                        name,
                        number,
                        lambda: _transfer(peer, host, direction, plan.seconds),  # noqa: B023  called at once
                    )


def _transfer(peer: Routed, host: str, direction: str, seconds: float) -> Mapping[str, float]:
    words = (sys.executable, "-I", str(_CLIENT), host, str(_PORT), direction, str(seconds))
    done = subprocess.run(
        peer.guest.command(*words), capture_output=True, text=True, check=False, timeout=seconds + 20
    )
    if done.returncode:
        raise BenchError(f"the client in the guest ended with: {done.stderr.strip()[-300:]}")
    return {"bits_per_second": float(done.stdout)}


def _close(server: socket.socket) -> None:
    """Listen no longer: a thread that waits in accept() would keep the port, was it not woken."""
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_load, args=(client,), daemon=True).start()


def _load(client: socket.socket) -> None:
    """Send without end to who says "d", and read what anybody else sends."""
    with client, contextlib.suppress(OSError):
        if client.recv(1) == b"d":
            while True:
                client.sendall(bytes(_CHUNK))
        buffer = bytearray(_CHUNK)
        while client.recv_into(buffer):
            pass
