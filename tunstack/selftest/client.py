"""What a guest tries through the gateway: pings, names, transfers that are checked to the byte.

Run as `python -m tunstack.selftest.client FD JSON` inside a guest it writes a line of JSON to FD for each
thing; on Windows, where this machine is the guest itself, `attempts` is called.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tunstack.selftest import servers

SIZE = 32 << 20
"""Bytes of a transfer."""
DATAGRAMS = (1, 64, 512, 1400)
PATIENCE = 10.0
NAME = "selftest.tunstack.invalid"


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
    known: str


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
    done = subprocess.run(
        ["ping", *count, address],
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise OSError(None, "no answer")
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
    labels = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
    ident = secrets.token_bytes(2)
    query = ident + bytes.fromhex("01000001000000000000") + labels + b"\0" + bytes.fromhex("00010001")
    with socket.create_connection((resolver, 53), PATIENCE) as sock:
        sock.sendall(len(query).to_bytes(2, "big") + query)
        answer = servers.receive_exactly(sock, int.from_bytes(servers.receive_exactly(sock, 2), "big"))
    if answer[:2] != ident or answer[-4:] != socket.inet_aton(expected):
        raise OSError(None, f"the answer is not {expected}: {answer.hex()}")
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
            except (OSError, subprocess.SubprocessError) as error:
                line = [what, False, getattr(error, "strerror", None) or str(error)]
            print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
