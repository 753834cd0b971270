"""TAP and TUN with the real kernel, in a network namespace of each test."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tunstack import native
from tunstack.errors import DropCounters
from tunstack.limits import MAX_FRAME, Limits
from tunstack.link import arp, ethernet
from tunstack.link.devices import vnet
from tunstack.link.devices.base import Device, DeviceClosed
from tunstack.link.devices.tap import TapDevice
from tunstack.link.devices.tun import TunDevice
from tunstack.link.interface import EthernetLink
from tunstack.link.neighbour import NeighbourState
from tunstack.link.transmit import TransmitQueue
from tunstack.packet import Checksum, GsoType, Packet

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("no_fd_leak")]

OUR_MAC = bytes.fromhex("020000000001")
GUEST_MAC = bytes.fromhex("020000000099")
GATEWAY, GUEST = bytes([10, 0, 2, 2]), bytes([10, 0, 2, 100])
KINDS = [TapDevice, TunDevice]
LOCAL_EXPERIMENT = 0x88B5
"""An ethertype for private use (IEEE 802, local experimental)."""
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1

Kind = type[TapDevice] | type[TunDevice]
Opener = Callable[..., TapDevice | TunDevice]


@pytest.fixture
def opened(namespace: Any) -> Iterator[Opener]:
    """Opens a device "guest0" in the namespace, with address and route, up; closes it in the end."""
    devices: list[TapDevice | TunDevice] = []

    def open_device(kind: Kind = TapDevice, *, vnet: bool = True, up: bool = True) -> TapDevice | TunDevice:
        device: TapDevice | TunDevice = namespace.call(lambda: kind.open("guest0", mtu=1500, vnet=vnet))
        devices.append(device)
        if kind is TapDevice:
            namespace.run(f"ip link set guest0 address {ethernet.format_mac(GUEST_MAC)}")
        namespace.run("ip addr add 10.0.2.100/24 dev guest0")
        if up:
            namespace.run("ip link set guest0 up")
        return device

    yield open_device
    for device in devices:
        device.close()


def read_until(device: Device, wanted: Callable[[Packet], bool], seconds: float = 10.0) -> Packet:
    """The first packet that is `wanted`; the others are thrown away."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(device.fileno() or -1, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        poll.poll(left * 1000)
        for packet in device.read_batch(1):
            if wanted(packet):
                return packet
    raise AssertionError("the packet did not come")


def udp_packet(payload: bytes, *, port: int = 9999) -> bytes:
    """A UDP/IPv4 packet from the gateway to the guest, without a UDP checksum."""
    udp = struct.pack("!HHHH", 7, port, 8 + len(payload), 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0x4000, 64, 17, 0, GATEWAY, GUEST)
    return ip[:10] + struct.pack("!H", 0xFFFF - native.ones_sum(ip)) + ip[12:] + udp


def framed(device: Device, ip: bytes) -> bytes:
    """`ip` as `device` carries it."""
    return ethernet.header(GUEST_MAC, OUR_MAC, 0x0800) + ip if device.offloads.l2 else ip


def guest_udp(namespace: Any, port: int = 9999) -> socket.socket:
    """A UDP socket inside, with a buffer for all that a test sends."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.bind(("10.0.2.100", port))
        sock.settimeout(10)
        return sock

    return namespace.call(make)  # type: ignore[no-any-return]


def ip_offset(device: Device) -> int:
    return 14 if device.offloads.l2 else 0


@pytest.mark.parametrize("vnet_header", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_negotiation(opened: Opener, kind: Kind, vnet_header: bool) -> None:
    device = opened(kind, vnet=vnet_header)
    offloads = device.offloads
    assert device.name == "guest0"
    assert offloads.l2 is (kind is TapDevice)
    assert offloads.mtu == 1500
    assert offloads.checksum == offloads.tso4 == offloads.tso6 == vnet_header
    plain = 1514 if offloads.l2 else 1500
    assert offloads.max_frame == (plain if not vnet_header else MAX_FRAME if offloads.l2 else 65535)
    device.set_offloads(False)
    assert not (device.offloads.checksum or device.offloads.tso4 or device.offloads.uso)
    assert device.offloads.max_frame == plain
    device.set_offloads(True)
    assert device.offloads == offloads


def test_uso_is_negotiated_where_the_kernel_has_it(opened: Opener) -> None:
    device = opened()
    try:
        fcntl.ioctl(device.fileno(), vnet.TUNSETOFFLOAD, 0x6F)
    except OSError as error:
        assert error.errno == errno.EINVAL
        assert not device.offloads.uso
    else:
        assert device.offloads.uso


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_descriptor_of_another_namespace(opened: Opener, namespace: Any, kind: Kind) -> None:
    first = opened(kind)
    # A header size that another program may have left behind.
    fcntl.ioctl(first.fileno(), vnet.TUNSETVNETHDRSZ, struct.pack("i", 12))
    device = kind.from_fd(os.dup(first.fileno()), mtu=1500)
    try:
        assert (device.name, device.offloads) == ("guest0", first.offloads)
        with guest_udp(namespace) as sock:
            assert device.write_batch([Packet(framed(device, udp_packet(b"hello")))]) == 1
            assert sock.recv(100) == b"hello"
    finally:
        device.close()
    other = TunDevice if kind is TapDevice else TapDevice
    with pytest.raises(ValueError, match=r"interface guest0 is a T.., not a T.."):
        other.from_fd(first.fileno(), mtu=1500)


def test_descriptors_that_are_not_attached() -> None:
    for path in ("/dev/net/tun", "/dev/null"):
        fd = os.open(path, os.O_RDWR)
        try:
            with pytest.raises(ValueError, match=f"descriptor {fd} is not attached"):
                TapDevice.from_fd(fd, mtu=1500)
        finally:
            os.close(fd)


@pytest.mark.parametrize("name", ["a" * 16, "a/b", "a\0b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="not an interface name"):
        TapDevice.open(name, mtu=1500)


def test_a_refused_name_is_an_error_that_leaves_nothing_open(opened: Opener, namespace: Any) -> None:
    opened()
    with pytest.raises(OSError, match="busy"):
        namespace.call(lambda: TapDevice.open("guest0", mtu=1500))


def test_the_guest_resolves_us_and_we_resolve_the_guest(opened: Opener, namespace: Any) -> None:
    device = opened()
    drops = DropCounters()
    link = EthernetLink(OUR_MAC, 1500, Limits(), drops)
    link.own_addresses.add(GATEWAY)
    queue = TransmitQueue(device, Limits(), drops)
    ping = namespace.start("ping -n -c 1 -W 5 10.0.2.2")
    deadline = time.monotonic() + 10
    while ping.poll() is None and time.monotonic() < deadline:
        select.select([device], [], [], 0.05)
        now = time.monotonic()
        for packet in device.read_batch(16):
            offset = link.receive(packet, now)
            if offset < 0 or packet.head[offset + 9] != 1:
                continue
            echo = bytearray(packet.head[offset:])
            echo[12:20] = echo[16:20] + echo[12:16]
            # Request 8 becomes reply 0: the ones' complement checksum grows by 0x0800.
            checksum = int.from_bytes(echo[22:24], "big") + 0x0800
            echo[20:24] = bytes(2) + ((checksum & 0xFFFF) + (checksum >> 16)).to_bytes(2, "big")
            link.send(Packet(bytes(echo)), GUEST, now)
        queue.push(link.poll_transmit())
        assert queue.flush()
    output, _ = ping.communicate(timeout=10)
    assert ping.returncode == 0, output
    assert "1 received" in output
    assert link.neighbours.mac(GUEST) == GUEST_MAC
    assert ethernet.format_mac(OUR_MAC) in namespace.run("ip neigh show 10.0.2.2")
    assert drops.total == 0
    # Our unicast question is answered by the kernel.
    assert link.neighbours.state(GUEST) in (NeighbourState.PROBE, NeighbourState.REACHABLE)
    while link.neighbours.state(GUEST) is NeighbourState.PROBE and time.monotonic() < deadline:
        select.select([device], [], [], 0.05)
        for packet in device.read_batch(16):
            link.receive(packet, time.monotonic())
    assert link.neighbours.state(GUEST) is NeighbourState.REACHABLE


def test_the_kernels_arp_request_has_the_layout_that_we_parse(opened: Opener, namespace: Any) -> None:
    device = opened()
    with guest_udp(namespace) as sock:
        sock.sendto(b"x", ("10.0.2.2", 9))
        packet = read_until(device, lambda packet: bytes(packet.head[12:14]) == b"\x08\x06")
    assert arp.parse(packet.head, 14) == (arp.REQUEST, GUEST_MAC, GUEST, bytes(6), GATEWAY)


@pytest.mark.parametrize("vnet_header", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_datagrams_in_both_directions(opened: Opener, namespace: Any, kind: Kind, vnet_header: bool) -> None:
    device = opened(kind, vnet=vnet_header)
    if kind is TapDevice:
        namespace.run(f"ip neigh add 10.0.2.2 lladdr {ethernet.format_mac(OUR_MAC)} dev guest0")
    with guest_udp(namespace) as sock:
        packets = [Packet(framed(device, udp_packet(bytes((n,)) * 3))) for n in range(40)]
        split = Packet(packets[7].head[:20], (packets[7].head[20:30], memoryview(packets[7].head)[30:]))
        packets[7] = split
        assert device.write_batch(packets) == 40
        assert [sock.recv(100) for _ in range(40)] == [bytes((n,)) * 3 for n in range(40)]
        for n in range(40):
            sock.sendto(b"up %d" % n, ("10.0.2.2", 9))
        got = [packet for _ in range(5) for packet in ([bytes(p.head) for p in device.read_batch(16)])]
    assert device.read_batch(16) == []
    start = ip_offset(device) + 28
    assert [frame[start:] for frame in got] == [b"up %d" % n for n in range(40)]
    assert device.write_errors == device.drops.total == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_bounded_and_borrowed(opened: Opener, namespace: Any, kind: Kind) -> None:
    device = opened(kind)
    if kind is TapDevice:
        namespace.run(f"ip neigh add 10.0.2.2 lladdr {ethernet.format_mac(OUR_MAC)} dev guest0")
    with guest_udp(namespace) as sock:
        for n in range(30):
            sock.sendto(b"%03d" % n, ("10.0.2.2", 9))
    assert len(device.read_batch(3)) == 3
    batch = device.read_batch(100)
    assert len(batch) == 16, "as many as there are buffers"
    kept = batch[0].head
    before = bytes(kept)
    assert len(device.read_batch(100)) == 11
    assert bytes(kept[-3:]) != before[-3:], "the loan has ended"


def serve_tcp(namespace: Any) -> socket.socket:
    return namespace.call(lambda: socket.create_server(("10.0.2.100", 80)))  # type: ignore[no-any-return]


class Handshake:
    """The least of TCP towards a kernel listener: enough to exchange one train each way."""

    def __init__(self, device: TapDevice | TunDevice) -> None:
        self.device = device
        self.seq, self.ack = 1000, 0

    def packet(self, flags: int, payload: bytes = b"", *, gso: int = 0, options: bytes = b"") -> Packet:
        header = 20 + len(options)
        total = 20 + header + len(payload)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 1, 0x4000, 64, 6, 0, GATEWAY, GUEST)
        ip = ip[:10] + struct.pack("!H", 0xFFFF - native.ones_sum(ip)) + ip[12:]
        pseudo = native.ones_sum(ip[12:20] + struct.pack("!HH", 6, total - 20))
        tcp = struct.pack(
            "!HHIIBBHHH", 5555, 80, self.seq, self.ack, header // 4 << 4, flags, 0xFFFF, pseudo, 0
        )
        head = framed(self.device, ip + tcp + options)
        kind = GsoType.TCPV4 if gso else GsoType.NONE
        payload_views = (memoryview(payload),) if payload else ()
        return Packet(head, payload_views, gso, kind, Checksum.PARTIAL, ip_offset(self.device) + 20, 16)

    def write(self, packet: Packet) -> None:
        assert self.device.write_batch([packet]) == 1
        assert self.device.write_errors == 0

    def read(self) -> Packet:
        start = ip_offset(self.device)
        return read_until(self.device, lambda packet: packet.head[start + 9 : start + 10] == b"\6")

    def connect(self) -> None:
        self.write(self.packet(0x02, options=bytes.fromhex("020405b403030700")))
        syn_ack = self.read()
        tcp = ip_offset(self.device) + 20
        assert syn_ack.head[tcp + 13] == 0x12
        self.seq += 1
        self.ack = int.from_bytes(syn_ack.head[tcp + 4 : tcp + 8], "big") + 1
        self.write(self.packet(0x10))


@pytest.mark.parametrize("flags", [0x18, 0x98], ids=["plain", "with CWR"])
@pytest.mark.parametrize("kind", KINDS)
def test_trains_in_both_directions(opened: Opener, namespace: Any, kind: Kind, flags: int) -> None:
    device = opened(kind)
    if kind is TapDevice:
        namespace.run(f"ip neigh add 10.0.2.2 lladdr {ethernet.format_mac(OUR_MAC)} dev guest0")
    peer = Handshake(device)
    data = bytes(n % 251 for n in range(40_000))
    with serve_tcp(namespace) as listener:
        peer.connect()
        with listener.accept()[0] as sock:
            sock.settimeout(10)
            peer.write(peer.packet(flags, data, gso=1460))
            got = b""
            while len(got) < len(data):
                got += sock.recv(1 << 20)
            assert got == data
            peer.seq += len(data)
            sock.sendall(data)
            tcp = ip_offset(device) + 20
            train = read_until(device, lambda packet: packet.gso_size > 0)
            assert (train.gso_size, train.gso_type, train.checksum) == (1460, GsoType.TCPV4, Checksum.PARTIAL)
            header = (train.head[tcp + 12] >> 4) * 4
            assert data.startswith(bytes(train.head[tcp + header :]))
            assert len(train) > 2 * 1460
            assert (train.csum_start, train.csum_offset) == (tcp, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_without_offloads_the_guest_sends_wire_packets(opened: Opener, namespace: Any, kind: Kind) -> None:
    device = opened(kind)
    if kind is TapDevice:
        namespace.run(f"ip neigh add 10.0.2.2 lladdr {ethernet.format_mac(OUR_MAC)} dev guest0")
    peer = Handshake(device)
    with serve_tcp(namespace) as listener:
        peer.connect()
        device.set_offloads(False)
        with listener.accept()[0] as sock:
            sock.sendall(bytes(40_000))
            start = ip_offset(device)
            for _ in range(5):
                packet = peer.read()
                assert packet.gso_size == 0
                assert packet.checksum == Checksum.UNKNOWN
                ip = bytes(packet.head[start:])
                assert len(ip) <= 1500
                pseudo = struct.pack("!HH", 6, len(ip) - 20)
                assert native.ones_sum(ip[12:20] + pseudo + ip[20:]) == 0xFFFF


@pytest.mark.parametrize("kind", KINDS)
def test_a_checksum_left_to_the_guests_kernel(opened: Opener, namespace: Any, kind: Kind) -> None:
    """The kernel believes our PARTIAL, and gives us its own."""
    device = opened(kind)
    if kind is TapDevice:
        namespace.run(f"ip neigh add 10.0.2.2 lladdr {ethernet.format_mac(OUR_MAC)} dev guest0")
    with guest_udp(namespace) as sock:
        ip = udp_packet(b"checksum")
        start = ip_offset(device) + 20
        assert device.write_batch([Packet(framed(device, ip), (), 0, 0, Checksum.PARTIAL, start, 6)]) == 1
        assert sock.recv(100) == b"checksum"
        sock.sendto(b"up", ("10.0.2.2", 9))
        packet = read_until(device, lambda packet: len(packet) >= start + 10)
        assert (packet.checksum, packet.csum_start, packet.csum_offset) == (Checksum.PARTIAL, start, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_kernel_never_takes_is_counted_and_does_not_stop_the_rest(
    opened: Opener, namespace: Any, kind: Kind
) -> None:
    device = opened(kind)
    good = framed(device, udp_packet(b"good"))
    bad = [
        Packet(b""),
        Packet(good, checksum=Checksum.PARTIAL, csum_start=60_000, csum_offset=16),
        Packet(good, checksum=Checksum.PARTIAL, csum_start=70_000),
        Packet(good, gso_size=100, gso_type=99),
        Packet(good, [b"x"] * 2000),
    ]
    with guest_udp(namespace) as sock:
        assert device.write_batch([*bad, Packet(good)]) == len(bad) + 1
        assert sock.recv(100) == b"good"
    assert device.write_errors == len(bad)


def test_trains_on_a_device_without_offloads_are_errors(opened: Opener) -> None:
    device = opened(vnet=False)
    frame = framed(device, udp_packet(b"x"))
    assert device.write_batch([Packet(frame, checksum=Checksum.PARTIAL), Packet(frame, gso_size=1)]) == 2
    assert device.write_errors == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_down_refuses_and_takes_up_again(opened: Opener, namespace: Any, kind: Kind) -> None:
    device = opened(kind, up=False)
    drops = DropCounters()
    queue = TransmitQueue(device, Limits(), drops)
    queue.push([Packet(framed(device, udp_packet(b"%d" % n))) for n in range(5)])
    assert not queue.flush()
    assert device.read_batch(16) == []
    poll = select.poll()
    poll.register(device.fileno(), select.POLLOUT)
    assert poll.poll(0) == [], "a poller would spin"
    with guest_udp(namespace) as sock:
        for _ in range(2):
            namespace.run("ip link set guest0 up")
            assert poll.poll(5000) == [(device.fileno(), select.POLLOUT)]
            assert queue.flush()
            assert [sock.recv(100) for _ in range(5)] == [b"%d" % n for n in range(5)]
            namespace.run("ip link set guest0 down")
            device.read_batch(16)
            queue.push([Packet(framed(device, udp_packet(b"%d" % n))) for n in range(5)])
            assert not queue.flush()
    assert drops.total == device.write_errors == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_device_is_closed(opened: Opener, namespace: Any, kind: Kind) -> None:
    device = opened(kind)
    namespace.run("ip link del guest0")
    for _ in range(2):
        with pytest.raises(DeviceClosed, match="guest0 is gone"):
            device.read_batch(16)
        with pytest.raises(DeviceClosed, match="guest0 is gone"):
            device.write_batch([Packet(framed(device, udp_packet(b"x")))])
    with pytest.raises(ValueError, match="not attached"):
        vnet.read_flags(device.fileno())


@pytest.mark.parametrize("kind", KINDS)
def test_after_close(opened: Opener, kind: Kind) -> None:
    device = opened(kind)
    device.close()
    device.close()
    assert device.fileno() == -1
    with pytest.raises(DeviceClosed):
        device.read_batch(1)
    with pytest.raises(DeviceClosed):
        device.write_batch([Packet(b"x")])


def test_a_full_device_refuses_and_nothing_is_lost(opened: Opener, namespace: Any) -> None:
    """A bridge into a slow veth holds the frames, and with them the send buffer of the TAP."""
    device = opened()
    for command in (
        "ip link add bridge0 type bridge forward_delay 0",
        "ip link add slow0 type veth peer name slow1",
        "ip link set guest0 master bridge0",
        "ip link set slow0 master bridge0",
        "tc qdisc add dev slow0 root tbf rate 40mbit burst 10kb limit 10mb",
        "ip link set bridge0 up",
        "ip link set slow0 up",
        "ip link set slow1 up",
    ):
        namespace.run(command)
    fcntl.ioctl(device.fileno(), vnet.TUNSETSNDBUF, struct.pack("i", 20_000))
    drops = DropCounters()
    queue = TransmitQueue(device, Limits(transmit_queue=400), drops)
    # Not IP, for a bridge may have netfilter look at IP; not broadcast, which is cloned: both take the frames
    # off the send buffer.
    header = ethernet.header(bytes.fromhex("020000000077"), OUR_MAC, LOCAL_EXPERIMENT)

    def sniffer() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(LOCAL_EXPERIMENT))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        sock.bind(("slow1", LOCAL_EXPERIMENT))
        sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous)
        sock.settimeout(10)
        return sock

    index = namespace.call(lambda: socket.if_nametoindex("slow1"))
    promiscuous = struct.pack("IHH8x", index, PACKET_MR_PROMISC, 0)
    refusals = 0
    with namespace.call(sniffer) as sock:
        poll = select.poll()
        poll.register(device.fileno(), select.POLLOUT)
        for first in range(0, 400, 20):
            buffers = [bytearray(header + (first + n).to_bytes(4, "big") + bytes(1000)) for n in range(20)]
            queue.push([Packet(memoryview(buffer)) for buffer in buffers])
            refusals += not queue.flush()
            for buffer in buffers:  # the loan ends with the flush
                buffer[:] = bytes(len(buffer))
        assert refusals, "the kernel was expected to refuse"
        while not queue.flush():
            assert poll.poll(10_000), "no room in 10 s"
        got = [int.from_bytes(sock.recv(2000)[14:18], "big") for _ in range(400)]
    assert got == list(range(400))
    assert drops.total == device.write_errors == 0
