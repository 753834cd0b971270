"""Bytes both ways between two guests, at once, and the digests of what either sent and received.

python -I transfer.py serve PORT
python -I transfer.py HOST PORT BYTES
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import threading
import time

CHUNK = 1 << 16
PATIENCE = 60.0


def exchange(sock: socket.socket, count: int, seed: int) -> dict[str, str]:
    """Send and receive `count` bytes; the digests of both."""
    sock.settimeout(PATIENCE)
    chunk = random.Random(seed).randbytes(CHUNK)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        left = count
        while left:
            part = chunk[: min(left, CHUNK)]
            sock.sendall(part)
            sent.update(part)
            left -= len(part)

    sender = threading.Thread(target=send)
    sender.start()
    left = count
    while left:
        part = sock.recv(min(left, CHUNK))
        if not part:
            break
        received.update(part)
        left -= len(part)
    sender.join()
    return {"sent": sent.hexdigest(), "received": received.hexdigest()}


def connect(host: str, port: int) -> socket.socket:
    """A connection, as soon as somebody listens there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, port), timeout=10)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main(host: str, *words: str) -> None:
    """Be one of the two."""
    if host == "serve":
        with socket.create_server(("", int(words[0]))) as listener:
            sock, _ = listener.accept()
        with sock:
            count = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
            print(json.dumps(exchange(sock, count, 1)), flush=True)
    else:
        with connect(host, int(words[0])) as sock:
            sock.sendall(int(words[1]).to_bytes(8, "big"))
            print(json.dumps(exchange(sock, int(words[1]), 2)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
