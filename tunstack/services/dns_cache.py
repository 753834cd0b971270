"""Answers of the resolvers that are given again while they last (RFC 1035 7.4, RFC 2308). Sans-IO.

Theory of operation. An answer is kept as the bytes that it is, behind the key of its question: name without
regard to case, type, class, and the flags of the query that shape an answer (RD, CD, DO). It lasts as long
as the smallest TTL of its records, a denial as long as its SOA says, and leaves with its TTLs counted down,
the id and the question of who asks, and an OPT record of our own if that one has EDNS. Kept is what any
client may have: no answer to a query with options in its OPT record, none that is cut, failed or without a
time, and none whose OPT record is not its last.

Bounds: `entries` answers of `LARGEST` bytes at the most, and `size` bytes of all; what was used longest ago
makes room.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from tunstack.services import dns_wire

LARGEST = 8192
"""Bytes of an answer that is kept."""
MAX_TTL = 86_400
MAX_DENIAL = 3_600
"""Seconds that an answer, or a denial, is believed at the most (RFC 2308 section 5)."""
_OVERHEAD = 400
"""Bytes that an entry takes beside its answer."""

_AA = 0x04
_RD = 0x01
_CD = 0x10
_SOA, _OPT = 6, 41
_u32 = struct.Struct("!I")

Key = tuple[bytes, int]


class _Entry:
    __slots__ = ("body", "counts", "expires", "flags", "kept_at", "ttls")

    def __init__(
        self, flags: bytes, counts: bytes, body: bytes, ttls: tuple[int, ...], now: float, ttl: float
    ) -> None:
        self.flags = flags
        self.counts = counts
        """Of answers, authority and additional records without an OPT."""
        self.body = body
        self.ttls = ttls
        """Where in `body` they stand."""
        self.kept_at = now
        self.expires = now + ttl


class DnsCache:
    """Answers by question. Times in seconds, of any clock that does not go back."""

    def __init__(self, entries: int, size: int) -> None:
        self._most = entries
        self._size = size
        self._used = 0
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used(self) -> int:
        """Bytes that the entries take."""
        return self._used

    def clear(self) -> None:
        """Forget everything: other resolvers are asked from now on."""
        self._entries.clear()
        self._used = 0

    def find(self, query: bytes, question_end: int, edns: dns_wire.Edns | None, now: float) -> bytes | None:
        """The answer to `query`, whose only question ends at `question_end`; None if none is known."""
        key = _key(query, question_end, edns)
        if key is None:
            return None
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            if entry is not None:
                self._forget(key)
            return None
        self._entries.move_to_end(key)
        body = entry.body
        age = int(now - entry.kept_at)
        if age:
            aged = bytearray(body)
            for at in entry.ttls:
                ttl = _u32.unpack_from(aged, at)[0]
                _u32.pack_into(aged, at, max(ttl - age, 0))
            body = bytes(aged)
        opt = b"" if edns is None else dns_wire.opt_record(edns.dnssec_ok)
        counts = entry.counts
        if opt:
            counts = counts[:4] + (int.from_bytes(counts[4:], "big") + 1).to_bytes(2, "big")
        question = query[dns_wire.HEADER_SIZE : question_end]
        return query[:2] + entry.flags + b"\0\1" + counts + question + body + opt

    def keep(
        self, query: bytes, question_end: int, edns: dns_wire.Edns | None, answer: bytes, now: float
    ) -> None:
        """Take `answer`, which is one to `query`, if it may be given again."""
        key = _key(query, question_end, edns)
        if key is None or len(answer) > LARGEST or dns_wire.is_truncated(answer):
            return
        made = _make(answer, question_end, now)
        if made is None:
            return
        if key in self._entries:
            self._forget(key)
        self._entries[key] = made
        self._used += _cost(key, made)
        while len(self._entries) > self._most or self._used > self._size:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: Key) -> None:
        self._used -= _cost(key, self._entries.pop(key))


def _cost(key: Key, entry: _Entry) -> int:
    return len(key[0]) + len(entry.body) + 8 * len(entry.ttls) + _OVERHEAD


def _key(query: bytes, question_end: int, edns: dns_wire.Edns | None) -> Key | None:
    """None for a query whose answer is its own: with options, or of a version that nobody knows."""
    if edns is not None and (edns.version or edns.has_options):
        return None
    name_end = question_end - 4
    # bytes.lower cannot touch a length byte of a label: those are below 64, letters are not.
    question = query[dns_wire.HEADER_SIZE : name_end].lower() + query[name_end:question_end]
    flags = query[2] & _RD | query[3] & _CD | (0x100 if edns is not None and edns.dnssec_ok else 0)
    return question, flags


def _make(answer: bytes, question_end: int, now: float) -> _Entry | None:
    """An entry of `answer`, or None if it is not to be kept."""
    questions, answers, authority, additional = dns_wire.counts(answer)
    code = dns_wire.rcode(answer)
    if questions != 1 or code not in (0, dns_wire.NXDOMAIN):
        return None
    ttls: list[int] = []
    least = float(MAX_TTL)
    denial: float | None = None
    at = end = question_end
    for number in range(answers + authority + additional):
        record = dns_wire.read_record(answer, at)
        if record is None:
            return None
        if record.rdtype == _OPT:
            if number < answers + authority + additional - 1 or record.ttl >> 24:
                return None  # it is not the last one, or the response code goes on in it
            additional -= 1
            at = record.end
            continue
        ttls.append(record.ttl_at - question_end)
        ttl = record.ttl if record.ttl < 1 << 31 else 0  # RFC 2181 section 8
        least = min(least, ttl)
        if record.rdtype == _SOA and number >= answers and record.end - record.data >= 22:
            minimum = _u32.unpack_from(answer, record.end - 4)[0]
            denial = min(ttl, minimum, MAX_DENIAL)
        at = end = record.end
    if at != len(answer):
        return None
    if code or not answers:
        if denial is None:
            return None  # RFC 2308 section 5: without an SOA a denial has no time
        least = min(least, denial)
    if least < 1:
        return None
    flags = bytes((answer[2] & ~_AA, answer[3]))
    counts = struct.pack("!3H", answers, authority, additional)
    return _Entry(flags, counts, answer[question_end:end], tuple(ttls), now, least)
