"""What is kept of the resolvers' answers, for how long and for whom; and who is asked for which zone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.conftest import plain_answer
from tunstack.limits import Limits
from tunstack.services import dns_wire
from tunstack.services.dns import DnsService, Transport
from tunstack.services.dns_cache import LARGEST, MAX_DENIAL, MAX_TTL, DnsCache
from tunstack.services.local_names import LocalNames, Zone, parse_name
from tunstack.services.resolv_conf import FixedResolvers

Start = Callable[..., Awaitable[Any]]
NAME = "www.Example.com."
SOA = "ns.example.com. root.example.com. 1 2 3 4 "
EDNS = st.sampled_from([{}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True}])


def make_query(name: str = NAME, rdtype: str = "A", **options: Any) -> dns.message.Message:
    return dns.message.make_query(name, rdtype, **options)


def make_answer(
    query: dns.message.Message, *records: str, authority: str = "", code: int = 0, **edns: Any
) -> bytes:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.set_rcode(dns.rcode.Rcode(code))
    answer.flags |= dns.flags.AA
    for record in records:
        ttl, rdtype, value = record.split(" ", 2)
        answer.answer.append(dns.rrset.from_text(query.question[0].name, int(ttl), "IN", rdtype, value))
    if authority:
        ttl, rdtype, value = authority.split(" ", 2)
        answer.authority.append(dns.rrset.from_text("example.com.", int(ttl), "IN", rdtype, value))
    if edns:
        answer.use_edns(**edns)
    return answer.to_wire(max_size=65535) or b""


class Kept:
    """A cache, with queries as messages."""

    def __init__(self, **bounds: int) -> None:
        self.cache = DnsCache(bounds.get("entries", 100), bounds.get("size", 1 << 20))

    def keep(self, query: dns.message.Message, answer: bytes, now: float = 0.0) -> None:
        wire = query.to_wire() or b""
        question = dns_wire.read_question(wire)
        assert question is not None
        self.cache.keep(wire, question[1], dns_wire.find_edns(wire, question[1]), answer, now)

    def find(self, query: dns.message.Message, now: float = 0.0) -> dns.message.Message | None:
        wire = query.to_wire() or b""
        question = dns_wire.read_question(wire)
        assert question is not None
        found = self.cache.find(wire, question[1], dns_wire.find_edns(wire, question[1]), now)
        if found is None:
            return None
        answer = dns.message.from_wire(found)
        assert query.is_response(answer)
        assert found[12 : question[1]] == wire[12 : question[1]], "in the letters of who asks"
        return answer


@given(
    st.lists(st.integers(1, 2 * MAX_TTL), min_size=1, max_size=5),
    st.integers(0, 2 * MAX_TTL),
    EDNS,
    EDNS,
    st.booleans(),
)
def test_an_answer_lasts_as_long_as_its_shortest_record(
    ttls: list[int], later: int, first: dict[str, Any], second: dict[str, Any], is_upper: bool
) -> None:
    kept = Kept()
    query = make_query(**first)
    records = [f"{ttl} TXT text{number}" for number, ttl in enumerate(ttls)]
    answer = dns.message.make_response(query)
    for number, (ttl, record) in enumerate(zip(ttls, records, strict=True)):
        owner = f"n{number}.{NAME}" if number else NAME
        answer.answer.append(dns.rrset.from_text(owner, ttl, "IN", *record.split(" ")[1:]))
    kept.keep(query, answer.to_wire() or b"", 1000.0)
    asked = make_query(NAME.upper() if is_upper else NAME, **second)
    found = kept.find(asked, 1000.0 + later)
    if later >= min(*ttls, MAX_TTL) or first.get("want_dnssec") != second.get("want_dnssec"):
        assert found is None
    else:
        assert found is not None
        assert [rrset.ttl for rrset in found.answer] == [ttl - later for ttl in ttls]
        assert (found.edns, bool(found.ednsflags & dns.flags.DO)) == (
            0 if second else -1,
            "want_dnssec" in second,
        )


@pytest.mark.parametrize("code", [0, dns.rcode.NXDOMAIN])
@pytest.mark.parametrize(
    ("authority", "lasts"),
    [
        (f"600 SOA {SOA}60", 60),
        (f"30 SOA {SOA}60", 30),
        (f"99999 SOA {SOA}99999", MAX_DENIAL),
        ("", 0),
        ("60 NS ns.", 0),
    ],
)
def test_a_denial_lasts_as_long_as_its_soa_says(code: int, authority: str, lasts: int) -> None:
    kept = Kept()
    query = make_query()
    kept.keep(query, make_answer(query, authority=authority, code=code))
    if lasts:
        found = kept.find(query, lasts - 1)
        assert found is not None and found.rcode() == code and not found.flags & dns.flags.AA
    assert kept.find(query, lasts) is None


def test_flags_types_and_options_keep_answers_apart() -> None:
    kept = Kept()
    query = make_query()
    kept.keep(query, make_answer(query, "60 A 192.0.2.1"))
    assert kept.find(query) is not None
    assert kept.find(make_query(rdtype="AAAA")) is None
    assert kept.find(make_query("example.com.")) is None
    for flag in (dns.flags.RD, dns.flags.CD):
        other = make_query()
        other.flags ^= flag
        assert kept.find(other) is None
    own = make_query(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")])
    assert kept.find(own) is None
    kept.keep(own, make_answer(own, "60 A 192.0.2.2"))
    assert len(kept.cache) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer[:2] + bytes((answer[2] | 2,)) + answer[3:],  # TC
        lambda answer: answer[:3] + bytes((answer[3] | 2,)) + answer[4:],  # SERVFAIL
        lambda answer: answer[:-1],
        lambda answer: answer + b"\0",
        lambda answer: answer[:4] + b"\0\0" + answer[6:],
        lambda answer: answer[:12],
        lambda answer: answer + bytes(LARGEST),
    ],
)
def test_what_is_not_whole_is_not_kept(spoil: Callable[[bytes], bytes]) -> None:
    kept = Kept()
    query = make_query()
    kept.keep(query, spoil(make_answer(query, "60 A 192.0.2.1")))
    assert len(kept.cache) == 0


def test_a_zero_ttl_and_a_longer_response_code_are_not_kept() -> None:
    kept = Kept()
    query = make_query(use_edns=0)
    kept.keep(query, make_answer(query, "0 A 192.0.2.1"))
    kept.keep(query, make_answer(query, "60 A 192.0.2.1", edns=0, ednsflags=1 << 24))
    assert len(kept.cache) == 0


@given(st.binary(max_size=200), st.integers(0, 4))
def test_any_bytes_may_be_an_answer(data: bytes, cut: int) -> None:
    kept = Kept()
    query = make_query()
    head = make_answer(query, "60 A 192.0.2.1")[: 12 * cut]
    kept.keep(query, head + data if len(head + data) >= 12 else bytes(12))
    kept.find(query)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 400)), max_size=80), st.integers(0, 8))
def test_it_is_bounded_and_what_was_used_last_stays(program: list[tuple[int, int]], entries: int) -> None:
    kept = Kept(entries=entries, size=4000)
    for number, size in program:
        query = make_query(f"n{number}.example.com.", "TXT")
        kept.keep(query, make_answer(query, f'60 TXT "{"x" * (size % 250 + 1)}"'))
        assert len(kept.cache) <= entries and kept.cache.used <= 4000
        assert (kept.find(query) is None) == (entries == 0)
    kept.cache.clear()
    assert (len(kept.cache), kept.cache.used) == (0, 0)


# the service


async def ask(service: DnsService, transport: Transport = "udp", **options: Any) -> dns.message.Message:
    query = make_query(**options)
    answer = await service.answer(query.to_wire() or b"", transport)
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert query.is_response(response)
    return response


def texts(response: dns.message.Message) -> list[str]:
    return [str(rdata) for rrset in response.answer for rdata in rrset]


async def test_a_resolver_is_asked_once(start_resolver: Start) -> None:
    resolver = await start_resolver()
    now = 0.0
    service = DnsService(LocalNames({}), FixedResolvers([resolver.nameserver]), clock=lambda: now)
    for name in (NAME, NAME.lower(), NAME.upper()):
        response = await ask(service, name=name)
        assert texts(response) == ["192.0.2.7"] and response.answer[0].ttl == 60 - now
        now += 20
    assert len(resolver.seen) == 1
    assert texts(await ask(service)) == ["192.0.2.7"]
    assert len(resolver.seen) == 2


async def test_a_kept_answer_is_cut_for_who_takes_less(start_resolver: Start) -> None:
    def large(query: dns.message.Message, transport: str) -> bytes:
        addresses = [f"60 A 10.7.0.{number}" for number in range(100)]
        whole = make_answer(query, *addresses)
        return whole if transport == "tcp" else dns_wire.truncate(whole, 512)

    resolver = await start_resolver(large)
    service = DnsService(LocalNames({}), FixedResolvers([resolver.nameserver]))
    assert len(texts(await ask(service, "tcp"))) == 100
    small = await ask(service)
    assert small.flags & dns.flags.TC and 0 < len(texts(small)) < 100
    assert not (await ask(service, use_edns=0, payload=4096)).flags & dns.flags.TC
    assert len(resolver.seen) == 2  # over UDP and TCP, for the first one


async def test_own_names_come_before_what_is_kept(start_resolver: Start) -> None:
    resolver = await start_resolver()
    service = DnsService(LocalNames({}), FixedResolvers([resolver.nameserver]))
    assert texts(await ask(service)) == ["192.0.2.7"]
    service.names = LocalNames({NAME: [bytes((10, 1, 1, 1))]})
    assert texts(await ask(service)) == ["10.1.1.1"]


async def test_each_zone_has_its_resolvers(start_resolver: Start) -> None:
    def from_address(address: str) -> Any:
        return lambda query, transport: make_answer(query, f"60 A {address}")

    others = await start_resolver(from_address("192.0.2.1"))
    inner = await start_resolver(from_address("192.0.2.2"))
    corp = await start_resolver(from_address("192.0.2.3"))
    routes = {
        parse_name("corp.example"): FixedResolvers([corp.nameserver]),
        parse_name("in.corp.example"): FixedResolvers([inner.nameserver]),
    }
    service = DnsService(LocalNames({}), FixedResolvers([others.nameserver]), routes=routes)
    for name, address in {
        "example.": "192.0.2.1",
        "notcorp.example.": "192.0.2.1",
        "Corp.Example.": "192.0.2.3",
        "a.b.corp.example.": "192.0.2.3",
        "x.in.corp.example.": "192.0.2.2",
        ".": "192.0.2.1",
    }.items():
        assert texts(await ask(service, name=name)) == [address]


# zones


ZONE = Zone(
    name="lab.example.",
    hosts={"@": [bytes((10, 1, 0, 1))], "gw": [bytes((10, 1, 0, 2)), bytes(15) + b"\1"], "only.deep": []},
    records={
        "@": [("MX", "10 gw"), ("TXT", '"a b"')],
        "www": [("CNAME", "gw")],
        "_x._tcp": [("SRV", "1 2 3 gw")],
    },
    patterns=[("^n[0-9]+$", [bytes((10, 1, 1, 1))]), ("x", [bytes(15) + b"\2"])],
    default=[bytes((10, 1, 2, 2))],
)


@pytest.mark.parametrize(
    ("name", "rdtype", "answers"),
    [
        ("lab.example.", "A", ["10.1.0.1"]),
        ("LAB.example.", "MX", ["10 gw.lab.example."]),
        ("lab.example.", "TXT", ['"a b"']),
        ("gw.lab.example.", "AAAA", ["::1"]),
        ("www.lab.example.", "CNAME", ["gw.lab.example."]),
        ("_x._tcp.lab.example.", "SRV", ["1 2 3 gw.lab.example."]),
        ("n17.lab.example.", "A", ["10.1.1.1"]),
        ("N17.lab.example.", "A", ["10.1.1.1"]),
        ("an17.lab.example.", "A", ["10.1.2.2"]),
        ("axe.lab.example.", "AAAA", ["::2"]),
        ("axe.lab.example.", "A", []),
        ("anything.at.all.lab.example.", "A", ["10.1.2.2"]),
        ("only.deep.lab.example.", "A", []),
        ("1.1.0.10.in-addr.arpa.", "PTR", None),
        ("2.0.1.10.in-addr.arpa.", "PTR", ["gw.lab.example."]),
    ],
)
async def test_a_zone_that_is_written_down(
    start_resolver: Start, name: str, rdtype: str, answers: Any
) -> None:
    resolver = await start_resolver(
        lambda query, transport: make_answer(query, code=3, authority=f"60 SOA {SOA}60")
    )
    service = DnsService(LocalNames({}, [ZONE]), FixedResolvers([resolver.nameserver]))
    response = await ask(service, name=name, rdtype=rdtype)
    assert response.rcode() == (dns.rcode.NXDOMAIN if answers is None else dns.rcode.NOERROR)
    assert [text.lower() for text in texts(response)] == (answers or [])
    assert len(resolver.seen) == (answers is None)


async def test_an_alias_is_answered_with_what_it_leads_to() -> None:
    service = DnsService(LocalNames({}, [ZONE]), FixedResolvers([bytes((192, 0, 2, 1))]))
    assert texts(await ask(service, name="www.lab.example.")) == ["gw.lab.example.", "10.1.0.2"]


async def test_without_a_default_what_is_not_there_does_not_exist() -> None:
    names = LocalNames({"a.b.lab.example": [bytes(4)]}, [Zone(name="lab.example")])
    service = DnsService(names, FixedResolvers([bytes((192, 0, 2, 1))]))
    for name, code in {"a.b": 0, "b": 0, "c": 3, "a.b.c": 3}.items():
        response = await ask(service, name=f"{name}.lab.example.", rdtype="TXT")
        assert (response.rcode(), texts(response), len(response.authority)) == (code, [], 1)


@pytest.mark.parametrize(
    "zone",
    [
        Zone(name="a..b"),
        Zone(name="a", patterns=[("(", [bytes(4)])]),
        Zone(name="a", default=[bytes(5)]),
        Zone(name="a", patterns=[("a", [bytes(3)])]),
        Zone(name="a", hosts={"b": [bytes(3)]}),
    ],
)
def test_a_zone_that_cannot_be(zone: Zone) -> None:
    with pytest.raises(ValueError, match=" "):
        LocalNames({}, [zone])


async def test_dns_of_the_cache_is_bounded_by_the_limits(start_resolver: Start) -> None:
    resolver = await start_resolver(plain_answer)
    service = DnsService(LocalNames({}), FixedResolvers([resolver.nameserver]), Limits(dns_cache=3))
    for number in range(10):
        await ask(service, name=f"n{number}.example.")
    assert len(service.cache) == 3
