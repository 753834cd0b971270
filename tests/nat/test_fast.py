"""The fast path beside the Python stack: equal schedules give equal packets, streams and states.

Two gateways, each with one flow between a guest, who is played here by raw segments over a socket pair in
place of a TAP, and a host socket. One of them has the fast path; the flow is offered to it and taken back
at moments that the schedule chooses. After each step everything that both have sent is compared, and at the
end every field of both connections.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.gateway.engine import Engine
from tunstack.gateway.ports import DevicePort
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.limits import Limits
from tunstack.link.devices.vnet_header import VNET_HEADER
from tunstack.nat.config import NatConfig
from tunstack.nat.context import Context, Counters
from tunstack.nat.descriptors import Budget
from tunstack.nat.fast import FastFlows
from tunstack.nat.host_addresses import HostAddresses
from tunstack.nat.policy import Policy
from tunstack.nat.poller import EpollPoller
from tunstack.nat.tcp_flow import TcpFlow
from tunstack.native import fastpath
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest
from tunstack.testing.packets import (
    ACK,
    FIN,
    NOP,
    PSH,
    RST,
    SACK_PERMITTED,
    SYN,
    Ethernet,
    Ipv4,
    Ipv6,
    Raw,
    Tcp,
    TcpOption,
    dissect,
    emit,
    mss,
    sack,
    timestamps,
    window_scale,
)
from tunstack.timers import TimerHeap

from .pair_device import GATEWAY_MAC, PairDevice, open_fast, turn
from .world import ramp

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

GUEST_MAC = bytes.fromhex("020000000002")
ADDRESSES = {
    4: (parse_address("10.0.2.100"), parse_address("192.0.2.1")),
    6: (parse_address("fd00::100"), parse_address("2001:db8::1")),
}
MOD = 1 << 32
TALLY: collections.Counter[str] = collections.Counter()
"""Offers, returns by reason, and segments, over all examples."""


def fields(thing: object) -> dict[str, Any]:
    """The attributes of an object with slots, whether its class was compiled or not."""
    names = [name for name in dir(thing) if not name.startswith("__")]
    return {name: value for name in names if not callable(value := getattr(thing, name, None))}


def state_of(conn: Connection, stack: Stack) -> dict[str, Any]:
    """Everything that a connection knows, as long as nobody carries it."""
    hot, sender, receiver = conn.hot, conn.sender, conn.receiver
    values = {f"hot.{name}": value for name, value in fields(hot).items()}
    values |= {f"rtt.{name}": value for name, value in fields(sender.rtt).items()}
    control = sender.congestion
    values |= {
        f"congestion.{name}": getattr(control, name) for name in ("cwnd", "ssthresh", "_epoch", "_last")
    }
    values |= {
        "state": conn.state,
        "records": [(r.seq, r.end, r.sent_at, r.transmissions) for r in sender.records],
        "queued": b"".join(sender.chain.views(0, sender.chain.length)),
        "readable": b"".join(receiver.queue.peek()),
        "timer": sender.timer,
        "probe": sender.probe.deadline,
        "heard_at": sender.heard_at,
        "last_sent_at": sender.last_sent_at,
        "recover": sender.episode.recover,
        "ecn": fields(conn.ecn),
        "fack": sender.rack.fack,
        "position": receiver.position,
        "mss": receiver.mss,
        "ack_now": receiver.ack_now,
        "sizing.due": receiver.sizing.due,
        "was_limited": sender._was_limited,
        "account": stack.receive_account.used,
    }
    return values


@dataclasses.dataclass(frozen=True)
class Sent:
    """One frame of a gateway, as far as the guest can tell."""

    gso_size: int
    traffic_class: int
    seq: int
    ack: int
    flags: int
    window: int
    options: tuple[TcpOption, ...]
    payload: bytes


def make_frame(
    family: int,
    l2: bool,
    tcp: Tcp,
    payload: bytes,
    *,
    trust: int,
    gso: int = 0,
    mark: int = 0,
    mac: bytes = GUEST_MAC,
    addresses: dict[int, tuple[bytes, bytes]] = ADDRESSES,
) -> bytes:
    """A frame of the guest; `trust`: 0 complete checksum, 1 left to us, 2 verified by the device."""
    src, dst = addresses[family]
    layers: list[Any] = [Ethernet(dst=GATEWAY_MAC, src=mac)] if l2 else []
    if family == 4:
        layers.append(Ipv4(src=src, dst=dst, df=True, traffic_class=mark))
    else:
        layers.append(Ipv6(src=src, dst=dst, traffic_class=mark))
    raw = emit(*layers, tcp, Raw(data=payload))
    start = (14 if l2 else 0) + (20 if family == 4 else 40)
    kind = (1 if family == 4 else 4) if gso else 0
    partial = (start, 16) if trust == 1 else (0, 0)
    return VNET_HEADER.pack((0, 1, 2)[trust], kind, 0, gso, *partial) + raw


def read_sent(device: PairDevice, family: int) -> list[tuple[int, Sent]]:
    """The segments that the guest was sent, with its port."""
    frames = []
    l2 = device.offloads.l2
    while True:
        try:
            data = device.guest.recv(1 << 17)
        except BlockingIOError:
            return frames
        _, _, _, gso_size, start, offset = VNET_HEADER.unpack_from(data)
        frame = dissect(data[10:], l2=l2)
        ip, tcp = frame.ip, frame.tcp
        if ip is None or tcp is None:
            continue
        assert (start, offset) == ((14 if l2 else 0) + (20 if family == 4 else 40), 16)
        parts = tcp.seq, tcp.ack, tcp.flags, tcp.window, tcp.options, frame.payload
        frames.append((tcp.dst_port, Sent(gso_size, ip.traffic_class, *parts)))


class Side:
    """One gateway with one flow."""

    def __init__(self, fast: bool, family: int, l2: bool, limits: Limits) -> None:
        self.now = 1000.0
        self.family = family
        self.l2 = l2
        self.guest_address, self.host_address = ADDRESSES[family]
        self.stack = Stack(
            mac=GATEWAY_MAC,
            mtu=1500,
            prefixes=[Prefix.parse("10.0.2.0/24"), Prefix.parse("fd00::/64")],
            own_addresses=[parse_address("10.0.2.2"), parse_address("fd00::2")],
            rng=random.Random(5),
            l2=l2,
            limits=limits,
        )
        self.poller = EpollPoller()
        self.engine = Engine(self.stack, self.poller)
        self.engine.handler = self
        self.device = PairDevice(l2)
        self.port = DevicePort(self.engine, self.device)  # type: ignore[arg-type]
        self.port.attach(self.poller)
        self.engine._port = self.port
        self.addresses = HostAddresses(self.poller)
        self.context = Context(
            stack=self.stack,
            poller=self.poller,
            policy=Policy(NatConfig(gateway=()), set(), self.addresses),
            limits=limits,
            drops=self.stack.drops,
            timers=TimerHeap(),
            budget=Budget(100),
            counters=Counters(),
        )
        self.flows: set[TcpFlow] = set()
        self.flow: TcpFlow | None = None
        self.connection: Connection | None = None
        ours, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self.host.setblocking(False)
        self._ours: socket.socket | None = ours
        self.arrived = bytearray()
        self.fast: Any = None
        if fast:
            path = open_fast(self.poller, self.device)
            self.fast = FastFlows(path, self.stack, patience=0)
            self.context.carrier = self.fast
        if l2:
            self.stack.link.neighbour_heard(
                self.guest_address, GUEST_MAC, self.now, solicited=True, create=True
            )

    # what the engine drives

    def handle(self, event: Any, now: float) -> None:
        if isinstance(event, TcpRequest):
            self.connection = self.stack.accept(event, now)
            assert self._ours is not None and self.context.budget.take()
            self.flow = TcpFlow(self.context, self.flows, self.connection, self._ours, now)
            self._ours = None
        elif isinstance(event, Connection) and event.owner is not None:
            event.owner.on_progress(now)

    def next_timeout(self) -> float | None:
        return self.context.timers.next_deadline()

    def handle_timeout(self, now: float) -> None:
        for key in self.context.timers.expired(now):
            key.on_timeout(now)

    def settle(self, offer: bool) -> None:
        """Rounds until nothing is ready at this instant."""
        for _ in range(1000):
            leases = 0 if self.fast is None else len(self.fast)
            busy = turn(self.engine, self.fast, self.now, offer)
            if self.fast is not None:
                TALLY["offers"] += max(0, len(self.fast) - leases)
            if not busy:
                return
        raise AssertionError("it does not come to rest")

    def sent(self) -> list[Sent]:
        return [sent for _, sent in read_sent(self.device, self.family)]

    def take_back(self) -> None:
        if self.fast is not None:
            TALLY["taken back"] += len(self.fast)
            self.fast.close(self.now)

    def host_read(self, limit: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            self.arrived += self.host.recv(limit)

    def host_write(self, data: bytes) -> int:
        try:
            return self.host.send(data)
        except (BlockingIOError, BrokenPipeError):
            return 0

    def state(self) -> dict[str, Any]:
        """Everything that a connection knows, the parts of the accelerator taken back."""
        assert self.connection is not None
        values = state_of(self.connection, self.stack)
        if self.flow is not None:
            values |= {
                f"flow.{name}": getattr(self.flow, name)
                for name in ("_interest", "_starved", "_read_size", "bytes_up", "bytes_down")
            }
        return values

    def close(self) -> None:
        self.take_back()
        for flow in list(self.flows):
            flow.close()
        assert (
            self.stack.send_pool.used == self.stack.receive_account.used == self.stack.receive_pool.used == 0
        )
        if self._ours is not None:
            self._ours.close()
        self.host.close()
        self.addresses.close()
        self.port.detach(self.poller)
        self.device.close()
        self.poller.close()


class Pair:
    """Both gateways, and the guest."""

    def __init__(self, family: int, l2: bool, limits: Limits, scale: int, wide: int) -> None:
        self.sides = [Side(fast, family, l2, limits) for fast in (False, True)]
        self.family = family
        self.l2 = l2
        self.now = 1000.0
        self.seq = MOD - 20_000
        self.sent_bytes = 0
        self.ack = 0
        self.window = wide
        self.scale = scale
        self.echo = 0
        self.received: list[tuple[int, int]] = []
        self.written = 0
        self.ident = 0

    def stamp(self) -> int:
        return int(self.now * 1000) + 77

    def frame(
        self,
        flags: int,
        seq: int,
        ack: int,
        payload: bytes = b"",
        *,
        options: tuple[TcpOption, ...] | None = None,
        window: int | None = None,
        trust: int = 2,
        gso: int = 0,
        stamp: int | None = None,
        mark: int = 0,
    ) -> bytes:
        """A frame of the guest; `trust`: 0 complete checksum, 1 left to us, 2 verified by the device."""
        if options is None:
            options = (NOP, NOP, timestamps(self.stamp() if stamp is None else stamp, self.echo))
        tcp = Tcp(
            src_port=40000,
            dst_port=80,
            seq=seq % MOD,
            ack=ack % MOD,
            flags=flags,
            window=self.window if window is None else window,
            options=options,
        )
        return make_frame(self.family, self.l2, tcp, payload, trust=trust, gso=gso, mark=mark)

    def give(self, frames: list[bytes], offer: bool = True) -> None:
        """Hand `frames` to both, let both work, and compare what they sent."""
        for side in self.sides:
            for frame in frames:
                side.device.guest.send(frame)
        self.settle(offer)

    def settle(self, offer: bool) -> None:
        results = []
        for side in self.sides:
            side.now = self.now
            side.settle(offer)
            results.append(side.sent())
        reference, fast = results
        assert fast == reference
        for sent in reference:
            TALLY["frames"] += 1
            stamps = next((o.stamps for o in sent.options if o.stamps), None)
            if stamps is not None:
                self.echo = stamps[0]
            size = len(sent.payload) + bool(sent.flags & SYN) + bool(sent.flags & FIN)
            if size:
                self.received.append((sent.seq, (sent.seq + size) % MOD))

    def handshake(self) -> None:
        options = (mss(1460), SACK_PERMITTED, timestamps(self.stamp(), 0), NOP, window_scale(self.scale))
        self.give([self.frame(SYN, self.seq, 0, options=options, window=65535)])
        (syn,) = self.received
        self.received.clear()
        self.ack = syn[1]
        self.seq += 1
        self.give([self.frame(ACK, self.seq, self.ack)])

    # steps

    def data(self, sizes: list[int], gso: bool, push: bool, trust: int, offer: bool) -> None:
        frames = []
        for size in sizes:
            start = self.sent_bytes
            payload = ramp(size, start)
            train = 1448 if gso and size > 1448 else 0
            frames.append(
                self.frame(
                    ACK | (PSH if push else 0),
                    self.seq,
                    self.ack,
                    payload,
                    trust=max(trust, 1) if train else trust,
                    gso=train,
                )
            )
            self.seq += size
            self.sent_bytes += size
        self.give(frames, offer)

    def acknowledge(self, part: float, offer: bool) -> None:
        """The guest acknowledges a part of what has come (segment boundaries or within)."""
        if not self.received:
            self.give([self.frame(ACK, self.seq, self.ack)], offer)
            return
        end = self.received[-1][1]
        outstanding = (end - self.ack) % MOD
        self.ack = (self.ack + max(1, int(outstanding * part))) % MOD
        self.received = [r for r in self.received if (r[1] - self.ack) % MOD < MOD // 2 and r[1] != self.ack]
        self.give([self.frame(ACK, self.seq, self.ack)], offer)

    def odd(self, kind: str, offer: bool) -> None:
        """Something that is not common."""
        frame = {
            "duplicate": lambda: self.frame(ACK | PSH, self.seq - 1, self.ack, b"x"),
            "gap": lambda: self.frame(ACK, self.seq + 1000, self.ack, b"late" * 10),
            "old ack": lambda: self.frame(ACK, self.seq, self.ack - 1),
            "sack": lambda: self.frame(
                ACK,
                self.seq,
                self.ack,
                options=(
                    NOP,
                    NOP,
                    timestamps(self.stamp(), self.echo),
                    NOP,
                    NOP,
                    sack((self.ack + 1448, self.ack + 2896)),
                ),
            ),
            "future ack": lambda: self.frame(ACK, self.seq, self.ack + 10_000_000),
            "paws": lambda: self.frame(ACK, self.seq, self.ack, b"", stamp=self.stamp() - 10_000),
            "no stamps": lambda: self.frame(ACK, self.seq, self.ack, options=()),
            "mark": lambda: self.frame(ACK, self.seq, self.ack, mark=3),
            "closed": lambda: self.frame(ACK, self.seq, self.ack, window=0),
            "bad reset": lambda: self.frame(RST, self.seq + 5, self.ack),
            "syn": lambda: self.frame(SYN, self.seq, self.ack),
        }[kind]()
        self.give([frame], offer)

    def write(self, size: int, offer: bool) -> None:
        data = ramp(size, self.written)
        counts = {side.host_write(data) for side in self.sides}
        assert len(counts) == 1
        self.written += counts.pop()
        self.settle(offer)

    def read(self, size: int, offer: bool) -> None:
        for side in self.sides:
            side.host_read(size)
        self.settle(offer)
        assert self.sides[0].arrived == self.sides[1].arrived

    def wait(self, seconds: float, offer: bool) -> None:
        """Time passes; both are woken at each deadline of either."""
        end = self.now + seconds
        for _ in range(200):
            times = []
            for side in self.sides:
                times.append(side.engine._next_deadline())
                if side.fast is not None:
                    times.append(side.fast.next_timeout())
            deadline = min(times)
            if deadline > end:
                break
            self.now = max(self.now, deadline)
            self.settle(offer)
        self.now = max(self.now, end)
        self.settle(offer)

    def compare(self) -> None:
        """Take everything back, and compare every field."""
        for side in self.sides:
            side.take_back()
        self.settle(False)
        reference, fast = (side.state() for side in self.sides)
        different = {
            name: (reference[name], fast[name]) for name in reference if reference[name] != fast[name]
        }
        assert not different
        assert self.sides[0].stack.drops.as_dict() == self.sides[1].stack.drops.as_dict()

    def close(self) -> None:
        for side in self.sides:
            if side.fast is not None:
                counters = side.fast.fast.c
                TALLY["returned"] += sum(counters.returned)
                TALLY["examples"] += 1
                TALLY["fast frames"] += counters.frames_fast
                TALLY["fast segments out"] += counters.segments_fast_out
            side.close()


ODD = [
    "duplicate",
    "gap",
    "old ack",
    "sack",
    "future ack",
    "paws",
    "no stamps",
    "mark",
    "closed",
    "bad reset",
    "syn",
]
SIZES = st.one_of(st.integers(1, 200), st.sampled_from([1448, 1447, 1000, 2896, 14_480, 43_440, 60_000]))
STEP = st.one_of(
    st.tuples(
        st.just("data"),
        st.lists(SIZES, min_size=1, max_size=6),
        st.booleans(),
        st.booleans(),
        st.integers(0, 2),
    ),
    st.tuples(st.just("ack"), st.sampled_from([1.0, 1.0, 0.5, 0.01])),
    st.tuples(st.just("write"), st.sampled_from([1, 100, 1448, 5000, 70_000, 200_000])),
    st.tuples(st.just("write"), st.sampled_from([1, 100, 1448, 5000, 70_000, 200_000])),
    st.tuples(st.just("read"), st.sampled_from([1, 10_000, 1 << 20])),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.0005, 0.001, 0.02, 0.05, 0.3, 2.0])),
    st.tuples(st.just("odd"), st.sampled_from(ODD)),
    st.tuples(st.just("window"), st.sampled_from([65535, 4000, 100, 20])),
    st.tuples(st.just("compare")),
)
LIMITS = Limits(receive_memory=1 << 20, page_pool=1 << 21, send_share=1 << 19, receive_buffer=1 << 20)


def play(pair: Pair, steps: list[tuple[Any, ...]], offers: list[bool]) -> None:
    pair.handshake()
    for number, step in enumerate(steps):
        offer = offers[number % len(offers)] if offers else True
        kind = step[0]
        if kind == "data":
            sizes, room = [], 100_000
            for size in step[1]:
                sizes.append(min(size, room))
                room -= sizes[-1]
            pair.data([size for size in sizes if size], *step[2:], offer)
        elif kind == "ack":
            pair.acknowledge(step[1], offer)
        elif kind == "write":
            pair.write(step[1], offer)
        elif kind == "read":
            pair.read(step[1], offer)
        elif kind == "wait":
            pair.wait(step[1], offer)
        elif kind == "odd":
            pair.odd(step[1], offer)
        elif kind == "window":
            pair.window = step[1]
        else:
            pair.compare()
            pair.settle(offer)
    pair.compare()


def run_schedules() -> None:
    @settings(max_examples=6 * settings().max_examples, database=None)
    @given(
        link=st.sampled_from([(4, True), (6, True), (4, False), (6, False)]),
        scale=st.sampled_from([0, 7]),
        steps=st.lists(STEP, min_size=10, max_size=50),
        offers=st.lists(st.booleans(), max_size=4),
    )
    def compare(link: tuple[int, bool], scale: int, steps: list[tuple[Any, ...]], offers: list[bool]) -> None:
        pair = Pair(*link, LIMITS, scale, 65535)
        try:
            play(pair, steps, offers)
        finally:
            pair.close()

    compare()


def test_the_fast_path_does_what_the_stack_does() -> None:
    run_schedules()


def test_the_schedules_went_back_and_forth() -> None:
    """What was compared is worth something only if flows were carried, offered and returned often."""
    if not TALLY:
        run_schedules()
    assert TALLY["offers"] >= 1000
    assert TALLY["returned"] + TALLY["taken back"] >= 1000
    assert TALLY["fast frames"] >= 1000
    assert TALLY["fast segments out"] >= 1000
