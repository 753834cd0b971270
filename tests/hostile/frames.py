"""Frames that no honest guest sends, made from a seed; standard library only, for a guest runs this file.

    frames.py INTERFACE REMOTE_PORT SEED COUNT

sends COUNT of them with an AF_PACKET socket while a TCP flow to REMOTE_PORT passes, whose numbers it watches.

Nothing here may harm the live flow by the rules of TCP: what looks like a part of it is damaged in a way
that a checksum must find, or lies outside the windows, or acknowledges what was never sent. Nothing claims
the guest's address by ARP either.
"""

from __future__ import annotations

import dataclasses
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

FIN, SYN, RST, PSH, ACK, URG = (1 << bit for bit in range(6))
ICMP, TCP, UDP = 1, 6, 17
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD


@dataclasses.dataclass(slots=True)
class Live:
    """A flow of the guest that must not suffer, and who is who. `seq` and `ack` are of its latest segment."""

    guest_mac: bytes = bytes.fromhex("5a94ef000064")
    gateway_mac: bytes = bytes.fromhex("5a94ef000002")
    guest: bytes = bytes((10, 0, 2, 100))
    gateway: bytes = bytes((10, 0, 2, 2))
    dns: bytes = bytes((10, 0, 2, 3))
    remote: bytes = bytes((10, 0, 2, 2))
    guest_port: int = 40_000
    remote_port: int = 8080
    seq: int = 0
    ack: int = 0
    lasting: bool = True
    """Whether the flow outlives the attack. If not, a late SYN in its name would be a new connection."""
    options: bytes = b""
    """Of its segments: NOP, NOP and the timestamps, without which everything would be dropped for that."""


def checksum(data: bytes) -> int:
    """RFC 1071: the sum of 16-bit words modulo 65535, inverted."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def ethernet(live: Live, payload: bytes, kind: int = IPV4, dst: bytes | None = None) -> bytes:
    return (live.gateway_mac if dst is None else dst) + live.guest_mac + kind.to_bytes(2, "big") + payload


def ip(
    live: Live,
    dst: bytes,
    protocol: int,
    payload: bytes,
    *,
    src: bytes | None = None,
    options: bytes = b"",
    first: int | None = None,
    length: int | None = None,
    ident: int = 0,
    fragment: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet with a correct header checksum, whatever else is wrong with it."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + len(options) // 4 if first is None else first,
        0,
        (20 + len(options) + len(payload) if length is None else length) & 0xFFFF,
        ident,
        fragment,
        ttl,
        protocol,
        0,
        live.guest if src is None else src,
        dst,
    )
    header += options
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def with_checksum(
    live: Live, dst: bytes, protocol: int, l4: bytes, at: int, src: bytes | None = None
) -> bytes:
    """`l4` with the checksum over it and its pseudo-header at offset `at`."""
    pseudo = (live.guest if src is None else src) + dst + struct.pack("!HH", protocol, len(l4))
    total = checksum(pseudo + l4[:at] + b"\0\0" + l4[at + 2 :])
    return l4[:at] + total.to_bytes(2, "big") + l4[at + 2 :]


def tcp(
    live: Live,
    dst: bytes,
    ports: tuple[int, int],
    seq: int,
    ack: int,
    flags: int,
    payload: bytes = b"",
    *,
    options: bytes = b"",
    src: bytes | None = None,
    words: int | None = None,
) -> bytes:
    """A TCP frame; `options` has a multiple of 4 bytes, `words` is the header length that it claims."""
    l4 = struct.pack(
        "!HHIIBBHHH",
        *ports,
        seq & 0xFFFFFFFF,
        ack & 0xFFFFFFFF,
        (5 + len(options) // 4 if words is None else words) << 4,
        flags,
        500,
        0,
        0,
    )
    l4 = with_checksum(live, dst, TCP, l4 + options + payload, 16, src)
    return ethernet(live, ip(live, dst, TCP, l4, src=src))


def udp(live: Live, dst: bytes, port: int, payload: bytes, *, length: int | None = None) -> bytes:
    size = 8 + len(payload) if length is None else length
    l4 = struct.pack("!HHHH", 5555, port, size & 0xFFFF, 0) + payload
    return ethernet(live, ip(live, dst, UDP, with_checksum(live, dst, UDP, l4, 6)))


def icmp(live: Live, dst: bytes, kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    message = bytes((kind, code, 0, 0)) + rest + payload
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    return ethernet(live, ip(live, dst, ICMP, message))


def echo(live: Live, dst: bytes, payload: bytes = b"ping") -> bytes:
    return icmp(live, dst, 8, 0, struct.pack("!HH", 77, 1), payload)


def arp(live: Live, operation: int, mac: bytes, sender: bytes, target: bytes) -> bytes:
    message = struct.pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, mac, sender, bytes(6), target)
    return ethernet(live, message, ARP, b"\xff" * 6)


# one kind of hostility each

Maker = Callable[[random.Random, Live], bytes]
REFUSED = [
    bytes(map(int, text.split(".")))
    for text in (
        *("0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.251", "239.1.2.3", "255.255.255.255"),
        *("10.0.2.2", "10.0.2.3", "10.0.2.255", "10.0.2.77", "198.51.100.9"),
    )
]


def honest(rng: random.Random, live: Live) -> bytes:
    """A frame of any protocol that is in order, and no part of the live flow."""
    dst = rng.choice(REFUSED)
    ports = (rng.randrange(1, 30_000), rng.randrange(1, 65536))
    kind = rng.randrange(4)
    if kind == 0:
        return tcp(live, dst, ports, rng.getrandbits(32), 0, SYN, options=b"\x02\x04\x05\xb4")
    if kind == 1:
        return udp(live, dst, ports[1], rng.randbytes(rng.randrange(100)))
    if kind == 2:
        return echo(live, dst, rng.randbytes(rng.randrange(100)))
    return arp(live, 1, live.guest_mac, live.guest, live.gateway)


def live_segment(rng: random.Random, live: Live) -> bytes:
    """What could be the next segment of the live flow; to be damaged before it is sent."""
    ports = (live.guest_port, live.remote_port)
    payload = rng.randbytes(rng.randrange(1, 1400))
    return tcp(live, live.remote, ports, live.seq, live.ack, ACK | PSH, payload, options=live.options)


def noise(rng: random.Random, live: Live) -> bytes:
    return rng.randbytes(rng.choice((1, 13, 14, 15, 33, 34, 60, rng.randrange(1, 1515))))


def noise_in_ethernet(rng: random.Random, live: Live) -> bytes:
    return ethernet(
        live, rng.randbytes(rng.randrange(200)), rng.choice((IPV4, IPV6, ARP, rng.getrandbits(16)))
    )


def flip(frame: bytes, bit: int) -> bytes:
    """`frame` with bit number `bit` inverted."""
    changed = bytearray(frame)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


def one_bit_flipped(rng: random.Random, live: Live) -> bytes:
    """Every checksum finds a single bit."""
    frame = rng.choice((honest, live_segment))(rng, live)
    return flip(frame, rng.randrange(14 * 8, len(frame) * 8))


def scrambled(rng: random.Random, live: Live) -> bytes:
    frame = bytearray(honest(rng, live))
    for _ in range(rng.randrange(1, 10)):
        frame[rng.randrange(14, len(frame))] = rng.getrandbits(8)
    return bytes(frame)


def truncated(rng: random.Random, live: Live) -> bytes:
    frame = rng.choice((honest, live_segment))(rng, live)
    return frame[: rng.randrange(14, len(frame))]


def wrong_lengths(rng: random.Random, live: Live) -> bytes:
    dst = rng.choice(REFUSED)
    body = rng.randbytes(rng.randrange(60))
    first = rng.choice((0x45, rng.getrandbits(8), 0x4F, 0x40))
    length = rng.choice((0, 19, 20, rng.getrandbits(16)))
    protocol = rng.choice((ICMP, TCP, UDP))
    if rng.random() < 0.3:
        return udp(live, dst, 53, body, length=rng.choice((0, 7, 8, rng.getrandbits(16))))
    return ethernet(live, ip(live, dst, protocol, body, first=first, length=length))


def wrong_checksum(rng: random.Random, live: Live) -> bytes:
    frame = rng.choice((honest, live_segment))(rng, live)
    return flip(frame, rng.choice((24, 40, 36, 50)) * 8 + rng.randrange(8)) if len(frame) > 51 else frame[:30]


def ip_options(rng: random.Random, live: Live) -> bytes:
    kinds = (0, 1, 7, 68, 131, 137, 148, rng.getrandbits(8))
    options = bytes((rng.choice(kinds), rng.getrandbits(6))) + rng.randbytes(4 * rng.randrange(10) + 2)
    return ethernet(live, ip(live, rng.choice(REFUSED), UDP, rng.randbytes(20), options=options))


def stray_tcp(rng: random.Random, live: Live) -> bytes:
    """Random flags and numbers between ports that have no connection, options from nowhere."""
    options = rng.randbytes(4 * rng.randrange(11))
    ports = (rng.randrange(1, 30_000), rng.choice((53, rng.randrange(1, 65536))))
    return tcp(
        live,
        rng.choice(REFUSED),
        ports,
        rng.getrandbits(32),
        rng.getrandbits(32),
        rng.getrandbits(8),
        rng.randbytes(rng.randrange(50)),
        options=options,
        src=rng.choice((None, None, live.gateway, b"\x7f\0\0\1", b"\xe0\0\0\1", b"\x0a\0\2\x4d")),
        words=rng.choice((None, None, None, 0, 4, 15)),
    )


def beside_the_live_flow(rng: random.Random, live: Live) -> bytes:
    """In the flow's name: outside its window, or with an acknowledgement of what was never sent, or none."""
    ports = (live.guest_port, live.remote_port)
    ahead, behind = rng.randrange(1 << 24, 1 << 30), rng.randrange(1 << 17, 1 << 30)
    payload = rng.randbytes(rng.choice((0, 1, 100)))
    flags = rng.choice((ACK, ACK | PSH, RST, RST | ACK, FIN | ACK, SYN, SYN | ACK, URG | ACK, 0xFF))
    kind = rng.randrange(4)
    seq, ack = live.seq, live.ack
    if kind == 0:
        seq += ahead
    elif kind == 1:
        seq -= behind
    elif kind == 2:
        ack += ahead
        flags = ACK
    else:
        flags = rng.choice((0, PSH, URG, FIN))
    if flags == SYN and not live.lasting:
        flags = SYN | ACK
    options = live.options if rng.random() < 0.9 else b""
    return tcp(live, live.remote, ports, seq, ack, flags, payload, options=options)


def fragments(rng: random.Random, live: Live) -> bytes:
    """Of few datagrams, so that they overlap; some reach beyond 65535."""
    fragment = rng.choice((0x2000, 0)) | rng.choice((0, 1, 2, 3, 100, 8191, rng.getrandbits(13)))
    body = rng.randbytes(rng.choice((0, 1, 7, 8, 16, 24, rng.randrange(400))))
    protocol = rng.choice((UDP, TCP, ICMP))
    return ethernet(
        live, ip(live, rng.choice(REFUSED), protocol, body, ident=rng.randrange(5), fragment=fragment)
    )


def arp_garbage(rng: random.Random, live: Live) -> bytes:
    sender = rng.choice((live.gateway, b"\0\0\0\0", b"\xff\xff\xff\xff", rng.randbytes(4)))
    if sender == live.guest:
        sender = live.gateway
    mac = rng.choice((rng.randbytes(6), bytes(6), b"\xff" * 6, live.gateway_mac))
    frame = arp(
        live,
        rng.choice((1, 2, rng.getrandbits(16))),
        mac,
        sender,
        rng.choice((live.gateway, rng.randbytes(4))),
    )
    return frame if rng.random() < 0.7 else frame[: rng.randrange(14, 42)]


def icmp_about_the_live_flow(rng: random.Random, live: Live) -> bytes:
    """Errors that quote what the gateway sent on the live flow: none of them ends it (RFC 5927)."""
    quoted = struct.pack(
        "!HHII", live.remote_port, live.guest_port, live.ack + rng.randrange(-9000, 9000) & 0xFFFFFFFF, 0
    )
    quote = ip(live, live.guest, rng.choice((TCP, TCP, UDP, 99)), quoted, src=live.remote)
    if rng.random() < 0.2:
        quote = quote[: rng.randrange(len(quote))]
    kind, code = rng.choice(((3, rng.randrange(17)), (11, rng.randrange(3)), (12, 0), (5, 1), (4, 0)))
    rest = struct.pack("!HH", 0, rng.choice((0, 68, 296, 1400, 65535)))
    return icmp(live, live.gateway, kind, code, rest, quote)


def other_icmp(rng: random.Random, live: Live) -> bytes:
    dst = rng.choice(REFUSED)
    return icmp(
        live,
        dst,
        rng.choice((0, 8, 9, 10, 13, 17, rng.getrandbits(8))),
        rng.getrandbits(2),
        rng.randbytes(4),
        rng.randbytes(30),
    )


def other_protocols(rng: random.Random, live: Live) -> bytes:
    ttl = rng.choice((0, 1, 64))
    return ethernet(live, ip(live, rng.choice(REFUSED), rng.getrandbits(8), rng.randbytes(40), ttl=ttl))


def dns_garbage(rng: random.Random, live: Live) -> bytes:
    question = b"\x07tunstac" + rng.randbytes(rng.randrange(40))
    return udp(
        live, live.dns, 53, rng.choice((rng.randbytes(30), struct.pack("!6H", 1, 256, 1, 0, 0, 0) + question))
    )


MAKERS: tuple[Maker, ...] = (
    noise,
    noise_in_ethernet,
    honest,
    one_bit_flipped,
    scrambled,
    truncated,
    wrong_lengths,
    wrong_checksum,
    ip_options,
    stray_tcp,
    beside_the_live_flow,
    fragments,
    arp_garbage,
    icmp_about_the_live_flow,
    other_icmp,
    other_protocols,
    dns_garbage,
)


def hostile_frames(seed: int, count: int, live: Live) -> Iterator[bytes]:
    """`count` frames, all kinds in turn; `live` may be kept up to date meanwhile."""
    rng = random.Random(seed)
    for number in range(count):
        yield MAKERS[number % len(MAKERS)](rng, live)


# in a guest


def watch(sock: socket.socket, live: Live, remote_port: int, l2: bool) -> bool:
    """Take over the numbers of the flow's latest segments; True if there was one."""
    found = False
    while True:
        try:
            frame = sock.recv(200)
        except BlockingIOError:
            return found
        packet = frame[14:] if l2 else frame
        if len(packet) < 52 or packet[0] != 0x45 or packet[9] != TCP or packet[12:16] != live.guest:
            continue
        ports = struct.unpack_from("!HH", packet, 20)
        if ports[1] != remote_port or (packet[33] != ACK | PSH and packet[33] != ACK):
            continue
        found = True
        live.guest_port, live.remote_port = ports
        live.remote = packet[16:20]
        live.seq, live.ack = struct.unpack_from("!II", packet, 24)
        live.options = packet[40:52] if packet[32] >> 4 == 8 else b""


def main(interface: str, remote_port: int, seed: int, count: int) -> None:
    import select

    l2 = interface.startswith("tap")
    live = Live(lasting=False)
    sent = refused = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind((interface, 3))  # ETH_P_ALL: only so are outgoing packets seen
        sock.setblocking(False)
        while not watch(sock, live, remote_port, l2):
            select.select([sock], [], [], 1)
        for number, frame in enumerate(hostile_frames(seed, count, live)):
            if number % 16 == 0:
                time.sleep(0.002)  # else the kernel's queue in front of the gateway overflows
            if number % 32 == 0:
                watch(sock, live, remote_port, l2)
            try:
                sock.sendto(frame if l2 else frame[14:], (interface, IPV4))
                sent += 1
            except BlockingIOError:
                select.select([], [sock], [], 1)
            except OSError:  # the kernel wants a whole Ethernet header, and no more than the MTU
                refused += 1
    print(f"{sent} {refused}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
