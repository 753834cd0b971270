"""The handshake of vpnkit's protocol, which hyperkit speaks, from the server's side.

The client says hello, which is echoed, and then what it wants: an interface, known by a UUID. The answer
tells MTU and MAC, and frames follow, each behind its length in 2 bytes, little-endian.
"""

from __future__ import annotations

import hashlib
from typing import Any

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Struct
from construct.core import ConstructError

HELLO = Struct("magic" / Const(b"VMN3T"), "version" / Int32ul, "commit" / Bytes(40))
COMMAND = Struct("command" / Const(1, Int8ul), "uuid" / Bytes(36), "spare" / Bytes(4))
ANSWER = Struct(
    "kind" / Const(1, Int8ul),
    "mtu" / Int16ul,
    "largest" / Int16ul,
    "mac" / Bytes(6),
    "rest" / Const(bytes(247)),
)
_ETHERNET = 14


class HandshakeError(ValueError):
    """The other end does not speak the protocol; the message is one sentence."""


def check_hello(data: bytes) -> bytes:
    """What to answer to a client's first `HELLO.sizeof()` bytes."""
    _parse(HELLO, data, "it does not say hello as vpnkit's clients do")
    return data


def answer_command(data: bytes, mtu: int) -> bytes:
    """What to answer to the `COMMAND.sizeof()` bytes that follow. `mtu`: of IP packets, bytes."""
    command = _parse(COMMAND, data, "it asks for something else than an interface")
    largest = min(mtu + _ETHERNET, 0xFFFF)
    answer: bytes = ANSWER.build(
        {"mtu": largest - _ETHERNET, "largest": largest, "mac": mac_of(command.uuid)}
    )
    return answer


def mac_of(uuid: bytes) -> bytes:
    """The MAC of the interface with that UUID: always the same, and nobody else's."""
    digest = hashlib.sha256(b"tunstack vpnkit" + uuid).digest()
    return bytes((digest[0] & 0xFC | 2,)) + digest[1:6]


def _parse(form: Struct, data: bytes, complaint: str) -> Any:
    try:
        return form.parse(data)
    except ConstructError:
        raise HandshakeError(complaint) from None
