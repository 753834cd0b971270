"""Any script has a result, whatever it does to the stack; and the same one in each run."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.packetdrill import trees
from tests.testing.packetdrill.play import ACTIVE, LISTEN, PASSIVE, run
from tunstack.testing.packetdrill import Result, Verdict, format_script, report
from tunstack.testing.packetdrill.language.printer import format_packet
from tunstack.testing.packetdrill.language.syntax import Direction


def check(text: str) -> Result:
    result = run(text)
    assert "raised" not in result.message, report(result)
    assert "rest" not in result.message, report(result)
    assert report(result).startswith("x.pkt")
    assert (result.verdict is Verdict.PASSED) == (result.message == "")
    return result


@given(trees.scripts)
def test_any_script_of_the_language(script) -> None:
    check(format_script(script))


near = st.integers(0, 3000) | st.integers(2**32 - 3000, 2**32 - 1)


def nearby(packet, start, ack):
    """`packet` with numbers that a connection cares about."""
    length = packet.range.length % 2000
    return dataclasses.replace(
        packet, range=dataclasses.replace(packet.range, start=start, length=length), ack=ack, ports=None
    )


packets = st.one_of(
    st.builds(nearby, trees.inbound_segments, near, near),
    trees.datagrams(Direction.INBOUND),
    trees.icmp_messages(Direction.INBOUND),
).map(format_packet)
calls = st.sampled_from(
    [
        "write(4, ..., 3000) = ...",
        "read(4, ..., 1000) = ...",
        "shutdown(4, SHUT_WR) = ...",
        "close(4) = ...",
        "close(3) = ...",
        "connect(3, ..., ...) = ...",
        "poll([{fd=4, events=POLLIN|POLLOUT, revents=...}], 1, 0) = ...",
        "fcntl(4, F_SETFL, O_RDWR|O_NONBLOCK) = ...",
    ]
)
times = st.sampled_from(["+0", "+.001", "+.04", "+.3", "+5"])
lines = st.lists(st.tuples(times, packets | calls).map(" ".join), max_size=12).map("\n".join)
starts = st.sampled_from([LISTEN, PASSIVE, ACTIVE])


@given(starts, lines)
@settings(max_examples=200)
def test_any_packets_and_calls(start, text) -> None:
    script = start + text
    first = check(script)
    assert report(run(script)) == report(first)
