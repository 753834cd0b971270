"""The fast path of UDP beside the Python stack: equal schedules give equal packets, drops, timers and tables.

One schedule is played twice, by a gateway without the fast path and by one with it: frames of a guest, who is
played here over a socket pair in place of a TAP, datagrams of real sockets on loopback, time that passes, and
moments at which destinations may be offered to C or are taken back. After each step everything is compared
that left on either side, what was dropped, and everything that the NAT remembers.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack import native
from tunstack.gateway.engine import Engine
from tunstack.gateway.ports import DevicePort
from tunstack.ip import ipv4, ipv6
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.ip.header import UDP
from tunstack.limits import Limits
from tunstack.link.devices.vnet_header import VNET_HEADER, parse_frame
from tunstack.nat.config import NatConfig
from tunstack.nat.fast import FastFlows
from tunstack.nat.nat import Nat
from tunstack.nat.poller import EpollPoller
from tunstack.nat.udp import OFFER_AFTER
from tunstack.native import fastpath
from tunstack.packet import GsoType
from tunstack.stack import Stack

from .pair_device import GATEWAY_MAC, PairDevice, open_fast, turn

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

GUEST_MAC = bytes.fromhex("020000000002")
OTHER_MAC = bytes.fromhex("020000000003")
GUEST = {4: parse_address("10.0.2.100"), 6: parse_address("fd00::100")}
ALIASES = {
    4: (parse_address("10.0.2.9"), parse_address("10.0.2.10")),
    6: (parse_address("fd00::9"), parse_address("fd00::10")),
}
"""Both mean the host's loopback address; the second is an address of the gateway itself."""
OUTSIDE = {4: parse_address("203.0.113.7"), 6: parse_address("2001:db8:113::7")}
"""Where a frame goes whose `alias` is 2."""
SERVERS = 3
CLOSED = SERVERS
"""The number of a port where nobody listens."""
STRANGER = CLOSED + 1
"""That of a port to which the guest never sends."""
PORTS = range(21_000, 29_000)
TALLY: collections.Counter[str] = collections.Counter()
"""What C did over all examples."""
TIGHT = Limits(
    udp_mappings=3,
    udp_destinations=3,
    udp_destinations_total=6,
    icmp_errors_per_second=1e6,
    icmp_errors_burst=1_000_000,
)
WIDE = Limits(icmp_errors_per_second=1e6, icmp_errors_burst=1_000_000)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What stays the same in one example."""

    family: int = 4
    l2: bool = True
    uso: bool = True
    tight: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of the guest.

    `trust`: 0 complete checksum, 1 left to us, 2 verified by the device, 3 none at all. `spoil` is what is
    odd.
    """

    guest: int = 0
    alias: int = 0
    server: int = 0
    size: int = 100
    ttl: int = 64
    tos: int = 0
    df: bool = False
    trust: int = 1
    segment: int = 0
    spoil: str = ""
    cut: int = 0
    """Bytes of the MTU for which it is cut into fragments; 0: it is whole."""
    tear: str = ""
    """What happens to its fragments; see `tear`."""


def payload_of(number: int, size: int) -> bytes:
    """`size` bytes that tell where they belong."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


class Side:
    """One gateway with its guest and its host."""

    def __init__(self, plan: Plan, fast: bool, ports: list[int]) -> None:
        limits = TIGHT if plan.tight else WIDE
        self.plan = plan
        self.now = 1000.0
        self.family = socket.AF_INET if plan.family == 4 else socket.AF_INET6
        self.loopback = "127.0.0.1" if plan.family == 4 else "::1"
        self.ports = ports
        own = [parse_address("10.0.2.2"), parse_address("fd00::2"), ALIASES[4][1], ALIASES[6][1]]
        self.stack = Stack(
            mac=GATEWAY_MAC,
            mtu=1500,
            prefixes=[Prefix.parse("10.0.2.0/24"), Prefix.parse("fd00::/64")],
            own_addresses=own,
            rng=random.Random(5),
            l2=plan.l2,
            limits=limits,
        )
        self.poller = EpollPoller()
        config = NatConfig(
            gateway=tuple(own[:2]),
            networks=((parse_address("10.0.2.0"), 24), (parse_address("fd00::"), 64)),
            host_loopback=ALIASES[4] + ALIASES[6],
        )
        self.nat = Nat(self.stack, self.poller, config, limits, self.stack.drops)
        self.engine = Engine(self.stack, self.poller)
        self.engine.handler = self.nat
        self.device = PairDevice(plan.l2, uso=plan.uso)
        self.port = DevicePort(self.engine, self.device)  # type: ignore[arg-type]
        self.port.attach(self.poller)
        self.engine._port = self.port
        self.fast: FastFlows | None = None
        if fast:
            path = open_fast(self.poller, self.device)
            path.c.udp.uso = plan.uso
            self.fast = FastFlows(path, self.stack)
            self.nat.set_carrier(self.fast)
        self.servers = [self._server(port) for port in ports[:SERVERS]]
        self.stranger = self._server(ports[STRANGER])
        self.guest_ports: dict[int, int] = {}
        """By the port of the host that a mapping has."""
        self.served: list[tuple[int, bytes]] = []
        self.late: list[bytes] = []
        """Fragments that come with what the guest sends next."""
        self.announce()

    def _server(self, port: int) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        if self.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
            sock.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.setblocking(False)
        sock.bind((self.loopback, port))
        return sock

    def announce(self) -> None:
        """The guest answers for its address."""
        if self.plan.l2:
            self.stack.link.neighbour_heard(
                GUEST[self.plan.family], GUEST_MAC, self.now, solicited=True, create=True
            )

    # what is done to it

    def send_frame(self, frame: Frame, number: int) -> None:
        late, self.late = self.late, []
        frames = make_frames(self.plan, frame, self.ports, number)
        if frame.tear == "late":
            self.late.append(frames.pop())
        for data in late + frames:
            self.device.guest.send(data)

    def send_woven(self, frames: list[Frame], number: int, order: random.Random) -> None:
        """The fragments of `frames`, those of each in order."""
        queues = [
            make_frames(self.plan, frame, self.ports, number + index) for index, frame in enumerate(frames)
        ]
        while queues := [queue for queue in queues if queue]:
            self.device.guest.send(order.choice(queues).pop(0))

    def answer(self, server: int, guest: int, size: int, tos: int, segment: int, number: int) -> None:
        """A host socket sends to the mapping of a guest port; server -1 is a port that was never asked."""
        mapping = self.nat.udp._mappings.get((GUEST[self.plan.family], 5000 + guest))
        if mapping is None:
            return
        sock = self.stranger if server < 0 else self.servers[server]
        if self.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        sock.setsockopt(17, 103, segment)  # UDP_SEGMENT
        target = (self.loopback, mapping.socket.sock.getsockname()[1])
        with contextlib.suppress(BlockingIOError):
            sock.sendto(payload_of(number, size), target)

    def datagram(self, datagram: Any, now: float) -> None:
        """The gateway's own service at the second alias."""
        self.served.append((datagram.src_port, bytes(datagram.payload)))

    def take_back(self) -> None:
        """Nothing is carried by C any more."""
        if self.fast is not None:
            self.port.take(self.device.take_frames(self.fast.close(self.now)), self.now)

    def settle(self, offer: bool) -> None:
        """Rounds until nothing is ready, and then until C has waited for more fragments in vain."""
        for _ in range(2):
            for _ in range(1000):
                self.look_at_mappings()
                if not turn(self.engine, self.fast, self.now, offer):
                    break
            else:
                raise AssertionError("it does not come to rest")
            self.now += 0.002

    # what is seen of it

    def look_at_mappings(self) -> None:
        for (_, port), mapping in self.nat.udp._mappings.items():
            self.guest_ports[mapping.socket.sock.getsockname()[1]] = port

    def to_guest(self) -> dict[Any, list[bytes]]:
        """What the guest was sent: wire packets with complete checksums, in order for each pair of ports."""
        frames: dict[Any, list[bytes]] = {}
        asked = False
        while True:
            try:
                data = self.device.guest.recv(1 << 17)
            except BlockingIOError:
                break
            packet = parse_frame(memoryview(data))
            for wire in native.segment(packet, self.plan.l2):
                key, plain = self._identify(wire)
                if key == "neighbours":
                    asked = True
                else:
                    frames.setdefault(key, []).append(plain)
        if asked:
            self.announce()
        for key, group in frames.items():
            if key == "other":
                group.sort()  # errors and questions: not in order with anything
        return frames

    def _identify(self, wire: bytes) -> tuple[Any, bytes]:
        """Its pair of ports, and itself without the identification."""
        base = 14 if self.plan.l2 else 0
        ip = bytearray(wire[base:])
        if self.plan.l2 and wire[12:14] == b"\x08\x06":
            return "neighbours", wire
        if ip[0] >> 4 == 4:
            ip[4:6] = ip[10:12] = bytes(2)
            if ip[9] != UDP or ip[6] & 0x3F or ip[7]:
                return "other", wire[:base] + ip
            return (bytes(ip[12:20]), bytes(ip[20:24])), wire[:base] + ip
        if ip[6] == 44:
            ip[44:48] = bytes(4)
        if ip[6] == 58 and ip[40] in (135, 136):
            return "neighbours", wire
        if ip[6] != UDP:
            return "other", wire[:base] + ip
        return (bytes(ip[8:40]), bytes(ip[40:44])), wire[:base] + ip

    def at_host(self) -> dict[tuple[int, int], list[tuple[bytes, list[tuple[int, int]]]]]:
        """What each server received from each port of the guest, in order: payload, TTL and TOS."""
        self.look_at_mappings()
        received: dict[tuple[int, int], list[tuple[bytes, list[tuple[int, int]]]]] = {}
        for number, server in enumerate(self.servers):
            while True:
                try:
                    payload, ancillary, _, address = server.recvmsg(1 << 16, 200)
                except BlockingIOError:
                    break
                values = sorted((kind, value[0]) for _, kind, value in ancillary)
                key = number, self.guest_ports[address[1]]
                received.setdefault(key, []).append((payload, values))
        return received

    def state(self) -> dict[str, Any]:
        """What the NAT remembers."""
        udp = self.nat.udp
        idle = self.nat.limits.udp_idle
        udp._settle()
        mappings = []
        for (_, port), mapping in udp._mappings.items():
            deadline = self.nat._context.timers.get(mapping)
            assert deadline is not None
            if mapping.lease is not None:
                mapping.lease.settle()
                deadline = max(deadline, mapping.lease.last_used + idle)
            targets = [(key, target.quote) for key, target in mapping._targets.items()]
            peers = {host: [target.guest_view for target in group] for host, group in mapping._peers.items()}
            if not self.plan.tight:
                targets.sort()
            last = None
            if self.plan.tight and mapping._last is not None:
                last = mapping._last.guest_view, mapping.socket.dont_fragment
            mappings.append((port, deadline, targets, peers, last, mapping._outstanding))
        if not self.plan.tight:
            mappings.sort(key=lambda mapping: mapping[0])
        return {
            "mappings": mappings,
            "targets": udp.targets,
            "descriptors": self.nat.descriptors_used,
            "opened": self.nat.counters.udp_mappings,
            "fragments": self.stack.ip._reassembler.held_fragments,
        }

    def close(self) -> None:
        if self.fast is not None:
            c = self.fast.fast.c
            TALLY["up"] += c.udp.datagrams_up
            TALLY["down"] += c.udp.datagrams_down
            TALLY["assembled"] += c.udp.assembled
            TALLY["cut"] += c.udp.cut
            self.take_back()
            assert c.udp.path_count == c.udp.socket_count == 0
        self.nat.close()
        for sock in (*self.servers, self.stranger):
            sock.close()
        self.port.detach(self.poller)
        self.device.close()
        self.poller.close()


def make_frame(plan: Plan, frame: Frame, ports: list[int], number: int) -> bytes:
    """The frame on the device, virtio-net header first."""
    src, dst = GUEST[plan.family], (*ALIASES[plan.family], OUTSIDE[plan.family])[frame.alias]
    payload = payload_of(number, frame.size)
    length = 8 + len(payload)
    header = struct.pack("!HHHH", 5000 + frame.guest, ports[frame.server], length, 0)
    start = ipv4.pseudo_header_sum(src, dst, UDP, length)
    if frame.trust == 1:
        checksum = start
    elif frame.trust == 3:
        checksum = 0
    else:
        checksum = ~native.ones_sum(header + payload, start) & 0xFFFF or 0xFFFF
    if frame.spoil == "checksum":
        checksum ^= 0x1234
    datagram = header[:6] + checksum.to_bytes(2, "big") + payload
    if frame.spoil == "short":
        datagram = datagram[:4] + (len(datagram) + 9).to_bytes(2, "big") + datagram[6:]
    if frame.spoil == "trailing":
        datagram += b"trailing"
    if plan.family == 4:
        ip = ipv4.emit(
            src,
            dst,
            UDP,
            len(datagram),
            ident=number & 0xFFFF,
            hop_limit=frame.ttl,
            traffic_class=frame.tos,
            dont_fragment=frame.df,
            more_fragments=frame.spoil == "fragment",
        )
        if frame.spoil == "options":
            ip = bytearray(b"\x46" + ip[1:] + b"\x01\x01\x01\x00")
            ip[2:4] = (len(ip) + len(datagram)).to_bytes(2, "big")
            ip[10:12] = bytes(2)
            ip[10:12] = (~native.ones_sum(bytes(ip)) & 0xFFFF).to_bytes(2, "big")
    else:
        ip = ipv6.emit(src, dst, UDP, len(datagram), hop_limit=frame.ttl, traffic_class=frame.tos)
    link = b""
    if plan.l2:
        mac = OTHER_MAC if frame.spoil == "mac" else GUEST_MAC
        link = GATEWAY_MAC + mac + (b"\x08\x00" if plan.family == 4 else b"\x86\xdd")
    flags = {0: 0, 1: 1, 2: 2, 3: 0}[frame.trust]
    csum = (len(link) + len(ip), 6) if flags == 1 else (0, 0)
    gso = (GsoType.UDP_L4, frame.segment) if frame.segment else (0, 0)
    vnet = VNET_HEADER.pack(flags, gso[0], 0, gso[1], *csum)
    return vnet + link + ip + datagram


def make_frames(plan: Plan, frame: Frame, ports: list[int], number: int) -> list[bytes]:
    """The frames on the device that `frame` is, in the order in which they come."""
    if not frame.cut:
        return [make_frame(plan, frame, ports, number)]
    # Checksums of what is sent in fragments are complete, or there is none.
    whole = make_frame(
        plan, dataclasses.replace(frame, trust=3 if frame.trust == 3 else 0, segment=0), ports, number
    )
    packet = whole[VNET_HEADER.size :]
    src, base = GUEST[plan.family], 14 if plan.l2 else 0
    ip = ipv4 if plan.family == 4 else ipv6
    end = base + ip.HEADER_LENGTH
    dst = packet[end - len(src) : end]
    room = frame.cut - ip.HEADER_LENGTH - (0 if plan.family == 4 else ipv6.FRAGMENT_LENGTH)
    vnet = VNET_HEADER.pack(2 if frame.trust == 2 else 0, 0, 0, 0, 0, 0)
    made = []
    for place, (offset, piece, more) in enumerate(ipv4.cut(packet[end:], room)):
        tos = frame.tos ^ 0x10 if frame.tear == "mark" and place == 1 else frame.tos
        template = ip.HeaderTemplate(src, dst, UDP, frame.ttl, tos)
        if isinstance(template, ipv4.HeaderTemplate):
            word = frame.df << 14 | more << 13 | offset >> 3
            head = template.emit(20 + len(piece), number & 0xFFFF, word)
        else:
            head = template.emit_fragment(48 + len(piece), number, offset | more)
        made.append(vnet + packet[:base] + head + piece)
    return tear(made, frame.tear)


TEARS = ("swap", "lose first", "lose one", "repeat", "repeat last", "mark", "late", "alone", "pad")


def tear(frames: list[bytes], how: str) -> list[bytes]:
    """What comes of the fragments `frames`: `how` is one of TEARS, or "" for all of them in order."""
    if how == "swap":
        return [frames[1], frames[0], *frames[2:]]
    if how == "lose first":
        return frames[1:]
    if how == "lose one":
        return [*frames[:1], *frames[2:]]
    if how == "repeat":
        return [frames[0], *frames]
    if how == "repeat last":
        return [*frames, frames[-1]]
    if how == "alone":
        return frames[:1]
    if how == "pad":
        return [frame + bytes(10) for frame in frames]
    return frames


@contextlib.contextmanager
def side(plan: Plan, fast: bool, ports: list[int]) -> Iterator[Side]:
    made = Side(plan, fast, ports)
    try:
        yield made
    finally:
        made.close()


def free_ports() -> list[int]:
    """Ports outside the range that the kernel chooses from, by number."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, 64):
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                try:
                    sock.bind((host, port))
                except OSError:
                    break
        else:
            ports.append(port)
        if len(ports) > STRANGER:
            return ports
    raise AssertionError("no free ports")


def play(plan: Plan, fast: bool, ports: list[int], steps: list[Any], offers: list[bool]) -> list[Any]:
    """What is seen after each step."""
    seen = []
    with side(plan, fast, ports) as s:
        number = 0
        for index, (kind, *values) in enumerate(steps):
            offer = offers[index % len(offers)] if offers else True
            s.now += 0.001
            s.announce()  # C keeps its neighbour's entry fresh where Python does so with the next datagram
            if kind == "up":
                for frame in values[0]:
                    number += 1
                    s.send_frame(frame, number)
            elif kind == "weave":
                s.send_woven(values[0], number + 1, random.Random(values[1]))
                number += len(values[0])
            elif kind == "down":
                server, guest, answers = values
                for size, tos, segment in answers:
                    number += 1
                    s.answer(server, guest, size, tos, segment, number)
            elif kind == "wait":
                s.now += values[0]
                s.announce()  # or who asks for it and who still knows it would differ
            elif kind == "take back":
                s.take_back()
            elif kind == "forget":
                s.nat.policy.forget()
            elif kind == "serve":
                s.nat.services[UDP, ALIASES[plan.family][1], ports[values[0]]] = s
            elif kind == "leave":
                s.nat.services.pop((UDP, ALIASES[plan.family][1], ports[values[0]]), None)
            s.settle(offer)
            drops = s.stack.drops.as_dict()
            seen.append((kind, s.to_guest(), s.at_host(), list(s.served), drops, s.state()))
    return seen


def compare(plan: Plan, steps: list[Any], offers: list[bool]) -> None:
    ports = free_ports()
    reference = play(plan, False, ports, steps, offers)
    for want, got in zip(reference, play(plan, True, ports, steps, offers), strict=True):
        for part, (expected, found) in enumerate(zip(want, got, strict=True)):
            assert found == expected, f"part {part} of a step {want[0]!r}"


SIZES = st.sampled_from([0, 1, 64, 512, 1400, 1452, 1472])
SPOILS = st.sampled_from(
    [
        "checksum",
        "short",
        "trailing",
        "fragment",
        "options",
        "mac",
        "ttl",
        "zero ttl",
        "tcp train",
        "no checksum",
    ]
)


FLOWS = st.builds(
    Frame,
    guest=st.sampled_from([0, 0, 1, 2, 3]),
    alias=st.sampled_from([0, 0, 1]),
    server=st.sampled_from([0, 0, *range(SERVERS), CLOSED]),
)


@st.composite
def frames(draw: st.DrawFn, flow: Frame) -> Frame:
    """A frame of the same flow as `flow`."""
    frame = dataclasses.replace(
        flow,
        size=draw(SIZES),
        ttl=draw(st.sampled_from([64, 64, 64, 2, 9])),
        tos=draw(st.sampled_from([0, 0, 3, 0xB8])),
        df=draw(st.sampled_from([False] * 7 + [True])),
        trust=draw(st.integers(0, 2)),
    )
    if draw(st.integers(0, 9)) == 0:
        segment = draw(st.sampled_from([1, 100, 1400]))
        size = draw(st.sampled_from([64, 65, 99, 101, 3000, 6401]))
        frame = dataclasses.replace(frame, segment=segment, size=min(size, 65 * segment), trust=1)
    if draw(st.integers(0, 3)) == 0:
        frame = dataclasses.replace(
            frame,
            segment=0,
            size=draw(st.sampled_from([1473, 2945, 2946, 4000, 8192, 20_000, 65_507])),
            cut=draw(st.sampled_from([1500, 1500, 1500, 1400, 68])),
            tear=draw(st.sampled_from([*[""] * 12, *TEARS])),
        )
        if frame.cut == 68:
            frame = dataclasses.replace(frame, size=min(frame.size, 3000))
    if draw(st.integers(0, 11)) == 0:
        spoil = draw(SPOILS)
        if spoil == "ttl":
            frame = dataclasses.replace(frame, ttl=1)
        elif spoil == "no checksum":
            frame = dataclasses.replace(frame, trust=3, segment=0)
        else:
            frame = dataclasses.replace(frame, spoil=spoil)
    return frame


def cut(flow: Frame) -> Frame:
    """A datagram of the same flow in a few fragments."""
    return dataclasses.replace(flow, size=4000, cut=1500)


TOS = st.sampled_from([0, 0, 3, 0xB8])
SMALL = st.lists(
    st.one_of(
        st.tuples(SIZES, TOS, st.just(0)),
        st.sampled_from([(99, 0, 100), (100, 2, 100), (101, 2, 100), (3000, 0, 1400), (2800, 3, 1400)]),
    ),
    max_size=18,
)
LARGE = st.lists(st.sampled_from([(1473, 0, 0), (4000, 1, 0), (20_000, 0, 0), (3000, 2, 100)]), max_size=3)
"""Answers of a server: size, TOS, size of the pieces of a train. Together they fit a receive buffer."""


def mixed(answers: tuple[list[Any], list[Any], random.Random]) -> list[Any]:
    small, large, order = answers
    together = small + large
    order.shuffle(together)
    return together


def with_few_trains(batch: list[Frame]) -> list[Frame]:
    """`batch` with three trains at most, so that a server's receive buffer holds it."""
    trains = [index for index, frame in enumerate(batch) if frame.segment]
    return [
        dataclasses.replace(frame, segment=0, size=100) if index in trains[3:] else frame
        for index, frame in enumerate(batch)
    ]


@st.composite
def schedules(draw: st.DrawFn, tight: bool) -> list[Any]:
    """Steps of `play`; with `tight` limits a batch is of one flow, so that there is one order of use."""
    flows = draw(st.lists(FLOWS, min_size=1, max_size=5))
    flow = st.sampled_from(flows)
    if tight:
        batches = flow.flatmap(lambda one: st.lists(frames(one), min_size=1, max_size=20))
    else:
        batches = st.lists(flow.flatmap(frames), min_size=1, max_size=20)
    up = st.tuples(st.just("up"), batches.map(with_few_trains))
    woven = st.lists((st.just(flows[0]) if tight else flow).map(cut), min_size=1, max_size=6)
    weave = st.tuples(st.just("weave"), woven, st.integers(0, 99))
    answers = st.tuples(SMALL, LARGE, st.randoms(use_true_random=False)).map(mixed)
    down = flow.flatmap(
        lambda one: st.tuples(
            st.just("down"),
            st.sampled_from([min(one.server, SERVERS - 1)] * 4 + list(range(-1, SERVERS))),
            st.just(one.guest),
            answers,
        )
    )
    rest = st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 31.0, 100.0, 119.9, 121.0])),
        st.tuples(st.just("take back")),
        st.tuples(st.just("forget")),
        st.tuples(st.just("serve"), st.integers(0, SERVERS)),
        st.tuples(st.just("leave"), st.integers(0, SERVERS)),
    )
    begun = [("up", [one] * OFFER_AFTER) for one in flows]
    return begun + draw(st.lists(st.one_of(up, up, weave, down, down, rest), max_size=25))


@settings(max_examples=2 * settings().max_examples)
@given(
    link=st.sampled_from([(4, True), (6, True), (4, False), (6, False)]),
    uso=st.booleans(),
    data=st.data(),
    tight=st.booleans(),
    offers=st.lists(st.sampled_from([True, True, False]), max_size=4),
)
def test_the_fast_path_does_what_the_nat_does(
    link: tuple[int, bool], uso: bool, data: st.DataObject, tight: bool, offers: list[bool]
) -> None:
    plan = Plan(*link, uso=uso, tight=tight)
    compare(plan, data.draw(schedules(tight)), offers)


@pytest.mark.parametrize("family", [4, 6])
def test_a_copy_of_a_fragment_that_python_has_is_pythons(family: int) -> None:
    """The first of them goes to Python with what came before it; C must not begin with its copy."""
    odd = [Frame(segment=1, size=64), Frame(size=1473, cut=68, tear="lose first")]
    compare(
        Plan(family), [("up", [Frame()] * 2), ("up", [*odd, Frame(size=1473, cut=1500, tear="repeat")])], []
    )
