"""The receive buffer follows the reader: bounds as properties, behaviour in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp.peer import ramp
from tests.tcp.world import Transfer, World
from tunstack.limits import KIB, MIB, Limits
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.hot import HotState
from tunstack.tcp.pages import PagePool
from tunstack.tcp.receive import ReceiveAccount
from tunstack.tcp.receiver import Receiver
from tunstack.tcp.right_sizing import MEMORY, PATIENCE, ROUND
from tunstack.tcp.seq import MASK, diff

INITIAL = Limits().receive_buffer_initial
GOODPUT = 8948 / 9000


class Bottleneck(World):
    """Both directions carry `rate` bits per second, behind them `delay` seconds; nothing is lost."""

    def __init__(self, rate: float, delay: float, limits: Limits | None = None, *, mtu: int = 9000) -> None:
        super().__init__(limits=limits, mtu=mtu)
        self.rate = rate
        self.delay = delay
        self._free: dict[Stack, float] = {}

    def fate_of(self, wire: bytes) -> list[float]:
        done = max(self.now, self._free.get(self.sending, 0.0)) + len(wire) * 8 / self.rate
        self._free[self.sending] = done
        return [done - self.now + self.delay]


class Flow:
    """A flow from `a` to `b`, whose reader takes `speed` bits per second, or all at once."""

    def __init__(
        self, world: World, size: int, speed: float | None = None, *, timestamps: bool = True
    ) -> None:
        self.world = world
        self.speed = speed
        self.connection = world.connect()
        self.connection.hot.timestamps = timestamps
        self.transfer = Transfer(world, self.connection, ramp(size))
        self.taken = 0
        self.most = 0
        """The largest buffer so far."""
        world.on_event = self.on_event
        world.run(5, lambda: bool(world.accepted) and world.accepted[0].established)
        self.reader = world.accepted[0]

    def on_event(self, connection: Connection) -> None:
        if connection is self.connection or self.speed is None:
            before = len(self.transfer.received)
            self.transfer.on_event(connection)
            self.taken += len(self.transfer.received) - before

    def run(self, seconds: float) -> float:
        """Let time pass; returns what the reader took, in bits per second."""
        world = self.world
        before, until = self.taken, world.now + seconds
        while world.now < until:
            world.run(0.01)
            if self.speed is not None:
                self.read(int(self.speed / 8 * 0.01))
            self.most = max(self.most, self.reader.hot.rcv_buf)
        return (self.taken - before) * 8 / seconds

    def read(self, count: int) -> None:
        count = min(count, self.reader.readable)
        self.reader.consume(count)
        self.taken += count


# how large it gets


@pytest.mark.parametrize("timestamps", [True, False])
def test_a_long_fat_path_is_filled(timestamps: bool) -> None:
    """100 ms and 100 Mbit/s: 1.25 MB are on their way, ten times the initial size.

    Slow start takes log2(1250 / 14) = 7 round trips to fill the path; two more are for the handshake and
    for a window that follows. From then on it must be full, and the buffer is at most what the last round
    of slow start calls for, four times the path.
    """
    flow = Flow(Bottleneck(100e6, 0.05, mtu=1500), 60_000_000, timestamps=timestamps)
    flow.run(1.2)
    assert flow.run(1.0) >= 0.9 * 100e6 * 1448 / 1500
    path = 100e6 * 0.1 / 8
    assert path < flow.most <= 4 * path
    assert flow.taken == len(flow.transfer.received) > 0
    assert flow.transfer.received == ramp(flow.taken)


def test_the_initial_size_alone_would_not_do() -> None:
    """What the test above owes to the growth: W / RTT = 10.5 Mbit/s."""
    flow = Flow(Bottleneck(100e6, 0.05, Limits(receive_buffer=INITIAL)), 60_000_000)
    flow.run(1.2)
    assert flow.run(2.0) == pytest.approx(INITIAL * 8 / 0.1, rel=0.05)


@pytest.mark.rfc("9293", "3.8.6 slow reader")
@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("delay", [0.0005, 0.05])
def test_a_slow_reader_keeps_the_initial_size(delay: float, timestamps: bool) -> None:
    """1 Mbit/s need 25 KB at 100 ms; the sender could do 100 Mbit/s. Not more than the buffer waits."""
    flow = Flow(Bottleneck(100e6, delay), 20_000_000, 1e6, timestamps=timestamps)
    assert flow.run(20.0) == pytest.approx(1e6, rel=0.02)
    assert flow.most == INITIAL
    assert flow.reader.readable <= INITIAL


@pytest.mark.rfc("9293", "3.8.6 slow reader")
def test_a_reader_that_stops_holds_the_initial_size() -> None:
    flow = Flow(Bottleneck(1e9, 0.02), 20_000_000, 0.0)
    flow.run(5.0)
    assert INITIAL - 8948 <= flow.reader.readable <= INITIAL


def test_a_burst_of_a_fast_guest_grows_nothing() -> None:
    """1 MB at 1 Gbit/s takes 8 ms, less than a rate is measured over."""
    flow = Flow(Bottleneck(1e9, 0.0001), 1_000_000)
    flow.run(0.1)
    assert flow.transfer.eof and flow.taken == 1_000_000
    assert flow.most == INITIAL
    assert ROUND > 1_000_000 * 8 / 1e9


def test_a_fast_link_without_delay_gets_what_its_rate_needs() -> None:
    """1 Gbit/s and a round trip of a millisecond at the most: 125 KB, twice that with the margin."""
    flow = Flow(Bottleneck(1e9, 0.0001), 40_000_000)
    flow.run(0.1)
    assert flow.run(0.15) >= 0.9 * 1e9 * GOODPUT
    assert flow.most <= 2 * 125_000 * 1.05


def test_growth_doubles_once_in_a_round_trip_at_the_most() -> None:
    flow = Flow(Bottleneck(1e9, 0.05), 60_000_000)
    size, changed = INITIAL, flow.world.now
    for _ in range(200):
        flow.run(0.01)
        new = flow.reader.hot.rcv_buf
        if new != size:
            assert new <= 2 * size
            assert flow.world.now - changed >= 0.1 - 0.011
            size, changed = new, flow.world.now
    assert size > 2 * MIB


def test_without_window_scaling_it_stays_small() -> None:
    """A window of 64 KiB at the most wants no more than that kept."""
    world = Bottleneck(100e6, 0.05)
    world.on_request = lambda stack, request: accept_unscaled(world, stack, request)
    flow = Flow(world, 4_000_000)
    flow.run(3.0)
    assert flow.reader.hot.rcv_shift == 0
    assert flow.most == INITIAL


def accept_unscaled(world: World, stack: Stack, request: object) -> None:
    request.window_shift = None  # type: ignore[attr-defined]
    world._accept(stack, request)  # type: ignore[arg-type]


# how it becomes smaller again


def test_a_reader_that_becomes_slow_gives_the_buffer_back() -> None:
    """It is behind by half of its buffer at least; each second of that halves it, down to the first size."""
    flow = Flow(Bottleneck(100e6, 0.05), 80_000_000)
    flow.run(2.0)
    grown = flow.reader.hot.rcv_buf
    assert grown > 8 * INITIAL
    flow.speed = 1e6
    flow.run(0.8 * PATIENCE)
    assert flow.reader.hot.rcv_buf == grown, "a hiccup costs nothing"
    flow.run(4.6 * PATIENCE)
    assert flow.reader.hot.rcv_buf <= grown / 8
    # All that was promised has come by now, and is taken before the window opens again.
    flow.run(40.0)
    assert flow.reader.hot.rcv_buf == INITIAL
    flow.speed = None
    flow.on_event(flow.reader)
    flow.run(2.0)
    assert flow.run(1.0) >= 0.9 * 100e6 * GOODPUT, "and gets it again when it is fast"


def test_an_idle_sender_does_not_cost_the_buffer_and_owns_no_page() -> None:
    world = Bottleneck(100e6, 0.05)
    flow = Flow(world, 20_000_000)
    flow.run(1.4)
    grown = flow.reader.hot.rcv_buf
    assert grown > 4 * INITIAL
    world.run(30)
    assert flow.taken == 20_000_000
    assert flow.reader.hot.rcv_buf >= grown
    assert world.b.receive_account.used == 0
    assert world.b.receive_pool.used == 0


# memory for all


@pytest.mark.rfc("9293", "3.8.6 shared memory")
def test_when_memory_is_short_a_grown_window_comes_down_and_no_edge_moves_left() -> None:
    """Others take all but 1 MiB: this one may keep an eighth of that, which is the initial size."""
    limits = Limits(receive_memory=64 * MIB)
    flow = Flow(Bottleneck(100e6, 0.05, limits), 60_000_000)
    flow.run(1.5)
    hot = flow.reader.hot
    assert hot.rcv_buf > 16 * INITIAL
    account = flow.world.b.receive_account
    account.used += 63 * MIB
    edge = hot.rcv_adv
    for _ in range(100):
        flow.run(0.01)
        assert diff(hot.rcv_adv, edge) >= 0
        edge = hot.rcv_adv
    assert hot.rcv_buf == INITIAL
    assert diff(hot.rcv_adv, hot.rcv_nxt) <= INITIAL
    assert flow.run(0.5) == pytest.approx(INITIAL * 8 / 0.1, rel=0.1), "it goes on, at W / RTT"
    account.used -= 63 * MIB
    flow.run(1.0)
    assert hot.rcv_buf > 8 * INITIAL


def test_growth_stops_at_an_eighth_of_what_is_left() -> None:
    limits = Limits(receive_memory=8 * MIB)
    flow = Flow(Bottleneck(100e6, 0.05, limits), 40_000_000)
    flow.run(3.0)
    assert MIB - 200 * KIB <= flow.most <= MIB


# bounds


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 200_000)),
        st.tuples(st.just("ahead"), st.integers(1, 200_000)),
        st.tuples(st.just("consume"), st.integers(0, 2 * MIB)),
        st.tuples(st.just("wait"), st.sampled_from([0, 1, 10, 11, 100, 1000, 20_000])),
        st.tuples(st.just("others"), st.sampled_from([0, MIB, 2 * MIB, 3 * MIB - 100_000, 3 * MIB])),
        st.tuples(st.just("round"), st.integers(1, 6)),
        st.tuples(st.just("look"), st.sampled_from([None, 0.0, 0.001, 0.1, 3.0, 1e9])),
    ),
    max_size=60,
)


@pytest.mark.rfc("9293", "SHLD-14")
@given(
    STEPS,
    st.sampled_from([300, 1000, 64 * KIB, 256 * KIB, MIB, 4 * MIB]),
    st.sampled_from([300, 64 * KIB, 128 * KIB, 2 * MIB]),
    st.sampled_from([0, 7]),
    st.integers(0, MASK),
)
def test_no_bound_is_passed_and_no_edge_moves_left(
    steps: list[tuple[str, float]], most: int, initial: int, shift: int, start: int
) -> None:
    """Whatever arrives, is read, is measured and is taken by others: sizes and edges keep their bounds."""
    limits = Limits(receive_buffer=most, receive_buffer_initial=initial, receive_memory=3 * MIB)
    account = ReceiveAccount(limits.receive_memory)
    hot = HotState(0, 1448)
    hot.rcv_nxt = start
    hot.rcv_shift = shift
    receiver = Receiver(hot, account, PagePool(64 * MIB), limits)
    hot.rcv_adv = (start + min(0xFFFF, hot.rcv_buf)) & MASK
    data = memoryview(bytes(200_000))
    now, others, promised = 1000.0, 0, 0
    for step, value in steps:
        edge = hot.rcv_adv
        number = int(value) if step != "look" else 0
        if step == "arrive":
            receiver.take(hot.rcv_nxt, data[:number], False, 1)
        elif step == "ahead":
            receiver.take((hot.rcv_nxt + number) & MASK, data[:1000], False, 1)
        elif step == "consume":
            receiver.queue.consume(min(number, receiver.queue.size))
        elif step == "wait":
            now += number / 1000
        elif step == "round":
            for _ in range(number):
                receiver.take(hot.rcv_nxt, data[: receiver.window], False, 1)
                receiver.queue.consume(receiver.queue.size)
                now += 0.1
                receiver.sizing.look(now, 0, 0.1)
                receiver.advance_window()
                assert diff(hot.rcv_adv, edge) >= 0
            promised = max(promised, hot.bytes_in + receiver.window)
        elif step == "others":
            account.used -= others
            others = min(number, account.free)
            account.used += others
        elif receiver.sizing.due <= now:
            receiver.sizing.look(now, receiver.queue.size, value)
        room = receiver.update_due()
        window = receiver.advance_window()
        assert diff(hot.rcv_adv, edge) >= 0, "the right edge never moves left"
        assert not room or diff(hot.rcv_adv, edge) > 0, "an update that is due says something new"
        assert window == receiver.window <= 0xFFFF << shift
        assert min(most, initial) <= hot.rcv_buf <= most
        assert receiver.queue.size + receiver.ooo.size <= account.used <= limits.receive_memory
        if diff(hot.rcv_adv, edge) > 0:
            promised = hot.bytes_in + window
            free = account.free + receiver.queue.size + receiver.ooo.size
            assert receiver.queue.size + window <= max(hot.rcv_buf, receiver.mss), "within its size"
            assert window <= free + receiver.mss
        assert hot.bytes_in <= max(promised, 0xFFFF)


@given(st.lists(st.tuples(st.floats(0.011, 0.2), st.integers(0, 10**7)), max_size=40))
def test_a_reader_that_takes_nothing_never_gets_more(rounds: list[tuple[float, int]]) -> None:
    hot = HotState(0, 1448)
    hot.rcv_shift = 7
    receiver = Receiver(hot, ReceiveAccount(256 * MIB), PagePool(MIB), Limits())
    now = 0.0
    for wait, arrived in rounds:
        now += wait
        hot.bytes_in += arrived
        receiver.sizing.look(now, hot.bytes_in, 1.0)
        assert hot.rcv_buf == INITIAL


def test_a_round_trip_that_became_longer_is_believed_in_the_end() -> None:
    """The smallest of late counts; `MEMORY` seconds after the path has changed the new one does."""
    hot = HotState(0, 1448)
    hot.rcv_shift = 7
    sizing = Receiver(hot, ReceiveAccount(256 * MIB), PagePool(MIB), Limits()).sizing
    for step in range(3):
        hot.bytes_in += 1
        sizing.look(step * 0.1, 0, 0.002)
    seen: list[float] = []
    now = 0.2
    while now < 0.2 + MEMORY + 0.2:
        now += 0.1
        hot.bytes_in += 1
        sizing.look(now, 0, 0.2)
        seen.append(sizing.rtt)
    assert seen[int(MEMORY * 10) - 2] == 0.002
    assert seen[-1] == 0.2
    sizing.look(now + 2 * MEMORY, 0, 0.7)
    assert sizing.rtt == 0.2, "nothing came: the echo of a probe of the closed window may be of any age"
