"""SACK blocks by themselves: those that a receiver writes against its store, those that a sender believes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.tcp import header
from tunstack.tcp.receive import OutOfOrder, ReceiveAccount
from tunstack.tcp.sack import SackWriter, read_blocks
from tunstack.tcp.seq import MASK, add, diff

# the writer against a model

arrivals = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=200)
@given(arrivals, st.integers(1, 4))
def test_the_writer_tells_the_truth(steps: list[tuple[int, int, bool]], limit: int) -> None:
    """Blocks are those of the store, distinct; the first holds the latest arrival; all are told in time."""
    store = OutOfOrder(ReceiveAccount(1 << 20), 64)
    writer = SackWriter()
    latest: list[int] = []
    for start, size, report in steps:
        store.insert(start, bytes(size))
        writer.arrived(start, store)
        latest.insert(0, start)
        if not report:
            continue
        blocks = writer.blocks(store, limit)
        expected: list[tuple[int, int]] = []
        for position in latest:
            block = store.block_at(position)
            assert block is not None
            if block not in expected:
                expected.append(block)
        assert blocks == expected[:limit]
    assert set(expected) == set(store.ranges()) if steps[-1][2] else True


# what is believed


def limits(una: int) -> tuple[int, int, int]:
    return una, add(una, 1000), 5000


@given(
    st.integers(0, MASK),
    st.lists(st.tuples(st.integers(-8000, 8000), st.integers(-8000, 8000)), max_size=4),
    st.integers(0, 6000),
)
def test_what_is_taken_from_a_peer_lies_in_what_is_outstanding(
    una: int, edges: list[tuple[int, int]], behind: int
) -> None:
    """Hostile blocks of any kind: nothing beyond snd_nxt, nothing backward, nothing below snd_una."""
    wire = tuple((add(una, start), add(una, end)) for start, end in edges)
    ack = add(una, -behind)
    duplicate, usable = read_blocks(wire, ack, *limits(una))
    for start, end in usable:
        assert 0 <= diff(start, una) < diff(end, una) <= 1000
    offered = {p for s, e in edges if s < e for p in range(max(0, s), min(1000, e))}
    taken = {diff(p, una) for s, e in usable for p in ((s + i) & MASK for i in range(diff(e, s)))}
    assert taken <= offered
    if duplicate is not None:
        start, end = (diff(edge, una) for edge in duplicate)
        assert -5000 <= start < end <= 1000
        assert (start, end) == edges[0]


@pytest.mark.rfc("2883", "4")
@pytest.mark.parametrize(
    ("blocks", "ack", "duplicate", "usable"),
    [
        ([(100, 200)], 0, None, [(100, 200)]),
        ([(-200, -100)], 0, (-200, -100), []),
        ([(-200, -100), (300, 400)], 0, (-200, -100), [(300, 400)]),
        ([(300, 400), (200, 500)], 0, (300, 400), [(200, 500)]),
        ([(300, 400), (300, 400)], 0, (300, 400), [(300, 400)]),
        ([(300, 400), (350, 500)], 0, None, [(300, 400), (350, 500)]),
        ([(300, 400), (-100, 500)], -150, (300, 400), [(0, 500)]),
        ([(-50, 100)], -100, None, [(0, 100)]),
        ([(-50, 100)], 0, (-50, 100), []),
        ([(100, 1001)], 0, None, []),
        ([(200, 200)], 0, None, []),
        ([(-6000, 100)], -7000, None, []),
    ],
)
@pytest.mark.parametrize("una", [1, 100, 2**32 - 500, 2**31 - 50])
def test_blocks_and_what_they_mean(
    una: int,
    blocks: list[tuple[int, int]],
    ack: int,
    duplicate: tuple[int, int] | None,
    usable: list[tuple[int, int]],
) -> None:
    wire = tuple((add(una, s), add(una, e)) for s, e in blocks)
    found, taken = read_blocks(wire, add(una, ack), *limits(una))
    assert taken == [(add(una, s), add(una, e)) for s, e in usable]
    assert found == (duplicate and (add(una, duplicate[0]), add(una, duplicate[1])))


@given(st.booleans(), st.lists(st.tuples(st.integers(0, MASK), st.integers(0, MASK)), min_size=1, max_size=3))
def test_the_option_survives_the_wire(stamped: bool, blocks: list[tuple[int, int]]) -> None:
    options = header.ack_options((1, 2) if stamped else None, blocks)
    assert len(options) % 4 == 0 and len(options) <= 40
    segment = header.parse(memoryview(header.emit(1, 2, 3, 4, header.ACK, 5, 0, options)))
    assert segment.sack == tuple(blocks)
    assert (segment.ts_val, segment.ts_ecr) == ((1, 2) if stamped else (None, 0))


@pytest.mark.parametrize("flags", list(itertools.product([False, True], [None, 7], [None, (1, 2)])))
def test_syn_options_survive_the_wire(flags: tuple[bool, int | None, tuple[int, int] | None]) -> None:
    sack, shift, stamps = flags
    options = header.syn_options(1460, shift, stamps, sack)
    assert len(options) % 4 == 0 and len(options) <= 40
    segment = header.parse(memoryview(header.emit(1, 2, 3, 4, header.SYN, 5, 0, options)))
    assert (segment.mss, segment.sack_permitted, segment.window_shift) == (1460, sack, shift)
    assert (segment.ts_val is not None) == (stamps is not None)
