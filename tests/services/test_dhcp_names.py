"""The names that guests tell DHCP: who has which, and for how long."""

from __future__ import annotations

from tunstack.services.dhcp_leases import LeaseTable, Pool
from tunstack.services.dhcp_names import REFRESH, LeaseNames
from tunstack.services.local_names import LocalName, parse_name, reverse_name

ZONE = parse_name("tunstack.internal")


def address(number: int) -> bytes:
    return bytes((10, 0, 2, number))


class Table:
    """Leases that a test makes, and their names."""

    def __init__(self) -> None:
        self.now = 0.0
        self.leases = LeaseTable(Pool(address(100), address(110)))
        self.names = LeaseNames(self.leases, ZONE, lambda: self.now)

    def lease(self, client: int, name: str, where: int, seconds: float = 100.0) -> None:
        mac = bytes((2, 0, 0, 0, 0, client))
        assert self.leases.lease(mac, mac, address(where), seconds, self.now, name)

    def find(self, name: str) -> list[int] | None:
        found = self.names.find(parse_name(f"{name}.tunstack.internal"))
        return None if found is None else [one[3] for one in found.addresses]


def test_a_name_leads_to_its_address_and_back_as_long_as_the_lease_lasts() -> None:
    table = Table()
    assert table.find("one") is None
    table.lease(1, "one", 100)
    table.lease(2, "", 101)
    assert table.find("one") == [100]
    pointer = table.names.find(reverse_name(address(100)))
    assert pointer == LocalName(pointer=(b"one", *ZONE))
    assert table.names.find(reverse_name(address(101))) is None
    table.lease(1, "other", 100)
    assert (table.find("one"), table.find("other")) == (None, [100])
    table.now = 100 + REFRESH
    assert table.find("other") is None


def test_who_had_a_name_first_keeps_it() -> None:
    table = Table()
    table.lease(2, "one", 105)
    assert table.find("one") == [105]
    table.lease(1, "one", 100)
    assert table.find("one") == [105]
    table.lease(2, "two", 105)
    assert (table.find("one"), table.find("two")) == ([100], [105])
