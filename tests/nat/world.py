"""A whole NAT without a device: the gateway's stack wired to a second stack that plays the guest.

Everything is real but the wire: both TCPs, the poller, the sockets of the host. The clock is the host's,
plus what a test adds to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tunstack.errors import DropCounters, DropReason
from tunstack.ip import icmp, icmpv6, udp
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.ip.header import ICMP, ICMPV6, TCP, UDP
from tunstack.ip.udp import UdpDatagram
from tunstack.limits import Limits
from tunstack.nat.config import NatConfig
from tunstack.nat.nat import Nat
from tunstack.nat.poller import EpollPoller
from tunstack.packet import Checksum, Packet
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest

GATEWAY = parse_address("10.0.2.2")
LOOPBACK_ALIAS = parse_address("10.0.2.9")
"""A guest-side address that means the host's 127.0.0.1."""
GUEST = parse_address("10.0.2.100")
GUEST_2 = parse_address("10.0.2.101")
NETWORK = parse_address("10.0.2.0")
GATEWAY_6 = parse_address("fd00::2")
GUEST_6 = parse_address("fd00::100")
GUEST_6_2 = parse_address("fd00::101")
NETWORK_6 = parse_address("fd00::")


@dataclasses.dataclass(frozen=True)
class Family:
    """The addresses of one family.

    `alias` means the host's `loopback`; `host` and `stranger` are given to the host by tests; `destination`
    is in `outside`, which only routes of tests lead to; the rest is for `test_udp.router`.
    """

    version: int
    gateway: bytes
    alias: bytes
    guest: bytes
    guest_2: bytes
    loopback: str
    host: str
    stranger: str
    outside: str
    destination: str
    near: str
    router: str
    router_far: str
    far: str

    @property
    def socket_family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.version == 4 else socket.AF_INET6

    @property
    def header(self) -> int:
        return 20 if self.version == 4 else 40

    def bits(self, address: str) -> str:
        """`address` as a prefix of its own."""
        return f"{address}/{32 if self.version == 4 else 128}"


V4 = Family(
    4,
    *(GATEWAY, LOOPBACK_ALIAS, GUEST, GUEST_2),
    *("127.0.0.1", "198.18.0.1", "198.18.0.2"),
    *("203.0.113.0/24", "203.0.113.7"),
    *("192.0.2.1", "192.0.2.2", "198.51.100.1", "198.51.100.2"),
)
V6 = Family(
    6,
    *(GATEWAY_6, parse_address("fd00::9"), GUEST_6, GUEST_6_2),
    *("::1", "2001:db8:18::1", "2001:db8:18::2"),
    *("2001:db8:113::/48", "2001:db8:113::7"),
    *("2001:db8:2::1", "2001:db8:2::2", "2001:db8:100::1", "2001:db8:100::2"),
)
both_families = pytest.mark.parametrize("f", [V4, V6], ids=["v4", "v6"])

A = parse_address


class Icmp:
    """An ICMP or ICMPv6 message that the guest has received."""

    def __init__(self, packet: bytes) -> None:
        length, _, self.src, _ = _addresses(packet)
        body = packet[length:]
        self.ttl = packet[8 if packet[0] >> 4 == 4 else 7]
        self.type, self.code, _, self.word, self.mtu = struct.unpack_from("!BBHHH", body)
        self.data = body[8:]

    @property
    def quoted(self) -> tuple[bytes, int, bytes, int]:
        """Source, port, destination, port of the packet that an error quotes."""
        length, _, src, dst = _addresses(self.data)
        src_port, dst_port = struct.unpack_from("!HH", self.data, length)
        return src, src_port, dst, dst_port


def _addresses(packet: bytes) -> tuple[int, int, bytes, bytes]:
    """Header length, protocol, source and destination."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4, packet[9], packet[12:16], packet[16:20]
    return 40, packet[6], packet[8:24], packet[24:40]


class World:
    """A gateway, its guest and the wire between them."""

    def __init__(self, *, limits: Limits | None = None, echo_mode: str | None = None, **config: Any) -> None:
        limits = limits or Limits(icmp_errors_per_second=10_000.0, icmp_errors_burst=10_000)
        self.skew = 0.0
        self.icmp: list[Icmp] = []
        self.resets: list[tuple[bytes, int]] = []
        """(address, port) from which the guest got RST."""
        self.datagrams: list[tuple[bytes, int, int, bytes]] = []
        """(source, source port, guest port, payload) of what the guest got."""
        self.requests: list[TcpRequest] = []
        self.traffic_classes: list[int] = []
        self.drops = DropCounters()
        self.stack = Stack(
            mac=bytes(6),
            mtu=1500,
            prefixes=(Prefix(NETWORK, 24), Prefix(NETWORK_6, 64)),
            own_addresses=(GATEWAY, GATEWAY_6),
            rng=random.Random(1),
            l2=False,
            limits=limits,
            drops=self.drops,
        )
        self.guest = Stack(
            mac=bytes(6),
            mtu=1500,
            prefixes=(),
            own_addresses=(GUEST, GUEST_2, GUEST_6, GUEST_6_2),
            rng=random.Random(2),
            l2=False,
        )
        self.poller = EpollPoller()
        settings: dict[str, Any] = {
            "gateway": (GATEWAY, GATEWAY_6),
            "networks": ((NETWORK, 24), (NETWORK_6, 64)),
            "host_loopback": (V4.alias, V6.alias),
        }
        self.nat = Nat(
            self.stack,
            self.poller,
            NatConfig(**(settings | config)),
            limits,
            self.drops,
            echo_mode=echo_mode,
        )
        self._ports = iter(range(20_000, 60_000))

    @property
    def now(self) -> float:
        return time.monotonic() + self.skew

    def close(self) -> None:
        self.nat.close()
        self.poller.close()

    # the guest

    def connect(
        self, dst: bytes, port: int, *, src: bytes | None = None, src_port: int | None = None
    ) -> Connection:
        """The guest's SYN to `dst`; it leaves with the next step."""
        return self.guest.connect(src or _guest(dst), src_port or next(self._ports), dst, port, self.now)

    def send_udp(
        self,
        dst: bytes,
        port: int,
        payload: bytes,
        *,
        src: bytes | None = None,
        src_port: int = 5000,
        dont_fragment: bool = False,
        hop_limit: int = 64,
        traffic_class: int = 0,
        gso_size: int = 0,
    ) -> None:
        """A datagram of the guest."""
        src = src or _guest(dst)
        for packet in self.guest.ip.build(
            src,
            dst,
            UDP,
            udp.emit(src, src_port, dst, port, len(payload)) + payload,
            hop_limit=hop_limit,
            traffic_class=traffic_class,
            dont_fragment=dont_fragment,
            csum_offset=udp.CSUM_OFFSET,
            gso_size=gso_size,
        ):
            self.to_gateway(packet)

    def ping(
        self,
        dst: bytes,
        *,
        ident: int = 77,
        seq: int = 1,
        payload: bytes = b"x" * 56,
        hop_limit: int = 64,
        dont_fragment: bool = False,
    ) -> None:
        """A ping of the guest."""
        src = _guest(dst)
        if len(dst) == 4:
            protocol, message = ICMP, icmp.emit_echo_request(ident, seq, payload)
        else:
            protocol, message = ICMPV6, icmpv6.emit_echo_request(src, dst, ident, seq, payload)
        for packet in self.guest.ip.build(
            src, dst, protocol, message, hop_limit=hop_limit, dont_fragment=dont_fragment
        ):
            self.to_gateway(packet)

    # the wire and the driver

    def to_gateway(self, packet: Packet) -> None:
        checksum = Checksum.PARTIAL if packet.checksum == Checksum.PARTIAL else Checksum.UNKNOWN
        frame = bytearray(packet.tobytes())
        self.stack.receive(
            Packet(frame, gso_size=packet.gso_size, gso_type=packet.gso_type, checksum=checksum), self.now
        )
        self._deliver()
        frame[:] = bytes(len(frame))  # the device uses its buffer again

    def _deliver(self) -> None:
        while events := self.stack.poll_events():
            for event in events:
                self.nat.handle(event, self.now)
        self.stack.settle()

    def _to_guest(self, packet: Packet) -> None:
        data = packet.tobytes()
        length, protocol, src, _ = _addresses(data)
        if protocol in (ICMP, ICMPV6):
            self.icmp.append(Icmp(data))
        elif protocol == TCP and data[length + 13] & 4:
            self.resets.append((src, struct.unpack_from("!H", data, length)[0]))
        self.traffic_classes.append(data[1] if len(src) == 4 else (data[0] << 4 | data[1] >> 4) & 0xFF)
        self.guest.receive(
            Packet(data, gso_size=packet.gso_size, gso_type=packet.gso_type, checksum=Checksum.PARTIAL),
            self.now,
        )
        for event in self.guest.poll_events():
            if isinstance(event, UdpDatagram):
                self.datagrams.append((event.src, event.src_port, event.dst_port, bytes(event.payload)))
            elif isinstance(event, TcpRequest):
                self.requests.append(event)
        self.guest.settle()

    def step(self, wait: float = 0.0) -> None:
        """One round of the driver and of the guest."""
        if wait:
            select.select([self.poller], [], [], wait)
        now = self.now
        for stack in (self.stack, self.guest):
            deadline = stack.next_timeout()
            if deadline is not None and deadline <= now:
                stack.handle_timeout(now)
        deadline = self.nat.next_timeout()
        if deadline is not None and deadline <= now:
            self.nat.handle_timeout(now)
        for token, ready in self.poller.poll():
            token.on_ready(ready, now)
        self._deliver()
        for packet in self.stack.poll_transmit(now):
            self._to_guest(packet)
        for packet in self.guest.poll_transmit(now):
            self.to_gateway(packet)
        self._deliver()

    def until(self, condition: Callable[[], object], timeout: float = 5.0) -> None:
        """Run until `condition` holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen; drops: {self.drops.as_dict()}"
            self.step(0.002)

    def run(self, seconds: float) -> None:
        """Run for a time of the host."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.step(0.002)

    def dropped(self, reason: DropReason) -> int:
        return self.drops[reason]


def _guest(dst: bytes) -> bytes:
    """The guest's address of the family of `dst`."""
    return GUEST if len(dst) == 4 else GUEST_6


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def world(**options: Any) -> Iterator[World]:
    made = World(**options)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def listener(host: str = "127.0.0.1", port: int = 0, backlog: int = 64) -> Iterator[socket.socket]:
    """A TCP listener of the host; accepting has a time-out."""
    with socket.socket(_family(host)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.settimeout(5)
        yield sock


@contextlib.contextmanager
def udp_socket(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """A UDP socket of the host."""
    with socket.socket(_family(host), socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        sock.settimeout(5)
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def closed_port(kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket(_family(host), kind) as sock:
        sock.bind((host, 0))
        return port_of(sock)


def ramp(size: int, start: int = 0) -> bytes:
    """Bytes of period 251: lost, doubled or swapped blocks show."""
    period = bytes(range(251))
    first = start % 251
    return (period * (size // 251 + 2))[first : first + size]


def read_all(connection: Connection) -> bytes:
    """What is readable, consumed."""
    data = b"".join(connection.peek())
    connection.consume(len(data))
    return data


def is_reset(sock: socket.socket) -> bool:
    """Whether the peer of `sock` resets it (and does not merely close)."""
    try:
        return sock.recv(1) != b"" and False
    except ConnectionResetError:
        return True
