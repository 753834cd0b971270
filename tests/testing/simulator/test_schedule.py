"""Schedules: the text reads back, and each effect does what it says to the packet that it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.link.shaping.pipeline import Pipeline
from tunstack.packet import Packet
from tunstack.testing.simulator import Impairment, Network, Schedule, Transfer, ramp
from tunstack.testing.simulator.schedule import EFFECTS, Impairments
from tunstack.testing.simulator.strategies import schedules

TIMES = st.floats(0, 1e6)
IMPAIRMENTS = st.builds(
    lambda way, at, effect, value: Impairment(
        way, at, effect, {"delay": value, "corrupt": int(value)}.get(effect, 0)
    ),
    st.sampled_from(["a>b", "router-1>h.2"]),
    st.integers(0, 10**9) | TIMES,
    st.sampled_from(EFFECTS),
    TIMES,
)


@given(st.builds(Schedule, st.integers(0, 2**64), st.lists(IMPAIRMENTS).map(tuple)))
def test_what_is_printed_reads_back_as_the_same(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "begins with 'seed NUMBER'"),
        ("seed x", "begins with"),
        ("seed 1; a>b drop", "'a>b drop' is no impairment"),
        ("seed 1; a>b 1 lose", "is no impairment"),
        ("seed 1; a>b 1 delay", "is no impairment"),
        ("seed 1; a>b 1 drop extra", "is no impairment"),
    ],
)
def test_mistakes_in_the_text_are_told(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Schedule.parse(text)


def test_impossible_impairments_are_refused() -> None:
    for fields in (("a>b", 1, "lose"), ("a>b", -1, "drop"), ("a>b", 1, "delay", float("inf"))):
        with pytest.raises(ValueError):
            Impairment(*fields)  # type: ignore[arg-type]
    network = Network()
    network.link(network.host("a"), network.host("b"))
    with pytest.raises(ValueError, match="no direction b>c; there are a>b, b>a"):
        Schedule(0, (Impairment("b>c", 0, "drop"),)).apply(network)


def run(*impairments: Impairment) -> list[tuple[float, int]]:
    """(when, number) of what leaves of five packets that come once a second."""
    pipeline = Pipeline([Impairments(impairments)])
    got = []
    for number in range(5):
        got += pipeline.pop_timed(number)
        pipeline.push(Packet(bytes([number])), float(number))
    got += pipeline.pop_timed(1e9)
    (one,) = pipeline.statistics()
    assert one.received + one.added == one.sent + sum(one.dropped.values())
    assert one.queued == one.queued_bytes == 0
    return [(at, packet.head[0]) for at, packet in got]


def test_each_effect() -> None:
    assert run() == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert run(Impairment("w", 1, "drop")) == [(0, 0), (2, 2), (3, 3), (4, 4)]
    assert run(Impairment("w", 2, "duplicate")) == [(0, 0), (1, 1), (2, 2), (2, 2), (3, 3), (4, 4)]
    assert run(Impairment("w", 0, "delay", 2.5)) == [(1, 1), (2, 2), (2.5, 0), (3, 3), (4, 4)]
    assert run(Impairment("w", 4, "corrupt", 7)) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 5)]
    assert run(Impairment("w", 1.5, "drop")) == [(0, 0), (1, 1), (3, 3), (4, 4)]
    assert run(Impairment("w", 99, "drop")) == run()


def test_effects_on_one_packet_add_up() -> None:
    twice = Impairment("w", 3, "duplicate")
    late = Impairment("w", 3, "delay", 0.25)
    assert run(twice, late, twice, late)[3:] == [(3.5, 3)] * 3 + [(4, 4)]
    assert run(twice, Impairment("w", 3, "drop")) == [(0, 0), (1, 1), (2, 2), (4, 4)]
    assert run(Impairment("w", 0.0, "drop"), Impairment("w", 0.0, "drop")) == [(2, 2), (3, 3), (4, 4)]


def test_what_is_held_is_lost_with_the_link() -> None:
    network = Network()
    a, b = network.host("a"), network.host("b")
    link = network.link(a, b, "delay 1s")
    Schedule.parse("seed 0; a>b 0 delay 9.0s").apply(network)
    a.connect(b, 80)
    network.run(0.5)
    link.cut()
    assert link.forth.drops[DropReason.SHAPING_DETACHED] == 1


@given(schedules(["a>b", "b>a"], packets=40))
def test_tcp_survives_any_finite_schedule(schedule: Schedule) -> None:
    """Requirements 9.11 with chosen packets: everything arrives, in order, once, and both ends forget it."""
    network = Network(schedule.seed)
    a, b = network.host("a"), network.host("b")
    network.link(a, b, "delay 10ms")
    schedule.apply(network)
    transfer = Transfer(a, b, 60_000)
    assert network.run_until(lambda: transfer.done, 600), f"Schedule.parse('{schedule}')"
    assert transfer.received == 60_000 and transfer.error is None
    network.run(300)
    assert not a.stack.connections and not b.stack.connections
    assert a.stack.send_pool.used == b.stack.receive_account.used == 0


def test_the_stream_has_a_period_that_no_block_size_shares() -> None:
    assert ramp(300)[:251] == bytes(range(251)) and ramp(300)[251:] == bytes(range(49))
    assert ramp(10, 250) == bytes([250, *range(9)])
