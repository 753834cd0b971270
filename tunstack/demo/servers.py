"""Servers on loopback for the guest to talk to: checked TCP traffic, UDP echo, HTTP and DNS.

Each is a context manager that listens on 127.0.0.1 or ::1 from its construction on, on a port that the
kernel chooses, serves in threads, and has ended all of them when the context ends.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import threading
from types import TracebackType
from typing import Any, Self

from tunstack.demo import traffic
from tunstack.demo.traffic import converse, ramp_blocks, read_order

LOOPBACK = "127.0.0.1"
LOOPBACK6 = "::1"
_TICK = 0.1  # seconds between looks at whether the server is to end


def closed_port(address: str = LOOPBACK, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of loopback where nobody listens."""
    with socket.socket(traffic.family_of(address), kind) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


class _Server:
    """A socket, a thread that serves it, and their end."""

    def __init__(self, kind: socket.SocketKind, address: str = LOOPBACK) -> None:
        self._socket = socket.socket(traffic.family_of(address), kind)
        self._socket.bind((address, 0))
        self._socket.settimeout(_TICK)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self.port = self.address[1]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                self._serve_one()

    def _serve_one(self) -> None:
        raise TimeoutError  # what a server with nothing to do does


class TrafficServer(_Server):
    """The outside end of `traffic.exchange`; `records` keeps the verdict on each flow by its id."""

    def __init__(self, address: str = LOOPBACK) -> None:
        super().__init__(socket.SOCK_STREAM, address)
        self._socket.listen(4096)
        self.records: dict[str, dict[str, Any]] = {}
        self.accepted = 0
        self._flows: dict[threading.Thread, socket.socket] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for thread, sock in list(self._flows.items()):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _serve_one(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(60)
        self.accepted += 1
        thread = threading.Thread(target=self._flow, args=(connection,))
        self._flows[thread] = connection
        thread.start()

    def _flow(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if (order := read_order(connection)) is not None:
                self.records[order.id] = converse(connection, order, client=False)
        self._flows.pop(threading.current_thread(), None)

    def wait_record(self, name: str, seconds: float = 10.0) -> dict[str, Any]:
        """The verdict on flow `name`, waited for: the client may end a little before the server."""
        pause = threading.Event()
        for _ in range(int(seconds / 0.02)):
            if name in self.records:
                return self.records[name]
            pause.wait(0.02)
        return {"bytes": 0, "sha256": "", "error": f"no record of flow {name}"}


class UdpEchoServer(_Server):
    """Sends every datagram back to where it came from."""

    def __init__(self, address: str = LOOPBACK) -> None:
        super().__init__(socket.SOCK_DGRAM, address)

    def _serve_one(self) -> None:
        payload, client = self._socket.recvfrom(65535)
        self._socket.sendto(payload, client)


class DnsServer(_Server):
    """Answers A questions for the names in `names`, over UDP; NXDOMAIN for all others."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__(socket.SOCK_DGRAM)
        self.names = names
        self.asked: list[str] = []

    def _serve_one(self) -> None:
        import dns.exception
        import dns.flags
        import dns.message
        import dns.rcode
        import dns.rrset

        data, client = self._socket.recvfrom(65535)
        try:
            query = dns.message.from_wire(data)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        response = dns.message.make_response(query, recursion_available=True)
        if name not in self.names:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == 1:  # A
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", self.names[name]))
        self._socket.sendto(response.to_wire(), client)


class _HttpHandler(http.server.BaseHTTPRequestHandler):
    """`GET /ramp/N` gives N bytes of ramp; everything else is 404."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match = re.fullmatch(r"/ramp/(\d{1,10})", self.path)
        if match is None:
            self.send_error(404)
            return
        length = int(match[1])
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            for block in ramp_blocks(length):
                self.wfile.write(block)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Silence: the guest reports."""


class _HttpServer6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class HttpServer:
    """An HTTP server on loopback; see `_HttpHandler`."""

    def __init__(self, address: str = LOOPBACK) -> None:
        kind = (
            _HttpServer6 if traffic.family_of(address) == socket.AF_INET6 else http.server.ThreadingHTTPServer
        )
        self._server = kind((address, 0), _HttpHandler)
        self._server.daemon_threads = False
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_TICK,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
