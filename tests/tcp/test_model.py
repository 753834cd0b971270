"""Two stacks over a hostile wire against the simplest model of TCP: a stream of bytes each way.

Users of both sides open, write, read or stop to read, close, abort and go; the wire loses, doubles, reorders,
corrupts, delays and marks as the rules say; somebody else sends what is outside of the window. Whatever
happens, a reader sees a prefix of what was written, in order and once. At the end the wire is healed: then
everything arrives, ends, and gives back all memory. The last test shows that the machine was everywhere.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.tcp.peer import MOD, Peer, checksum, pseudo, ramp
from tests.tcp.test_hostile import LIMITS as HOSTILE_LIMITS
from tests.tcp.test_hostile import check
from tests.tcp.test_lossy_paths import consistent
from tests.tcp.world import World
from tunstack.link.shaping.codel import mark
from tunstack.link.shaping.impairments import invert_bit
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.tcp.connection import CloseReason, Connection
from tunstack.tcp.isn import SequenceSource
from tunstack.tcp.listener import TcpRequest
from tunstack.tcp.recovery import Recovery
from tunstack.tcp.send import Timer
from tunstack.tcp.seq import diff
from tunstack.tcp.states import State

LIMITS = dataclasses.replace(HOSTILE_LIMITS, connections=16, receive_memory=50_000)
LINKS = [(4, 576), (4, 1500), (4, 9000), (6, 1280), (6, 1500), (6, 9000)]
SIDES = st.sampled_from([0, 1])
PORT = 80
SEEN: collections.Counter[str] = collections.Counter()
"""In how many examples each state was visited and each event fired."""
EVENTS = {
    "RTO",
    "TLP",
    "RACK reordering timer",
    "persist",
    "SACK recovery",
    "DSACK undo",
    "undo with timestamps",
    "challenge ACK",
    "simultaneous open",
    "simultaneous close",
    "congestion mark",
    "wrapped",
}


@dataclasses.dataclass(frozen=True)
class Wire:
    """Probabilities of what happens to a packet; `delay` and `jitter` in seconds."""

    loss: float = 0.0
    double: float = 0.0
    corrupt: float = 0.0
    mark: float = 0.0
    delay: float = 0.01
    jitter: float = 0.0


PERFECT = Wire()
MARKING = Wire(mark=0.3)
WIRES = [
    PERFECT,
    MARKING,
    Wire(loss=0.1),
    Wire(loss=0.3, delay=0.001),
    Wire(double=0.3, jitter=0.002),
    Wire(jitter=0.01),
    Wire(delay=0.001, jitter=0.05),
    Wire(delay=0.3),
    Wire(corrupt=0.15),
    Wire(mark=0.2, loss=0.02),
    Wire(loss=0.05, double=0.1, corrupt=0.05, mark=0.1, jitter=0.005),
    Wire(loss=1.0),
]


class Steered(SequenceSource):
    """A source whose ISN for one connection at one time is a chosen one."""

    __slots__ = ("_offset",)

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self._offset = 0

    def steer(self, wanted: int, local: bytes, local_port: int, remote: bytes, port: int, now: float) -> None:
        """The ISN of this connection at `now` shall be `wanted`."""
        self._offset = 0
        self._offset = wanted - self.isn(local, local_port, remote, port, now)

    def isn(self, local: bytes, local_port: int, remote: bytes, remote_port: int, now: float) -> int:
        return (super().isn(local, local_port, remote, remote_port, now) + self._offset) % MOD


class HostileWorld(World):
    """A world whose wire does as `wire` says, and single packets as they were singled out."""

    wire = PERFECT
    marked = False
    damaged = False
    """Some packet did not arrive as it was."""
    singled: list[list[float]]
    """For the next packets with payload: after which times copies arrive; empty if lost."""

    def fate_of(self, wire: bytes) -> list[float]:
        law, rng = self.wire, self.rng
        if self.singled and len(wire) > 100:
            fates = self.singled.pop(0)
            self.damaged |= not fates
            return [law.delay + late for late in fates]
        if rng.random() < law.loss:
            self.damaged = True
            return []
        copies = 2 if rng.random() < law.double else 1
        return [law.delay + rng.random() * law.jitter for _ in range(copies)]

    def mangle(self, stack: Stack, wire: bytes) -> bytes:
        """Perhaps invert a bit, or set the mark of a router whose queue grows."""
        rng = self.rng
        if rng.random() < self.wire.corrupt:
            self.damaged = True
            return invert_bit(Packet(wire), rng.randrange(8 * len(wire))).tobytes()
        if rng.random() < self.wire.mark and (marked := mark(Packet(wire))) is not None:
            self.marked = True
            return marked.tobytes()
        return wire


class Side:
    """One end of a connection, its user, and what the user wrote and read."""

    def __init__(self, conn: Connection, out: int) -> None:
        self.conn = conn
        self.out = out
        """Which stream it writes; the one that it reads is `out ^ 1`."""
        self.written = 0
        self.read = 0
        self.reading = True
        self.gone = False
        """Aborted or released."""
        self.eof = False
        self.nxt = conn.hot.snd_nxt
        self.states = [conn.state]
        """Which it has been in, in order."""

    @staticmethod
    def text(stream: int, start: int, size: int) -> bytes:
        """What stream number `stream` carries at `start`; no two streams agree."""
        return ramp(size, start + 37 * stream)

    def write(self, size: int) -> None:
        conn = self.conn
        while size and conn.writable and not self.gone:
            taken = conn.send(self.text(self.out, self.written, size))
            self.written += taken
            size -= taken
            if not taken:
                return

    def drain(self, limit: int = 1 << 30) -> None:
        """Read, and compare with the model."""
        data = b"".join(self.conn.peek())[:limit]
        assert data == self.text(self.out ^ 1, self.read, len(data)), "a byte that nobody wrote at this place"
        self.conn.consume(len(data))
        self.read += len(data)
        if self.conn.receive_eof:
            self.eof = True


class Pair:
    """A connection: the side of `a`, and those of `b` (another one if the first was given up)."""

    def __init__(self, number: int, conn: Connection) -> None:
        self.number = number
        self.a = Side(conn, 2 * number)
        self.bs: list[Side] = []

    @property
    def sides(self) -> list[Side]:
        return [self.a, *self.bs]


class Model(RuleBasedStateMachine):
    """What the users, the wire and the stranger do."""

    world: HostileWorld

    @initialize(
        link=st.sampled_from(LINKS),
        seed=st.integers(0, 2**32),
        isns=st.tuples(
            st.sampled_from([MOD - 1, MOD - 2, MOD - 700, MOD - 5_000, 2**31 - 100]),
            st.sampled_from([MOD - 1, MOD - 3, MOD - 9_000, MOD - 20_000, 0]),
        ),
        stamps=st.sampled_from([False, False, True]),
        how=st.sampled_from(["up", "up", "up", "up", "open", "both", "late", "wait"]),
    )
    def start(self, link: tuple[int, int], seed: int, isns: tuple[int, int], stamps: bool, how: str) -> None:
        family, mtu = link
        self.world = world = HostileWorld(seed=seed, mtu=mtu, family=family, limits=LIMITS)
        world.singled = []
        world.on_request = self.on_request
        world.on_event = self.on_event
        for stack, isn, ports in ((world.a, isns[0], (40000, PORT)), (world.b, isns[1], (PORT, 40000))):
            source = Steered(random.Random(seed).randbytes(32))
            here, there = world.address_a, world.address_b
            if stack is world.b:
                here, there = there, here
            source.steer(isn, here, ports[0], there, ports[1], world.now)
            stack.sequence = source
        self.began = world.now
        self.stamps = stamps
        self.pairs: list[Pair] = []
        self.strays: list[Connection] = []
        self.held: list[TcpRequest] = []
        self.holding = how == "late"
        self.spoiled = False
        """A user has aborted or gone."""
        self.held_up = False
        """A request has waited for its answer."""
        self.seen: set[str] = set()
        if how != "wait":
            self.open(how == "both")
            if how == "up":
                self.go(0.1)

    # what the users do

    def open(self, both: bool) -> None:
        world = self.world
        number = len(self.pairs)
        pair = Pair(number, world.connect(PORT, 40000 + number))
        self.pairs.append(pair)
        if both:
            conn = world.b.connect(world.address_b, PORT, world.address_a, 40000 + number, world.now)
            pair.bs.append(Side(conn, 2 * number + 1))
        self.go(0.0)

    @precondition(lambda self: len(self.pairs) < 3)
    @rule(both=st.booleans())
    def connect(self, both: bool) -> None:
        self.open(both)

    def side(self, which: int, pick: int = 0) -> Side | None:
        """The newest side of `a` or `b`; of an earlier connection if `pick` says so."""
        if not self.pairs:
            return None
        pair = self.pairs[-1 - pick % len(self.pairs)]
        return pair.a if not which else pair.bs[-1] if pair.bs else None

    @rule(
        which=SIDES,
        size=st.sampled_from([1, 100, 1448, 5_000, 20_000, 50_000]),
        pick=st.integers(0, 1),
        seconds=st.sampled_from([0.0, 0.015, 0.05, 1.0]),
    )
    def write(self, which: int, size: int, pick: int, seconds: float) -> None:
        side = self.side(which, pick)
        if side is not None:
            side.write(size)
            self.go(seconds)

    @rule(which=SIDES, reading=st.booleans(), part=st.integers(0, 30_000))
    def read(self, which: int, reading: bool, part: int) -> None:
        side = self.side(which)
        if side is not None:
            side.reading = reading
            if not side.gone:
                side.drain(part)
            self.go(0.0)

    @rule(which=SIDES)
    def shutdown(self, which: int) -> None:
        side = self.side(which)
        if side is not None:
            side.conn.shutdown()
            self.go(0.002)

    @rule(gap=st.sampled_from([0.0, 0.001]))
    def close_both(self, gap: float) -> None:
        for which in (0, 1):
            side = self.side(which)
            if side is not None:
                side.conn.shutdown()
                self.go(gap)

    @rule(which=SIDES, choice=st.integers(0, 5))
    def abandon(self, which: int, choice: int) -> None:
        side = self.side(which)
        if side is None or choice > 1 or side.conn.closed:
            return
        self.spoiled = True
        if choice == 0:
            side.conn.abort()
        else:
            side.conn.release(self.world.now)
        side.gone = True
        self.go(0.0)

    @rule(which=SIDES, nodelay=st.booleans())
    def nagle(self, which: int, nodelay: bool) -> None:
        side = self.side(which)
        if side is not None:
            side.conn.nodelay = nodelay

    @rule(holding=st.booleans())
    def answer(self, holding: bool) -> None:
        self.holding = holding
        if not holding:
            self.answer_held()
            self.go(0.0)

    def answer_held(self) -> None:
        held, self.held = self.held, []
        for request in held:
            self.accept(request)

    # what the wire does

    @rule(wire=st.sampled_from(WIRES))
    def change(self, wire: Wire) -> None:
        self.world.wire = wire

    @rule(
        which=SIDES,
        before=st.integers(0, 4),
        late=st.sampled_from([0.05, 0.03, 0.003, 0.012, 0.05, 0.3, 1.5]),
        size=st.integers(3, 12),
    )
    def one_comes_late(self, which: int, before: int, late: float, size: int) -> None:
        """A flight on a good wire, one segment of which is overtaken."""
        self.fly(which, size, [[0.0]] * before + [[late]])

    @rule(which=SIDES, before=st.integers(0, 9), count=st.integers(1, 3), size=st.integers(1, 12))
    def some_are_lost(self, which: int, before: int, count: int, size: int) -> None:
        self.fly(which, size, [[0.0]] * before + [[]] * count)

    @rule(
        which=SIDES,
        fates=st.lists(
            st.lists(st.sampled_from([[0.0], [0.0], [0.004], [0.03], []]), min_size=4, max_size=12),
            min_size=2,
            max_size=4,
        ),
        wire=st.sampled_from([PERFECT, MARKING]),
    )
    def some_flights(self, which: int, fates: list[list[list[float]]], wire: Wire) -> None:
        for flight in fates:
            self.fly(which, len(flight), flight, wire)

    def fly(self, which: int, size: int, fates: list[list[float]], wire: Wire = PERFECT) -> None:
        world = self.world
        side = self.side(which)
        other = self.side(1 - which)
        if side is None or other is None:
            return
        world.wire = wire
        self.go(0.1)
        world.singled = list(fates)
        side.write(size * side.conn.hot.mss)
        self.go(2.0)
        world.singled = []

    @rule(which=SIDES, seconds=st.sampled_from([0.5, 5.0, 40.0]))
    def nobody_reads(self, which: int, seconds: float) -> None:
        side, other = self.side(which), self.side(1 - which)
        if side is not None and other is not None:
            other.reading = False
            side.write(50_000)
            self.go(seconds)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.02, 0.3, 0.3, 2.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.go(seconds)

    # what a stranger does

    @rule(
        which=SIDES,
        bits=st.sampled_from([0x10, 0x04, 0x14, 0x02, 0x12, 0x11, 0x18, 0x01, 0x29]),
        where=st.sampled_from(["inside", "right", "far", "left", "ack"]),
        away=st.integers(1, 2**29),
        size=st.sampled_from([0, 1, 100]),
    )
    def forge(self, which: int, bits: int, where: str, away: int, size: int) -> None:
        """A segment that no window admits, or whose acknowledgement is of nothing that was sent."""
        side = self.side(which)
        if side is None or not side.conn.established or side.conn.closed:
            return
        conn, hot = side.conn, side.conn.hot
        if conn.state is State.TIME_WAIT and bits & 2:
            return  # it may be opened again
        window = conn.receiver.window
        seq, ack = hot.rcv_nxt, hot.snd_nxt
        if where == "inside":
            # Within the window only what RFC 5961 answers by a challenge; at its left edge it would count.
            if not bits & 6 or window < 2:
                return
            seq += 1 + away % (window - 1)
        elif where == "right":
            seq += window + 1 + away % 3
        elif where == "far":
            seq += window + away
        elif where == "left":
            seq -= size + away + 1  # one before `rcv_nxt` is a keep-alive, whose acknowledgement counts
        else:
            bits &= ~7
            bits |= 0x10
            ack += away
        if where != "ack" and bits & 4 and seq % MOD == hot.rcv_nxt:
            return
        self.inject(conn, bits, seq % MOD, ack % MOD, bytes(size))

    def inject(self, conn: Connection, bits: int, seq: int, ack: int, data: bytes) -> None:
        hot = conn.hot
        text = struct.pack("!BBBBII", 1, 1, 8, 10, hot.ts_recent, 0) if hot.timestamps else b""
        src, dst = conn.remote, conn.local
        ports = conn.remote_port, conn.local_port
        tcp = bytearray(
            struct.pack("!HHIIBBHHH", *ports, seq, ack, (20 + len(text)) << 2, bits, 1000, 0, 0) + text + data
        )
        tcp[16:18] = checksum(pseudo(src, dst, len(tcp)) + bytes(tcp)).to_bytes(2, "big")
        stack = self.world.a if dst == self.world.address_a else self.world.b
        stack.receive(Packet(memoryview(bytearray(Peer.ip(bytes(tcp), 6, src, dst)))), self.world.now)
        self.go(0.0)

    # events

    def on_request(self, stack: Stack, request: TcpRequest) -> None:
        self.saw(State.LISTEN.name)
        if request.cancelled:
            stack.discard(request)
            if request in self.held:
                self.held.remove(request)
        elif self.holding:
            self.held.append(request)
            self.held_up = True
        else:
            self.accept(request)

    def accept(self, request: TcpRequest) -> None:
        world = self.world
        if not self.stamps:
            request.ts_val = None
        here = world.a if request.dst == world.address_a else world.b
        conn = here.accept(request, world.now)
        for pair in self.pairs:
            first = pair.a.conn
            mine = here is world.b and first.local_port == request.src_port and first.iss == request.irs
            # After an orderly end it is an old duplicate (RFC 9293 3.5), which TIME-WAIT does not answer to.
            if mine and all(side.conn.error is not None and not side.read for side in pair.bs):
                pair.bs.append(Side(conn, 2 * pair.number + 1))
                return
        self.strays.append(conn)

    def on_event(self, conn: Connection) -> None:
        if conn in self.strays:
            conn.consume(conn.readable)
        for pair in self.pairs:
            for side in pair.sides:
                if side.conn is conn and side.reading and not side.gone:
                    side.drain()

    # time, and what always holds

    def go(self, seconds: float) -> None:
        """Let time pass, and look after every instant."""
        world = self.world
        until = world.now + seconds
        stuck = 0
        world.pump()
        self.look()
        while True:
            due = self.due()
            before = world.now
            if not world.step(until):
                break
            for name, conn, sent in due:
                if conn.hot.segments_out > sent:
                    self.saw(name)
            self.look()
            stuck = stuck + 1 if world.now == before else 0
            assert stuck < 1000, "the clock stands still: a timer that is due is not acted upon"

    def due(self) -> list[tuple[str, Connection, int]]:
        """The reordering and persist timers that will expire before anything else happens."""
        world = self.world
        arrives = world.arrival()
        names = {Timer.RACK_REORDER: "RACK reordering timer", Timer.PERSIST: "persist"}
        return [
            (names[side.conn.sender.timer], side.conn, side.conn.hot.segments_out)
            for pair in self.pairs
            for side in pair.sides
            if side.conn.sender.timer in names
            and side.conn.hot.ack_deadline > side.conn.hot.rto_deadline == world.next_time() < arrives
        ]

    def saw(self, what: str) -> None:
        if what not in self.seen:
            self.seen.add(what)
            SEEN[what] += 1

    def look(self) -> None:
        world = self.world
        for stack in (world.a, world.b):
            assert stack.receive_account.used <= LIMITS.receive_memory
            assert stack.send_pool.used <= LIMITS.page_pool
            assert len(stack.connections) <= LIMITS.connections
        if world.marked:
            self.saw("congestion mark")
        for conn in self.strays:
            # If a user aborted a simultaneous open, the other side's SYN may open another connection.
            assert self.spoiled or not conn.readable, "nobody sent anything to it"
            check(conn)
        for pair in self.pairs:
            for side in pair.sides:
                self.look_at(pair, side)
            if pair.bs and pair.a.conn.state is pair.bs[-1].conn.state is State.SYN_RECEIVED:
                self.saw("simultaneous open")

    def look_at(self, pair: Pair, side: Side) -> None:
        conn = side.conn
        hot, sender = conn.hot, conn.sender
        check(conn)
        # A window probe leaves the RTO alone.
        if conn.established and conn.state is not State.TIME_WAIT and sender.timer is not Timer.PERSIST:
            consistent(conn)
        if hot.snd_nxt != side.nxt:
            size = diff(hot.snd_nxt, side.nxt)
            side.nxt = hot.snd_nxt
            if conn.established:
                self.sent_something_new(pair, side, size)
        self.saw(conn.state.name)
        if conn.state is not side.states[-1]:
            side.states.append(conn.state)
        if hot.snd_nxt < conn.iss:
            self.saw("wrapped")
        if conn.state is State.CLOSING:
            self.saw("simultaneous close")
        if sender.timeouts:
            self.saw("RTO")
        if sender.probes:
            self.saw("TLP")
        if hot.sack and sender.episode.kind is Recovery.FAST:
            self.saw("SACK recovery")
        if sender.undone:
            self.saw("undo with timestamps" if hot.timestamps else "DSACK undo")
        if conn._challenged_at > 0:
            self.saw("challenge ACK")

    def sent_something_new(self, pair: Pair, side: Side, size: int) -> None:
        """Nothing new leaves beyond the peer's window, or while cwnd is full; a probe may, of one segment.

        An episode that is undone may have put more into the network than the cwnd that it restores.
        """
        conn = side.conn
        hot, sender = conn.hot, conn.sender
        if conn.closed or conn.state is State.TIME_WAIT:
            return
        probe = hot.mss + 1 if sender.probe.end is not None else 0
        limited = sender.inflation
        lone_probe = sender.probe.end == hot.snd_nxt and size <= hot.mss + 1
        if sender.timer is not Timer.PERSIST and not lone_probe:
            assert sender.pipe <= max(hot.cwnd + limited, hot.mss) + probe + 1
        peers = pair.bs if side is pair.a else [pair.a]
        if len(peers) == 1 and not peers[0].conn.closed and peers[0].conn.established:
            edge = peers[0].conn.hot.rcv_adv
            assert diff(hot.snd_nxt, edge) <= 1, "more than the byte or FIN of a window probe"

    # the end

    def teardown(self) -> None:
        """The wire is healed and the users are willing: everything arrives and ends, and nothing is kept."""
        if not hasattr(self, "world"):
            return
        world = self.world
        # The SYN of second 31 arrives then; those of second 63 and later may find a SYN-RECEIVED given up.
        quick = world.now - self.began < 30
        self.holding = False
        world.wire = PERFECT
        world.singled = []
        self.answer_held()
        for _ in range(3):
            for pair in self.pairs:
                for side in pair.sides:
                    side.reading = True
                    if not side.gone:
                        side.drain()
                    side.conn.shutdown()
            for conn in self.strays:
                conn.shutdown()
            self.go(400.0)
        self.let_go_of_the_forsaken()
        for stack in (world.a, world.b):
            assert not stack.connections and not stack.requests, "it does not end"
            assert stack.send_pool.used == stack.receive_account.used == stack.receive_pool.used == 0
            assert stack.next_timeout() is None
        self.saw(State.CLOSED.name)
        if self.spoiled:
            return
        for pair in self.pairs:
            self.look_back(pair, quick)

    def let_go_of_the_forsaken(self) -> None:
        """FIN-WAIT-2 has no limit (RFC 9293 3.6): a half-closed connection waits for ever if the reset by
        which its peer ended was lost. That its user lets go must end it.
        """
        world = self.world
        waiting = [
            (conn, other)
            for stack, other in ((world.a, world.b), (world.b, world.a))
            for conn in stack.connections.values()
            if conn.state is State.FIN_WAIT_2
        ]
        for conn, other in waiting:
            ends = {(peer.remote, peer.remote_port, peer.local_port) for peer in other.connections.values()}
            assert (conn.local, conn.local_port, conn.remote_port) not in ends, "its peer could end it"
            assert world.damaged and (self.spoiled or self.timed_out()), "nothing ended its peer"
            conn.release(world.now)
        if waiting:
            self.go(61.0)

    def timed_out(self) -> bool:
        """Some connection was given up."""
        return any(side.conn.error is CloseReason.TIMEOUT for pair in self.pairs for side in pair.sides)

    def look_back(self, pair: Pair, quick: bool) -> None:
        """Nobody was given up or reset without cause, and if none was, everything has arrived."""
        errors = {side.conn.error for side in pair.sides}
        assert errors <= {None, CloseReason.TIMEOUT, CloseReason.RESET}
        assert not quick or errors == {None}
        if CloseReason.TIMEOUT in errors:
            assert self.world.damaged or self.held_up, "given up without any loss"
            return
        (b,) = pair.bs
        for side, other in ((pair.a, b), (b, pair.a)):
            if side.conn.error is CloseReason.RESET:
                # Its peer acknowledged everything, and while that was lost its TIME-WAIT passed.
                assert side.states[-2] in (State.CLOSING, State.LAST_ACK), "a reset that nobody asked for"
                assert other.states[-2:] == [State.TIME_WAIT, State.CLOSED], "a reset that nobody asked for"
                assert self.world.damaged
            else:
                assert side.read == other.written and side.eof, "something is missing"


def run_model() -> None:
    """Twice the examples of the profile: the same ones in every run, but for the nightly profile's.

    What the machine reaches is asserted below, and chance must not decide on that.
    """
    scale = 2 * settings().max_examples
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=scale, stateful_step_count=40, deadline=None, derandomize=scale < 1000, database=None
        ),
    )


def test_two_stacks_behave_as_two_streams_of_bytes() -> None:
    run_model()


def test_the_model_was_everywhere() -> None:
    """Every state was visited and every event fired by the runs above, or by one now if there was none."""
    if not SEEN:
        run_model()
    wanted = {state.name for state in State} | EVENTS
    assert not wanted - SEEN.keys()
