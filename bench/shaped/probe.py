"""Sends and receives for the measurements of shaping; run with `python -I probe.py WHAT ...`, prints JSON.

    ping ADDRESS COUNT GAP              round trips of pings sent GAP seconds apart, answered or not
    sink ADDRESS PORT                   what arrives of numbered datagrams, until nothing has for two seconds
    send ADDRESS PORT COUNT SIZE RATE   send such datagrams, RATE of them a second
    source ADDRESS PORT                 send them to who asks
    fetch ADDRESS PORT COUNT SIZE RATE  ask, and be the sink
    frames INTERFACE COUNT ...          as fetch, and count the frames that arrive broken

A datagram has its number (4 bytes) and the time at which it was sent (8, nanoseconds of CLOCK_REALTIME). What
arrived is a list of [number, microseconds on the way, seconds since the first, bytes].
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time

HEAD = struct.Struct("!IQ")
SO_TIMESTAMPNS = 35
SILENCE = 2.0
_TIMESPEC = struct.Struct("@ll")
_ORDER = struct.Struct("!4sIId")
_MAGIC = b"ask!"


def ping(address: str, count: int, gap: float) -> dict[str, object]:
    """Round trips in milliseconds, by the number of the ping."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sock.connect((address, 0))
    sock.setblocking(False)
    sent: dict[int, float] = {}
    found: dict[int, float] = {}
    start = time.perf_counter()
    number = 0
    last = start
    while number < count or (len(found) < count and time.perf_counter() - last < 1.0):
        now = time.perf_counter()
        due = start + number * gap
        if number < count and now >= due:
            sent[number] = last = time.perf_counter()
            sock.send(b"\x08\0\0\0\0\0" + number.to_bytes(2, "big") + bytes(48))
            number += 1
        wait = max(0.0, due - time.perf_counter()) if number < count else 0.5
        if select.select([sock], [], [], wait)[0]:
            reply = sock.recv(200)
            arrived = time.perf_counter()
            found.setdefault(int.from_bytes(reply[6:8], "big"), arrived)
    return {"sent": count, "times": [1000 * (found[n] - sent[n]) for n in sorted(found) if n in sent]}


def send_all(sock: socket.socket, target: tuple[str, int], count: int, size: int, rate: float) -> None:
    """Numbered datagrams, evenly in time; never more than a few at once."""
    fill = bytes(size - HEAD.size)
    start = time.perf_counter()
    number = 0
    while number < count:
        due = int((time.perf_counter() - start) * rate) + 1
        for _ in range(min(due, count, number + 32) - number):
            head = HEAD.pack(number, time.clock_gettime_ns(time.CLOCK_REALTIME))
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                sock.sendto(head + fill, target)
            number += 1
        time.sleep(max(0.0, start + number / rate - time.perf_counter()))


def open_udp(address: str = "", port: int = 0) -> socket.socket:
    """A socket that tells when the kernel had a datagram, and has as much room as it may."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    sock.bind((address, port))
    return sock


def collect(sock: socket.socket) -> dict[str, object]:
    """What arrives until there is silence."""
    rows: list[tuple[int, float, float, int]] = []
    first = 0
    sock.settimeout(30.0)
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(65535, 64)
        except TimeoutError:
            break
        sock.settimeout(SILENCE)
        if len(data) < HEAD.size:
            continue
        number, sent = HEAD.unpack_from(data)
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        at = seconds * 10**9 + nanoseconds
        first = first or at
        rows.append((number, round((at - sent) / 1000, 1), round((at - first) / 1e9, 6), len(data)))
    return {"rows": rows}


def source(address: str, port: int) -> None:
    """Send to whoever asks, one after the other."""
    sock = open_udp(address, port)
    print(json.dumps("ready"), flush=True)
    while True:
        data, target = sock.recvfrom(100)
        if len(data) == _ORDER.size and data[:4] == _MAGIC:
            _, count, size, rate = _ORDER.unpack(data)
            time.sleep(0.1)
            send_all(sock, target, count, size, rate)


def ask(address: str, port: int, count: int, size: int, rate: float) -> socket.socket:
    """Ask a source."""
    sock = open_udp()
    sock.sendto(_ORDER.pack(_MAGIC, count, size, rate), (address, port))
    return sock


def frames(interface: str, address: str, port: int, count: int, size: int, rate: float) -> dict[str, object]:
    """Frames that arrive of what was asked for, and how many have a bit that is not as it was sent."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    raw.bind((interface, 0))
    length = 14 + 28 + size
    arrived: list[bytes] = []

    def listen() -> None:
        raw.settimeout(30.0)
        while True:
            try:
                data, where = raw.recvfrom(65535)
            except TimeoutError:
                return
            if where[2] != socket.PACKET_OUTGOING and len(data) == length:
                arrived.append(data)
                raw.settimeout(SILENCE)

    listener = threading.Thread(target=listen)
    listener.start()
    sock = ask(address, port, count, size, rate)
    found = collect(sock)["rows"]
    listener.join()
    heads: dict[bytes, int] = {}
    for frame in arrived:
        heads[frame[:14]] = heads.get(frame[:14], 0) + 1
    usual = max(heads, key=lambda head: heads[head], default=b"")
    broken = sum(frame[:14] != usual or not _is_whole(frame[14:]) for frame in arrived)
    return {"frames": len(arrived), "broken": broken, "delivered": len(found)}  # type: ignore[arg-type]


def _is_whole(packet: bytes) -> bool:
    """Whether the checksums of IPv4 and UDP hold."""
    pseudo = packet[12:20] + bytes((0, 17)) + packet[24:26]
    return _sum(packet[:20]) == 0xFFFF and _sum(pseudo + packet[20:]) == 0xFFFF


def _sum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    return (int.from_bytes(data, "big") % 0xFFFF) or 0xFFFF


def main(what: str, *words: str) -> None:
    """Do it."""
    address, port = (words[0], int(words[1])) if what != "frames" else ("", 0)
    result: object = None
    if what == "ping":
        result = ping(address, int(words[1]), float(words[2]))
    elif what == "sink":
        sock = open_udp(address, port)
        print(json.dumps("ready"), flush=True)
        result = collect(sock)
    elif what == "send":
        send_all(open_udp(), (address, port), int(words[2]), int(words[3]), float(words[4]))
    elif what == "source":
        source(address, port)
    elif what == "fetch":
        result = collect(ask(address, port, int(words[2]), int(words[3]), float(words[4])))
    elif what == "frames":
        numbers = int(words[2]), int(words[3]), int(words[4]), float(words[5])
        result = frames(words[0], words[1], *numbers)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
