"""Reassembly: any order gives the datagram back, limits hold, a model that thinks in bytes agrees."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.errors import DropCounters, DropReason
from tunstack.ip import ipv4
from tunstack.ip.header import IpHeader
from tunstack.ip.reassembly import DATAGRAM_CHARGE, FRAGMENT_CHARGE, Reassembler
from tunstack.limits import Limits

from . import wire

DUPLICATE = DropReason.FRAGMENT_DUPLICATE
OVERLAP = DropReason.FRAGMENT_OVERLAP
MEMORY = DropReason.FRAGMENT_MEMORY
BAD = DropReason.BAD_FRAGMENT
TIMEOUT = DropReason.FRAGMENT_TIMEOUT


def fragment(
    offset: int, payload: bytes, *, more: bool, ident: int = 1, ecn: int = 0, options: bytes = b""
) -> IpHeader:
    """A parsed fragment; `offset` in bytes."""
    return ipv4.parse(
        wire.ipv4(payload, ident=ident, offset=offset // 8, mf=int(more), ecn=ecn, options=options)
    )


def setup(**limits: float) -> tuple[Reassembler, DropCounters]:
    drops = DropCounters()
    return Reassembler(Limits(**limits), drops), drops  # type: ignore[arg-type]


@st.composite
def cut_datagrams(draw: st.DrawFn) -> tuple[bytes, list[IpHeader]]:
    """A payload and the fragments that it makes, in order."""
    cuts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    tail = draw(st.integers(1, 40))
    body = random.Random(draw(st.integers(0, 1000))).randbytes(sum(cuts) * 8 + tail)
    fragments = []
    place = 0
    for cut in cuts:
        fragments.append(fragment(place, body[place : place + cut * 8], more=True))
        place += cut * 8
    fragments.append(fragment(place, body[place:], more=False))
    return body, fragments


@pytest.mark.rfc("1122", "3.3.2 any order")
@given(cut_datagrams(), st.data())
def test_any_order_with_duplicates_gives_the_datagram_back(
    case: tuple[bytes, list[IpHeader]], data: st.DataObject
) -> None:
    body, fragments = case
    order = data.draw(st.permutations(range(len(fragments))))
    copies = data.draw(st.lists(st.sampled_from(order[:-1]), max_size=5))
    reassembler, drops = setup()
    for number in order[:-1]:
        assert reassembler.add(fragments[number], 0.0) is None
        for copy in copies:
            if number == copy:
                assert reassembler.add(fragments[copy], 0.0) is None
    datagram = reassembler.add(fragments[order[-1]], 0.0)
    assert datagram is not None and b"".join(datagram.pieces) == body
    assert datagram.first_header == fragments[0].packet[:20]
    assert ipv4.join(datagram).payload == body
    assert drops.as_dict() == ({DUPLICATE.value: len(copies)} if copies else {})
    assert len(reassembler) == reassembler.held_bytes == reassembler.held_fragments == 0
    assert reassembler.next_timeout() is None


@given(st.lists(st.tuples(cut_datagrams(), st.integers(0, 0xFFFF)), min_size=2, max_size=5), st.randoms())
def test_interleaved_datagrams_do_not_mix(
    cases: list[tuple[tuple[bytes, list[IpHeader]], int]], shuffler: random.Random
) -> None:
    """Datagrams that differ in one element of the key only."""
    reassembler, drops = setup()
    queue = []
    for number, ((body, fragments), _) in enumerate(cases):
        for piece in fragments:
            piece.src = piece.src[:3] + bytes([number]) if number % 4 == 0 else piece.src
            piece.dst = piece.dst[:3] + bytes([number]) if number % 4 == 1 else piece.dst
            piece.protocol = number if number % 4 == 2 else piece.protocol
            piece.ident = number if number % 4 == 3 else 99
            queue.append((body, piece))
    shuffler.shuffle(queue)
    whole = []
    for body, piece in queue:
        datagram = reassembler.add(piece, 0.0)
        if datagram is not None:
            assert b"".join(datagram.pieces) == body
            whole.append(body)
    assert sorted(whole) == sorted(body for (body, _), _ in cases)
    assert drops.total == 0


class Model:
    """Reassembly without limits, byte by byte, as one would explain it."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.fragments: set[tuple[int, bytes, bool]] = set()
        self.end: int | None = None
        self.dead: DropReason | None = None

    def add(self, start: int, payload: bytes, more: bool) -> tuple[DropReason | None, bytes | None]:
        if not payload or (more and len(payload) % 8) or start + len(payload) > 65535:
            return BAD, None
        if self.dead:
            return self.dead, None
        if (start, payload, more) in self.fragments:
            return DUPLICATE, None
        places = range(start, start + len(payload))
        if any(place in self.bytes for place in places):
            self.dead = OVERLAP
        else:
            second_end = self.end is not None and not more
            beyond_end = self.end is not None and places.stop > self.end
            end_inside = not more and max(self.bytes, default=-1) >= places.stop
            if second_end or beyond_end or end_inside:
                self.dead = BAD
        if self.dead:
            return self.dead, None
        self.fragments.add((start, payload, more))
        self.bytes.update(zip(places, payload, strict=True))
        if not more:
            self.end = places.stop
        if self.end is not None and len(self.bytes) == self.end:
            whole = bytes(self.bytes[place] for place in range(self.end))
            self.__init__()  # type: ignore[misc]
            return None, whole
        return None, None


hostile = st.tuples(
    st.integers(0, 1),
    st.integers(0, 6) | st.just(8190),
    st.sampled_from([0, 3, 8, 8, 8, 16, 16, 24]),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1]),
)


@settings(max_examples=300)
@given(st.lists(hostile, max_size=30))
def test_agrees_with_the_model(inputs: list[tuple[int, int, int, bool, int]]) -> None:
    reassembler, drops = setup()
    models = [Model(), Model()]
    for ident, offset, size, more, fill in inputs:
        payload = bytes((offset * 8 + place + fill) & 0xFF for place in range(size))
        held_before = len(models[ident].fragments) if models[ident].dead is None else 0
        before = {reason: drops[reason] for reason in DropReason}
        datagram = reassembler.add(fragment(offset * 8, payload, more=more, ident=ident), 1.0)
        was_dead = models[ident].dead
        reason, whole = models[ident].add(offset * 8, payload, more)
        assert (b"".join(datagram.pieces) if datagram else None) == whole
        new = {r.value: drops[r] - n for r, n in before.items() if drops[r] != n}
        newly_dead = models[ident].dead is not None and was_dead is None
        assert new == ({reason.value: 1 + (held_before if newly_dead else 0)} if reason else {})
    assert reassembler.held_fragments == sum(len(m.fragments) for m in models if m.dead is None)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.integers(0, 40),
            st.integers(0, 200),
            st.booleans(),
            st.floats(0, 20),
        ),
        max_size=60,
    ),
    st.integers(0, 8000),
    st.integers(0, 4),
    st.integers(0, 5),
)
def test_no_input_exceeds_the_limits_and_every_fragment_is_accounted_for(
    inputs: list[tuple[int, int, int, bool, float]], memory: int, datagrams: int, fragments: int
) -> None:
    reassembler, drops = setup(
        reassembly_bytes=memory, reassembly_datagrams=datagrams, reassembly_fragments=fragments
    )
    now = 0.0
    delivered = 0
    for count, (ident, offset, size, more, pause) in enumerate(inputs, 1):
        now += pause
        datagram = reassembler.add(fragment(offset * 8, bytes(size), more=more, ident=ident), now)
        if datagram is not None:
            delivered += len(datagram.pieces)
            assert len(datagram.pieces) <= fragments
        assert reassembler.held_bytes <= memory
        assert len(reassembler) <= datagrams
        assert reassembler.held_fragments <= datagrams * fragments
        assert reassembler.held_fragments + delivered + drops.total == count
        deadline = reassembler.next_timeout()
        assert deadline is None or now < deadline <= now + 60
    reassembler.handle_timeout(now + 60)
    assert len(reassembler) == reassembler.held_bytes == 0
    assert delivered + drops.total == len(inputs)
    assert len(reassembler.poll_quotes()) <= datagrams


@pytest.mark.parametrize("size", [8, 512, 1480])
def test_what_is_charged_is_what_it_takes(size: int) -> None:
    """The bookkeeping charges are not below what the interpreter really allocates."""
    memory = 512 * 1024
    drops = DropCounters()
    reassembler = Reassembler(Limits(reassembly_bytes=memory), drops)
    pieces = [
        fragment(place * size, bytes(size), more=True, ident=number)
        for number in range(600)
        for place in range(1 if number % 2 else 8)
    ]
    for piece in pieces:
        piece.src = bytes([10, 0, piece.ident >> 8, piece.ident & 255])
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        for piece in pieces:
            reassembler.add(piece, 0.0)
        used = tracemalloc.get_traced_memory()[0] - base
    finally:
        tracemalloc.stop()
    assert drops[MEMORY] > 0, "the limit was reached"
    assert used <= reassembler.held_bytes + 16384


@pytest.mark.rfc("1122", "3.3.2 timeout")
def test_time_exceeded_only_if_fragment_zero_was_seen() -> None:
    reassembler, drops = setup()
    first = fragment(0, bytes(range(200)) * 4, more=True, ident=1, options=b"\x01\x01\x01\x01")
    reassembler.add(first, 10.0)
    reassembler.add(fragment(8, bytes(16), more=False, ident=2), 20.0)
    reassembler.add(fragment(1600, bytes(16), more=False, ident=1), 60.0)
    assert reassembler.next_timeout() == 70.0, "60 s from the first fragment, not prolonged by others"
    reassembler.handle_timeout(69.9)
    assert len(reassembler) == 2 and reassembler.poll_quotes() == []
    reassembler.handle_timeout(70.0)
    assert reassembler.poll_quotes() == [first.packet[:576]]
    assert drops[TIMEOUT] == 2
    assert reassembler.next_timeout() == 80.0
    reassembler.handle_timeout(80.0)
    assert reassembler.poll_quotes() == [] and drops[TIMEOUT] == 3


def test_an_expired_datagram_takes_no_more_fragments_even_if_nobody_ran_the_timer() -> None:
    reassembler, drops = setup()
    assert reassembler.add(fragment(0, bytes(8), more=True), 0.0) is None
    assert reassembler.add(fragment(8, bytes(8), more=False), 60.0) is None
    assert drops[TIMEOUT] == 1 and len(reassembler) == 1


@pytest.mark.rfc("5722", "4 overlap")
def test_after_an_overlap_nothing_of_the_datagram_is_believed() -> None:
    reassembler, drops = setup()
    reassembler.add(fragment(0, bytes(16), more=True), 0.0)
    reassembler.add(fragment(8, bytes(16), more=True), 0.0)
    assert drops[OVERLAP] == 2 and reassembler.held_bytes == DATAGRAM_CHARGE
    assert reassembler.add(fragment(0, bytes(16), more=True), 1.0) is None
    assert reassembler.add(fragment(16, bytes(8), more=False), 1.0) is None
    assert drops[OVERLAP] == 4
    reassembler.handle_timeout(60.0)
    assert reassembler.poll_quotes() == [], "no answer to an attack"
    assert reassembler.add(fragment(0, bytes(16), more=True), 61.0) is None
    datagram = reassembler.add(fragment(16, bytes(8), more=False), 61.0)
    assert datagram is not None and drops.total == 4


@pytest.mark.rfc("5722", "4 overlap")
@pytest.mark.parametrize(("start", "size"), [(0, 16), (8, 8), (8, 24), (16, 8), (24, 16), (0, 40)])
def test_an_overlap_is_found_on_every_side(start: int, size: int) -> None:
    reassembler, drops = setup()
    reassembler.add(fragment(8, b"x" * 24, more=True), 0.0)
    reassembler.add(fragment(start, b"y" * size, more=True), 0.0)
    assert drops.as_dict() == {OVERLAP.value: 2}


def test_a_copy_with_other_bytes_or_another_flag_is_no_duplicate() -> None:
    for second in (
        fragment(0, b"12345679", more=True),
        fragment(0, b"12345678", more=False),
    ):
        reassembler, drops = setup()
        reassembler.add(fragment(0, b"12345678", more=True), 0.0)
        reassembler.add(second, 0.0)
        assert drops.as_dict() == {OVERLAP.value: 2}


def test_too_many_pieces() -> None:
    reassembler, drops = setup(reassembly_fragments=3)
    for place in range(3):
        reassembler.add(fragment(place * 8, bytes(8), more=True), 0.0)
    assert drops.total == 0
    assert reassembler.add(fragment(24, bytes(8), more=False), 0.0) is None
    assert drops.as_dict() == {MEMORY.value: 4}
    assert reassembler.add(fragment(24, bytes(8), more=False), 0.0) is None
    assert drops.as_dict() == {MEMORY.value: 5}


@pytest.mark.rfc("1122", "3.3.2 EMTU_R")
def test_the_largest_datagram_passes_and_a_larger_one_does_not() -> None:
    reassembler, drops = setup()
    body = random.Random(1).randbytes(65515)
    step = 1480
    for place in range(0, 65515, step):
        more = place + step < 65515
        datagram = reassembler.add(fragment(place, body[place : place + step], more=more), 0.0)
    assert datagram is not None and ipv4.join(datagram).payload == body
    assert reassembler.add(fragment(65528, bytes(8), more=False), 0.0) is None
    assert drops.as_dict() == {BAD.value: 1}


def test_the_oldest_goes_when_the_table_is_full() -> None:
    reassembler, drops = setup(reassembly_datagrams=2)
    for ident in (1, 2, 3):
        reassembler.add(fragment(0, bytes(8), more=True, ident=ident), float(ident))
    assert drops.as_dict() == {MEMORY.value: 1}
    assert reassembler.add(fragment(8, bytes(8), more=False, ident=2), 4.0) is not None
    assert reassembler.add(fragment(8, bytes(8), more=False, ident=3), 4.0) is not None
    assert reassembler.add(fragment(8, bytes(8), more=False, ident=1), 4.0) is None


def test_the_oldest_other_goes_when_memory_is_full() -> None:
    one = 1000 + FRAGMENT_CHARGE
    reassembler, drops = setup(reassembly_bytes=2 * DATAGRAM_CHARGE + 3 * one)
    reassembler.add(fragment(0, bytes(1000), more=True, ident=1), 0.0)
    reassembler.add(fragment(0, bytes(1000), more=True, ident=2), 0.0)
    reassembler.add(fragment(1000, bytes(1000), more=True, ident=1), 0.0)
    assert drops.total == 0 and reassembler.held_bytes == 2 * DATAGRAM_CHARGE + 3 * one
    reassembler.add(fragment(2000, bytes(1000), more=True, ident=1), 0.0)
    assert drops.as_dict() == {MEMORY.value: 1}, "ident 2 has gone, though 1 is older: 1 is growing"
    assert reassembler.held_fragments == 3
    reassembler.add(fragment(3000, bytes(1000), more=True, ident=1), 0.0)
    assert reassembler.held_fragments == 0 and drops.as_dict() == {MEMORY.value: 5}, "alone and too large"


@pytest.mark.rfc("3168", "5.3")
@pytest.mark.parametrize(
    ("marks", "verdict"),
    [
        ((2, 2), False),
        ((1, 2), False),
        ((0, 0), False),
        ((0, 2), False),
        ((2, 3), True),
        ((3, 1), True),
        ((3, 3), True),
        ((0, 3), None),
        ((3, 0), None),
    ],
)
def test_congestion_marks(marks: tuple[int, int], verdict: bool | None) -> None:
    reassembler, drops = setup()
    reassembler.add(fragment(0, bytes(8), more=True, ecn=marks[0]), 0.0)
    datagram = reassembler.add(fragment(8, bytes(8), more=False, ecn=marks[1]), 0.0)
    if verdict is None:
        assert datagram is None and drops.as_dict() == {BAD.value: 2}
    else:
        assert datagram is not None and datagram.congestion_experienced is verdict
        assert ipv4.join(datagram).traffic_class & 3 == (3 if verdict else marks[0])


def test_sixteen_byte_addresses_and_long_identifications_are_keys_like_any_other() -> None:
    reassembler, _ = setup()
    pieces = [fragment(0, bytes(8), more=True), fragment(8, bytes(8), more=False)]
    for piece in pieces:
        piece.src, piece.dst, piece.ident = bytes(15) + b"\x05", bytes(15) + b"\x06", 0xDEADBEEF
    assert reassembler.add(pieces[1], 0.0) is None
    assert reassembler.add(pieces[0], 0.0) is not None


def test_what_is_held_is_a_copy() -> None:
    """The device reuses its buffers; fragments must not change with them."""
    reassembler, _ = setup()
    buffer = bytearray(wire.ipv4(b"A" * 8, mf=1))
    reassembler.add(ipv4.parse(buffer), 0.0)
    buffer[:] = bytes(len(buffer))
    datagram = reassembler.add(fragment(8, b"B", more=False, ident=0), 0.0)
    assert datagram is not None and datagram.pieces == [b"A" * 8, b"B"]
