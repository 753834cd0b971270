"""What the service answers without asking anybody, and that any bytes get the right kind of answer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.update
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.services.dns import DnsService, Transport
from tunstack.services.local_names import GATEWAY_NAME, HOST_NAME, LocalNames
from tunstack.services.resolv_conf import FixedResolvers, Nameserver

GATEWAY = bytes((10, 0, 2, 2))
GATEWAY6 = bytes((0xFD,)) + bytes(14) + b"\x02"
MANY = [bytes((10, 9, 0, n)) for n in range(120)]
NAMES = LocalNames(
    {
        GATEWAY_NAME: [GATEWAY, GATEWAY6],
        HOST_NAME: [],
        "Db.Example.com": [bytes((10, 1, 1, 1))],
        "many.example.com": MANY,
    }
)


@pytest.fixture(scope="session")
def service(refusing: Nameserver) -> DnsService:
    """A service whose only resolver refuses at once."""
    return DnsService(NAMES, FixedResolvers([refusing]), clock=lambda: 0.0)


def ask(
    service: DnsService,
    name: str,
    rdtype: str,
    transport: Transport = "udp",
    rdclass: str = "IN",
    **options: Any,
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, rdclass, **options)
    wire = query.to_wire()
    assert wire is not None
    answer = trio.run(service.answer, wire, transport)
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert query.is_response(response)
    assert response.flags & dns.flags.RA
    assert response.edns == query.edns
    return response


def texts(response: dns.message.Message) -> list[str]:
    assert all(rrset.ttl == 0 for rrset in response.answer)
    return sorted(str(rdata) for rrset in response.answer for rdata in rrset)


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("gateway.tunstack.internal", "A", ["10.0.2.2"]),
        ("gateway.tunstack.internal", "AAAA", ["fd00::2"]),
        ("GateWay.TUNSTACK.internal", "A", ["10.0.2.2"]),
        ("gateway.tunstack.internal", "ANY", ["10.0.2.2", "fd00::2"]),
        ("db.example.COM", "A", ["10.1.1.1"]),
        ("2.2.0.10.in-addr.arpa", "PTR", ["gateway.tunstack.internal."]),
        ("2." + "0." * 28 + "0.d.f.IP6.arpa", "PTR", ["gateway.tunstack.internal."]),
        ("1.1.1.10.in-addr.arpa", "PTR", ["db.example.com."]),
        ("tunstack.internal", "SOA", ["tunstack.internal. nobody.invalid. 1 3600 1200 604800 0"]),
    ],
)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_own_names(
    service: DnsService, name: str, rdtype: str, expected: list[str], transport: Transport
) -> None:
    response = ask(service, name, rdtype, transport)
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert texts(response) == expected
    assert not response.authority
    # The name as it was typed: some clients compare (draft-vixie-dnsext-dns0x20).
    owner = response.answer[0].name
    assert owner.labels == dns.name.from_text(name).labels


@pytest.mark.parametrize(
    ("name", "rdtype", "rcode", "soa"),
    [
        ("host.tunstack.internal", "A", dns.rcode.NOERROR, True),
        ("host.tunstack.internal", "AAAA", dns.rcode.NOERROR, True),
        ("gateway.tunstack.internal", "MX", dns.rcode.NOERROR, True),
        ("gateway.tunstack.internal", "HTTPS", dns.rcode.NOERROR, True),
        ("gateway.tunstack.internal", "TYPE65500", dns.rcode.NOERROR, True),
        ("tunstack.internal", "A", dns.rcode.NOERROR, True),
        ("nobody.tunstack.internal", "A", dns.rcode.NXDOMAIN, True),
        ("nobody.tunstack.internal", "TXT", dns.rcode.NXDOMAIN, True),
        ("x.gateway.tunstack.internal", "A", dns.rcode.NXDOMAIN, True),
        ("db.example.com", "AAAA", dns.rcode.NOERROR, False),
        ("2.2.0.10.in-addr.arpa", "A", dns.rcode.NOERROR, False),
    ],
)
def test_own_names_without_data(
    service: DnsService, name: str, rdtype: str, rcode: dns.rcode.Rcode, soa: bool
) -> None:
    response = ask(service, name, rdtype)
    assert (response.rcode(), response.answer) == (rcode, [])
    assert [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA] * soa


def test_host_is_the_loopback_address_where_there_is_one(refusing: Nameserver) -> None:
    names = LocalNames({GATEWAY_NAME: [GATEWAY], HOST_NAME: [GATEWAY]})
    service = DnsService(names, FixedResolvers([refusing]))
    assert texts(ask(service, HOST_NAME, "A")) == ["10.0.2.2"]


def test_the_table_can_be_replaced(refusing: Nameserver) -> None:
    service = DnsService(LocalNames({}), FixedResolvers([refusing]))
    assert ask(service, "db.example", "A").rcode() == dns.rcode.SERVFAIL
    service.names = LocalNames({"db.example": [GATEWAY]})
    assert texts(ask(service, "db.example", "A")) == ["10.0.2.2"]


def test_other_classes_of_own_names_are_refused_and_any_class_is_not(service: DnsService) -> None:
    assert ask(service, GATEWAY_NAME, "A", rdclass="CH").rcode() == dns.rcode.REFUSED
    assert texts(ask(service, GATEWAY_NAME, "A", rdclass="ANY")) == ["10.0.2.2"]


def test_edns(service: DnsService) -> None:
    plain = ask(service, GATEWAY_NAME, "A", use_edns=0, payload=4096, want_dnssec=True)
    assert (plain.edns, plain.payload, bool(plain.ednsflags & dns.flags.DO)) == (0, 1232, True)
    assert not ask(service, GATEWAY_NAME, "A", use_edns=0).ednsflags & dns.flags.DO
    failed = ask(service, "elsewhere.example", "A", use_edns=0)
    assert (failed.edns, failed.rcode()) == (0, dns.rcode.SERVFAIL)


def test_an_unknown_version_of_edns_is_badvers(service: DnsService) -> None:
    wire = dns.message.make_query(GATEWAY_NAME, "A", use_edns=3).to_wire()
    assert wire is not None
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert (response.rcode(), response.edns, response.answer) == (dns.rcode.BADVERS, 0, [])


@pytest.mark.parametrize("payload", [0, 511, 512, 1232, 4096])
def test_own_answers_respect_the_datagram_that_the_client_takes(service: DnsService, payload: int) -> None:
    options: dict[str, Any] = {"use_edns": 0, "payload": payload} if payload else {}
    query = dns.message.make_query("many.example.com", "A", **options)
    wire = query.to_wire()
    assert wire is not None
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    assert len(answer) <= max(payload, 512)
    response = dns.message.from_wire(answer)
    assert bool(response.flags & dns.flags.TC) == (payload < 4096)
    found = texts(response)
    # 16 bytes a record; all but header, question and OPT is filled.
    assert len(found) == min(120, (max(payload, 512) - 12 - 22 - (11 if payload else 0)) // 16)
    assert len(texts(ask(service, "many.example.com", "A", "tcp"))) == 120


def test_signed_queries_are_answered(service: DnsService) -> None:
    query = dns.message.make_query(GATEWAY_NAME, "A")
    query.use_tsig({dns.name.from_text("key."): b"secret"})
    wire = query.to_wire()
    assert wire is not None
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    assert texts(dns.message.from_wire(answer)) == ["10.0.2.2"]


@pytest.mark.parametrize("rdtype", ["AXFR", "IXFR"])
def test_zone_transfers_are_refused(service: DnsService, rdtype: str) -> None:
    assert ask(service, "example.com", rdtype, "tcp").rcode() == dns.rcode.REFUSED


def test_flags_are_copied(service: DnsService) -> None:
    query = dns.message.make_query(GATEWAY_NAME, "A", flags=dns.flags.CD)
    wire = query.to_wire()
    assert wire is not None
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    flags = dns.message.from_wire(answer).flags
    assert flags & dns.flags.CD
    assert not flags & dns.flags.RD


def labels(names: list[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(names)


QUERIES = st.builds(
    lambda name, rdtype, rdclass, flags, edns, ident: (
        dns.message.make_query(name, rdtype, rdclass, use_edns=edns, flags=flags, id=ident).to_wire() or b""
    ),
    st.one_of(
        labels([GATEWAY_NAME, HOST_NAME, "no.tunstack.internal", "db.example.com", "other.example", "."]),
        st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,3}", fullmatch=True),
    ),
    st.integers(0, 65535),
    st.sampled_from([1, 3, 255, 0, 65535]),
    st.sampled_from([0, 0x0100, 0x0110, 0x2800, 0x8000, 0x7FFF]),
    st.sampled_from([-1, 0, 1]),
    st.integers(0, 65535),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    wire = bytearray(draw(QUERIES))
    for _ in range(draw(st.integers(0, 4))):
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.one_of(st.just(len(wire)), st.integers(0, len(wire))))
    return bytes(wire[:cut]) + draw(st.one_of(st.just(b""), st.binary(max_size=30)))


def expected_rcodes(wire: bytes) -> set[int]:
    """By the books, with dnspython's opinion of what is well formed."""
    if wire[2] & 0x78:
        return {dns.rcode.NOTIMP}
    if wire[4:6] != b"\x00\x01":
        return {dns.rcode.FORMERR}
    if sum(int.from_bytes(wire[at : at + 2], "big") for at in (6, 8, 10)) > 4:
        return {dns.rcode.FORMERR}
    try:
        return rcodes_of_question(dns.message.from_wire(wire, keyring=False), wire)
    except dns.exception.DNSException:
        pass
    try:
        question = dns.message.from_wire(wire, question_only=True)
    except dns.exception.DNSException:
        return {dns.rcode.FORMERR}
    # The contents of records beside the question are not looked at, so it need not be FORMERR.
    return {dns.rcode.FORMERR, dns.rcode.BADVERS} | rcodes_of_question(question, wire)


def rcodes_of_question(message: dns.message.Message, wire: bytes) -> set[int]:
    question = message.question[0]
    if not wire[12:].startswith(question.name.to_wire() or b"?"):
        return {dns.rcode.FORMERR}
    zone = dns.name.from_text("tunstack.internal")
    if question.name.is_subdomain(zone) or question.name == dns.name.from_text("db.example.com"):
        if message.edns > 0:
            return {dns.rcode.BADVERS}
        if question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            return {dns.rcode.REFUSED}
        return {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}
    if question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
        return {dns.rcode.REFUSED}
    return {dns.rcode.SERVFAIL}


@given(st.one_of(st.binary(max_size=80), mutated()), st.sampled_from(["udp", "tcp"]))
def test_any_bytes_get_the_right_kind_of_answer(
    service: DnsService, wire: bytes, transport: Transport
) -> None:
    counted = service.drops[DropReason.BAD_DNS]
    answer = trio.run(service.answer, wire, transport)
    counted = service.drops[DropReason.BAD_DNS] - counted
    if len(wire) < 12 or wire[2] & 0x80:
        assert answer is None
        assert counted == 1
        return
    assert answer is not None
    assert transport == "tcp" or len(answer) <= 65487
    response = dns.message.from_wire(answer)
    expected = expected_rcodes(wire)
    assert response.rcode() in expected
    assert counted == (response.rcode() == dns.rcode.FORMERR)
    assert response.id == int.from_bytes(wire[:2], "big")
    assert response.flags & dns.flags.QR
    assert bool(response.flags & dns.flags.RD) == bool(wire[2] & 1)
    assert response.opcode() == wire[2] >> 3 & 15


WELL_FORMED = dns.message.make_query(GATEWAY_NAME, "A", use_edns=0, payload=4000, pad=64)
WELL_FORMED.use_tsig({dns.name.from_text("key."): b"secret"})


@pytest.mark.parametrize("change", ["cut", "extended", "counted"])
def test_a_message_that_does_not_end_where_it_says_is_malformed(service: DnsService, change: str) -> None:
    wire = WELL_FORMED.to_wire()
    assert wire is not None
    bad = {
        "cut": [wire[:end] for end in range(12, len(wire))],
        "extended": [wire + bytes(count) for count in range(1, 40)],
        "counted": [
            wire[:at] + bytes((0, value)) + wire[at + 2 :]
            for at in (4, 6, 8, 10)
            for value in range(5)
            if value != wire[at + 1]
        ],
    }[change]
    assert bad
    for message in bad:
        answer = trio.run(service.answer, message, "udp")
        assert answer is not None
        assert dns.message.from_wire(answer).rcode() == dns.rcode.FORMERR, message


def test_the_question_cannot_point_into_the_header(service: DnsService) -> None:
    # Offset 6 holds a zero, which dnspython takes for the root. That name is a byte shorter than
    # the pointer, so who believes it finds a record that starts in the question.
    wire = bytes(5) + b"\x01" + bytes(5) + b"\x01" + b"\xc0\x06\x00\x01\x00\x01" + b"a" + bytes(11)
    assert dns.message.from_wire(wire, question_only=True).question[0].name == dns.name.root
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    assert dns.message.from_wire(answer).rcode() == dns.rcode.FORMERR


OPT = b"\x00\x00\x29\x10\x00" + bytes(6)


@pytest.mark.parametrize(
    ("counts", "records", "good"),
    [
        ((0, 0, 1), OPT, True),
        ((0, 0, 2), OPT + b"\xc0\x0c\x00\x01\x00\x01" + bytes(6), True),
        ((0, 0, 2), OPT + OPT, False),
        ((1, 0, 0), OPT, False),
        ((0, 1, 0), OPT, False),
        ((0, 0, 1), b"\x01a" + OPT, False),
        ((0, 0, 1), b"\xc0\x1a" + OPT[1:], False),
        ((0, 0, 2), OPT + b"\x40\x0c\x00\x01\x00\x01" + bytes(6), False),
        ((0, 0, 2), OPT + b"\x80\x0c\x00\x01\x00\x01" + bytes(6), False),
    ],
)
def test_where_an_opt_record_may_be(
    service: DnsService, counts: tuple[int, int, int], records: bytes, good: bool
) -> None:
    plain = dns.message.make_query(GATEWAY_NAME, "A").to_wire()
    assert plain is not None
    wire = plain[:6] + b"".join(bytes((0, count)) for count in counts) + plain[12:] + records
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert (response.rcode() == dns.rcode.NOERROR) == good
    assert response.edns == (0 if good else -1)


def test_an_update_is_not_implemented(service: DnsService) -> None:
    update = dns.update.UpdateMessage("tunstack.internal")
    update.add("evil", 60, "A", "192.0.2.1")
    wire = update.to_wire()
    assert wire is not None
    answer = trio.run(service.answer, wire, "udp")
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert (response.rcode(), response.opcode()) == (dns.rcode.NOTIMP, dns.opcode.UPDATE)


def test_a_long_query_is_malformed(service: DnsService) -> None:
    small = DnsService(NAMES, FixedResolvers([Nameserver(GATEWAY)]), Limits(dns_query_size=60))
    for target, code in ((small, dns.rcode.FORMERR), (service, dns.rcode.NOERROR)):
        query = dns.message.make_query(GATEWAY_NAME, "A", use_edns=0, pad=128)
        wire = query.to_wire()
        assert wire is not None
        answer = trio.run(target.answer, wire, "udp")
        assert answer is not None
        assert dns.message.from_wire(answer).rcode() == code


def test_dnspython_is_imported_at_the_first_query() -> None:
    program = """
import sys, trio
from tunstack.services.dns import DnsService
from tunstack.services.local_names import LocalNames
from tunstack.services.resolv_conf import ResolvConf
service = DnsService(LocalNames({"gateway.tunstack.internal": [bytes((10, 0, 2, 2))]}), ResolvConf())
assert "dns" not in sys.modules
query = bytes(5) + b"\\1" + bytes(6) + b"\\7gateway\\10tunstack\\10internal\\0\\0\\1\\0\\1"
answer = trio.run(service.answer, query, "udp")
assert "dns" in sys.modules
assert answer.endswith(bytes((0, 4, 10, 0, 2, 2))), answer
"""
    subprocess.run([sys.executable, "-c", program], check=True)
