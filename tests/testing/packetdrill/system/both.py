"""The same calls on sockets of this machine's kernel, over loopback, and on two systems joined by a wire.

Sockets have names: `l` listens (if it is told to), `c` connects to it, `a` is what `l` accepted last; `u` and
`v` are UDP sockets of either side. None of them may block. After each call both networks come to rest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from tests.testing.packetdrill.system.world import Pair, outcome, plain
from tunstack.testing.packetdrill.language.values import Function, Integer, String
from tunstack.testing.packetdrill.system.constants import CONSTANTS, POLL_EVENTS

Result = Any
"""An errno, or what a call gives: a number, bytes, a set of poll events."""
WANTED = "POLLIN|POLLOUT|POLLRDHUP"
SERVER = ("l", "a", "v")


def events(mask: int) -> frozenset[str]:
    """The names of the bits of `mask`."""
    return frozenset(name for name, bit in POLL_EVENTS.items() if mask & bit)


class Kernel:
    """Sockets of the kernel."""

    def __init__(self) -> None:
        self._affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._affinity)})  # packets of one CPU's loopback stay in order
        self.sockets: dict[str, socket.socket] = {}
        self.ports: dict[str, int] = {}
        self._barrier = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._barrier.bind(("127.0.0.1", 0))

    def end(self) -> None:
        """Close everything."""
        for sock in self.sockets.values():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self._barrier.close()
        os.sched_setaffinity(0, self._affinity)

    def do(self, call: str, name: str, *arguments: Any) -> Result:
        """Make one call and let loopback come to rest."""
        try:
            if call not in ("open", "close") and name not in self.sockets:
                return "EBADF"
            result = getattr(self, call)(name, *arguments)
        except OSError as error:
            result = errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")
        self._barrier.sendto(b"x", self._barrier.getsockname())
        self._barrier.recv(1)
        return result

    def open(self, name: str) -> int:
        if name in self.sockets:
            return 0
        kind = socket.SOCK_DGRAM if name in ("u", "v") else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        if name in SERVER:
            sock.bind(("127.0.0.1", 0))
            self.ports[name] = sock.getsockname()[1]
        self._no_delay(sock)
        self.sockets[name] = sock
        return 0

    @staticmethod
    def _no_delay(sock: socket.socket) -> None:
        if sock.type & 0xF == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self, name: str) -> Result:
        if name not in self.sockets:
            return "EBADF"
        self.sockets.pop(name).close()
        return 0

    def bind(self, name: str) -> Result:
        self.sockets[name].bind(("127.0.0.1", 0))
        return 0

    def listen(self, name: str, backlog: int) -> Result:
        self.sockets[name].listen(backlog)
        return 0

    def accept(self, name: str) -> Result:
        sock, _ = self.sockets[name].accept()
        sock.setblocking(False)
        self._no_delay(sock)
        if "a" in self.sockets:
            self.sockets["a"].close()
        self.sockets["a"] = sock
        return 0

    def connect(self, name: str, to: str) -> Result:
        self.sockets[name].connect(("127.0.0.1", self.ports.get(to, 1)))
        return 0

    def disconnect(self, name: str) -> Result:
        # Python's sockets have no address of AF_UNSPEC.
        return _libc_connect(self.sockets[name].fileno())

    def send(self, name: str, size: int) -> Result:
        return self.sockets[name].send(bytes(size))

    def sendto(self, name: str, size: int, to: str) -> Result:
        return self.sockets[name].sendto(bytes(size), ("127.0.0.1", self.ports.get(to, 1)))

    def recv(self, name: str, size: int, flags: int) -> Result:
        return self.sockets[name].recvmsg(size, 0, flags)[0]  # recv(0) would not reach the kernel

    def read(self, name: str, size: int) -> Result:
        return os.read(self.sockets[name].fileno(), size)

    def shutdown(self, name: str, how: int) -> Result:
        self.sockets[name].shutdown(how)
        return 0

    def poll(self, name: str) -> Result:
        poller = select.poll()
        mask = sum(POLL_EVENTS[event] for event in WANTED.split("|"))
        poller.register(self.sockets[name], mask)
        found = poller.poll(0)
        return events(found[0][1] if found else 0)

    def getpeername(self, name: str) -> Result:
        self.sockets[name].getpeername()
        return 0

    def get(self, name: str, level: str, option: str) -> Result:
        return self.sockets[name].getsockopt(CONSTANTS[level], CONSTANTS[option])

    def set(self, name: str, level: str, option: str, value: int) -> Result:
        self.sockets[name].setsockopt(CONSTANTS[level], CONSTANTS[option], value)
        return 0

    def linger(self, name: str, on: int, seconds: int) -> Result:
        self.sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, seconds))
        return 0

    def unread(self, name: str) -> Result:
        return struct.unpack("i", fcntl.ioctl(self.sockets[name], CONSTANTS["SIOCINQ"], bytes(4)))[0]


def _libc_connect(fd: int) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(fd, bytes(16), 16) < 0:
        raise OSError(ctypes.get_errno(), "connect")
    return 0


class Systems:
    """Sockets of two systems: `l`, `a` and `v` of the right one, `c` and `u` of the left one."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.fds: dict[str, int] = {}
        self.ports: dict[str, int] = {}

    def do(self, call: str, name: str, *arguments: Any) -> Result:
        """Make one call and let the network come to rest."""
        if call not in ("open", "close") and name not in self.fds:
            return "EBADF"
        result = getattr(self, call)(name, *arguments)
        self.pair.run(0.1)
        return result

    def _side(self, name: str) -> Any:
        return self.pair.right if name in SERVER else self.pair.left

    def _address(self, name: str, port: int) -> dict[str, Any]:
        own = self.pair.address_b if name in SERVER else self.pair.address_a
        text = String(".".join(map(str, own)))
        return {
            "sa_family": "AF_INET",
            "sin_port": Function("htons", (Integer(port),)),
            "sin_addr": Function("inet_addr", (text,)),
        }

    def _destination(self, name: str, to: str) -> dict[str, Any]:
        """Where `to` is; somebody who is not there is on the other side."""
        if to not in self.ports:
            return self._address("u" if name in SERVER else "v", 1)
        return self._address(to, self.ports[to])

    def _call(self, name: str, call: str, *arguments: Any) -> Result:
        return outcome(self._side(name).start(call, self.fds[name], *arguments))

    def open(self, name: str) -> Result:
        if name in self.fds:
            return 0
        stream = name not in ("u", "v")
        kind = "SOCK_STREAM|SOCK_NONBLOCK" if stream else "SOCK_DGRAM|SOCK_NONBLOCK"
        side = self._side(name)
        self.fds[name] = fd = side.socket("AF_INET", kind, 0)
        if name in SERVER:
            assert side.bind(fd, self._address(name, 0), 16) == 0
            found = plain(side.start("getsockname", fd, ..., ...).outputs[1])
            self.ports[name] = found["sin_port"]
        self._no_delay(name)
        return 0

    def _no_delay(self, name: str) -> None:
        if name not in ("u", "v"):
            self._side(name).set(self.fds[name], "SOL_TCP", "TCP_NODELAY", 1)

    def close(self, name: str) -> Result:
        if name not in self.fds:
            return "EBADF"
        result = self._call(name, "close")
        del self.fds[name]
        return result

    def bind(self, name: str) -> Result:
        return self._call(name, "bind", self._address(name, 0), 16)

    def listen(self, name: str, backlog: int) -> Result:
        return self._call(name, "listen", backlog)

    def accept(self, name: str) -> Result:
        result = self._call(name, "accept4", ..., ..., "SOCK_NONBLOCK")
        if isinstance(result, str):
            return result
        if "a" in self.fds:
            self.close("a")
        self.fds["a"] = result
        self._no_delay("a")
        return 0

    def connect(self, name: str, to: str) -> Result:
        return self._call(name, "connect", self._destination(name, to), 16)

    def disconnect(self, name: str) -> Result:
        return self._call(name, "connect", {"sa_family": "AF_UNSPEC"}, 16)

    def send(self, name: str, size: int) -> Result:
        return self._call(name, "send", ..., size, 0)

    def sendto(self, name: str, size: int, to: str) -> Result:
        return self._call(name, "sendto", ..., size, 0, self._destination(name, to), 16)

    def recv(self, name: str, size: int, flags: int) -> Result:
        return self._data(name, "recv", ..., size, flags)

    def read(self, name: str, size: int) -> Result:
        return self._data(name, "read", ..., size)

    def _data(self, name: str, call: str, *arguments: Any) -> Result:
        made = self._side(name).start(call, self.fds[name], *arguments)
        return made.errno or plain(made.outputs[1]) or b""

    def shutdown(self, name: str, how: int) -> Result:
        return self._call(name, "shutdown", how)

    def poll(self, name: str) -> Result:
        return frozenset(self._side(name).events(self.fds[name], WANTED))

    def getpeername(self, name: str) -> Result:
        return self._call(name, "getpeername", ..., ...)

    def get(self, name: str, level: str, option: str) -> Result:
        return self._side(name).option(self.fds[name], level, option)

    def set(self, name: str, level: str, option: str, value: int) -> Result:
        return self._side(name).set(self.fds[name], level, option, value)

    def linger(self, name: str, on: int, seconds: int) -> Result:
        return self._side(name).set(
            self.fds[name], "SOL_SOCKET", "SO_LINGER", {"onoff": on, "linger": seconds}, 8
        )

    def unread(self, name: str) -> Result:
        made = self._side(name).start("ioctl", self.fds[name], "SIOCINQ", [0])
        return made.errno or plain(made.outputs[2])[0]


Step = tuple[str, ...]
Check = Callable[[Step, Result, Result], None]


def both(steps: list[tuple[Any, ...]], check: Callable[[int, Result, Result], bool]) -> None:
    """Take `steps` on either side; `check(index, kernel's, ours)` says whether to go on."""
    kernel, systems = Kernel(), Systems()
    try:
        for index, step in enumerate(steps):
            if not check(index, kernel.do(*step), systems.do(*step)):
                return
    finally:
        kernel.end()
