"""The client of `bench.routes`, alone in a guest: loads one flow, and prints its bits per second."""

from __future__ import annotations

import socket
import sys
import time

CHUNK = 1 << 18


def main(host: str, port: str, direction: str, seconds: str) -> None:
    """Send, or have the other end send."""
    data = bytearray(CHUNK)
    with socket.create_connection((host, int(port)), 5) as sock:
        sock.sendall(direction[:1].encode())
        moved, start = 0, time.monotonic()
        end = start + float(seconds)
        while (now := time.monotonic()) < end:
            moved += sock.send(data) if direction == "up" else sock.recv_into(data)
    print(moved * 8 / (now - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
