"""DNS messages with dnspython: queries taken apart, own answers put together.

The only module of the gateway that imports dnspython, which takes some 50 ms; so it is itself
imported at the first query and not at start-up.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tunstack.errors import BadPacket, DropReason
from tunstack.services import dns_wire
from tunstack.services.local_names import Labels, LocalName

_MOST_ALIASES = 8
"""That are followed within one answer."""
OWN_TTL = 0
"""Seconds that own answers may be cached: not at all, as the table may change at any time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """One well-formed query.

    `message` is its header and question, `wire` all of it as it came, `question_end` the offset
    behind the question, `name` the labels asked for in lower case.
    """

    message: dns.message.Message
    wire: bytes
    question_end: int
    name: Labels
    edns: dns_wire.Edns | None

    @property
    def udp_limit(self) -> int:
        """Bytes that the client takes in one datagram (RFC 6891 section 6.2.3)."""
        return dns_wire.udp_limit(self.edns)

    @property
    def opt(self) -> bytes:
        """The OPT record of an answer, empty if the query had none (RFC 6891 section 6.1.1)."""
        return b"" if self.edns is None else dns_wire.opt_record(self.edns.dnssec_ok)

    @property
    def is_transfer(self) -> bool:
        """A zone transfer, whose answer may be many messages (RFC 5936 section 2.2)."""
        return self.message.question[0].rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR)


def parse_query(wire: bytes) -> Query:
    """The query in `wire`: a header with opcode QUERY and one question. Raises BadPacket only."""
    try:
        message = dns.message.from_wire(wire, question_only=True)
        name = message.question[0].name
    except (dns.exception.DNSException, ValueError, IndexError):
        raise BadPacket(DropReason.BAD_DNS) from None
    encoded = _encode(name.labels)
    end = dns_wire.HEADER_SIZE + len(encoded)
    # A compressed name in the only question would have to point into the header.
    if wire[dns_wire.HEADER_SIZE : end] != encoded:
        raise BadPacket(DropReason.BAD_DNS)
    labels = tuple(label.lower() for label in name.labels[:-1])
    return Query(message, wire, end + 4, labels, dns_wire.find_edns(wire, end + 4))


def error_answer(query: Query, code: int) -> bytes:
    """An answer without records, with the response code `code`."""
    response = _response(query)
    response.set_rcode(dns.rcode.Rcode(code))
    return response.to_wire()


def local_answer(
    query: Query, local: LocalName, transport: str, find: Callable[[Labels], LocalName | None]
) -> bytes:
    """The answer to a question for one of our own names; an alias is followed as far as `find` knows."""
    response = _response(query)
    question = query.message.question[0]
    if query.edns is not None and query.edns.version:
        response.set_rcode(dns.rcode.BADVERS)
        return response.to_wire()
    if question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY):
        response.set_rcode(dns.rcode.REFUSED)
        return response.to_wire()
    response.flags |= dns.flags.AA
    owner, name, here = question.name, query.name, local
    for _ in range(_MOST_ALIASES):
        alias = _add_records(response, owner, question.rdtype, _records(here, name))
        if alias is None:
            break
        owner = alias
        name = tuple(label.lower() for label in alias.labels[:-1])
        target = find(name)
        if target is None:
            break
        here = target
    if not local.exists:
        response.set_rcode(dns.rcode.NXDOMAIN)
    if not response.answer and local.zone:
        # RFC 2308 section 3: an authoritative denial carries the SOA of the zone.
        response.authority.append(dns.rrset.from_rdata(_name(local.zone), OWN_TTL, _soa(local.zone)))
    limit = query.udp_limit if transport == "udp" else 65535
    wire = response.to_wire(max_size=65535)
    return wire if len(wire) <= limit else dns_wire.truncate(wire, limit, query.opt)


def _add_records(
    response: dns.message.Message, owner: dns.name.Name, wanted: int, records: list[dns.rdata.Rdata]
) -> dns.name.Name | None:
    """Answer with those of `records` that are `wanted`, or with the alias, whose target is returned."""
    alias: dns.name.Name | None = None
    for rdata in records:
        is_alias = rdata.rdtype == dns.rdatatype.CNAME and wanted not in (rdata.rdtype, dns.rdatatype.ANY)
        if is_alias or wanted in (rdata.rdtype, dns.rdatatype.ANY):
            # find_rrset makes it, or adds to the one that is there.
            found = response.find_rrset(response.answer, owner, rdata.rdclass, rdata.rdtype, create=True)
            found.add(rdata, OWN_TTL)
        if is_alias:
            alias = rdata.target  # type: ignore[attr-defined]
    return alias


def _response(query: Query) -> dns.message.Message:
    response = dns.message.make_response(query.message, recursion_available=True)
    # RFC 4035 section 3.2.2 has CD copied, RFC 3225 section 3 DO.
    response.flags |= query.message.flags & dns.flags.CD
    if query.edns is not None:
        flags = dns.flags.DO if query.edns.dnssec_ok else 0
        response.use_edns(0, flags, payload=dns_wire.OWN_UDP_SIZE)
    return response


def _name(labels: Labels) -> dns.name.Name:
    return dns.name.Name((*labels, b""))


def _encode(labels: Labels) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels)


def _records(local: LocalName, name: Labels) -> list[dns.rdata.Rdata]:
    records = []
    for address in local.addresses:
        records.append(_rdata(dns.rdatatype.A if len(address) == 4 else dns.rdatatype.AAAA, address))
    if local.pointer:
        records.append(_rdata(dns.rdatatype.PTR, _encode((*local.pointer, b""))))
    records += [parse_record(kind, value, local.zone) for kind, value in local.records]
    if name == local.zone:
        records.append(_soa(local.zone))
    return records


def parse_record(kind: str, value: str, zone: Labels = ()) -> dns.rdata.Rdata:
    """The data of a record as a zone file writes it; names in it may be relative to `zone`. ValueError."""
    try:
        return dns.rdata.from_text(dns.rdataclass.IN, kind, value, _name(zone), relativize=False)
    except (dns.exception.DNSException, ValueError) as error:
        raise ValueError(f"{kind} {value}: {error}") from None


def _rdata(rdtype: dns.rdatatype.RdataType, wire: bytes) -> dns.rdata.Rdata:
    return dns.rdata.from_wire(dns.rdataclass.IN, rdtype, wire, 0, len(wire))


def _soa(zone: Labels) -> dns.rdata.Rdata:
    # Nobody transfers this zone: its timers mean nothing, its minimum is the TTL of a denial.
    names = _encode((*zone, b"")) + _encode((b"nobody", b"invalid", b""))
    return _rdata(dns.rdatatype.SOA, names + struct.pack("!5I", 1, 3600, 1200, 604800, OWN_TTL))
