"""A source or a sink of bulk data over TCP, exec'ed in the namespace of a kernel that is measured.

  _traffic.py source ADDRESS PORT     sends until the connection breaks, with CUBIC
  _traffic.py sink ADDRESS PORT       takes one connection; prints what it has taken for each line that comes

Both have buffers so large that only cwnd limits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

BUFFERS = "4096 16777216 67108864"
BLOCK = bytes(1 << 16)


class Sink:
    """Reads and counts."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.taken = 0
        self.room = bytearray(1 << 20)

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with contextlib.suppress(OSError):
            while count := connection.recv_into(self.room):
                self.taken += count


def main() -> None:
    role, address, port = sys.argv[1:]
    for name in ("tcp_rmem", "tcp_wmem"):
        with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as file:
            file.write(BUFFERS)
    if role == "sink":
        sink = Sink(socket.create_server((address, int(port))))
        threading.Thread(target=sink.run, daemon=True).start()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(sink.taken, flush=True)
        os._exit(0)
    source = socket.socket()
    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    print("ready", flush=True)
    sys.stdin.readline()
    with contextlib.suppress(OSError):
        source.connect((address, int(port)))
        while True:
            source.sendall(BLOCK)


if __name__ == "__main__":
    main()
