"""Any calls with any arguments, in any order: a result, an errno or `Unsupported`, and nothing else."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.tcp.world import perfect
from tests.testing.packetdrill.system.world import Pair, Process, outcome
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
from tunstack.testing.packetdrill.system import Call, Unsupported
from tunstack.testing.packetdrill.system.calls import HANDLERS
from tunstack.testing.packetdrill.system.constants import CONSTANTS, ERRNOS

NAMES = st.sampled_from([*sorted(CONSTANTS), "NONESUCH"])
NUMBERS = st.one_of(st.integers(-2, 12), st.sampled_from([16, 28, 100, 8080, 70000]), st.integers())
LEAVES: st.SearchStrategy[Value] = st.one_of(
    st.builds(Integer, NUMBERS),
    st.builds(Symbol, NAMES),
    st.just(ANY),
    st.builds(String, st.text(max_size=5)),
    st.builds(String, st.text(st.characters(max_codepoint=255), max_size=5), st.booleans()),
)
MEMBERS = st.sampled_from(
    [
        None,
        *("sa_family", "sin_port", "sin_addr", "sin6_port", "sin6_addr", "fd", "events", "revents"),
        *("onoff", "linger", "tv_sec", "tv_usec", "msg_name", "msg_namelen", "msg_iov", "msg_flags"),
    ]
)


def inner(children: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    several = st.lists(children, max_size=4).map(tuple)
    fields = st.lists(st.builds(Field, children, MEMBERS, st.none() | children), max_size=4).map(tuple)
    return st.one_of(
        st.builds(Or, several),
        st.builds(Array, several),
        st.builds(Struct, fields),
        st.builds(Function, st.sampled_from(["htons", "htonl", "inet_addr", "inet_pton", "x"]), several),
    )


VALUES: st.SearchStrategy[Value] = st.recursive(LEAVES, inner, max_leaves=5)


def checked(call: Call) -> Call:
    """`call` is as the contract has it."""
    assert len(call.outputs) == len(call.arguments)
    if call.done:
        assert (call.result == -1) == (call.errno is not None)
        assert call.errno is None or call.errno in ERRNOS
    return call


@given(
    st.sampled_from([4, 6]),
    st.lists(st.tuples(st.sampled_from(sorted(HANDLERS)), st.lists(VALUES, max_size=5)), max_size=6),
)
def test_any_arguments(family: int, calls: list[tuple[str, list[Value]]]) -> None:
    pair = Pair(family=family)
    pair.connected()
    pair.left.socket(pair.family_name, "SOCK_DGRAM", 0)
    for name, arguments in calls:
        least, most = HANDLERS[name][1:]
        arguments = [Integer(3), *arguments][:most]
        arguments += [ANY] * (least - len(arguments))
        with contextlib.suppress(Unsupported):
            checked(pair.left.system.call(name, arguments, pair.now))
            pair.run(0.01)


FLAGS = st.sampled_from([0, "MSG_DONTWAIT", "MSG_PEEK", "MSG_WAITALL", "MSG_TRUNC", "MSG_DONTWAIT|MSG_PEEK"])
SIDES = st.sampled_from(["left", "right"])
DESCRIPTORS = st.integers(3, 8)
SIZES = st.sampled_from([0, 1, 1000, 10_000, 200_000])
SOCKET_OPTIONS = st.sampled_from(
    [
        ("SOL_SOCKET", "SO_REUSEADDR", [1], 4),
        ("SOL_SOCKET", "SO_KEEPALIVE", [1], 4),
        ("SOL_SOCKET", "SO_LINGER", {"onoff": 1, "linger": 0}, 8),
        ("SOL_SOCKET", "SO_LINGER", {"onoff": 1, "linger": 2}, 8),
        ("SOL_SOCKET", "SO_RCVBUF", [3000], 4),
        ("SOL_SOCKET", "SO_SNDBUF", [3000], 4),
        ("SOL_SOCKET", "SO_RCVTIMEO", {"tv_sec": 1, "tv_usec": 0}, 16),
        ("SOL_SOCKET", "SO_SNDTIMEO", {"tv_sec": 1, "tv_usec": 0}, 16),
        ("SOL_TCP", "TCP_NODELAY", [1], 4),
        ("SOL_TCP", "TCP_KEEPIDLE", [5], 4),
        ("SOL_TCP", "TCP_USER_TIMEOUT", [3000], 4),
        ("SOL_TCP", "TCP_MAXSEG", [600], 4),
        ("SOL_TCP", "TCP_CONGESTION", b"reno", 4),
        ("SOL_IP", "IP_TOS", [0x20], 4),
    ]
)


class Calls(RuleBasedStateMachine):
    """Sensible calls of two processes, blocking ones too, over a wire that loses one packet in `loss`."""

    @initialize(family=st.sampled_from([4, 6]), loss=st.sampled_from([0, 3, 10]))
    def begin(self, family: int, loss: int) -> None:
        fate = perfect() if not loss else lambda rng: [] if rng.randrange(loss) == 0 else [0.005]
        self.pair = Pair(fate=fate, family=family)
        self.calls: list[Call] = []
        self.bytes: dict[int, int] = {}

    def make(self, side: str, name: str, *arguments: Any) -> Call | None:
        process: Process = getattr(self.pair, side)
        try:
            call = process.start(name, *arguments)
        except Unsupported:
            return None
        self.calls.append(call)
        return call

    @rule(side=SIDES, kind=st.sampled_from(["SOCK_STREAM", "SOCK_DGRAM", "SOCK_STREAM|SOCK_NONBLOCK"]))
    def socket(self, side: str, kind: str) -> None:
        self.make(side, "socket", self.pair.family_name, kind, 0)

    @rule(side=SIDES, fd=DESCRIPTORS)
    def bind_and_listen(self, side: str, fd: int) -> None:
        self.make(side, "bind", fd, ..., ...)
        self.make(side, "listen", fd, 2)

    @rule(side=SIDES, fd=DESCRIPTORS)
    def bind(self, side: str, fd: int) -> None:
        self.make(side, "bind", fd, ..., ...)

    @rule(side=SIDES, fd=DESCRIPTORS)
    def connect(self, side: str, fd: int) -> None:
        self.make(side, "connect", fd, ..., ...)

    @rule(side=SIDES, fd=DESCRIPTORS)
    def disconnect(self, side: str, fd: int) -> None:
        self.make(side, "connect", fd, {"sa_family": "AF_UNSPEC"}, 16)

    @rule(side=SIDES, fd=DESCRIPTORS)
    def accept(self, side: str, fd: int) -> None:
        self.make(side, "accept", fd, ..., ...)

    @rule(side=SIDES, fd=DESCRIPTORS, size=SIZES)
    def write(self, side: str, fd: int, size: int) -> None:
        self.make(side, "write", fd, ..., size)

    @rule(side=SIDES, fd=DESCRIPTORS, size=SIZES, flags=FLAGS)
    def recv(self, side: str, fd: int, size: int, flags: Any) -> None:
        call = self.make(side, "recv", fd, ..., size, flags)
        if call is not None and call.done and "MSG_TRUNC" not in str(flags):
            assert call.result <= size

    @rule(side=SIDES, fd=DESCRIPTORS, how=st.integers(0, 2))
    def shutdown(self, side: str, fd: int, how: int) -> None:
        self.make(side, "shutdown", fd, how)

    @rule(side=SIDES, fd=DESCRIPTORS)
    def close(self, side: str, fd: int) -> None:
        self.make(side, "close", fd)

    @rule(side=SIDES, fd=DESCRIPTORS, option=SOCKET_OPTIONS)
    def set_option(self, side: str, fd: int, option: tuple[Any, ...]) -> None:
        self.make(side, "setsockopt", fd, *option)

    @rule(side=SIDES, fd=DESCRIPTORS, name=st.sampled_from(["SO_ERROR", "SO_RCVBUF", "SO_LINGER"]))
    def get_option(self, side: str, fd: int, name: str) -> None:
        self.make(side, "getsockopt", fd, "SOL_SOCKET", name, [0], [8])

    @rule(side=SIDES, fd=DESCRIPTORS, milliseconds=st.sampled_from([0, 100, -1]))
    def poll(self, side: str, fd: int, milliseconds: int) -> None:
        self.make(side, "poll", [{"fd": fd, "events": "POLLIN|POLLOUT", "revents": 0}], 1, milliseconds)

    @rule(side=SIDES, fd=DESCRIPTORS, request=st.sampled_from(["SIOCINQ", "SIOCOUTQ", "SIOCOUTQNSD"]))
    def ioctl(self, side: str, fd: int, request: str) -> None:
        self.make(side, "ioctl", fd, request, [0])

    @rule(side=SIDES, fd=DESCRIPTORS)
    def info(self, side: str, fd: int) -> None:
        with contextlib.suppress(Unsupported):
            found = getattr(self.pair, side).system.tcp_info(fd)
            assert all(isinstance(number, int) and number >= 0 for number in found.values())

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.pair.run(seconds)

    @invariant()
    def calls_are_as_the_contract_has_them(self) -> None:
        for call in getattr(self, "calls", []):
            checked(call)
        self.calls = [call for call in getattr(self, "calls", []) if not call.done]

    def teardown(self) -> None:
        """When both processes have closed all and time has passed, nothing is left in the stacks."""
        if not hasattr(self, "pair"):
            return
        for process in (self.pair.left, self.pair.right):
            process.system.exit(self.pair.now)
        self.pair.pump()
        for _ in range(20):
            self.pair.run(60.0)
        for stack, process in ((self.pair.a, self.pair.left), (self.pair.b, self.pair.right)):
            assert process.system.next_timeout() is None
            assert not stack.connections
            assert not stack.requests
            assert stack.send_pool.used == 0
            assert stack.receive_account.used == 0


TestCalls = Calls.TestCase


@pytest.mark.parametrize("count", range(7))
def test_a_wrong_number_of_arguments(count: int) -> None:
    pair = Pair()
    for name, (_, least, most) in HANDLERS.items():
        if not least <= count <= most:
            with pytest.raises(Unsupported, match=name):
                pair.left.start(name, *[3] * count)


def test_calls_of_one_process_set_each_other_free() -> None:
    pair = Pair()
    _, b = pair.connected()
    call = pair.right.start("recv", b, ..., 1, 0)
    assert outcome(call) == "waits"
    assert pair.right.shutdown(b, "SHUT_RD") == 0
    assert outcome(call) == 0


def test_the_end_of_a_process_ends_its_calls_and_connections() -> None:
    pair = Pair()
    a, b = pair.connected()
    call = pair.right.start("read", b, ..., 1)
    pair.right.system.exit(pair.now)
    pair.run(1.0)
    assert outcome(call) == "waits"
    assert pair.left.taken(a) == b""
    assert pair.right.read(b, ..., 1) == "EBADF"
