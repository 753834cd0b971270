"""The handshake of vpnkit's protocol, which hyperkit speaks, from the server's side.

The client says hello, which is echoed, and then what it wants: an interface, known by a UUID. The answer
tells MTU and MAC, and frames follow, each behind its length in 2 bytes, little-endian.
"""

from __future__ import annotations

import hashlib
from typing import Any

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Struct
from construct.core import ConstructError

from tunstack.link.ethernet import local_mac
from tunstack.nat.dialer import Refusal
from tunstack.vsock.handshakes import Handshake, Refused

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


def serve(mtu: int) -> Handshake:
    """The server's side of the handshake. `mtu`: of IP packets, bytes."""
    hello = yield HELLO.sizeof()
    _parse(HELLO, hello, "it does not say hello as vpnkit's clients do")
    yield hello
    command = _parse(COMMAND, (yield COMMAND.sizeof()), "it asks for something else than an interface")
    largest = min(mtu + _ETHERNET, 0xFFFF)
    yield ANSWER.build({"mtu": largest - _ETHERNET, "largest": largest, "mac": mac_of(command.uuid)})


def mac_of(uuid: bytes) -> bytes:
    """The MAC of the interface with that UUID: always the same, and nobody else's."""
    return local_mac(hashlib.sha256(b"tunstack vpnkit" + uuid).digest())


def _parse(form: Struct, data: bytes, complaint: str) -> Any:
    try:
        return form.parse(data)
    except ConstructError:
        raise Refused(Refusal.UNREACHABLE, complaint) from None
