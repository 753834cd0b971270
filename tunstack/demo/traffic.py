"""Checked traffic: what a guest sends and receives, and how it knows that every byte is right.

One file that needs nothing but the standard library, so that a guest can run it by its path:
`python traffic.py exchange 10.0.2.2 8080 '{"up": 100000000}'` prints its findings as one line of JSON.

The payload is a *ramp of period 251*: byte `i` of a flow is `i % 251`. As 251 is a prime and no
power of two, a block that is lost, doubled or swapped, whatever its size, shows at its first byte.

A flow begins with one line of JSON, the *order*, sent by the client (the guest):

- `id`: names the flow in the server's records
- `up`, `down`: bytes of ramp in either direction
- `mode`: `up-first` (the server sends after it has seen the end of the client's stream),
  `down-first` (the client sends after it has seen the end of the server's), `both` (at once)
- `server_stall`, `client_stall`: seconds before the receiver reads its first byte of ramp

Each sender half-closes after its last byte and each receiver reads until end of file, so a flow
of either ordered mode shows half-close with exact end of file in both directions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import resource
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunstack.errors import WrongSystem

PERIOD = 251
_BLOCK = PERIOD * 1024  # bytes of one send; a whole number of periods
_RAMP = bytes(i % PERIOD for i in range(_BLOCK + PERIOD))
MODES = ("up-first", "down-first", "both")


def ramp(offset: int, length: int) -> bytes:
    """`length` bytes of the ramp from `offset` on."""
    start = offset % PERIOD
    if start + length <= len(_RAMP):
        return _RAMP[start : start + length]
    periods = (start + length) // PERIOD + 1
    return (_RAMP[:PERIOD] * periods)[start : start + length]


def ramp_blocks(length: int) -> Iterator[memoryview]:
    """The first `length` bytes of the ramp in blocks."""
    whole = memoryview(_RAMP)[:_BLOCK]
    for _ in range(length // _BLOCK):
        yield whole
    if rest := length % _BLOCK:
        yield whole[:rest]


@functools.cache
def ramp_digest(length: int) -> str:
    """SHA-256 of the first `length` bytes of the ramp, in hexadecimal."""
    digest = hashlib.sha256()
    for block in ramp_blocks(length):
        digest.update(block)
    return digest.hexdigest()


class RampChecker:
    """Takes a stream as it arrives and says whether it is exactly the first bytes of the ramp."""

    def __init__(self) -> None:
        self.count = 0
        self.error: str | None = None
        self._digest = hashlib.sha256()

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream; the first that is wrong goes into `error`."""
        if self.error is None and data != ramp(self.count, len(data)):
            for index, byte in enumerate(data):
                if byte != (self.count + index) % PERIOD:
                    where = self.count + index
                    self.error = f"byte {where} is {byte} and should be {where % PERIOD}"
                    break
        self._digest.update(data)
        self.count += len(data)

    def finish(self, expected: int) -> dict[str, Any]:
        """The verdict at the end of the stream: `bytes`, `sha256`, and `error`, None if all is well."""
        digest = self._digest.hexdigest()
        error = self.error
        if error is None and self.count != expected:
            error = f"the stream ended after {self.count} bytes, not after {expected}"
        if error is None and digest != ramp_digest(expected):
            error = "the SHA-256 sums differ"
        return {"bytes": self.count, "sha256": digest, "error": error}


@dataclasses.dataclass(slots=True, kw_only=True)
class Order:
    """What one flow does; see the top of the file."""

    id: str = ""
    up: int = 0
    down: int = 0
    mode: str = "up-first"
    server_stall: float = 0.0
    client_stall: float = 0.0

    def line(self) -> bytes:
        """The order as it opens the flow."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def send_ramp(sock: socket.socket, length: int) -> None:
    """Send `length` bytes of ramp and half-close."""
    for block in ramp_blocks(length):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def receive_ramp(sock: socket.socket, expected: int) -> dict[str, Any]:
    """Read until end of file; the verdict of `RampChecker.finish`, with a reset as its error."""
    checker = RampChecker()
    buffer = bytearray(256 * 1024)
    view = memoryview(buffer)
    try:
        while count := sock.recv_into(buffer):
            checker.feed(bytes(view[:count]))
    except OSError as error:
        checker.error = checker.error or f"after {checker.count} bytes: {error}"
    return checker.finish(expected)


def converse(sock: socket.socket, order: Order, client: bool) -> dict[str, Any]:
    """Carry out one side of `order` behind its line; the verdict of what was received."""
    outgoing, incoming = (order.up, order.down) if client else (order.down, order.up)
    stall = order.client_stall if client else order.server_stall
    ramp_digest(incoming)  # not while the clock of the transfer runs
    verdict: dict[str, Any] = {"bytes": 0, "sha256": "", "error": "not received"}
    trouble: list[str] = []

    def send() -> None:
        try:
            send_ramp(sock, outgoing)
        except OSError as error:
            trouble.append(f"sending failed: {error}")

    def receive() -> None:
        time.sleep(stall)
        verdict.update(receive_ramp(sock, incoming))

    if order.mode == "both":
        thread = threading.Thread(target=send)
        thread.start()
        receive()
        thread.join()
    else:
        sends_first = client == (order.mode == "up-first")
        for step in (send, receive) if sends_first else (receive, send):
            step()
    if trouble:
        # The first cause goes first: a reset that the sender hears looks like a plain end to the receiver.
        verdict["error"] = "; ".join(filter(None, (*trouble, verdict["error"])))
    return verdict


def exchange(address: tuple[str, int], order: Order, flows: int = 1) -> dict[str, Any]:
    """Carry out `order` as its client over `flows` connections at once; the sizes are shared out.

    Returns `seconds` from the first connect to the last end of file, the bytes received, and the
    first error, or None.
    """
    orders = [
        dataclasses.replace(
            order,
            id=f"{order.id}.{index}",
            up=share(order.up, flows, index),
            down=share(order.down, flows, index),
        )
        for index in range(flows)
    ]
    for one in orders:
        ramp_digest(one.down)
    verdicts: list[dict[str, Any]] = []

    def one_flow(one: Order) -> None:
        try:
            with socket.create_connection(address, timeout=30) as sock:
                sock.settimeout(60)
                sock.sendall(one.line())
                verdicts.append(converse(sock, one, client=True))
        except OSError as error:
            verdicts.append({"bytes": 0, "error": f"flow {one.id}: {error}"})

    start = time.monotonic()
    in_parallel(one_flow, orders)
    errors = [verdict["error"] for verdict in verdicts if verdict["error"]]
    return {
        "seconds": time.monotonic() - start,
        "bytes": sum(verdict["bytes"] for verdict in verdicts),
        "sha256": sorted({verdict.get("sha256", "") for verdict in verdicts}),
        "error": errors[0] if errors else None,
    }


def share(total: int, parts: int, index: int) -> int:
    """Part `index` of `total` shared out over `parts`, as evenly as whole numbers allow."""
    return total // parts + (index < total % parts)


def in_parallel(task: Callable[[Any], None], arguments: Sequence[Any]) -> None:
    """Run `task` for each of `arguments`, each in a thread; return when all have ended."""
    threads = [threading.Thread(target=task, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def many(address: tuple[str, int], count: int, size: int) -> dict[str, Any]:
    """`count` connections, all open at the same time, then `size` bytes of ramp up and down on each."""
    if sys.platform == "win32":
        raise WrongSystem  # it runs in a namespace
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < count + 64 else soft, hard))
    start = time.monotonic()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for index, sock in enumerate(sockets):
            sock.setblocking(False)
            sock.connect_ex(address)
            selector.register(sock, selectors.EVENT_WRITE, index)
        waiting, deadline = set(range(count)), time.monotonic() + 30
        failures: list[str] = []
        while waiting and not failures and time.monotonic() < deadline:
            for key, _ in selector.select(1):
                done = sockets[key.data]
                if code := done.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    failures.append(os.strerror(code))
                selector.unregister(done)
                waiting.discard(key.data)
        connected = time.monotonic() - start
        if waiting or failures:
            return {"error": failures[0] if failures else f"{len(waiting)} of {count} did not connect"}
        order = Order(id="many", up=size, down=size)
        for sock in sockets:
            sock.settimeout(30)
            sock.sendall(order.line() + ramp(0, size))
            sock.shutdown(socket.SHUT_WR)
        verdicts = [receive_ramp(sock, size) for sock in sockets]
    errors = [verdict["error"] for verdict in verdicts if verdict["error"]]
    return {
        "flows": len(verdicts),
        "seconds_to_connect": connected,
        "seconds": time.monotonic() - start,
        "errors": len(errors),
        "error": errors[0] if errors else None,
    }


def refused(address: tuple[str, int]) -> dict[str, Any]:
    """Connect where nobody listens: how long it took to hear, in seconds, and what was heard."""
    start = time.monotonic()
    try:
        socket.create_connection(address, timeout=10).close()
    except OSError as error:
        heard = type(error).__name__
    else:
        heard = "connected"
    return {"seconds": time.monotonic() - start, "heard": heard}


def family_of(host: str) -> socket.AddressFamily:
    """The family of an address in text."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def echo(address: tuple[str, int], sizes: Sequence[int], patience: float = 3.0) -> dict[str, Any]:
    """Send one UDP datagram of each size and wait for the same back; `wrong` lists what did not come."""
    wrong: dict[int, str] = {}
    start = time.monotonic()
    with socket.socket(family_of(address[0]), socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience)
        sock.connect(address)
        for size in sizes:
            payload = ramp(size, size)  # every size starts elsewhere: an old answer is not a new one
            try:
                sock.send(payload)
                answer = sock.recv(65535)
            except OSError as error:
                wrong[size] = str(error)
            else:
                if answer != payload:
                    wrong[size] = f"{len(answer)} bytes that are not those sent"
    return {"seconds": time.monotonic() - start, "sizes": len(sizes), "wrong": wrong}


def serve(kind: str, port: int, host: str = "0.0.0.0") -> dict[str, Any]:
    """Be a server in the guest on `port`: carry out one TCP order, or send one UDP datagram back."""
    stream = kind == "tcp"
    with socket.socket(family_of(host), socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(30)
        sock.bind((host, port))
        if not stream:
            print("ready", flush=True)
            payload, client = sock.recvfrom(65535)
            sock.sendto(payload, client)
            return {"bytes": len(payload), "client": client[0], "error": None}
        sock.listen()
        print("ready", flush=True)
        connection, client = sock.accept()
        with connection:
            connection.settimeout(30)
            order = read_order(connection)
            if order is None:
                return {"bytes": 0, "client": client[0], "error": "no order came"}
            return {**converse(connection, order, client=False), "client": client[0]}


def read_order(sock: socket.socket) -> Order | None:
    """The order that opens a flow, or None if what comes is none."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096:
        # Byte by byte: what follows the line belongs to the ramp.
        if not (byte := sock.recv(1)):
            return None
        line += byte
    try:
        order = Order(**json.loads(line))
    except (ValueError, TypeError):
        return None
    return order if order.mode in MODES else None


def main(arguments: list[str]) -> int:
    """`traffic.py COMMAND HOST PORT [ARGUMENT…]`: prints findings as one line of JSON."""
    command, host, port, *rest = arguments
    address = (host, int(port))
    findings: dict[str, Any]
    if command == "exchange":
        findings = exchange(address, Order(**json.loads(rest[0])), int(rest[1]) if rest[1:] else 1)
    elif command == "many":
        findings = many(address, int(rest[0]), int(rest[1]))
    elif command == "refused":
        findings = refused(address)
    elif command == "echo":
        findings = echo(address, [int(size) for size in rest])
    elif command == "serve":
        findings = serve(host, int(port), *rest[:1])
    else:
        print(f"traffic: no command {command!r}", file=sys.stderr)
        return 2
    print(json.dumps(findings), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
