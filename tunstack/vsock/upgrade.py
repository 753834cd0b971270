"""How a stream becomes a link of frames: an agent asks for it by HTTP, and the gateway answers.

    POST /connect   what gvproxy's guests say. There is no answer; frames follow at once from both sides, each
                    behind its length in 2 bytes, little-endian
    GET /v1/link    what `tunstack agent` says first, with an `Upgrade`. The answer is 101, and frames follow,
                    each behind its length in 4 bytes, big-endian, and a virtio-net header
                    (`link.devices.vnet_header`, little-endian), so that trains of up to 64 KiB stay whole and
                    checksums need not be told before they are needed

What both can and want (`Terms`) stands in the header field `Tunstack-Link` of request and answer. Who does
not know `/v1/link` answers as to any other path, and the agent comes again with `/connect`; a gateway that
knows it and refuses says why in `Tunstack-Refusal`.

Both sides are handshakes (`handshakes`): bounded, without a socket, and bytes behind a head are left for
whoever reads frames.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import Offloads
from tunstack.nat.dialer import Refusal
from tunstack.vsock.handshakes import HEAD_LIMIT, Refused, Until, Wish

if TYPE_CHECKING:
    import h11

VERSION = 1
PLAIN_PATH = b"/connect"
LINK_PATH = b"/v1/link"
PROTOCOL = b"tunstack-link"
ALL_OFFLOADS = frozenset(("checksum", "tso4", "tso6", "uso"))
"""`tunstack.link.devices.base.Offloads`: what the headers may say."""
_TERMS, _REFUSAL = b"tunstack-link", b"tunstack-refusal"
_HEAD = Until(b"\r\n\r\n", HEAD_LIMIT)
_LEAST_MTU, _MOST_MTU = 576, 65520


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What one end of a link can, or what both have agreed on.

    Attributes:
        mtu: IP MTU of the link, bytes; the gateway's counts.
        offloads: what frames may leave to the other end, of `ALL_OFFLOADS`.
    """

    mtu: int = 1500
    offloads: frozenset[str] = ALL_OFFLOADS

    @classmethod
    def parse(cls, text: bytes) -> Terms:
        """The terms that `text` says; ValueError if they are none, or of another version."""
        words = dict(word.strip().partition("=")[::2] for word in text.decode("ascii").split(","))
        if words.get("version") != str(VERSION):
            raise ValueError(f"only version {VERSION} of the protocol is known here")
        mtu = words.get("mtu", "")
        if not (mtu.isdecimal() and len(mtu) < 6 and _LEAST_MTU <= int(mtu) <= _MOST_MTU):
            raise ValueError(f"the MTU is not between {_LEAST_MTU} and {_MOST_MTU}")
        return cls(int(mtu), ALL_OFFLOADS & set(words.get("offloads", "").split("+")))

    @property
    def device_offloads(self) -> Offloads:
        """Those of a device whose frames have such headers."""
        able = {name: name in self.offloads for name in ALL_OFFLOADS}
        return Offloads(l2=True, mtu=self.mtu, max_frame=MAX_FRAME, **able)

    def __bytes__(self) -> bytes:
        return f"version={VERSION}, mtu={self.mtu}, offloads={'+'.join(sorted(self.offloads))}".encode()


def accept(mine: Terms, refusal: str | None = None) -> Generator[Wish, bytes, Terms | None]:
    """The gateway's side; returns what was agreed on, or None for `/connect`.

    `refusal`: why nobody can be connected now; agents are told.

    Raises:
        Refused: the other end asks for something else, or was refused.
    """
    request = _parse_request((yield _HEAD))
    path = request.target.partition(b"?")[0]
    if path == PLAIN_PATH:
        if refusal is not None:
            raise Refused(Refusal.PROHIBITED, refusal)
        return None
    fields = dict(request.headers)
    if path != LINK_PATH or fields.get(b"upgrade", b"").lower() != PROTOCOL:
        yield _answer(b"404 Not Found")
        raise Refused(Refusal.PROHIBITED, "it asks for something else than a link")
    if refusal is None:
        try:
            theirs = Terms.parse(fields.get(_TERMS, b""))
        except ValueError as error:  # UnicodeDecodeError, too
            refusal = str(error)
    if refusal is not None:
        yield _answer(b"503 Service Unavailable", _REFUSAL + b": " + refusal.encode())
        raise Refused(Refusal.PROHIBITED, refusal)
    agreed = Terms(mine.mtu, mine.offloads & theirs.offloads)
    yield (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n%b: %b\r\n\r\n"
        % (PROTOCOL, _TERMS, bytes(agreed))
    )
    return agreed


def ask(mine: Terms) -> Generator[Wish, bytes, Terms | None]:
    """The agent's side: ask for a link with headers; None: the other end does not know that.

    Raises:
        Refused: it knows it and refuses, or what it says is not HTTP.
    """
    yield (
        b"GET %b HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: %b\r\n%b: %b\r\n\r\n"
        % (LINK_PATH, PROTOCOL, _TERMS, bytes(mine))
    )
    response = _parse_response((yield _HEAD))
    fields = dict(response.headers)
    if _REFUSAL in fields:
        why = fields[_REFUSAL].decode("ascii", "replace")
        raise Refused(Refusal.PROHIBITED, f"the gateway refuses: {why}")
    if response.status_code != 101:
        return None
    try:
        theirs = Terms.parse(fields.get(_TERMS, b""))
    except ValueError as error:
        raise Refused(Refusal.UNREACHABLE, f"the gateway's answer cannot be: {error}") from None
    return Terms(theirs.mtu, theirs.offloads & mine.offloads)


def ask_plain() -> Generator[Wish, bytes, None]:
    """The agent's side: ask for a link without headers."""
    yield b"POST %b HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n" % PLAIN_PATH


def can_have_headers() -> bool:
    """Whether this machine's virtio-net headers are those of the wire."""
    return sys.byteorder == "little"


def _parse_request(head: bytes) -> h11.Request:
    import h11

    event = _next_event(h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT), head)
    if not isinstance(event, h11.Request):
        raise Refused(Refusal.UNREACHABLE, "it does not speak HTTP/1.1")
    return event


def _parse_response(head: bytes) -> h11.Response | h11.InformationalResponse:
    import h11

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
    fields = [(b"Host", b"gateway"), (b"Connection", b"Upgrade"), (b"Upgrade", PROTOCOL)]
    connection.send(h11.Request(method="GET", target=LINK_PATH, headers=fields))
    event = _next_event(connection, head)
    if not isinstance(event, (h11.Response, h11.InformationalResponse)):
        raise Refused(Refusal.UNREACHABLE, "it does not speak HTTP/1.1")
    return event


def _next_event(connection: h11.Connection, head: bytes) -> object:
    import h11

    try:
        connection.receive_data(head)
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Refused(Refusal.UNREACHABLE, f"it does not speak HTTP/1.1: {error}") from None


def _answer(status: bytes, *fields: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Connection: close", b"Content-Length: 0", *fields, b"", b""]
    return b"\r\n".join(lines)
