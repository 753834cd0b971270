"""How fast the protocol core is by itself: segments through `Connection.receive`, without a device or socket.

Two stacks complete a handshake in memory; then prepared frames are fed to one of them, whose reader
consumes at once, and whose window has room for a batch. Reported are super-segments or segments in a second,
with the parsing of Ethernet-less IPv4, the acknowledgements and everything else that the stack does for a
segment.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time

from tunstack.ip import ipv4
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.ip.header import TCP
from tunstack.limits import MAX_FRAME, Limits
from tunstack.packet import Checksum, GsoType, Packet
from tunstack.stack import Stack
from tunstack.tcp import header
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest

MTU = 1500
BATCH = 16
"""Frames between two flushes, as the engine reads them."""
CLIENT = parse_address("10.0.0.2")
SERVER = parse_address("10.0.0.1")
NOW = 1000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One measurement: `segments` wire segments of one MSS in each frame."""

    name: str
    segments: int
    frames: int


CASES = (Case("1 MSS", 1, 20_000), Case("64 KiB", 45, 4_000))


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Medians over the rounds of one case."""

    name: str
    frames_per_second: float
    microseconds: float
    """For one frame."""
    gbits: float
    least: float
    most: float
    """Frames in a second in the slowest and the fastest round."""


def measure(rounds: int) -> list[Result]:
    """All cases, `rounds` times, interleaved."""
    rates: dict[str, list[float]] = {case.name: [] for case in CASES}
    payload = 0
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for case in CASES:
            rate, payload = _run(case)
            rates[case.name].append(rate)
            sizes[case.name] = payload
    results = []
    for case in CASES:
        median = statistics.median(rates[case.name])
        results.append(
            Result(
                case.name,
                median,
                1e6 / median,
                median * sizes[case.name] * 8 / 1e9,
                min(rates[case.name]),
                max(rates[case.name]),
            )
        )
    return results


def render(results: list[Result]) -> str:
    """The results as a table."""
    lines = ["frames of       frames/s     least      most   us each   Gbit/s"]
    lines += [
        f"{r.name:<12}{r.frames_per_second:>12,.0f}{r.least:>10,.0f}{r.most:>10,.0f}"
        f"{r.microseconds:>10.2f}{r.gbits:>9.2f}"
        for r in results
    ]
    return "\n".join(lines)


def _stack(address: bytes) -> Stack:
    return Stack(
        mac=bytes(6),
        mtu=MTU,
        prefixes=[Prefix.parse("10.0.0.0/24")],
        own_addresses=[address],
        rng=random.Random(1),
        l2=False,
        limits=Limits(receive_buffer_initial=BATCH * MAX_FRAME),
    )


def _connect() -> tuple[Stack, Connection, Connection]:
    """Two stacks with an established connection; the server's stack, the client's end, the server's."""
    client_stack, server_stack = _stack(CLIENT), _stack(SERVER)
    client = client_stack.connect(CLIENT, 40000, SERVER, 80, NOW)
    server: Connection | None = None
    for _ in range(4):
        for source, target in ((client_stack, server_stack), (server_stack, client_stack)):
            for packet in source.poll_transmit(NOW):
                packet.checksum = Checksum.PARTIAL
                target.receive(Packet(memoryview(packet.tobytes()), checksum=Checksum.PARTIAL), NOW)
            for event in target.poll_events():
                if isinstance(event, TcpRequest):
                    server = target.accept(event, NOW)
    assert server is not None and server.established and client.established
    return server_stack, client, server


def _frames(case: Case, client: Connection) -> tuple[list[Packet], int]:
    mss = client.hot.mss
    size = mss * case.segments
    template = ipv4.HeaderTemplate(CLIENT, SERVER, TCP, 64, 0)
    payload = bytes(size)
    frames = []
    for index in range(case.frames):
        l4 = header.emit_with_timestamp(
            client.local_port,
            client.remote_port,
            (client.hot.snd_nxt + index * size) & 0xFFFFFFFF,
            client.hot.rcv_nxt,
            header.ACK,
            500,
            0,
            (int(NOW * 1000) + client.hot.ts_offset) & 0xFFFFFFFF,
            client.hot.ts_recent,
        )
        head = memoryview(template.emit(20 + len(l4) + size, 0, ipv4.DONT_FRAGMENT) + l4 + payload)
        train = case.segments > 1
        frames.append(
            Packet(
                head,
                (),
                mss if train else 0,
                GsoType.TCPV4 if train else GsoType.NONE,
                Checksum.PARTIAL,
            )
        )
    return frames, size


def _run(case: Case) -> tuple[float, int]:
    """Frames in a second, and payload bytes of one."""
    stack, client, server = _connect()
    frames, size = _frames(case, client)
    start = time.perf_counter()
    for first in range(0, len(frames), BATCH):
        for packet in frames[first : first + BATCH]:
            stack.receive(packet, NOW)
        for event in stack.poll_events():
            if isinstance(event, Connection):
                event.peek()
                event.consume(event.readable)
        stack.settle()
        stack.poll_transmit(NOW)
    elapsed = time.perf_counter() - start
    if server.hot.bytes_in != size * len(frames):
        raise RuntimeError("the core did not take every segment; the measurement is void")
    return len(frames) / elapsed, size
