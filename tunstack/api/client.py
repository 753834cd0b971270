"""Asks a running gateway over its control socket; one request a connection, without trio."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import h11
import msgspec

if sys.platform == "win32":
    from tunstack.api.named_pipes import connect
else:
    from tunstack.api.unix_sockets import connect

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
    with connect(path, TIMEOUT) as sock:
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


class _Receiving(Protocol):
    def recv(self, size: int, /) -> bytes: ...


def _receive(sock: _Receiving, connection: h11.Connection) -> tuple[int, bytes]:
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
