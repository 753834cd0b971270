"""Asks a running gateway over its control socket; one request a connection, without trio."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import h11
import msgspec

TIMEOUT = 20.0
"""Seconds without an answer after which the client gives up."""
MAX_ANSWER = 64 << 20
"""Bytes."""


class ApiError(Exception):
    """The gateway refused, or did not answer as it should; one sentence."""


def ask(path: Path, method: str, target: str, body: object = None) -> Any:
    """The decoded JSON of the answer.

    Raises:
        ApiError: the request was refused, with the reason.
        OSError: there is nobody at `path`.
    """
    data = b"" if body is None else msgspec.json.encode(body)
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "tunstack"), ("Connection", "close"), ("Content-Length", str(len(data)))]
    if data:
        headers.append(("Content-Type", "application/json"))
    request = h11.Request(method=method, target=target, headers=headers)
    head = connection.send(request) or b""
    payload = connection.send(h11.Data(data=data)) if data else b""
    end = connection.send(h11.EndOfMessage()) or b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        _connect(sock, path)
        try:
            sock.sendall(head + (payload or b"") + end)
            status, answer = _receive(sock, connection)
        except TimeoutError:
            raise ApiError(f"no answer within {TIMEOUT:.0f} s") from None
        except h11.RemoteProtocolError as error:
            raise ApiError(f"the answer is not HTTP ({error})") from None
    try:
        decoded = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        raise ApiError(f"the answer is not JSON (status {status})") from None
    if status >= 400:
        raise ApiError(str(decoded.get("error")) if isinstance(decoded, dict) else f"status {status}")
    return decoded


def _connect(sock: socket.socket, path: Path) -> None:
    """Connect; a UNIX socket on which too many wait says EAGAIN at once."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            sock.connect(str(path))
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _receive(sock: socket.socket, connection: h11.Connection) -> tuple[int, bytes]:
    status, parts, size = 0, [], 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(sock.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data))
            size += len(event.data)
            if size > MAX_ANSWER:
                raise ApiError("the answer is too long")
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return status, b"".join(parts)
