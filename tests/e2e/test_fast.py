"""The fast path with a real guest: it carries what it is for, and whoever turns it off can do without."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tunstack.native import fastpath

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not fastpath.available, reason="the fast path was not built"),
]

SERVER = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def serve(conn):
    with conn:
        while data := conn.recv(1 << 16):
            if data[:1] == b"r":
                conn.sendall(b"y" * 200)
            elif data[:1] == b"b":
                for _ in range(320):
                    conn.sendall(bytes(1 << 18))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
BULK = """
import socket, sys
conn = socket.create_connection(("10.0.2.2", int(sys.argv[1])))
conn.sendall(b"b")
left = 320 << 18
while left:
    left -= len(conn.recv(1 << 20))
for _ in range(320):
    conn.sendall(b"u" * (1 << 18))
"""
REQUESTS = """
import socket, sys
conn = socket.create_connection(("10.0.2.2", int(sys.argv[1])))
for _ in range(2000):
    conn.sendall(b"r" * 100)
    left = 200
    while left:
        left -= len(conn.recv(left))
"""
CONNECTS = """
import socket, sys, threading
def visit():
    for _ in range(100):
        with socket.create_connection(("10.0.2.2", int(sys.argv[1]))) as conn:
            conn.sendall(b"r" * 100)
            left = 200
            while left:
                left -= len(conn.recv(left))
threads = [threading.Thread(target=visit) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def statistics(script: str, *options: str) -> tuple[int, int]:
    """Segments of a gateway whose guest runs `script`, and how many of them the fast path handled."""
    command = [sys.executable, "-m", "tunstack", "run", "-v", "--host-loopback", "10.0.2.2", *options, "--"]
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            done = subprocess.run(
                [*command, sys.executable, "-c", script, port], capture_output=True, text=True, timeout=120
            )
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    line = re.search(r"(\d+) segments in, (\d+) out,.* (\d+) by the fast path", done.stderr)
    assert line is not None, done.stderr
    received, sent, accelerated = map(int, line.groups())
    return received + sent, accelerated


@pytest.mark.parametrize("script", [BULK, REQUESTS, CONNECTS], ids=["bulk", "requests", "connects"])
def test_it_carries_nearly_everything(script: str) -> None:
    total, accelerated = statistics(script)
    assert total > 2000
    assert accelerated >= 0.99 * total


@pytest.mark.parametrize("queue", ["droptail", "fq_codel target 1s"])
def test_it_carries_nearly_everything_over_a_shaped_link(queue: str) -> None:
    """Python has the start, and what follows a loss: the queue of the TAP may be full at any time."""
    words = f"rate 500mbit queue {queue} limit 20000 delay 1ms"
    total, accelerated = statistics(BULK, "--shape-up", words, "--shape-down", words)
    assert total > 100_000
    assert accelerated >= 0.9 * total


def test_a_stage_without_a_native_form_takes_the_link_back() -> None:
    total, accelerated = statistics(REQUESTS, "--shape-up", "slot 10us")
    assert total > 2000
    assert accelerated == 0
