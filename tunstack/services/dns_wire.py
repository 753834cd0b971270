"""The envelope of DNS messages: header, question and truncation, on bytes (RFC 1035 section 4).

What a relay has to look at in a message that it otherwise passes on as it is. Nothing here
follows a compression pointer, so each function takes one pass over at most the message.
"""

from __future__ import annotations

import dataclasses
import struct

from tunstack.errors import BadPacket, DropReason

HEADER_SIZE = 12
MIN_UDP_SIZE = 512
"""RFC 1035 section 2.3.4: what a client without EDNS takes."""
OWN_UDP_SIZE = 1232
"""Payload that we announce by EDNS: fits into the smallest IPv6 MTU (DNS flag day 2020)."""

FORMERR = 1
SERVFAIL = 2
NXDOMAIN = 3
NOTIMP = 4
REFUSED = 5

_QR, _TC, _RD, _OPCODE = 0x80, 0x02, 0x01, 0x78
_RA = 0x80
_COUNTS = struct.Struct("!4H")
_RECORD = struct.Struct("!HHIH")
_OPT_TYPE = 41
_DO = 0x8000


def is_response(message: bytes) -> bool:
    """QR is set; `message` has a header."""
    return bool(message[2] & _QR)


def is_truncated(message: bytes) -> bool:
    """TC is set; `message` has a header."""
    return bool(message[2] & _TC)


def opcode(message: bytes) -> int:
    """The opcode, 0 for QUERY; `message` has a header."""
    return (message[2] & _OPCODE) >> 3


def rcode(message: bytes) -> int:
    """The low four bits of the response code; `message` has a header."""
    return message[3] & 0x0F


def counts(message: bytes) -> tuple[int, int, int, int]:
    """How many questions, answers, authority and additional records the header announces."""
    questions, answers, authority, additional = _COUNTS.unpack_from(message, 4)
    return questions, answers, authority, additional


@dataclasses.dataclass(frozen=True, slots=True)
class Edns:
    """What a client says in its OPT record: the datagram it takes in bytes, version, DO, and whether more."""

    payload: int
    version: int
    dnssec_ok: bool
    has_options: bool = False


_MAX_UDP_PAYLOAD = 65535 - 40 - 8
"""Bytes that one UDP datagram carries, whichever family."""


def udp_limit(edns: Edns | None) -> int:
    """Bytes that a client takes in one datagram (RFC 6891 section 6.2.3)."""
    if edns is None:
        return MIN_UDP_SIZE
    return min(max(edns.payload, MIN_UDP_SIZE), _MAX_UDP_PAYLOAD)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A record: its type, its TTL and where that stands, and where its data begins and ends."""

    rdtype: int
    ttl: int
    ttl_at: int
    data: int
    end: int


def find_edns(query: bytes, offset: int) -> Edns | None:
    """The OPT record among the records from `offset` to the end of `query`, None without one.

    Raises BadPacket if the records do not end where the message does, or if an OPT record is
    doubled, misplaced or not the root's (RFC 6891 section 6.1.1). Their contents are not looked
    at: taking apart four KiB of options would take a hostile guest's gateway 20 ms.
    """
    found: Edns | None = None
    _, answers, authority, additional = counts(query)
    for index in range(answers + authority + additional):
        name_end = _name_end(query, offset)
        end = _record_end(query, offset)
        if name_end is None or end is None:
            raise BadPacket(DropReason.BAD_DNS)
        rdtype, payload, flags, size = _RECORD.unpack_from(query, name_end)
        if rdtype == _OPT_TYPE:
            if found is not None or index < answers + authority or query[offset]:
                raise BadPacket(DropReason.BAD_DNS)
            found = Edns(payload, flags >> 16 & 0xFF, bool(flags & _DO), size > 0)
        offset = end
    if offset != len(query):
        raise BadPacket(DropReason.BAD_DNS)
    return found


def error_reply(query: bytes, code: int) -> bytes:
    """A bare header that refuses `query`, of which nothing but the header is trusted."""
    flags = _QR | query[2] & (_OPCODE | _RD)
    return query[:2] + bytes((flags, _RA | code)) + bytes(8)


def opt_record(dnssec_ok: bool) -> bytes:
    """Our OPT record without options (RFC 6891 section 6.1.2)."""
    return b"\x00" + _RECORD.pack(_OPT_TYPE, OWN_UDP_SIZE, _DO if dnssec_ok else 0, 0)


def is_answer(message: bytes, query: bytes, question_end: int) -> bool:
    """Whether `message` answers `query`, whose only question ends at `question_end`.

    Id, opcode and question have to be equal (RFC 5452 section 9.1), the letters of the name
    without regard to case. A server that refuses may leave the question out (RFC 1035
    section 4.1.1, a FORMERR in particular).
    """
    if len(message) < HEADER_SIZE or message[:2] != query[:2] or not is_response(message) or opcode(message):
        return False
    questions, answers, *_ = counts(message)
    if not questions:
        return not answers and rcode(message) in (FORMERR, SERVFAIL, NOTIMP, REFUSED)
    name_end = question_end - 4
    # bytes.lower cannot touch a length byte of a label: those are below 64, letters are not.
    return (
        questions == 1
        and message[name_end:question_end] == query[name_end:question_end]
        and message[HEADER_SIZE:name_end].lower() == query[HEADER_SIZE:name_end].lower()
    )


def truncate(message: bytes, limit: int, opt: bytes = b"") -> bytes:
    """`message` cut to `limit` bytes with TC set: the question and the answers that fit whole.

    Whoever does not come back by TCP has these at least. The other sections go; `opt` is put
    in the place of the server's OPT record. A compression pointer leads backwards, so what is
    kept never depends on what is cut.
    """
    questions, answers, *_ = counts(message)
    room = limit - len(opt)
    end = HEADER_SIZE
    if questions == 1:
        name_end = _name_end(message, end)
        if name_end is not None and name_end + 4 <= min(room, len(message)):
            end = name_end + 4
        else:
            questions = answers = 0
    else:
        questions = answers = 0
    kept = 0
    while kept < answers:
        record_end = _record_end(message, end)
        if record_end is None or record_end > room:
            break
        end = record_end
        kept += 1
    head = message[:2] + bytes((message[2] | _TC, message[3]))
    return head + _COUNTS.pack(questions, kept, 0, 1 if opt else 0) + message[HEADER_SIZE:end] + opt


def read_question(query: bytes) -> tuple[tuple[bytes, ...], int] | None:
    """The labels of the first question in lower case, and where it ends; None if it is none.

    A compressed name in the only question would have to point into the header, and is none.
    """
    labels: list[bytes] = []
    at = HEADER_SIZE
    end = len(query) - 5  # a root label, type and class
    while at <= end:
        length = query[at]
        if length == 0:
            return tuple(labels), at + 5
        if length >= 0x40 or at - HEADER_SIZE + length + 1 > 254:
            return None
        labels.append(query[at + 1 : at + 1 + length].lower())
        at += 1 + length
    return None


def read_record(message: bytes, offset: int) -> Record | None:
    """The record at `offset`; None if it does not end within the message."""
    name_end = _name_end(message, offset)
    end = _record_end(message, offset)
    if name_end is None or end is None:
        return None
    rdtype, _, ttl, _ = _RECORD.unpack_from(message, name_end)
    return Record(rdtype, ttl, name_end + 4, name_end + _RECORD.size, end)


def _name_end(message: bytes, offset: int) -> int | None:
    while offset < len(message):
        length = message[offset]
        if length == 0:
            return offset + 1
        if length >= 0x40:
            # A pointer ends the name; the other two kinds of label are not in use.
            return offset + 2 if length >= 0xC0 else None
        offset += 1 + length
    return None


def _record_end(message: bytes, offset: int) -> int | None:
    name_end = _name_end(message, offset)
    if name_end is None or name_end + _RECORD.size > len(message):
        return None
    data = name_end + _RECORD.size
    end = data + int(_RECORD.unpack_from(message, name_end)[3])
    return end if end <= len(message) else None
