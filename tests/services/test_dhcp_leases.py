"""The lease table: no address has two clients, whoever does what; and who gets which."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tunstack.limits import DEFAULT_LIMITS
from tunstack.services.dhcp_leases import DECLINE_TIME, OFFER_TIME, LeaseTable, Pool

LEASE = 3600.0


def address(number: int) -> bytes:
    return bytes((10, 0, 2, number))


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


POOL = Pool(address(100), address(106), frozenset((address(103),)))
STATIC = {mac(0): address(7), mac(1): address(101)}
DYNAMIC = [address(number) for number in (100, 102, 104, 105, 106)]

CLIENTS = st.integers(0, 8)
ADDRESSES = st.sampled_from([*DYNAMIC, address(7), address(101), address(103), address(99), address(200)])
TIMES = st.sampled_from([0.0, 1.0, 30.0, OFFER_TIME, DECLINE_TIME, LEASE / 2, LEASE])


class Clients(RuleBasedStateMachine):
    """Clients that do anything at any time, and a model that knows who holds what until when."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(POOL, STATIC)
        self.now = 1000.0
        self.leased: dict[bytes, tuple[bytes, float]] = {}
        self.offered: dict[bytes, tuple[bytes, float]] = {}
        self.declined: dict[bytes, float] = {}

    def client(self, number: int) -> tuple[bytes, bytes]:
        return b"\x01" + mac(number), mac(number)

    def holder(self, where: bytes) -> bytes | None:
        """Who has, or was offered, an address now."""
        for held in (self.leased, self.offered):
            if where in held and held[where][1] > self.now:
                return held[where][0]
        return None

    def held_by(self, client: bytes) -> bytes | None:
        """What a client has leased now."""
        return next((a for a, (who, end) in self.leased.items() if who == client and end > self.now), None)

    def drop(self, client: bytes) -> None:
        for held in (self.leased, self.offered):
            for where in [where for where, (who, _) in held.items() if who == client]:
                del held[where]

    def is_for(self, number: int, where: bytes) -> bool:
        """Whether a client may have an address at all."""
        if mac(number) in STATIC:
            return STATIC[mac(number)] == where
        return where in DYNAMIC

    @rule(number=CLIENTS, wanted=st.none() | ADDRESSES)
    def discover(self, number: int, wanted: bytes | None) -> None:
        client, hardware = self.client(number)
        got = self.table.offer(client, hardware, wanted, self.now)
        blocked = {where for where, until in self.declined.items() if until > self.now}
        candidates = [
            where for where in DYNAMIC if self.holder(where) in (None, client) and where not in blocked
        ]
        if hardware in STATIC:
            candidates = [STATIC[hardware]]
        if got is None:
            assert not candidates
            return
        assert got in candidates
        mine = self.held_by(client)
        if mine is not None and mine not in blocked:
            assert got == mine
            return
        if wanted in candidates and not any(who == client for who, _ in self.ever()):
            assert got == wanted
        self.drop(client)
        self.forget(got)
        self.offered[got] = client, self.now + OFFER_TIME

    def ever(self) -> list[tuple[bytes, float]]:
        return [*self.leased.values(), *self.offered.values()]

    def forget(self, where: bytes) -> None:
        self.leased.pop(where, None)
        self.offered.pop(where, None)

    @rule(number=CLIENTS, where=ADDRESSES)
    def request(self, number: int, where: bytes) -> None:
        client, hardware = self.client(number)
        is_free = self.holder(where) in (None, client) and self.declined.get(where, 0) <= self.now
        granted = self.table.lease(client, hardware, where, LEASE, self.now)
        assert granted == (self.is_for(number, where) and is_free)
        if granted:
            self.drop(client)
            self.forget(where)
            self.leased[where] = client, self.now + LEASE

    @invariant()
    def others_may_not_use_what_is_leased(self) -> None:
        for number in range(9):
            client, hardware = self.client(number)
            mine = STATIC.get(hardware) or self.held_by(client)
            for where in (*DYNAMIC, *STATIC.values(), address(200)):
                owner = next((one for one, static in STATIC.items() if static == where), None)
                if owner is None and where in self.leased and self.leased[where][1] > self.now:
                    owner = self.leased[where][0][1:]
                expected = owner == hardware if owner is not None else False if mine else None
                assert self.table.may_use(hardware, where, self.now) is expected

    @rule(number=CLIENTS, where=ADDRESSES)
    def release(self, number: int, where: bytes) -> None:
        client, _ = self.client(number)
        held = self.holder(where) == client
        assert self.table.release(client, where, self.now) == held
        if held:
            for table in (self.leased, self.offered):
                if where in table:
                    table[where] = client, self.now

    @rule(number=CLIENTS, where=ADDRESSES)
    def decline(self, number: int, where: bytes) -> None:
        client, _ = self.client(number)
        if self.holder(where) != client:
            assert not self.table.decline(client, where, self.now)
            return
        assert self.table.decline(client, where, self.now)
        self.drop(client)
        if where in DYNAMIC:  # of five, one at a time is kept back
            self.declined = {where: self.now + DECLINE_TIME}

    @rule(seconds=TIMES)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_leased_is_what_was_leased(self) -> None:
        leases = {one.address: (one.client, one.expires) for one in self.table.leases(self.now)}
        assert leases == {a: held for a, held in self.leased.items() if held[1] > self.now}
        assert len(self.table) <= len(DYNAMIC) + len(STATIC)


TestClients = Clients.TestCase


def test_a_client_gets_its_address_again_until_another_one_needs_it() -> None:
    table = LeaseTable(POOL)
    first = [table.offer(b"a%d" % number, mac(number), None, 0.0) for number in range(2)]
    assert first == [address(100), address(101)]
    assert table.offer(b"a0", mac(0), address(104), OFFER_TIME) == address(100)
    for number in range(2, 6):  # the remaining four
        table.lease(b"a%d" % number, mac(number), address((100, 101, 102, 104, 105, 106)[number]), LEASE, 0.0)
    assert table.offer(b"new", mac(9), None, OFFER_TIME) == address(101)
    assert table.offer(b"a1", mac(1), None, OFFER_TIME) is None


def test_an_address_that_was_never_given_is_given_before_one_that_was() -> None:
    table = LeaseTable(POOL)
    table.lease(b"a", mac(1), address(100), LEASE, 0.0)
    table.release(b"a", address(100), 1.0)
    assert table.offer(b"b", mac(2), None, 2.0) == address(101)
    assert table.offer(b"a", mac(1), None, 3.0) == address(100)


def test_a_loader_and_its_system_have_one_static_address() -> None:
    table = LeaseTable(POOL, STATIC)
    assert table.lease(b"\x01" + mac(0), mac(0), address(7), LEASE, 0.0)
    assert table.offer(b"\xffsystem", mac(0), None, 1.0) == address(7)
    assert table.lease(b"\xffsystem", mac(0), address(7), LEASE, 2.0)
    assert [one.client for one in table.leases(3.0)] == [b"\xffsystem"]


def test_a_limit_bounds_what_is_remembered_of_a_large_pool() -> None:
    limits = dataclasses.replace(DEFAULT_LIMITS, dhcp_leases=10)
    table = LeaseTable(Pool(bytes((10, 0, 0, 1)), bytes((10, 255, 255, 254))), limits=limits)
    for number in range(1000):
        table.offer(number.to_bytes(4, "big"), mac(number % 200), None, number * OFFER_TIME / 5)
        assert len(table) <= 10
    assert table.offer(b"late", mac(1), None, 1000 * OFFER_TIME / 5) is not None


def test_a_static_address_for_two_is_refused() -> None:
    with pytest.raises(ValueError, match="two MACs"):
        LeaseTable(POOL, {mac(1): address(7), mac(2): address(7)})


def test_a_port_takes_its_share_and_no_more() -> None:
    pool = Pool(address(1), address(80))
    table = LeaseTable(pool, {mac(200): address(90)})
    table.port_of = lambda hardware, now: 2 if hardware[5] >= 100 else 1
    offered = [table.offer(mac(number), mac(number), None, 0) for number in range(40)]
    assert sum(one is not None for one in offered) == 10
    assert not table.lease(mac(30), mac(30), address(60), LEASE, 0)
    assert table.lease(mac(3), mac(3), offered[3] or b"", LEASE, 0)  # what it has is its own
    assert table.offer(mac(100), mac(100), None, 0) is not None
    assert table.offer(mac(200), mac(200), None, 0) == address(90)
    table.forget_port(1)
    assert table.offer(mac(41), mac(41), None, 0) is not None


def test_what_somebody_uses_without_a_lease_is_not_given() -> None:
    table = LeaseTable(Pool(address(1), address(3)))
    table.is_used = lambda where, hardware, now: where == address(1) and hardware != mac(7)
    assert table.offer(mac(1), mac(1), address(1), 0) == address(2)
    assert not table.lease(mac(2), mac(2), address(1), LEASE, 0)
    assert table.offer(mac(7), mac(7), address(1), 0) == address(1)
