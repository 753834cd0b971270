"""Relaying to resolvers that answer, are silent, lie, fail, cut short: real servers on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.services.dns import DnsService, Transport
from tunstack.services.dns_upstream import AVOID
from tunstack.services.local_names import GATEWAY_NAME, LocalNames
from tunstack.services.resolv_conf import FixedResolvers, Nameserver, ResolvConf, Resolvers

Start = Callable[..., Awaitable[Any]]

NAMES = LocalNames({GATEWAY_NAME: [bytes((10, 0, 2, 2))]})


def make_service(*resolvers: Any, timeout: float = 5.0, attempts: int = 2, total: float = 5.0) -> DnsService:
    servers = [item if isinstance(item, Nameserver) else item.nameserver for item in resolvers]
    limits = Limits(dns_timeout=total, dns_cache=0)  # each question is asked
    return DnsService(NAMES, FixedResolvers(servers, timeout=timeout, attempts=attempts), limits)


def make_wire(name: str = "www.example.com", rdtype: str = "A", **options: Any) -> bytes:
    wire = dns.message.make_query(name, rdtype, **options).to_wire(max_size=65535)
    assert wire is not None
    return wire


async def ask(service: DnsService, transport: Transport = "udp", **options: Any) -> dns.message.Message:
    wire = make_wire(**options)
    answer = await service.answer(wire, transport)
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert dns.message.from_wire(wire).is_response(response) or response.rcode() != dns.rcode.NOERROR
    return response


def addresses(response: dns.message.Message) -> list[str]:
    return [str(rdata) for rrset in response.answer for rdata in rrset]


def with_address(address: str) -> Callable[[dns.message.Message, str], bytes]:
    def behave(query: dns.message.Message, transport: str) -> bytes:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", address))
        return response.to_wire() or b""

    return behave


def with_rcode(code: dns.rcode.Rcode) -> Callable[[dns.message.Message, str], bytes]:
    def behave(query: dns.message.Message, transport: str) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(code)
        return response.to_wire() or b""

    return behave


def silent(query: dns.message.Message, transport: str) -> list[bytes]:
    return []


@contextlib.contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    start = time.perf_counter()
    yield
    assert least <= time.perf_counter() - start <= most


async def test_a_query_passes_as_it_is_but_for_the_id(start_resolver: Start) -> None:
    resolver = await start_resolver()
    service = make_service(resolver)
    wire = make_wire("wWw.exAmple.com", "TYPE65280", use_edns=0, payload=1400, pad=64, id=0x1234)
    for _ in range(12):
        answer = await service.answer(wire, "udp")
        assert answer is not None
        assert answer[:2] == wire[:2]
    assert {seen[1][2:] for seen in resolver.seen} == {wire[2:]}
    assert len({seen[1][:2] for seen in resolver.seen}) > 8
    assert len({seen[2] for seen in resolver.seen}) > 8


@given(st.data())
@settings(max_examples=60)
def test_an_answer_passes_as_it_is_but_for_the_id(resolver_class: Any, data: st.DataObject) -> None:
    transport: Transport = data.draw(st.sampled_from(["udp", "tcp"]))
    ident = data.draw(st.integers(0, 65535))
    # QR and opcode QUERY, no TC; a response code after which no other server is asked.
    flags = bytes((0x80 | data.draw(st.sampled_from([0, 1, 4, 5])), data.draw(st.integers(0, 15)) << 4))
    code = data.draw(st.sampled_from([0, 1, 3, 6, 15]))
    counts = data.draw(st.binary(min_size=6, max_size=6))
    tail = data.draw(st.binary(max_size=450))

    def behave(query: dns.message.Message, transport: str) -> bytes:
        question = (query.to_wire() or b"")[12:]
        body = flags[:1] + bytes((flags[1] | code,)) + b"\x00\x01" + counts + question + tail
        sent.append(body)
        return query.id.to_bytes(2, "big") + body

    async def run() -> bytes | None:
        async with resolver_class(behave).running() as resolver:
            return await make_service(resolver).answer(make_wire(id=ident), transport)

    sent: list[bytes] = []
    assert trio.run(run) == ident.to_bytes(2, "big") + sent[0]
    assert len(sent) == 1


async def test_a_silent_server_is_passed_over_and_then_asked_last(start_resolver: Start) -> None:
    dead = await start_resolver(silent)
    good = await start_resolver(address="127.0.0.2")
    service = make_service(dead, good, total=0.8)
    with takes(0.19, 0.39):
        assert addresses(await ask(service)) == ["192.0.2.7"]
    assert len(dead.seen) == 1
    for _ in range(3):
        with takes(0, 0.15):
            assert addresses(await ask(service)) == ["192.0.2.7"]
    assert len(dead.seen) == 1


async def test_a_server_is_avoided_for_a_while_only(start_resolver: Start) -> None:
    first = await start_resolver(silent)
    second = await start_resolver(with_address("192.0.2.2"), address="127.0.0.2")
    now = 1000.0
    fixed = FixedResolvers([first.nameserver, second.nameserver])
    service = DnsService(NAMES, fixed, Limits(dns_timeout=0.4, dns_cache=0), clock=lambda: now)
    assert addresses(await ask(service)) == ["192.0.2.2"]
    first.behave = with_address("192.0.2.1")
    now += AVOID - 0.1
    assert addresses(await ask(service)) == ["192.0.2.2"]
    now += 0.2
    assert addresses(await ask(service)) == ["192.0.2.1"]


async def test_a_late_answer_still_counts_when_the_next_server_has_been_asked(start_resolver: Start) -> None:
    slow = await start_resolver(lambda query, transport: 0.3)
    dead = await start_resolver(silent, address="127.0.0.2")
    service = make_service(slow, dead, attempts=1, total=0.5)
    with takes(0.29, 0.48):
        assert addresses(await ask(service)) == ["192.0.2.7"]
    assert len(dead.seen) == 1


async def test_a_lost_query_is_sent_again_on_the_same_socket(start_resolver: Start) -> None:
    resolver = await start_resolver()
    resolver.behave = lambda query, transport: (
        [] if len(resolver.seen) == 1 else with_address("192.0.2.3")(query, transport)
    )
    assert addresses(await ask(make_service(resolver, total=0.4))) == ["192.0.2.3"]
    assert len(resolver.seen) == 2
    assert resolver.seen[0] == resolver.seen[1]


async def test_only_silence_becomes_servfail(start_resolver: Start) -> None:
    one, two = await start_resolver(silent), await start_resolver(silent, address="127.0.0.2")
    service = make_service(one, two, total=0.4)
    with takes(0.39, 0.6):
        response = await ask(service, use_edns=0)
    assert (response.rcode(), response.edns) == (dns.rcode.SERVFAIL, 0)
    assert (len(one.seen), len(two.seen)) == (2, 2)


async def test_the_configured_timeout_ends_the_wait_earlier(start_resolver: Start) -> None:
    resolver = await start_resolver(silent)
    with takes(0.19, 0.4):
        response = await ask(make_service(resolver, timeout=0.1, attempts=2))
    assert response.rcode() == dns.rcode.SERVFAIL


async def test_a_refusing_server_costs_no_time(start_resolver: Start, refusing: Nameserver) -> None:
    resolver = await start_resolver()
    with takes(0, 0.3):
        assert addresses(await ask(make_service(refusing, resolver))) == ["192.0.2.7"]
        assert (await ask(make_service(refusing))).rcode() == dns.rcode.SERVFAIL


async def test_an_interface_that_is_not_there_is_a_failed_server(start_resolver: Start) -> None:
    resolver = await start_resolver()
    lost = Nameserver(b"\xfe\x80" + bytes(13) + b"\x01", "no-such-device", 53)
    assert addresses(await ask(make_service(lost, resolver))) == ["192.0.2.7"]


async def test_ipv6(start_resolver: Start) -> None:
    resolver = await start_resolver(address="::1")
    assert addresses(await ask(make_service(dataclasses.replace(resolver.nameserver, scope="lo")))) == [
        "192.0.2.7"
    ]


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
async def test_a_failing_server_gives_way_to_the_next(start_resolver: Start, code: dns.rcode.Rcode) -> None:
    failing = await start_resolver(with_rcode(code))
    good = await start_resolver(address="127.0.0.2")
    with takes(0, 0.3):
        assert addresses(await ask(make_service(failing, good))) == ["192.0.2.7"]
        # Nobody does better: the first failure is the answer.
        assert (await ask(make_service(failing, failing))).rcode() == code


async def test_the_best_failure_is_the_answer(start_resolver: Start) -> None:
    refused = await start_resolver(with_rcode(dns.rcode.REFUSED))
    failed = await start_resolver(with_rcode(dns.rcode.SERVFAIL))
    # TC and no TCP: there is something in it all the same.
    cut = await start_resolver(large, tcp=False)
    assert (await ask(make_service(refused, failed))).rcode() == dns.rcode.REFUSED
    for servers in ((failed, cut), (cut, failed)):
        response = await ask(make_service(*servers))
        assert response.rcode() == dns.rcode.NOERROR
        assert response.flags & dns.flags.TC


@pytest.mark.parametrize("code", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR, dns.rcode.FORMERR])
async def test_a_denial_is_an_answer(start_resolver: Start, code: dns.rcode.Rcode) -> None:
    first = await start_resolver(with_rcode(code))
    second = await start_resolver(address="127.0.0.2")
    assert (await ask(make_service(first, second))).rcode() == code
    assert not second.seen


def lies(query: dns.message.Message) -> list[bytes]:
    good = with_address("192.0.2.66")(query, "udp")
    other = dns.message.make_query("www.example.net", "A", id=query.id)
    return [
        bytes((good[0] ^ 1,)) + good[1:],
        with_address("192.0.2.66")(other, "udp"),
        query.to_wire() or b"",
        good[:11],
        b"",
    ]


async def test_what_does_not_match_is_not_heard(start_resolver: Start) -> None:
    liar = await start_resolver(lambda query, transport: lies(query))
    assert (await ask(make_service(liar, total=0.2))).rcode() == dns.rcode.SERVFAIL
    mixed = await start_resolver(
        lambda query, transport: [*lies(query), with_address("192.0.2.1")(query, "")]
    )
    assert addresses(await ask(make_service(mixed))) == ["192.0.2.1"]


async def test_another_address_or_port_is_not_heard(start_resolver: Start) -> None:
    victim: Any = None

    def behave(query: dns.message.Message, transport: str) -> list[bytes]:
        for source in ("127.0.0.1", "127.0.0.2"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
                forger.bind((source, 0))
                forger.sendto(with_address("192.0.2.66")(query, "udp"), ("127.0.0.1", victim.seen[-1][2]))
        return []

    victim = await start_resolver(behave)
    assert (await ask(make_service(victim, total=0.2))).rcode() == dns.rcode.SERVFAIL
    assert len(victim.seen) == 2


def large(query: dns.message.Message, transport: str) -> bytes:
    """180 addresses, some 2.9 KB: cut over UDP to what the query takes, as servers do."""
    response = dns.message.make_response(query, our_payload=4096)
    records = [f"10.7.0.{n}" for n in range(180)]
    response.answer.append(dns.rrset.from_text_list(query.question[0].name, 60, "IN", "A", records))
    whole = response.to_wire(max_size=65535) or b""
    if transport == "udp" and len(whole) > max(query.payload, 512):
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire() or b""
    return whole


async def test_truncation_is_followed_over_tcp(start_resolver: Start) -> None:
    resolver = await start_resolver(large)
    service = make_service(resolver)
    small = await ask(service)
    assert small.flags & dns.flags.TC
    assert len(small.to_wire() or b"") <= 512
    assert len(addresses(small)) == len(set(addresses(small))) == (512 - 33) // 16
    assert all(address.startswith("10.7.0.") for address in addresses(small))
    assert [seen[0] for seen in resolver.seen] == ["udp", "tcp"]

    whole = await ask(service, "tcp")
    assert not whole.flags & dns.flags.TC
    assert len(addresses(whole)) == 180

    resolver.seen.clear()
    for payload, complete in ((4096, True), (1232, False)):
        answer = await ask(service, use_edns=0, payload=payload)
        assert bool(answer.flags & dns.flags.TC) != complete
        assert (len(addresses(answer)) == 180) == complete
        assert answer.edns == 0
    assert [seen[0] for seen in resolver.seen] == ["udp", "udp", "tcp"]


async def test_an_answer_longer_than_asked_for_is_cut(start_resolver: Start) -> None:
    resolver = await start_resolver(lambda query, transport: large(query, "tcp"))
    wire = make_wire()
    answer = await make_service(resolver).answer(wire, "udp")
    assert answer is not None
    assert len(answer) <= 512
    assert dns.message.from_wire(answer).flags & dns.flags.TC


@pytest.mark.parametrize("tcp", ["refused", "closed", "mismatch", "silent"])
async def test_without_tcp_the_truncated_answer_is_what_there_is(start_resolver: Start, tcp: str) -> None:
    def behave(query: dns.message.Message, transport: str) -> list[bytes]:
        if transport == "udp":
            return [large(query, transport)]
        return {"closed": [b"\x00" * 11], "mismatch": [lies(query)[1]], "silent": []}[tcp]

    resolver = await start_resolver(behave, tcp=tcp != "refused")
    other = await start_resolver(silent, address="127.0.0.2")
    response = await ask(make_service(resolver, other, total=0.4))
    assert response.flags & dns.flags.TC
    assert response.rcode() == dns.rcode.NOERROR


async def test_silence_over_tcp_is_not_waited_for_to_the_end(start_resolver: Start) -> None:
    resolver = await start_resolver(
        lambda query, transport: large(query, transport) if transport == "udp" else []
    )
    with takes(0.49, 0.9):
        response = await ask(make_service(resolver, attempts=2, total=1.0))
    assert response.flags & dns.flags.TC


async def test_a_long_query_goes_over_tcp(start_resolver: Start) -> None:
    resolver = await start_resolver()
    options = [dns.edns.GenericOption("65001", bytes(1300))]
    assert addresses(await ask(make_service(resolver), use_edns=0, options=options)) == ["192.0.2.7"]
    assert [seen[0] for seen in resolver.seen] == ["tcp"]


async def test_own_names_and_transfers_are_not_leaked(start_resolver: Start) -> None:
    resolver = await start_resolver()
    service = make_service(resolver)
    for name, rdtype in (
        (GATEWAY_NAME, "A"), (GATEWAY_NAME, "TXT"),
        ("typo.tunstack.internal", "AAAA"), ("example.com", "AXFR"),
        ("2.2.0.10.in-addr.arpa", "PTR"),
    ):  # fmt: skip
        assert await service.answer(make_wire(name, rdtype), "tcp") is not None
    assert not resolver.seen


class OnPort:
    """A resolv.conf whose servers are found on another port."""

    def __init__(self, conf: ResolvConf, port: int) -> None:
        self._conf = conf
        self._port = port

    def current(self, now: float) -> Resolvers:
        found = self._conf.current(now)
        servers = tuple(dataclasses.replace(server, port=self._port) for server in found.nameservers)
        return dataclasses.replace(found, nameservers=servers)


async def test_resolv_conf_is_followed(start_resolver: Start, tmp_path: pathlib.Path) -> None:
    one = await start_resolver(with_address("192.0.2.1"))
    two = await start_resolver(with_address("192.0.2.2"), address="127.0.0.2", port=one.port)
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    now = 50.0
    service = DnsService(NAMES, OnPort(ResolvConf(str(path)), one.port), clock=lambda: now)
    assert addresses(await ask(service)) == ["192.0.2.1"]
    path.write_text("nameserver 127.0.0.2\n")
    now += 0.9
    assert addresses(await ask(service)) == ["192.0.2.1"]
    now += 0.2
    assert addresses(await ask(service)) == ["192.0.2.2"]
    assert (len(one.seen), len(two.seen)) == (1, 1)


async def test_places_are_bounded_shared_and_given_back(
    start_resolver: Start, autojump_clock: trio.testing.MockClock
) -> None:
    resolver = await start_resolver(silent)
    limits = Limits(dns_queries=8)
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]), limits)
    answers: list[tuple[object, bytes | None]] = []

    async def query(client: object, transport: Transport = "udp") -> None:
        answers.append((client, await service.answer(make_wire(), transport, client)))

    async with trio.open_nursery() as nursery:
        for client in ("greedy", "other", "third"):
            for _ in range(6):
                nursery.start_soon(query, client)
        await trio.testing.wait_all_tasks_blocked()
        # 4 places for each of two; 2 too many each, and nothing left for the third.
        assert service.drops[DropReason.DNS_QUERY_LIMIT] == 2 + 2 + 6
        assert [answer for _, answer in answers] == [None] * 10
        # Own names need no place; TCP, which does not ask again, hears of the failure.
        assert addresses(await ask(service, name=GATEWAY_NAME)) == ["10.0.2.2"]
        assert (await ask(service, "tcp")).rcode() == dns.rcode.SERVFAIL
        start = trio.current_time()
    assert trio.current_time() - start == pytest.approx(limits.dns_timeout)
    assert [dns.message.from_wire(answer).rcode() for _, answer in answers[10:] if answer] == [
        dns.rcode.SERVFAIL
    ] * 8
    # All places are free again.
    async with trio.open_nursery() as nursery:
        for client in ("greedy", "other"):
            for _ in range(4):
                nursery.start_soon(query, client)
    assert [answer is not None for _, answer in answers[18:]] == [True] * 8


async def test_a_cancelled_query_gives_its_place_back(start_resolver: Start) -> None:
    resolver = await start_resolver(silent)
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]), Limits(dns_queries=2))
    for _ in range(5):
        with trio.move_on_after(0.02) as scope:
            await service.answer(make_wire(), "udp")
        assert scope.cancelled_caught
    resolver.behave = with_address("192.0.2.1")
    assert addresses(await ask(service)) == ["192.0.2.1"]
    assert service.drops[DropReason.DNS_QUERY_LIMIT] == 0
