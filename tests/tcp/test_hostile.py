"""A live connection under segments that are nearly right: nothing raises, nothing grows, nothing is wrong.

The model is what a TCP without any bug would have delivered: the stream of each direction is a ramp, so every
byte has one right value at its place, and the attacker does not know better than to send it or to send
something outside of the window.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.tcp.peer import MOD, PEER, STACK, Peer, checksum, established, pseudo, ramp, syn_received, syn_sent
from tests.tcp.world import Transfer, World
from tunstack.limits import PAGE_SIZE, Limits
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.hot import NEVER
from tunstack.tcp.scoreboard import Scoreboard
from tunstack.tcp.send import MAX_RECORDS, Timer
from tunstack.tcp.seq import add, diff, le, lt
from tunstack.tcp.states import State
from tunstack.testing.strategies import flags, offsets

LIMITS = Limits(
    receive_buffer=20_000,
    receive_memory=30_000,
    reassembly_blocks=8,
    send_buffer_floor=30_000,
    send_buffer=60_000,
    page_pool=8 * PAGE_SIZE,
    connections=4,
)
ISNS = st.sampled_from([(1_000, 5_000), (MOD - 2, MOD - 3), (2**31 - 100, MOD - 20_000), (0, 0)])
near = offsets(20_000, 65_535)


def check_records(records: Scoreboard, una: int, nxt: int) -> None:
    """In order, disjoint, without gaps from `una` to `nxt`, and the account of lost bytes is right."""
    at = una
    lost = 0
    for record in records:
        assert record.seq == at and lt(record.seq, record.end)
        at = record.end
        lost += record.size if record.lost else 0
    assert at == nxt
    assert lost == records.lost_bytes
    assert len(records) <= 2 * MAX_RECORDS


def check(conn: Connection) -> None:
    """What holds of every connection at every instant."""
    hot, sender, receiver = conn.hot, conn.sender, conn.receiver
    for number in (hot.snd_una, hot.snd_nxt, hot.rcv_nxt, hot.rcv_adv, hot.snd_wl1, hot.snd_wl2):
        assert 0 <= number < MOD
    if conn.closed:
        assert not len(sender.records) and not sender.chain.length and not receiver.ooo.size
        assert hot.rto_deadline == hot.ack_deadline == NEVER
        return
    assert le(hot.snd_una, hot.snd_nxt)
    assert hot.mss > 0 and hot.cwnd >= 0 and sender.inflation >= 0
    assert hot.snd_wnd >= 0
    if conn.established and conn.state is not State.TIME_WAIT:
        check_records(sender.records, hot.snd_una, hot.snd_nxt)
        assert sender.chain.length + sender.fin_sent >= diff(hot.snd_nxt, hot.snd_una)
        outstanding = len(sender.records) or sender.unsent
        assert not outstanding or hot.rto_deadline != NEVER, "work without a timer is a deadlock"
        assert sender.timer is not Timer.IDLE or not outstanding
    if conn.state not in (State.SYN_SENT, State.CLOSED):
        assert diff(hot.rcv_adv, hot.rcv_nxt) >= -1  # the FIN may stand at the edge
        assert receiver.queue.size + receiver.ooo.size <= LIMITS.receive_buffer
        assert len(receiver.ooo) <= LIMITS.reassembly_blocks
        ranges = receiver.ooo.ranges()
        assert all(start > receiver.position for start, _ in ranges)


class Hostile(RuleBasedStateMachine):
    """One connection, its user, and a peer that lies."""

    peer: Peer

    @initialize(
        isns=ISNS,
        how=st.sampled_from(["active", "passive", "syn-sent", "syn-received"]),
        timestamps=st.booleans(),
        shift=st.sampled_from([None, 0, 7]),
    )
    def start(self, isns: tuple[int, int], how: str, timestamps: bool, shift: int | None) -> None:
        options: dict[str, Any] = {"isns": isns, "timestamps": timestamps, "limits": LIMITS}
        if how == "syn-sent":
            self.peer = syn_sent(**options)
        elif how == "syn-received":
            self.peer = syn_received(shift=shift, **options)
        else:
            self.peer = established(active=how == "active", shift=shift, **options)
        self.conns = [self.peer.conn]
        self.read = 0
        self.written = 0

    @property
    def conn(self) -> Connection:
        return self.conns[0]

    def numbers(self, seq: int, ack: int) -> tuple[int, int]:
        """Relative numbers `seq` from `rcv_nxt` (before any SYN: the peer's ISN) and `ack` from `snd_una`."""
        hot = self.conn.hot
        expected = 0 if self.conn.state is State.SYN_SENT else hot.rcv_nxt - self.peer.iss
        return (
            (expected + seq) % MOD,
            (hot.snd_una - (self.peer.stack_iss or 0) + ack) % MOD,
        )

    @rule(
        letters=flags(),
        seq=near,
        ack=near,
        size=st.sampled_from([0, 0, 1, 2, 700, 1460, 5000]),
        win=st.sampled_from([0, 1, 100, 1460, 65535]),
        stamp=st.sampled_from([0, 0, 0, -1, 1, -100_000, 2**31]),
        gso=st.sampled_from([0, 1, 536]),
        options=st.sampled_from([b"", b"", b"\1\1\5\x0a" + bytes(8), b"\5\0", b"\2\4\0\1", b"\3\3\xff"]),
    )
    def segment(
        self, letters: str, seq: int, ack: int, size: int, win: int, stamp: int, gso: int, options: bytes
    ) -> None:
        moves_isn = "S" in letters and seq != 0
        if moves_isn:
            self.peer.release()
        moves_isn &= self.conn.state is State.SYN_SENT
        number, acked = self.numbers(seq, ack)
        ts = (self.peer.stamp() + stamp, self.peer.last_stamp) if self.peer.timestamps else None
        # The byte with number n is that of the ramp, whatever the segment; a SYN that is believed begins it.
        data = ramp(size, 0 if moves_isn else diff(number, 1 - ("S" in letters)) % 251)
        self.peer.hold(
            letters,
            number,
            acked,
            data,
            win=win,
            ts=ts,
            gso=gso,
            options=options,
            mss=1460 if "S" in letters else None,
        )
        if moves_isn:
            self.peer.release()
            if self.conn.state is not State.SYN_SENT:
                self.peer.iss = (self.peer.iss + number) % MOD

    @rule(size=st.integers(1, 3000))
    def good_data(self, size: int) -> None:
        number, acked = self.numbers(0, 0)
        if self.conn.state is not State.SYN_SENT and number < 2**31:
            self.peer.hold("A", number, acked, ramp(size, (number - 1) % 251))

    @rule(data=st.binary(max_size=80))
    def garbage(self, data: bytes) -> None:
        self.peer.send_raw(self.peer.ip(data, 6))

    @rule(
        kind=st.sampled_from([3, 4, 11, 12]),
        code=st.integers(0, 15),
        mtu=st.sampled_from([0, 552, 576, 1400, 9000]),
    )
    def icmp(self, kind: int, code: int, mtu: int) -> None:
        if self.peer.sent_by_stack:
            self.peer.send_icmp(kind, code, self.peer.sent_by_stack[-1], mtu=mtu)

    @rule()
    def let_it_answer(self) -> None:
        self.peer.release()

    @rule(part=st.floats(0, 1))
    def acknowledge(self, part: float) -> None:
        self.peer.release()
        hot = self.conn.hot
        if not self.conn.closed and self.conn.state is not State.SYN_SENT:
            number, acked = self.numbers(0, int(diff(hot.snd_nxt, hot.snd_una) * part))
            self.peer.send("A", number, acked)

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 2.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.peer.release()
        self.peer.advance(seconds)
        self.peer.take()
        del self.peer.sent_by_stack[:-1]

    @rule(size=st.integers(1, 40_000))
    def user_writes(self, size: int) -> None:
        self.peer.release()
        if self.conn.writable:
            self.written += self.peer.write_to(self.conn, ramp(size, self.written))

    @rule(part=st.floats(0, 1))
    def user_reads(self, part: float) -> None:
        self.peer.release()
        data = b"".join(self.conn.peek())
        count = int(len(data) * part)
        assert data == ramp(len(data), self.read), "a byte that nobody sent at this place"
        self.conn.consume(count)
        self.read += count
        self.peer.pump()

    @precondition(lambda self: self.conn.established)
    @rule()
    def user_closes(self) -> None:
        self.peer.release()
        self.conn.shutdown()
        self.peer.pump()

    @rule(choice=st.integers(0, 9))
    def user_goes(self, choice: int) -> None:
        if choice == 0:
            self.peer.release()
            self.conn.release(self.peer.now)
            self.peer.pump()
            assert not self.conn.readable, "nobody will read it: it causes a reset"

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "conns"):
            return
        stack = self.peer.stack
        check(self.conn)
        held = {id(c): c for c in [*self.conns, *stack.connections.values()]}
        used = sum(c.receiver.queue.size + c.receiver.ooo.size for c in held.values())
        assert used <= stack.receive_account.used <= LIMITS.receive_memory
        assert stack.send_pool.used <= LIMITS.page_pool
        assert len(stack.connections) <= LIMITS.connections
        for connection in stack.connections.values():
            check(connection)
            assert connection.state is not State.CLOSED

    def teardown(self) -> None:
        """Whatever happened, an abort frees all of it."""
        if not hasattr(self, "conns"):
            return
        self.peer.release()
        for connection in [self.conn, *self.peer.stack.connections.values()]:
            connection.abort()
        self.peer.pump()
        stack = self.peer.stack
        assert not stack.connections and not stack.send_pool.used
        assert self.conn.error is not None or self.conn.readable == stack.receive_account.used


TestHostile = Hostile.TestCase
TestHostile.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), isns=ISNS)
def test_mutated_copies_of_real_segments_do_not_disturb_the_flow(seed: int, isns: tuple[int, int]) -> None:
    """Beside every real segment of a transfer goes a copy with one field changed and a right checksum.

    Numbers are moved out of the window (what an off-path attacker would have to guess); the transfer must
    still deliver every byte.
    """
    rng = random.Random(seed)
    world = World(lambda _: [0.005], seed=seed)
    wild: list[tuple[Stack, bytes]] = []

    def observe(stack: Stack, wire: bytes) -> None:
        # Before ESTABLISHED a SYN or SYN-ACK that is forged well enough wins; numbers are the only defence.
        if connection.established and wire[9] == 6 and rng.random() < 0.3:
            wild.append((world.b if stack is world.a else world.a, mutate(wire, rng)))

    world.observers.append(observe)
    source = world.a.sequence
    ticks = (isns[1] - source.isn(STACK, 40000, PEER, 80, world.now)) % MOD
    world.now += (ticks + 0.5) / 250_000
    connection = world.connect()
    data = ramp(100_000)
    transfer = Transfer(world, connection, data)
    until = world.now + 300
    while not transfer.eof and world.step(until):
        for stack, wire in wild:
            stack.receive(Packet(memoryview(bytearray(wire))), world.now)
        wild.clear()
        world.pump()
    assert transfer.received == data and transfer.eof


def mutate(wire: bytes, rng: random.Random) -> bytes:
    """`wire` with another number far from the window, or with fields that must not matter."""
    tcp = bytearray(wire[20:])
    seq = int.from_bytes(tcp[4:8], "big")
    far = rng.randrange(2**28, MOD - 2**28)
    tcp[4:8] = add(seq, far).to_bytes(4, "big")
    match rng.randrange(4):
        case 0:
            tcp[13] = rng.choice([0x02, 0x04, 0x11, 0x12, 0x14, 0x10, 0x01, 0x29])
        case 1:
            tcp[14:16] = bytes(2)
        case 2:
            tcp[8:12] = rng.randbytes(4)
        case 3:
            tcp = tcp[:20]
            tcp[12] = 0x50
    src, dst = wire[12:16], wire[16:20]
    tcp[16:18] = bytes(2)
    tcp[16:18] = checksum(pseudo(src, dst, len(tcp)) + bytes(tcp)).to_bytes(2, "big")
    return Peer.ip(bytes(tcp), 6, src, dst)


@pytest.mark.rfc("9293", "SHLD-31")
@settings(max_examples=60, deadline=None)
@given(
    isns=ISNS,
    pieces=st.lists(st.tuples(st.integers(0, 9_000), st.integers(1, 1460)), min_size=1, max_size=40),
    seed=st.integers(0, 999),
)
def test_pieces_in_any_order_and_overlap_become_the_stream(
    isns: tuple[int, int], pieces: list[tuple[int, int]], seed: int
) -> None:
    peer = established(isns=isns)
    size = max(start + length for start, length in pieces)
    todo = pieces + [(n, min(1460, size - n)) for n in range(0, size, 1460)]
    random.Random(seed).shuffle(todo)
    got = b""
    for start, length in todo:
        peer.send("A", 1 + start, 1, ramp(length, start))
        got += peer.read()
        acks = [wire.ack for wire in peer.take()]
        assert acks == sorted(acks) and all(ack <= 1 + len(got) for ack in acks)
    assert got == ramp(size)
    peer.advance(1)
    assert peer.conn.hot.last_ack_sent == (peer.iss + 1 + size) % MOD


def test_a_flood_of_tiny_blocks_is_bounded_and_the_stream_still_whole() -> None:
    peer = established(limits=Limits(reassembly_blocks=16))
    for i in range(1000):
        peer.send("A", 3 + 2 * i, 1, ramp(1, 2 + 2 * i))
    assert len(peer.conn.receiver.ooo) == 16
    assert peer.drops()["tcp-reassembly-full"] == 984
    peer.send("A", 1, 1, ramp(1460))
    peer.send("A", 1461, 1, ramp(1460, 1460))
    assert peer.read() == ramp(2920)


@pytest.mark.parametrize("moved", [0, 5, MOD - 700])
def test_data_over_the_number_of_a_syn_begin_behind_it(moved: int) -> None:
    """A simultaneous open, by an ISN that is not the one the peer had: the first byte is the SYN's."""
    peer = syn_sent()
    peer.send("S", moved, mss=1460)
    peer.send("A", moved, 1, b"?data")
    assert peer.read() == b"data"
