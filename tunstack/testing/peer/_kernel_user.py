"""The user of a kernel's TCP: does on standard input what it is told, one JSON object a line, and answers so.

It is exec'ed inside the namespace of the kernel under test, alone and with the standard library only. It has
one connection, opened or accepted. An answer has `errno` if the call failed; nothing here blocks for longer
than a second.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

ACCEPT_PATIENCE = 1.0
"""Seconds that the kernel may take to hand over a connection whose handshake is done."""
READY_PATIENCE = 5.0
"""Seconds that it may take to start sending on an interface that has just been brought up."""
SIOCGIFFLAGS = 0x8913
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40


class User:
    """One listener, one connection."""

    def __init__(self, family: int, address: str, port: int, peer: str, peer_port: int) -> None:
        self.family = socket.AF_INET if family == 4 else socket.AF_INET6
        self.table = "/proc/self/net/tcp" if family == 4 else "/proc/self/net/tcp6"
        self.here = (address, port)
        self.there = (peer, peer_port)
        self.listener: socket.socket | None = None
        self.connection: socket.socket | None = None
        self.options: list[tuple[int, int, int]] = []
        self.error = 0

    def ready(self) -> dict[str, Any]:
        """Wait until every interface runs: before that the kernel takes packets and drops what it sends."""
        if sys.platform != "linux":
            raise OSError("this is there on Linux alone")
        deadline = time.monotonic() + READY_PATIENCE
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                request = struct.pack("16sH22x", name.encode(), 0)
                while True:
                    (flags,) = struct.unpack_from("H", fcntl.ioctl(asking, SIOCGIFFLAGS, request), 16)
                    if flags & (IFF_RUNNING | IFF_LOOPBACK):
                        break
                    if time.monotonic() > deadline:
                        raise OSError(errno.ENETDOWN, f"{name} does not run")
                    time.sleep(0.001)
        return {}

    def listen(self) -> dict[str, Any]:
        self.listener = self.new()
        self.listener.listen(16)
        return {}

    def new(self) -> socket.socket:
        made = socket.socket(self.family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, name, value in self.options:
            made.setsockopt(level, name, value)
        made.bind(self.here)
        made.setblocking(False)
        return made

    def connect(self) -> dict[str, Any]:
        if self.listener is not None:
            self.listener.close()  # the port is wanted
        self.connection = self.new()
        number = self.connection.connect_ex(self.there)
        return {} if number == errno.EINPROGRESS else self.failed(number)

    def failed(self, number: int) -> dict[str, Any]:
        if number not in (0, errno.EAGAIN):
            self.error = number
        return {"errno": number}

    def conn(self, patience: float = ACCEPT_PATIENCE) -> socket.socket:
        if self.connection is None:
            if self.listener is None:
                raise OSError(errno.ENOTCONN, "neither listening nor connected")
            select.select([self.listener], [], [], patience)
            self.connection, _ = self.listener.accept()
            self.connection.setblocking(False)
        return self.connection

    def set_option(self, level: int, name: int, value: int) -> dict[str, Any]:
        """For the connection; before there is one, for those to come."""
        if self.connection is None:
            self.options.append((level, name, value))
            if self.listener is not None:
                self.listener.setsockopt(level, name, value)
        else:
            self.connection.setsockopt(level, name, value)
        return {}

    def write(self, data: str, urgent: bool = False) -> dict[str, Any]:
        if sys.platform != "linux":
            raise OSError("this is there on Linux alone")
        flags = socket.MSG_NOSIGNAL | (socket.MSG_OOB if urgent else 0)
        return {"taken": self.conn().send(bytes.fromhex(data), flags)}

    def read(self, limit: int) -> dict[str, Any]:
        found = b""
        with contextlib.suppress(BlockingIOError):
            while len(found) < limit:
                part = self.conn().recv(limit - len(found))
                if not part:
                    break
                found += part
        return {"data": found.hex()}

    def at_end(self) -> dict[str, Any]:
        try:
            return {"at_end": not self.conn().recv(1, socket.MSG_PEEK)}
        except BlockingIOError:
            return {"at_end": False}

    def shutdown(self) -> dict[str, Any]:
        self.conn().shutdown(socket.SHUT_WR)
        return {}

    def close(self) -> dict[str, Any]:
        self.why()
        self.conn().close()
        return {}

    def abort(self) -> dict[str, Any]:
        self.conn().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return self.close()

    def why(self) -> dict[str, Any]:
        """The error that the connection has met, which stays."""
        with contextlib.suppress(OSError):  # nobody has connected yet
            self.conn(0)
        if self.connection is not None and self.connection.fileno() >= 0:
            self.error = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self.error
        return {"error": self.error}

    def state(self) -> dict[str, Any]:
        """The connection's state by the kernel's table; 7 (CLOSE) if it is not in there."""
        with open(self.table, encoding="ascii") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        for row in rows:
            local, remote = (int(row[column].rpartition(":")[2], 16) for column in (1, 2))
            if (local, remote) == (self.here[1], self.there[1]):
                return {"state": int(row[3], 16)}
        return {"state": 7}

    def sysctl(self, name: str, value: str) -> dict[str, Any]:
        with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as file:
            file.write(value)
        return {}


def main() -> None:
    family, address, port, peer, peer_port = sys.argv[1:]
    user = User(int(family), address, int(port), peer, int(peer_port))
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "ready": user.ready,
        "listen": user.listen,
        "connect": user.connect,
        "option": user.set_option,
        "write": user.write,
        "read": user.read,
        "at_end": user.at_end,
        "shutdown": user.shutdown,
        "close": user.close,
        "abort": user.abort,
        "why": user.why,
        "state": user.state,
        "sysctl": user.sysctl,
    }
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = actions[order.pop("do")](**order)
        except OSError as error:
            answer = user.failed(error.errno or errno.EIO)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
