"""The names that guests have told DHCP, as names of a zone and the way back. Sans-IO.

A name is the guest's who leased an address under it first, as far as that is known: a second one with the
same name has none. What a name is, `services.dhcp` decides: one label in lower case.
"""

from __future__ import annotations

from collections.abc import Callable

from tunstack.services.dhcp_leases import LeaseTable
from tunstack.services.local_names import Labels, LocalName, reverse_name

REFRESH = 1.0
"""Seconds after which leases are looked at again, as some may have ended."""


class LeaseNames:
    """Finds the names of leases."""

    def __init__(self, table: LeaseTable, zone: Labels, clock: Callable[[], float]) -> None:
        """`clock`: the one of the table."""
        self._table = table
        self._zone = zone
        self._clock = clock
        self._names: dict[Labels, LocalName] = {}
        self._owners: dict[bytes, bytes] = {}
        """The client who has a name, by name."""
        self._changes = -1
        self._looked_at = float("-inf")

    def find(self, name: Labels) -> LocalName | None:
        """What there is of `name`, in lower case; None if no guest has it."""
        now = self._clock()
        if self._changes != self._table.changes or now - self._looked_at >= REFRESH:
            self._changes = self._table.changes
            self._looked_at = now
            self._look(now)
        return self._names.get(name)

    def _look(self, now: float) -> None:
        named = [one for one in self._table.leases(now) if one.name]
        present = {(one.name.encode(), one.client) for one in named}
        owners = dict(owner for owner in self._owners.items() if owner in present)
        self._names = {}
        for one in named:
            label = one.name.encode()
            if owners.setdefault(label, one.client) != one.client:
                continue
            name = (label, *self._zone)
            self._names[name] = LocalName(addresses=(one.address,))
            self._names[reverse_name(one.address)] = LocalName(pointer=name)
        self._owners = owners
