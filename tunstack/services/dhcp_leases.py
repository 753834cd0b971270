"""Which client has which address, and until when (RFC 2131 4.3.1). Sans-IO.

Theory of operation. A *binding* joins a client and an address. An offer holds its address for `OFFER_TIME`,
a lease until it expires; what has expired, or was released, is remembered, so that a client gets back the
address that it had as long as nobody else needs it. A client is offered, in this order: its static address,
the address that it has or had, the one that it asks for, the lowest that nobody ever had, the one whose
binding ended first. An address that a client has found in use (DECLINE) is kept back for `DECLINE_TIME`.

Bounds: as many bindings as the pool has addresses, but no more than `limits.dhcp_leases`, and the static
ones; at most a quarter of the pool is kept back for having been declined, lest a client declines all of it.
Where guests are behind ports of a switch, those of one port have at most a `PORT_SHARE`th of the pool, but
always `PORT_LEAST` addresses: who makes up MACs takes no more from the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from tunstack.limits import DEFAULT_LIMITS, Limits

OFFER_TIME = 60.0
"""Seconds for which an offer stands."""
DECLINE_TIME = 600.0
"""Seconds for which nobody gets an address that somebody else seems to use."""

PORT_SHARE = 8
PORT_LEAST = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """The addresses from `first` to `last`, but for those in `reserved`; 4 bytes each."""

    first: bytes
    last: bytes
    reserved: frozenset[bytes] = frozenset()

    def __contains__(self, address: bytes) -> bool:
        return len(address) == 4 and self.first <= address <= self.last and address not in self.reserved

    def __iter__(self) -> Iterator[bytes]:
        numbers = range(int.from_bytes(self.first, "big"), int.from_bytes(self.last, "big") + 1)
        addresses = (number.to_bytes(4, "big") for number in numbers)
        return (address for address in addresses if address not in self.reserved)

    def __len__(self) -> int:
        inside = sum(self.first <= address <= self.last for address in self.reserved)
        return int.from_bytes(self.last, "big") - int.from_bytes(self.first, "big") + 1 - inside


@dataclasses.dataclass(slots=True)
class Binding:
    """A client and its address.

    Attributes:
        client: its identifier (option 61), or hardware type and address.
        mac: its hardware address.
        address: 4 bytes.
        expires: when it ends (seconds).
        is_leased: False: it is only offered.
        name: the host name that the client has given, or "".
        port: behind which it was when it got the address, if there are ports.
    """

    client: bytes
    mac: bytes
    address: bytes
    expires: float
    is_leased: bool = False
    name: str = ""
    port: int | None = None


class LeaseTable:
    """The bindings of one network. Times in seconds, of any clock that does not go back.

    Attributes:
        static: the addresses of particular MACs, for ever; in the pool or not.
        changes: grows with each change of what is leased.
        port_of: behind which port a MAC is; None: there are no ports, or it is not known.
        is_used: whether somebody other than a MAC uses an address without a lease.
    """

    def __init__(
        self, pool: Pool, static: Mapping[bytes, bytes] | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """ValueError if two MACs have the same static address."""
        self.static = dict(static or {})
        if len(set(self.static.values())) < len(self.static):
            raise ValueError("a static address is given to two MACs")
        self.pool = dataclasses.replace(pool, reserved=pool.reserved | set(self.static.values()))
        self.changes = 0
        self.port_of: Callable[[bytes, float], int | None] = lambda mac, now: None
        self.is_used: Callable[[bytes, bytes, float], bool] = lambda address, mac, now: False
        self._share = max(PORT_LEAST, len(self.pool) // PORT_SHARE)
        self._owners = {address: mac for mac, address in self.static.items()}
        self._most = min(len(self.pool), limits.dhcp_leases)
        self._bindings: dict[bytes, Binding] = {}
        self._clients: dict[bytes, Binding] = {}
        self._addresses: dict[bytes, set[bytes]] = {}
        """Those of the bindings of each MAC."""
        self._declined: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Bindings, those that have ended included."""
        return len(self._bindings)

    def offer(self, client: bytes, mac: bytes, wanted: bytes | None, now: float) -> bytes | None:
        """An address for `client`, held until it decides; None if there is none."""
        held = self._clients.get(client)
        address = self._choose(client, mac, wanted, now)
        if address is None:
            return None
        if held is None or held.address != address or held.expires <= now:
            self._bind(Binding(client, mac, address, now + OFFER_TIME, port=self.port_of(mac, now)), now)
        elif not held.is_leased:
            held.expires = now + OFFER_TIME
        return address

    def lease(
        self, client: bytes, mac: bytes, address: bytes, seconds: float, now: float, name: str = ""
    ) -> bool:
        """Lease `address` to `client` for `seconds` from now on; False if it is not to be had."""
        if not self._may_have(client, mac, address, now):
            return False
        self._bind(
            Binding(client, mac, address, now + seconds, True, name, self.port_of(mac, now)),
            now,
        )
        self.changes += 1
        return True

    def release(self, client: bytes, address: bytes, now: float) -> bool:
        """The client needs its address no more; False if it is not its."""
        held = self._clients.get(client)
        if held is None or held.address != address or held.expires <= now:
            return False
        held.expires = now
        self.changes += held.is_leased
        return True

    def decline(self, client: bytes, address: bytes, now: float) -> bool:
        """The client has found that somebody uses its address; False if it is not its."""
        held = self._clients.get(client)
        if held is None or held.address != address or held.expires <= now:
            return False
        self._forget(held)
        self.changes += held.is_leased
        if address in self.pool:
            while len(self._declined) >= max(1, len(self.pool) // 4):
                del self._declined[next(iter(self._declined))]
            self._declined[address] = now + DECLINE_TIME
        return True

    def withdraw_offer(self, client: bytes) -> None:
        """The client has taken somebody else's offer."""
        held = self._clients.get(client)
        if held is not None and not held.is_leased:
            self._forget(held)

    def find(self, client: bytes) -> bytes | None:
        """The address that `client` has, had, or was offered."""
        held = self._clients.get(client)
        return None if held is None else held.address

    def restore(self, binding: Binding) -> bool:
        """Take up a lease of an earlier run; False if it cannot be any more."""
        now = binding.expires
        if binding.client in self._clients or binding.address in self._bindings:
            return False
        if not self._may_have(binding.client, binding.mac, binding.address, now):
            return False
        self._bind(binding, now)
        return True

    def may_use(self, mac: bytes, address: bytes, now: float) -> bool | None:
        """Whether `mac` may use `address`: it has no other one, and nobody else has this one.

        None: neither has anything to do with a lease.
        """
        owner = self._owners.get(address)
        held = self._bindings.get(address)
        if owner is None and held is not None and held.is_leased and held.expires > now:
            owner = held.mac
        if owner is not None:
            return owner == mac
        addresses = self._addresses.get(mac)
        if mac in self.static or (
            addresses and any(self._bindings[one].expires > now for one in addresses if self._is_lease(one))
        ):
            return False
        return None

    def forget_port(self, port: int) -> None:
        """Somebody else may be behind `port` from now on: what was given there is not counted against it."""
        for binding in self._bindings.values():
            if binding.port == port:
                binding.port = None

    def leases(self, now: float) -> list[Binding]:
        """What is leased now, by address."""
        active = (one for one in self._bindings.values() if one.is_leased and one.expires > now)
        return sorted((dataclasses.replace(one) for one in active), key=lambda one: one.address)

    def _is_lease(self, address: bytes) -> bool:
        return self._bindings[address].is_leased

    def _has_share(self, client: bytes, mac: bytes, now: float) -> bool:
        """Whether those behind the port of `mac` have as much of the pool as they can."""
        port = self.port_of(mac, now)
        if port is None:
            return False
        held = sum(
            one.port == port and one.expires > now and one.client != client and one.address in self.pool
            for one in self._bindings.values()
        )
        return held >= self._share

    def _choose(self, client: bytes, mac: bytes, wanted: bytes | None, now: float) -> bytes | None:
        static = self.static.get(mac)
        if static is not None:
            return static if self._may_have(client, mac, static, now) else None
        held = self._clients.get(client)
        for address in (None if held is None else held.address, wanted):
            if address is not None and self._may_have(client, mac, address, now):
                return address
        return None if self._has_share(client, mac, now) else self._find_free(mac, now)

    def _find_free(self, mac: bytes, now: float) -> bytes | None:
        for address in [address for address, until in self._declined.items() if until <= now]:
            del self._declined[address]
        if self._dynamic < self._most:
            for address in self.pool:
                if (
                    address not in self._bindings
                    and address not in self._declined
                    and not self.is_used(address, mac, now)
                ):
                    return address
        ended = self._find_ended(now)
        return None if ended is None or self.is_used(ended.address, mac, now) else ended.address

    def _may_have(self, client: bytes, mac: bytes, address: bytes, now: float) -> bool:
        held = self._bindings.get(address)
        if self.static.get(mac) == address:
            # One machine may call itself by several names, as a loader and the system that it starts do.
            return held is None or held.mac == mac or held.expires <= now
        if mac in self.static or address not in self.pool or self._declined.get(address, now) > now:
            return False
        if held is not None and held.client == client and held.expires > now:
            return True
        if self.is_used(address, mac, now) or self._has_share(client, mac, now):
            return False
        if held is None:
            return self._dynamic < self._most or self._find_ended(now) is not None
        return held.expires <= now

    @property
    def _dynamic(self) -> int:
        """Bindings of addresses that are not static."""
        return len(self._bindings) - sum(address in self._bindings for address in self.static.values())

    def _find_ended(self, now: float) -> Binding | None:
        """The binding out of the pool that ended first."""
        ended = [one for one in self._bindings.values() if one.expires <= now and one.address in self.pool]
        return min(ended, key=lambda one: one.expires, default=None)

    def _bind(self, binding: Binding, now: float) -> None:
        """`binding` takes the place of what its client had, and of what was at its address."""
        for old in (self._clients.get(binding.client), self._bindings.get(binding.address)):
            if old is not None:
                self._forget(old)
        if binding.address in self.pool and self._dynamic >= self._most:
            ended = self._find_ended(now)
            assert ended is not None, "nobody may have an address then"
            self._forget(ended)
        self._bindings[binding.address] = self._clients[binding.client] = binding
        self._addresses.setdefault(binding.mac, set()).add(binding.address)

    def _forget(self, binding: Binding) -> None:
        if self._bindings.pop(binding.address, None) is not None:
            of_mac = self._addresses[binding.mac]
            of_mac.discard(binding.address)
            if not of_mac:
                del self._addresses[binding.mac]
        if self._clients.get(binding.client) is binding:
            del self._clients[binding.client]
