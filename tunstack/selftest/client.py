"""What a guest tries through the gateway: pings, names, transfers that are checked to the byte.

Run as `python -m tunstack.selftest.client FD JSON` inside a guest it writes a line of JSON to FD for each
thing; on Windows, where this machine is the guest itself, `attempts` is called.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tunstack.gateway.plan import AddressPlan
from tunstack.ip.addresses import format_address
from tunstack.selftest import servers

SIZE = 32 << 20
"""Bytes of a transfer."""
DATAGRAMS = (1, 64, 512, 1400)
PATIENCE = 10.0
NAME, KNOWN = "selftest.tunstack.invalid", "192.0.2.53"
"""A name that the gateway knows, and its address."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Who is where.

    Attributes:
        gateways, resolvers: addresses, IPv4 first.
        host: means the host's loopback; `tcp` and `udp` are ports there.
        known: the address of `NAME`.
    """

    gateways: list[str]
    resolvers: list[str]
    host: str
    tcp: int
    udp: int
    known: str = KNOWN

    @classmethod
    def of(cls, plan: AddressPlan, host: bytes, served: servers.Servers) -> Order:
        """In the network of `plan`, where the address `host` means the host's loopback."""
        return cls(
            gateways=[format_address(address) for address in plan.gateways],
            resolvers=[format_address(address) for address in plan.resolvers],
            host=format_address(host),
            tcp=served.tcp,
            udp=served.udp,
        )


def attempts(order: Order) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is tried, in order; each gives a few words, or raises OSError."""
    for address in order.gateways:
        yield f"ping {address}", lambda address=address: ping(address)  # type: ignore[misc]
    for resolver in order.resolvers:
        yield f"name by {resolver}", lambda resolver=resolver: resolve(resolver, order.known)  # type: ignore[misc]
    yield "TCP to the guest", lambda: transfer(order, 0, SIZE)
    yield "TCP from the guest", lambda: transfer(order, SIZE, 0)
    yield "UDP there and back", lambda: datagrams(order)


def ping(address: str) -> str:
    """Two echo requests, by the system's own tool."""
    if shutil.which("ping") is None:
        return _ping_by_socket(address)
    count = (
        ("-n", "2", "-w", "5000") if sys.platform == "win32" else ("-n", "-c", "2", "-i", "0.2", "-W", "5")
    )
    words, nothing = ["ping", *count, address], subprocess.DEVNULL
    try:
        subprocess.run(words, stdin=nothing, capture_output=True, timeout=2 * PATIENCE, check=True)
    except subprocess.SubprocessError:
        raise OSError(None, "no answer") from None
    return "2 of 2 answered"


def _ping_by_socket(address: str) -> str:
    family, protocol, request = socket.AF_INET, socket.IPPROTO_ICMP, 8
    if ":" in address:
        family, protocol, request = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(PATIENCE)
        for number in range(2):
            # The kernel fills in identifier and checksum of a ping socket.
            sock.sendto(struct.pack("!BBHHH", request, 0, 0, 0, number) + b"tunstack", (address, 0))
            if sock.recv(2048)[6:8] != struct.pack("!H", number):
                raise OSError(None, "the answer is none to the question")
    return "2 of 2 answered"


def resolve(resolver: str, expected: str) -> str:
    """Ask for `NAME`, over TCP."""
    import dns.exception
    import dns.message
    import dns.query

    try:
        answer = dns.query.tcp(dns.message.make_query(NAME, "A"), resolver, PATIENCE)
    except (dns.exception.DNSException, EOFError) as error:
        raise OSError(None, f"no answer ({error})") from None
    found = [record.address for records in answer.answer for record in records]
    if found != [expected]:
        raise OSError(None, f"the answer is not {expected}: {found}")
    return expected


def transfer(order: Order, up: int, down: int) -> str:
    """Send and receive so many bytes, and compare checksums."""
    start = time.perf_counter()
    with socket.create_connection((order.host, order.tcp), PATIENCE) as sock:
        sock.settimeout(servers.TIMEOUT)
        sock.sendall(servers.ORDER.pack(up, down))
        sent = servers.send_bytes(sock, up)
        (arrived,) = servers.SUM.unpack(servers.receive_exactly(sock, servers.SUM.size))
        if arrived != sent:
            raise OSError(None, "what has arrived is not what was sent")
        if servers.receive_bytes(sock, down) != servers.sum_of(down):
            raise OSError(None, "what has come is not what was sent")
    seconds = time.perf_counter() - start
    return f"{(up + down) >> 20} MiB, {(up + down) * 8 / seconds / 1e6:,.0f} Mbit/s, checksum right"


def datagrams(order: Order) -> str:
    """Some sizes of datagram, sent back by the server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((order.host, order.udp))
        for size in DATAGRAMS:
            data = os.urandom(size)
            sock.send(data)
            if sock.recv(1 << 16) != data:
                raise OSError(None, f"what has come back of {size} bytes is not what was sent")
    return f"{', '.join(map(str, DATAGRAMS))} bytes"


def main(fd: str, order: str) -> None:
    """Try all, and tell of each by a line of JSON."""
    with open(int(fd), "w", encoding="utf-8") as out:
        for what, function in attempts(Order(**json.loads(order))):
            try:
                line = [what, True, function()]
            except OSError as error:
                line = [what, False, error.strerror or str(error)]
            print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
