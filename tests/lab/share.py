"""What a guest gets of an uplink with so many flows at once, in bits per second of payload.

    python -I share.py HOST PORT up|down SECONDS FLOWS

The other end is a `LoadServer`. The first second does not count.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from types import TracebackType

CHUNK = bytes(1 << 16)
WARM_UP = 1.0


class LoadServer:
    """Sends to whoever sends it "d", and takes what anybody else sends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> LoadServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._load, args=(client,), daemon=True).start()

    def _load(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if client.recv(1) == b"d":
                while True:
                    client.sendall(CHUNK)
            while client.recv(1 << 16):
                pass


def main(host: str, port: str, direction: str, seconds: str, flows: str) -> None:
    """Load the uplink, and print what that brought."""
    moved = [0] * int(flows)

    def load(index: int) -> None:
        with socket.create_connection((host, int(port))) as sock, contextlib.suppress(OSError):
            sock.sendall(direction[:1].encode())
            if direction == "up":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            while True:
                moved[index] += sock.send(CHUNK[:4096]) if direction == "up" else len(sock.recv(1 << 16))

    for index in range(len(moved)):
        threading.Thread(target=load, args=(index,), daemon=True).start()
    time.sleep(WARM_UP)
    before, start = sum(moved), time.monotonic()
    time.sleep(float(seconds))
    print((sum(moved) - before) * 8 / (time.monotonic() - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
