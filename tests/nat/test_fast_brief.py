"""Connections that C opens by itself, beside the Python stack: equal schedules give equal packets and states.

Two gateways, one of them with the fast path, whose guest is played here by raw segments over a socket pair in
place of a TAP. Both dial a real listener on loopback. Several connections are opened, used and ended in an
order that the schedule chooses, and time passes; after each step everything that both gateways have sent is
compared, and in the end, or whenever the schedule says so, what Python knows of each connection.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import random
import socket
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.gateway.engine import Engine
from tunstack.gateway.ports import DevicePort
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.limits import Limits
from tunstack.nat.config import NatConfig
from tunstack.nat.fast import FastFlows
from tunstack.nat.nat import Nat
from tunstack.nat.poller import EpollPoller
from tunstack.native import fastpath
from tunstack.native.briefs import Briefs
from tunstack.stack import Stack
from tunstack.tcp.isn import SequenceSource
from tunstack.testing.packets import (
    ACK,
    FIN,
    NOP,
    PSH,
    RST,
    SACK_PERMITTED,
    SYN,
    Tcp,
    TcpOption,
    mss,
    timestamps,
    window_scale,
)

from .pair_device import GATEWAY_MAC, PairDevice, open_fast, turn
from .test_fast import GUEST_MAC, LIMITS, MOD, Sent, make_frame, read_sent, state_of
from .world import ramp

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

ADDRESSES = {
    4: (parse_address("10.0.2.100"), parse_address("10.0.2.9")),
    6: (parse_address("fd00::100"), parse_address("fd00::9")),
}
"""Of the guest, and what means the host's loopback address."""
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
SLOTS = 4
TALLY: collections.Counter[str] = collections.Counter()
"""What became of brief connections, over all examples."""
SIOCOUTQNSD = 0x894B
"""Bytes that the kernel has not sent yet, whether acknowledged or not; of linux/sockios.h."""


class Host:
    """The host's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.arrived = bytearray()
        self.ended = ""
        """How its stream has ended."""

    def read(self) -> None:
        """Take everything that has come."""
        while not self.ended:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.ended = "reset"
                return
            self.arrived += data
            if not data:
                self.ended = "finished"

    def settle(self) -> None:
        """Wait until what was sent is with the gateway's socket, as long as that has room."""
        for _ in range(200):
            if not struct.unpack("i", fcntl.ioctl(self.sock, SIOCOUTQNSD, bytes(4)))[0]:
                return
            time.sleep(0.0001)


class Side:
    """One gateway."""

    def __init__(self, fast: bool, family: int, l2: bool, limits: Limits) -> None:
        self.now = 1000.0
        self.family = family
        self.l2 = l2
        own = [parse_address("10.0.2.2"), parse_address("fd00::2")]
        self.stack = Stack(
            mac=GATEWAY_MAC,
            mtu=1500,
            prefixes=[Prefix.parse("10.0.2.0/24"), Prefix.parse("fd00::/64")],
            own_addresses=own,
            rng=random.Random(5),
            l2=l2,
            limits=limits,
        )
        self.poller = EpollPoller()
        config = NatConfig(
            gateway=tuple(own),
            networks=((parse_address("10.0.2.0"), 24), (parse_address("fd00::"), 64)),
            host_loopback=(ADDRESSES[4][1], ADDRESSES[6][1]),
        )
        self.nat = Nat(self.stack, self.poller, config, limits, self.stack.drops)
        self.engine = Engine(self.stack, self.poller)
        self.engine.handler = self.nat
        self.device = PairDevice(l2)
        self.port = DevicePort(self.engine, self.device)  # type: ignore[arg-type]
        self.port.attach(self.poller)
        self.engine._port = self.port
        self.fast: FastFlows | None = None
        if fast:
            path = open_fast(self.poller, self.device)
            self.fast = FastFlows(path, self.stack, patience=0)
            self.nat.set_carrier(self.fast)
        self.hosts: dict[int, Host] = {}
        """By the guest's port."""
        if l2:
            self.stack.link.neighbour_heard(
                ADDRESSES[family][0], GUEST_MAC, self.now, solicited=True, create=True
            )

    @property
    def briefs(self) -> Any:
        """The `struct ts_briefs`."""
        assert self.fast is not None
        return self.fast.fast.c.briefs

    def settle(self) -> None:
        for _ in range(1000):
            if not turn(self.engine, self.fast, self.now, True):
                return
        raise AssertionError("it does not come to rest")

    def sent(self) -> list[tuple[int, Sent]]:
        """What the guest was sent, with its port."""
        return read_sent(self.device, self.family)

    def state(self) -> dict[str, Any]:
        """Everything that there is to know of connections; none is brief any more."""
        values: dict[str, Any] = {}
        flows = {}
        for flow in self.nat.tcp.flows:
            flow._take_back(self.now)
            names = ("_interest", "_starved", "_read_size", "bytes_up", "bytes_down", "created")
            more = ("_opening", "_up_done", "_down_done", "_failed")
            flows[flow.connection.key] = {name: getattr(flow, name) for name in names + more}
            flows[flow.connection.key]["idle"] = self.nat._context.timers.get(flow)
        for key, connection in self.stack.connections.items():
            values |= {f"{key.hex()} {name}": v for name, v in state_of(connection, self.stack).items()}
            sizing = connection.receiver.sizing
            for name in ("_start", "_received", "_consumed", "_rate", "rtt", "_rtt_at"):
                values[f"{key.hex()} {name}"] = getattr(sizing, name)
            values[f"{key.hex()} fin"] = connection.sender.fin_sent, connection.receiver.fin_position
        values["flows"] = flows
        values["requests"] = set(self.stack.requests)
        values["descriptors"] = self.nat.descriptors_used
        values["counters"] = self.nat.counters
        values["statistics"] = dataclasses.replace(self.stack.tcp_statistics(), accelerated=0)
        values["drops"] = self.stack.drops.as_dict()
        return values

    def close(self) -> None:
        if self.fast is not None:
            self.nat.set_carrier(None)
            self.fast.close(self.now)
        self.nat.close()
        for connection in list(self.stack.connections.values()):  # those that have outlived their flow
            connection.abort()
        pools = self.stack.send_pool, self.stack.receive_account, self.stack.receive_pool
        assert [pool.used for pool in pools] == [0, 0, 0] and self.nat.descriptors_used == 0
        for host in self.hosts.values():
            host.sock.close()
        self.port.detach(self.poller)
        self.device.close()
        self.poller.close()


@dataclasses.dataclass
class Slot:
    """The guest's end of a connection."""

    port: int
    seq: int
    ack: int = 0
    window: int = 65535
    echo: int = 0
    sent_bytes: int = 0
    written: int = 0
    reached: int = 0
    """The end of what the gateway has sent."""
    is_open: bool = False
    has_finished: bool = False


class Pair:
    """Both gateways, the guest, and the listener that both dial."""

    def __init__(self, family: int = 4, l2: bool = True, limits: Limits = LIMITS, scale: int = 7) -> None:
        self.family = family
        self.l2 = l2
        self.scale = scale
        self.now = 1000.0
        self.sides = [Side(fast, family, l2, limits) for fast in (False, True)]
        self.listener = socket.create_server(
            (LOOPBACK[family], 0), family=socket.AF_INET if family == 4 else socket.AF_INET6
        )
        self.listener.settimeout(5)
        self.target = self.listener.getsockname()[1]
        self.slots: dict[int, Slot] = {}
        self._ports = iter(range(30_000, 60_000))
        for _ in range(2):  # the first two are Python's, and open the door
            slot = self.open()
            self.answer(slot)
            self.reset(slot)

    @property
    def returned(self) -> list[int]:
        """How often C has returned a flow, by reason."""
        fast = self.sides[1].fast
        assert fast is not None
        return list(fast.fast.c.returned)

    def stamp(self) -> int:
        return int(self.now * 1000) + 77

    def frame(
        self,
        slot: Slot,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        options: tuple[TcpOption, ...] | None = None,
        trust: int = 2,
        stamp: int | None = None,
        mac: bytes = GUEST_MAC,
    ) -> bytes:
        """A frame of the guest; `trust`: 0 complete checksum, 1 left to us, 2 verified by the device."""
        if options is None:
            options = (NOP, NOP, timestamps(self.stamp() if stamp is None else stamp, slot.echo))
        tcp = Tcp(
            src_port=slot.port,
            dst_port=self.target,
            seq=(slot.seq if seq is None else seq) % MOD,
            ack=(slot.ack if ack is None else ack) % MOD,
            flags=flags,
            window=slot.window,
            options=options,
        )
        return make_frame(self.family, self.l2, tcp, payload, trust=trust, mac=mac, addresses=ADDRESSES)

    def syn(self, slot: Slot, **changes: Any) -> bytes:
        """The SYN of `slot`, as Linux sends it."""
        options = (mss(1460), SACK_PERMITTED, timestamps(self.stamp(), 0), NOP, window_scale(self.scale))
        return self.frame(slot, SYN, **({"options": options, "ack": 0} | changes))

    # what happens

    def give(self, frames: list[bytes], *, accept: int | None = None) -> None:
        """Hand `frames` to both, let each work, and compare. `accept`: the port of one that is opened."""
        for side in self.sides:
            for frame in frames:
                side.device.guest.send(frame)
        self.settle(accept)

    def settle(self, accept: int | None = None) -> None:
        results = []
        for side in self.sides:
            for host in side.hosts.values():
                if not host.ended:
                    host.settle()
            side.now = self.now
            side.settle()
            if accept is not None:
                if accept in side.hosts:
                    side.hosts[accept].sock.close()
                side.hosts[accept] = Host(self.listener.accept()[0])
            results.append(side.sent())
        reference, fast = results
        # In order for each connection; timers that are due at one time have none.
        assert sorted(fast, key=_port_of) == sorted(reference, key=_port_of)
        for port, sent in reference:
            if (slot := self.slots.get(port)) is None:
                continue
            stamps = next((o.stamps for o in sent.options if o.stamps), None)
            if stamps is not None:
                slot.echo = stamps[0]
            size = len(sent.payload) + bool(sent.flags & SYN) + bool(sent.flags & FIN)
            if sent.flags & SYN:
                slot.ack = sent.seq + 1
                slot.reached = sent.seq + 1
            elif size and (sent.seq + size - slot.reached) % MOD < MOD // 2:
                slot.reached = sent.seq + size
            if sent.flags & RST:
                slot.is_open = False
        self.compare_hosts()

    def compare_hosts(self) -> None:
        """What arrives with the hosts; the kernel may take a moment."""
        for port in self.sides[0].hosts:
            ends = [side.hosts[port] for side in self.sides]
            for _ in range(2000):
                for end in ends:
                    end.read()
                if ends[0].arrived == ends[1].arrived and ends[0].ended == ends[1].ended:
                    break
                time.sleep(0.0005)
            assert ends[0].arrived == ends[1].arrived
            assert ends[0].ended == ends[1].ended

    def open(self, *, with_ack: bool = False, **changes: Any) -> Slot:
        """A new connection up to SYN-ACK."""
        slot = Slot(next(self._ports), MOD - 20_000)
        self.slots[slot.port] = slot
        self.give([self.syn(slot, **changes)], accept=slot.port)
        slot.seq += 1
        slot.is_open = True
        if with_ack:
            self.answer(slot)
        return slot

    def answer(self, slot: Slot, *more: bytes) -> None:
        self.give([self.frame(slot, ACK), *more])

    def data(self, slot: Slot, size: int, *, first: tuple[bytes, ...] = (), fin: bool = False) -> None:
        """Bytes of the guest, behind other frames, and with its FIN."""
        payload = ramp(size, slot.sent_bytes)
        frame = self.frame(slot, ACK | (PSH if size else 0) | (FIN if fin else 0), payload)
        slot.seq += size + fin
        slot.sent_bytes += size
        slot.has_finished |= fin
        self.give([*first, frame])

    def acknowledge(self, slot: Slot, part: float = 1.0) -> None:
        outstanding = (slot.reached - slot.ack) % MOD
        slot.ack += int(outstanding * part)
        self.give([self.frame(slot, ACK)])

    def reset(self, slot: Slot) -> None:
        slot.is_open = False
        self.give([self.frame(slot, RST | ACK)])

    def write(self, slot: Slot, size: int) -> None:
        """Both hosts send."""
        counts = []
        for side in self.sides:
            host = side.hosts[slot.port]
            try:
                counts.append(host.sock.send(ramp(size, slot.written)))
            except OSError:
                counts.append(0)
        assert counts[0] == counts[1]
        slot.written += counts[0]
        self.settle()

    def end_host(self, slot: Slot, how: str) -> None:
        """Both hosts finish (`half`), close or reset."""
        for side in self.sides:
            sock = side.hosts[slot.port].sock
            with contextlib.suppress(OSError):
                if how == "half":
                    sock.shutdown(socket.SHUT_WR)
                    continue
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how != "half":
                side.hosts[slot.port].ended = "closed"
                sock.close()
        time.sleep(0.0002)  # the kernels of both ends are one, but need not be one call
        self.settle()

    def wait(self, seconds: float) -> None:
        """Time passes; both are woken at each deadline of either."""
        end = self.now + seconds
        for _ in range(200):
            times = []
            for side in self.sides:
                times.append(side.engine._next_deadline())
                if side.fast is not None:
                    times.append(side.fast.next_timeout())
            if min(times) > end:
                break
            self.now = max(self.now, min(times))
            self.settle()
        self.now = max(self.now, end)
        self.settle()

    def compare(self) -> None:
        """Have everything adopted, and compare every field."""
        fast = self.sides[1].fast
        assert fast is not None
        TALLY["adopted on request"] += fast.fast.c.briefs.count
        self.sides[1].stack.adopt_all()
        assert not fast.fast.c.briefs.count and not fast.fast.c.briefs.descriptors
        states = [side.state() for side in self.sides]
        self.settle()
        names = states[0].keys() | states[1].keys()
        different = {
            name: (states[0].get(name), states[1].get(name))
            for name in names
            if states[0].get(name) != states[1].get(name)
        }
        assert not different

    def close(self) -> None:
        fast = self.sides[1].fast
        assert fast is not None
        c = fast.fast.c
        for name in ("TS_FRAME", "TS_END_OF_FILE", "TS_TIMER", "TS_AGE", "TS_ADVICE", "TS_SOCKET_ERROR"):
            TALLY[name] += c.returned[getattr(fastpath.lib, name)]
        for side in self.sides:
            side.close()
        self.listener.close()


def _port_of(item: tuple[int, Sent]) -> int:
    return item[0]


def begin(pair: Pair) -> Slot:
    """A connection that C has opened, and that is established."""
    before = pair.sides[1].briefs.count
    slot = pair.open(with_ack=True)
    assert pair.sides[1].briefs.count == before + 1
    return slot


STEP = st.one_of(
    st.tuples(st.just("open"), st.booleans()),
    st.tuples(st.just("answer"), st.integers(0, 3), st.sampled_from([0, 1, 700, 1448])),
    st.tuples(st.just("data"), st.integers(0, 3), st.sampled_from([1, 100, 1448]), st.booleans()),
    st.tuples(st.just("fin"), st.integers(0, 3), st.sampled_from([0, 0, 100])),
    st.tuples(st.just("ack"), st.integers(0, 3), st.sampled_from([1.0, 1.0, 0.5])),
    st.tuples(st.just("ack"), st.integers(0, 3), st.sampled_from([1.0, 1.0, 0.5])),
    st.tuples(st.just("write"), st.integers(0, 3), st.sampled_from([1, 1000, 1448, 20_000, 60_000])),
    st.tuples(st.just("host"), st.integers(0, 3), st.sampled_from(["half", "close", "close", "reset"])),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.009, 0.02, 0.05, 0.3, 1.0])),
    st.tuples(
        st.just("odd"), st.integers(0, 3), st.sampled_from(["dup", "gap", "syn", "old", "rst", "rst", "paws"])
    ),
    st.tuples(st.just("bulk"), st.integers(0, 3), st.sampled_from([20_000, 60_000])),
    st.tuples(st.just("silence"), st.integers(0, 3), st.sampled_from([1, 30_000])),
    st.tuples(st.just("compare")),
)


def play(pair: Pair, steps: list[tuple[Any, ...]]) -> None:
    for step in steps:
        kind = step[0]
        if kind == "compare":
            pair.compare()
            continue
        if kind == "wait":
            pair.wait(step[1])
            continue
        live = [slot for slot in pair.slots.values() if slot.is_open][-SLOTS:]
        if kind == "open":
            if len(live) < SLOTS:
                pair.open(with_ack=step[1])
            continue
        if not live:
            continue
        slot = live[step[1] % len(live)]
        if kind == "answer":
            slot_ack = pair.frame(slot, ACK)
            if slot.has_finished:
                pair.give([slot_ack])
            else:
                pair.data(slot, step[2], first=(slot_ack,))
        elif kind == "data" and not slot.has_finished:
            pair.data(slot, step[2], fin=step[3])
        elif kind == "fin" and not slot.has_finished:
            pair.data(slot, step[2], fin=True)
        elif kind == "ack":
            pair.acknowledge(slot, step[2])
        elif kind == "write" and pair.sides[0].hosts[slot.port].ended != "closed":
            pair.write(slot, step[2])
        elif kind == "bulk" and pair.sides[0].hosts[slot.port].ended != "closed":
            pair.write(slot, step[2])  # more than cwnd
            pair.acknowledge(slot)
        elif kind == "silence" and pair.sides[0].hosts[slot.port].ended != "closed":
            pair.write(slot, step[2])
            pair.wait(0.4)  # nobody acknowledges it
        elif kind == "host":
            pair.end_host(slot, step[2])
        elif kind == "odd":
            odd(pair, slot, step[2])
    pair.compare()


def odd(pair: Pair, slot: Slot, kind: str) -> None:
    """Something that is not common."""
    if kind == "rst":  # with an acknowledgement, or as Linux answers what belongs to no connection
        slot.is_open = False
        bare = slot.has_finished
        pair.give([pair.frame(slot, RST if bare else RST | ACK, options=() if bare else None)])
        return
    frame = {
        "dup": lambda: pair.frame(slot, ACK | PSH, b"x", seq=slot.seq - 1),
        "gap": lambda: pair.frame(slot, ACK, b"late" * 10, seq=slot.seq + 1000),
        "syn": lambda: pair.syn(slot, seq=MOD - 20_000),
        "old": lambda: pair.frame(slot, ACK, ack=slot.ack - 1),
        "paws": lambda: pair.frame(slot, ACK, stamp=pair.stamp() - 10_000),
    }[kind]()
    pair.give([frame])


def run_schedules() -> None:
    @settings(max_examples=4 * settings().max_examples, database=None)
    @given(
        link=st.sampled_from([(4, True), (6, True), (4, False), (6, False)]),
        scale=st.sampled_from([0, 7]),
        steps=st.lists(STEP, min_size=8, max_size=40),
    )
    def compare(link: tuple[int, bool], scale: int, steps: list[tuple[Any, ...]]) -> None:
        pair = Pair(*link, LIMITS, scale)
        try:
            play(pair, steps)
            TALLY["examples"] += 1
            TALLY["opened"] += pair.sides[1].nat.counters.tcp_flows - 2
        finally:
            pair.close()

    compare()


def test_brief_connections_are_what_the_stack_would_have_made_of_them() -> None:
    run_schedules()


def test_connections_went_back_and_forth() -> None:
    """What was compared is worth something only if connections were brief, and adopted for every reason."""
    if not TALLY:
        run_schedules()
    assert TALLY["opened"] >= 300 and TALLY["adopted on request"] >= 100
    assert TALLY["TS_FRAME"] >= 100 and TALLY["TS_END_OF_FILE"] >= 10
    assert all(TALLY[name] for name in ("TS_SOCKET_ERROR", "TS_AGE", "TS_ADVICE", "TS_TIMER"))


def test_the_whole_of_a_brief_connection_is_carried_in_c() -> None:
    pair = Pair()
    try:
        before = pair.returned
        slot = begin(pair)
        pair.data(slot, 100)
        pair.write(slot, 1000)
        pair.data(slot, 0, fin=True)
        pair.end_host(slot, "close")
        pair.acknowledge(slot)
        c = pair.sides[1].briefs
        assert c.count == c.descriptors == 0 and pair.returned == before
        assert not pair.sides[1].stack.connections
        pair.compare()
    finally:
        pair.close()


@pytest.mark.parametrize("family", [4, 6])
def test_sequence_numbers_are_those_of_the_twin(family: int) -> None:
    secret = hashlib.sha256(b"a secret").digest()

    @given(size=st.integers(16, 32), rest=st.binary(min_size=36, max_size=36))
    def compare(size: int, rest: bytes) -> None:
        fast = fastpath.FastPath(1, epoll_fd=-1, device_fd=-1, mac=None)
        briefs = Briefs(fast)
        briefs.set_secret(secret[:size])
        source = SequenceSource(secret[:size])
        width = 4 if family == 4 else 16
        remote, local, ports = rest[:width], rest[width : 2 * width], rest[32:]
        numbers = (
            *(local, int.from_bytes(ports[2:], "big")),
            *(remote, int.from_bytes(ports[:2], "big")),
        )
        key = remote + local + ports
        assert briefs.hash(0, key) == source.isn(*numbers, 0.0)
        assert briefs.hash(1, key) == source.timestamp_offset(*numbers)

    compare()
