"""Processes whose systems stand on stacks: two joined by a wire, or one beside a scripted peer."""

from __future__ import annotations

import math
from types import EllipsisType
from typing import Any

from tests.tcp.peer import PEER_PORT, STACK_PORT, Peer
from tests.tcp.world import World
from tunstack.stack import Event, Stack
from tunstack.testing.packetdrill.language.values import (
    ANY,
    Array,
    Field,
    Function,
    Integer,
    Or,
    String,
    Struct,
    Symbol,
    Value,
)
from tunstack.testing.packetdrill.system import Call, System
from tunstack.testing.packetdrill.system.arguments import number

BIND_PORT, CONNECT_PORT = 8080, 8080


def value(what: Any) -> Value:
    """A value of a script: int, name (`A|B`), bytes, `...`, list and dict stand for themselves."""
    if isinstance(what, Integer | Symbol | String | Or | Array | Struct | Function) or what is ANY:
        return what
    if isinstance(what, bool | int):
        return Integer(int(what))
    if isinstance(what, str):
        names = tuple(map(Symbol, what.split("|")))
        return names[0] if len(names) == 1 else Or(names)
    if isinstance(what, bytes):
        return String(what.decode("latin-1"))
    if isinstance(what, EllipsisType):
        return ANY
    if isinstance(what, list):
        return Array(tuple(map(value, what)))
    if isinstance(what, tuple):
        return Struct(tuple(Field(value(item)) for item in what))
    assert isinstance(what, dict)
    return Struct(tuple(Field(value(item), name) for name, item in what.items()))


def plain(what: Value | None) -> Any:
    """What `value` made that value from; names as numbers."""
    if isinstance(what, Array):
        return [plain(item) for item in what.items]
    if isinstance(what, Struct):
        return {field.name: plain(field.value) for field in what.fields}
    if isinstance(what, String):
        return what.text.encode("latin-1")
    if isinstance(what, Function):
        return plain(what.arguments[-1])
    if what is ANY:
        return ...
    return None if what is None else number(what)


def linger(on: int, seconds: int) -> dict[str, int]:
    """A struct linger."""
    return {"onoff": on, "linger": seconds}


def timeval(seconds: float) -> dict[str, int]:
    """A struct timeval."""
    return {"tv_sec": int(seconds), "tv_usec": round(seconds % 1 * 1_000_000)}


class Process:
    """One system, and calls on it in short."""

    def __init__(self, world: Pair | Scripted, system: System) -> None:
        self.world = world
        self.system = system

    def start(self, name: str, *arguments: Any) -> Call:
        """Start a call and let the network do what it does at this instant."""
        call = self.system.call(name, [value(argument) for argument in arguments], self.world.now)
        self.world.pump()
        return call

    def __getattr__(self, name: str) -> Any:
        """`process.bind(3, ..., ...)`: the result of a call that is done at once, or the errno."""

        def call(*arguments: Any) -> int | str:
            return outcome(self.start(name, *arguments))

        return call

    def option(self, fd: int, level: str, name: str) -> Any:
        """The value of an int option, or the errno."""
        call = self.start("getsockopt", fd, level, name, [0], [4])
        if call.errno is not None:
            return call.errno
        found = plain(call.outputs[3])
        return found[0] if isinstance(found, list) else found

    def set(self, fd: int, level: str, name: str, to: Any, length: int = 4) -> int | str:
        """Set an option."""
        argument = [to] if isinstance(to, int) else to
        return outcome(self.start("setsockopt", fd, level, name, argument, length))

    def events(self, fd: int, wanted: str = "POLLIN|POLLOUT|POLLRDHUP") -> set[str]:
        """What poll reports at once."""
        call = self.start("poll", [{"fd": fd, "events": wanted, "revents": 0}], 1, 0)
        text = str(call.outputs[0]).partition("revents=")[2].rstrip("}]")
        return set() if text == "0" else set(text.split("|"))

    def taken(self, fd: int, size: int = 1 << 20) -> bytes | str:
        """What recv gives without waiting, or the errno."""
        call = self.start("recv", fd, ..., size, "MSG_DONTWAIT")
        if call.errno is not None:
            return call.errno
        return plain(call.outputs[1]) or b""


def outcome(call: Call) -> int | str:
    """The result of a call that is done, or its errno; "waits" if it is not done."""
    if not call.done:
        return "waits"
    assert (call.result == -1) == (call.errno is not None)
    return call.result if call.errno is None else call.errno


class _Listening:
    """Hands the events of a host to a system, and nobody else."""

    def __init__(self, system: System) -> None:
        self.handle = system.on_event


class Pair(World):
    """Two processes, `left` and `right`, on hosts joined by a wire. `right` is who left's `...` means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.left = Process(self, self._system(self.a, self.address_a, self.address_b))
        self.right = Process(self, self._system(self.b, self.address_b, self.address_a))
        for host, process in zip(self.hosts, (self.left, self.right), strict=True):
            host.handler = _Listening(process.system)

    def _system(self, stack: Stack, local: bytes, remote: bytes) -> System:
        return System(
            stack,
            local=local,
            remote=remote,
            bind_port=BIND_PORT,
            connect_port=CONNECT_PORT,
            family=self.family,
        )

    @property
    def _deadline(self) -> float:
        """When a call of either times out, infinity if none does."""
        times = [process.system.next_timeout() for process in (self.left, self.right)]
        return min((time for time in times if time is not None), default=math.inf)

    def next_time(self) -> float | None:
        """When something happens next."""
        time = min(self._deadline, math.inf if (other := super().next_time()) is None else other)
        return None if time == math.inf else time

    def step(self, until: float) -> bool:
        """As in `World`; time-outs of calls too."""
        moved = super().step(min(until, self._deadline))
        for process in (self.left, self.right):
            deadline = process.system.next_timeout()
            if deadline is not None and deadline <= self.now:
                process.system.handle_timeout(self.now)
                moved = True
        self.pump()
        return moved

    @property
    def family_name(self) -> str:
        """AF_INET or AF_INET6."""
        return "AF_INET" if self.family == 4 else "AF_INET6"

    def listening(self, backlog: int = 5, *flags: str) -> int:
        """A listening socket of `right`."""
        fd = self.right.socket(self.family_name, "|".join(("SOCK_STREAM", *flags)), "IPPROTO_TCP")
        assert isinstance(fd, int)
        assert self.right.bind(fd, ..., ...) == 0
        assert self.right.listen(fd, backlog) == 0
        return fd

    def connected(self, *flags: str) -> tuple[int, int]:
        """Descriptors of one connection: left's, right's. Right's listener is closed again."""
        listener = self.listening()
        fd = self.left.socket(self.family_name, "SOCK_STREAM", 0)
        assert isinstance(fd, int)
        call = self.left.start("connect", fd, ..., ...)
        self.run(1.0)
        assert outcome(call) == 0
        accepted = self.right.accept4(listener, ..., ..., "|".join(flags) or 0)
        assert isinstance(accepted, int)
        assert self.right.close(listener) == 0
        if flags:
            assert self.left.fcntl(fd, "F_SETFL", "O_RDWR|O_NONBLOCK") == 0
        return fd, accepted


class Scripted(Peer):
    """A scripted peer, and beside it one process, whose ports it speaks to by default."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.system = System(
            self.stack,
            local=self.local,
            remote=self.remote,
            bind_port=STACK_PORT,
            connect_port=PEER_PORT,
            family=4 if len(self.local) == 4 else 6,
        )
        self.process = Process(self, self.system)

    def on_event(self, event: Event) -> None:
        """The process hears of all that happens."""
        self.system.on_event(event, self.now)

    def advance(self, seconds: float) -> None:
        """Let time pass, for calls as well."""
        until = self.now + seconds
        while (deadline := self.system.next_timeout()) is not None and deadline <= until:
            super().advance(max(0.0, deadline - self.now))
            self.system.handle_timeout(self.now)
            self.pump()
        super().advance(until - self.now)

    @property
    def family_name(self) -> str:
        """AF_INET or AF_INET6."""
        return "AF_INET" if len(self.local) == 4 else "AF_INET6"

    def listening(self, backlog: int = 5, *flags: str) -> int:
        """A listening socket at the port that the peer speaks to."""
        process = self.process
        fd = process.socket(self.family_name, "|".join(("SOCK_STREAM", *flags)), 0)
        assert process.setsockopt(fd, "SOL_SOCKET", "SO_REUSEADDR", [1], 4) == 0
        assert process.bind(fd, ..., ...) == 0
        assert process.listen(fd, backlog) == 0
        return fd

    def accepted(self, *flags: str, mss: int = 1460) -> int:
        """A connection that the peer has opened; sequence numbers go on at 1."""
        listener = self.listening()
        self.send("S", seq=0, mss=mss)
        self.expect("SA", seq=0, ack=1)
        self.send("A", seq=1, ack=1)
        self.expect_nothing()
        fd = self.process.accept4(listener, ..., ..., "|".join(flags) or 0)
        assert isinstance(fd, int)
        assert self.process.close(listener) == 0
        return fd

    def connecting(self, *flags: str) -> tuple[int, Call]:
        """A connection that the process opens, from the port that the peer speaks to; the SYN was seen."""
        process = self.process
        fd = process.socket(self.family_name, "|".join(("SOCK_STREAM", *flags)), 0)
        assert process.bind(fd, ..., ...) == 0
        call = process.start("connect", fd, ..., ...)
        self.expect("S", seq=0)
        return fd, call
