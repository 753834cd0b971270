"""The same calls on the kernel's sockets, over loopback, and on two systems: results and errnos are the same.

Where they are not, and rightly, the difference is declared below with its reason; each is shown by an
example, so that none outlives what caused it.
"""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.packetdrill.system.both import Result, both

Step = tuple[Any, ...]

LISTENING: list[Step] = [("open", "l"), ("listen", "l", 5), ("open", "c")]
CONNECTED: list[Step] = [*LISTENING, ("connect", "c", "l"), ("accept", "l")]
DATAGRAMS: list[Step] = [("open", "u"), ("open", "v")]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference that is meant: the steps that show it, the kernel's result of the last one, and ours."""

    reason: str
    steps: list[Step]
    kernel: Result
    ours: Result


DIFFERENCES = {
    "a reset discards what was not read": Difference(
        "RFC 9293 3.10.7.4: a reset flushes all segment queues. Linux leaves the reader what came before.",
        [*CONNECTED, ("send", "c", 10), ("linger", "c", 1, 0), ("close", "c"), ("recv", "a", 20, 0)],
        bytes(10),
        "ECONNRESET",
    ),
    "a socket in TIME-WAIT keeps its port": Difference(
        "Linux leaves TIME-WAIT to something that is no socket, and the socket may be bound again.",
        [*CONNECTED, ("shutdown", "c", 1), ("close", "a"), ("bind", "c")],
        0,
        "EINVAL",
    ),
    "a buffer size reads back as it was set": Difference(
        "Linux doubles it for its bookkeeping, which the stack's buffers do not hold.",
        [
            ("open", "c"),
            ("set", "c", "SOL_SOCKET", "SO_RCVBUF", 20000),
            ("get", "c", "SOL_SOCKET", "SO_RCVBUF"),
        ],
        40000,
        20000,
    ),
    "datagrams are fragmented where they must be": Difference(
        "Linux looks for the path MTU with datagrams too; the stack's go out without DF.",
        [("open", "u"), ("get", "u", "SOL_IP", "IP_MTU_DISCOVER")],
        1,
        0,
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_declared_difference_is_there(name: str) -> None:
    difference = DIFFERENCES[name]
    results: list[tuple[Result, Result]] = []

    def check(index: int, kernel: Result, ours: Result) -> bool:
        results.append((kernel, ours))
        return True

    both(difference.steps, check)
    assert all(kernel == ours for kernel, ours in results[:-1])
    assert results[-1] == (difference.kernel, difference.ours)


def run(steps: list[Step]) -> None:
    """Take `steps`; every result must be the same, up to where a declared difference begins."""
    history: list[str] = []

    def check(index: int, kernel: Result, ours: Result) -> bool:
        step = steps[index]
        history.append(f"{step}: kernel {kernel!r}, ours {ours!r}")
        if kernel == ours:
            return True
        assert explains(step, kernel, ours), "\n".join(history)
        return False

    both(steps, check)


def explains(step: Step, kernel: Result, ours: Result) -> bool:
    """Whether a declared difference may be why results differ; what follows then is not comparable."""
    call = step[0]
    discarded = call in ("recv", "read") and isinstance(kernel, bytes) and kernel and ours == "ECONNRESET"
    bound_again = call == "bind" and (kernel, ours) == (0, "EINVAL")
    return discarded or bound_again or (call == "unread" and kernel > ours == 0)


STREAMS = st.sampled_from(["l", "c", "a"])
PEEK = st.sampled_from([0, socket.MSG_PEEK])
CALLS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["l", "c"])),
    st.tuples(st.just("bind"), STREAMS),
    st.tuples(st.just("listen"), STREAMS, st.sampled_from([-1, 1, 5])),
    st.tuples(st.just("accept"), STREAMS),
    st.tuples(st.just("connect"), st.just("c"), st.sampled_from(["l", "nobody"])),
    st.tuples(st.just("connect"), STREAMS, st.just("nobody")),
    st.tuples(st.just("disconnect"), STREAMS),
    st.tuples(st.just("send"), STREAMS, st.sampled_from([0, 1, 500, 3000])),
    st.tuples(st.just("recv"), STREAMS, st.sampled_from([0, 1, 700, 5000]), PEEK),
    st.tuples(st.just("read"), STREAMS, st.sampled_from([0, 1, 5000])),
    st.tuples(st.just("shutdown"), STREAMS, st.integers(-1, 3)),
    st.tuples(st.just("close"), STREAMS),
    st.tuples(st.just("poll"), STREAMS),
    st.tuples(st.just("getpeername"), STREAMS),
    st.tuples(st.just("unread"), STREAMS),
    st.tuples(st.just("get"), STREAMS, st.just("SOL_SOCKET"), st.sampled_from(["SO_ERROR", "SO_ACCEPTCONN"])),
    st.tuples(st.just("linger"), STREAMS, st.just(1), st.just(0)),
)


@given(st.sampled_from([LISTENING, CONNECTED]), st.lists(CALLS, max_size=12))
def test_streams(start: list[Step], steps: list[Step]) -> None:
    run([*start, *steps])


PAIR = st.sampled_from(["u", "v"])
DATAGRAM_CALLS = st.one_of(
    st.tuples(st.just("open"), PAIR),
    st.tuples(st.just("bind"), PAIR),
    st.tuples(st.just("listen"), PAIR, st.just(1)),
    st.tuples(st.just("accept"), PAIR),
    st.tuples(st.just("connect"), st.just("u"), st.sampled_from(["v", "nobody"])),
    st.tuples(st.just("disconnect"), PAIR),
    st.tuples(st.just("send"), PAIR, st.sampled_from([0, 1, 1000, 65507, 65508, 70000])),
    st.tuples(
        st.just("sendto"),
        st.just("u"),
        st.sampled_from([0, 1, 1000, 65508]),
        st.sampled_from(["v", "nobody"]),
    ),
    st.tuples(st.just("recv"), PAIR, st.sampled_from([0, 1, 2000]), PEEK),
    st.tuples(st.just("shutdown"), PAIR, st.integers(-1, 3)),
    st.tuples(st.just("close"), PAIR),
    st.tuples(st.just("poll"), PAIR),
    st.tuples(st.just("getpeername"), PAIR),
    st.tuples(st.just("unread"), PAIR),
    st.tuples(st.just("get"), PAIR, st.just("SOL_SOCKET"), st.just("SO_ERROR")),
)


@given(st.lists(DATAGRAM_CALLS, max_size=12))
def test_datagrams(steps: list[Step]) -> None:
    run([*DATAGRAMS, *steps])


NUMBERS = [-1, 0, 1, 2, 63, 64, 87, 88, 127, 128, 255, 256, 1000, 32767, 32768, 1 << 30]
OPTIONS = [
    ("SOL_SOCKET", "SO_REUSEADDR"),
    ("SOL_SOCKET", "SO_KEEPALIVE"),
    ("SOL_SOCKET", "SO_BROADCAST"),
    ("SOL_SOCKET", "SO_TYPE"),
    ("SOL_SOCKET", "SO_ERROR"),
    ("SOL_SOCKET", "SO_DOMAIN"),
    ("SOL_SOCKET", "SO_PROTOCOL"),
    ("SOL_SOCKET", "SO_ACCEPTCONN"),
    ("SOL_SOCKET", "SO_RCVLOWAT"),
    ("SOL_SOCKET", "SO_SNDLOWAT"),
    ("SOL_TCP", "TCP_NODELAY"),
    ("SOL_TCP", "TCP_MAXSEG"),
    ("SOL_TCP", "TCP_KEEPIDLE"),
    ("SOL_TCP", "TCP_KEEPINTVL"),
    ("SOL_TCP", "TCP_KEEPCNT"),
    ("SOL_TCP", "TCP_USER_TIMEOUT"),
    ("SOL_IP", "IP_TOS"),
    ("SOL_IP", "IP_MTU"),
    ("SOL_IPV6", "IPV6_TCLASS"),
]
SETS = st.lists(
    st.tuples(st.sampled_from(OPTIONS), st.sampled_from(NUMBERS)).filter(
        # How high the mark may be is a matter of the buffers that a machine allows.
        lambda one: one[0][1] != "SO_RCVLOWAT" or 0 <= one[1] <= 1000
    ),
    max_size=6,
)


@settings(max_examples=200)
@given(st.sampled_from(["c", "u"]), SETS)
def test_options(name: str, sets: list[tuple[tuple[str, str], int]]) -> None:
    steps: list[Step] = [("open", name)]
    for (level, option), number in sets:
        steps.append(("set", name, level, option, number))
        steps.append(("get", name, level, option))
    run(steps)
