"""How interfaces of Windows are set up, against a library that writes down what it is told."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.windows import fake
from tests.windows.fake import Fake
from tests.windows.fake_interfaces import FakeInterfaces
from tunstack.link.devices.interface import InterfaceSettings, set_up_interface
from tunstack.link.devices.iphlpapi import (
    ACCESS_DENIED,
    INVALID_PARAMETER,
    IPV4,
    IPV6,
    NO_FUNCTION,
    NOT_FOUND,
    InterfaceError,
    Interfaces,
)
from tunstack.link.devices.wintun import open_wintun
from tunstack.link.devices.wintun_api import TAKEN, WintunError, guid_of

LUID = 53 << 48 | 7 << 24
NAME = "tunstack test"
SETTINGS = InterfaceSettings(
    addresses=[(bytes([192, 168, 127, 2]), 24), (bytes.fromhex("fd00007f") + bytes(11) + b"\x02", 64)],
    routes=[(bytes([198, 51, 100, 0]), 24), (bytes.fromhex("20010db8") + bytes(12), 32)],
    resolvers=[
        bytes([192, 168, 127, 1]),
        bytes([192, 168, 127, 3]),
        bytes.fromhex("fd00007f") + bytes(11) + b"\x01",
    ],
    metric=5,
)
NOTES = [
    "interface 2 mtu 1420 automatic 0 metric 5 discovery 0 dad 0 managed 0",
    "address c0a87f02/24 valid ffffffff preferred ffffffff dad 4",
    "route c6336400/24 by 00000000 metric 0",
    "resolvers 192.168.127.1,192.168.127.3 flags 2",
    "interface 23 mtu 1420 automatic 0 metric 5 discovery 0 dad 0 managed 0",
    "address fd00007f000000000000000000000002/64 valid ffffffff preferred ffffffff dad 4",
    "route 20010db8000000000000000000000000/32 by 00000000000000000000000000000000 metric 0",
    "resolvers fd00:7f::1 flags 3",
]
addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


@pytest.fixture
def interfaces() -> Iterator[FakeInterfaces]:
    yield FakeInterfaces(LUID)


async def test_an_interface_is_set_up(interfaces: FakeInterfaces) -> None:
    await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1420)
    assert interfaces.notes == NOTES


async def test_it_may_be_done_twice(interfaces: FakeInterfaces) -> None:
    for _ in range(2):
        await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1420)
    # Resolvers are replaced, not added.
    assert [line for line in interfaces.notes if "resolvers" not in line] == [
        line for line in NOTES if "resolvers" not in line
    ]


@given(address=addresses, data=st.data())
def test_addresses_and_routes_come_over_whole(address: bytes, data: st.DataObject) -> None:
    interfaces = FakeInterfaces(LUID)
    length = data.draw(st.integers(0, 8 * len(address)))
    interfaces.add_address(LUID, address, length)
    interfaces.add_route(LUID, address, length)
    first, second = interfaces.notes
    assert first.startswith(f"address {address.hex()}/{length} ")
    assert second.startswith(f"route {address.hex()}/{length} by {bytes(len(address)).hex()} ")


def test_what_windows_does_not_take_is_an_error_with_a_sentence(interfaces: FakeInterfaces) -> None:
    with pytest.raises(InterfaceError, match="the address: Windows does not take this") as caught:
        interfaces.add_address(LUID, bytes(4), 33)
    assert caught.value.code == INVALID_PARAMETER
    interfaces.reset(refusal=ACCESS_DENIED)
    with pytest.raises(InterfaceError, match=r"the route: .*elevated"):
        interfaces.add_route(LUID, bytes(4), 0)
    with pytest.raises(InterfaceError, match=r"the interface: .*elevated"):
        interfaces.set_up(LUID, IPV4, 1500, None)
    interfaces.reset(refusal=1450)
    with pytest.raises(InterfaceError, match="Windows says error 1450"):
        interfaces.add_address(LUID, bytes(4), 32)


def test_the_metric_may_be_windows_own_and_ipv6_has_its_least_mtu(interfaces: FakeInterfaces) -> None:
    interfaces.set_up(LUID, IPV4, 576, None)
    interfaces.set_up(LUID, IPV6, 576, None)
    assert interfaces.notes == [
        "interface 2 mtu 576 automatic 1 metric 0 discovery 0 dad 0 managed 0",
        "interface 23 mtu 1280 automatic 1 metric 0 discovery 0 dad 0 managed 0",
    ]


async def test_a_protocol_that_comes_late_is_waited_for(
    interfaces: FakeInterfaces, autojump_clock: trio.testing.MockClock
) -> None:
    interfaces.reset(absent_times=8)
    await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1420)
    assert interfaces.notes == NOTES


async def test_without_ipv6_the_rest_is_set_up(
    interfaces: FakeInterfaces, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    interfaces.reset(absent_family=IPV6)
    await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1420)
    assert interfaces.notes == NOTES[:4]
    assert "has no IPv6" in caplog.text


async def test_without_ipv4_it_fails_in_the_end(
    interfaces: FakeInterfaces, autojump_clock: trio.testing.MockClock
) -> None:
    interfaces.reset(absent_family=IPV4)
    with pytest.raises(InterfaceError, match="not there") as caught:
        await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1420)
    assert caught.value.code == NOT_FOUND and not interfaces.notes


async def test_a_link_too_small_for_ipv6_has_none(interfaces: FakeInterfaces) -> None:
    await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1000)
    assert [line.split()[1] for line in interfaces.notes if line.startswith("interface")] == ["2"]


async def test_an_older_windows_is_told_resolvers_by_hand(
    interfaces: FakeInterfaces, caplog: pytest.LogCaptureFixture
) -> None:
    class Older:
        """The functions but one."""

        def __getattr__(self, name: str) -> object:
            if name == "SetInterfaceDnsSettings":
                raise AttributeError(name)
            return getattr(functions, name)

    functions = interfaces._functions
    interfaces._functions = Older()
    await set_up_interface(interfaces, LUID, NAME, SETTINGS, 1420)
    assert interfaces.notes == [line for line in NOTES if not line.startswith("resolvers")]
    assert 'netsh interface ipv6 set dnsservers name="tunstack test" static fd00:7f::1' in caplog.text


def test_a_missing_function_is_found_when_it_is_needed(interfaces: FakeInterfaces) -> None:
    made = Interfaces(object())  # nothing is looked up yet
    with pytest.raises(InterfaceError, match="no function") as caught:
        made.add_address(LUID, bytes(4), 32)
    assert caught.value.code == NO_FUNCTION


async def test_an_adapter_is_set_up_before_it_is_there_for_others(interfaces: FakeInterfaces) -> None:
    library = fake.library()
    adapter = library.create(NAME, guid_of(NAME))  # the next one has the next LUID
    luid = adapter.luid + (1 << 24)
    adapter.close()
    known = FakeInterfaces(luid)
    async with open_wintun(NAME, mtu=1420, interface=SETTINGS, library=library, interfaces=known) as device:
        assert device.adapter.luid == luid
        assert known.notes == NOTES
    known.reset(refusal=ACCESS_DENIED)
    with pytest.raises(InterfaceError):
        async with open_wintun(NAME, mtu=1420, interface=SETTINGS, library=library, interfaces=known):
            raise AssertionError("it cannot be set up")
    assert Fake(NAME).open == (0, 0)


async def test_the_name_of_another_interface_is_not_taken_from_it(interfaces: FakeInterfaces) -> None:
    interfaces.name_other(NAME, 99, uuid.uuid4())
    with pytest.raises(WintunError, match="another interface has that name") as caught:
        async with open_wintun(NAME, mtu=1420, library=fake.library(), interfaces=interfaces):
            raise AssertionError("it is somebody else's")
    assert caught.value.code == TAKEN


@pytest.mark.parametrize("attempt", [0, 1])
async def test_what_an_earlier_run_left_is_ones_own(interfaces: FakeInterfaces, attempt: int) -> None:
    interfaces.name_other(NAME, 99, guid_of(NAME, attempt))
    async with open_wintun(NAME, mtu=1420, library=fake.library(), interfaces=interfaces) as device:
        assert device.name == NAME


async def test_what_a_block_raises_comes_out_as_it_is(interfaces: FakeInterfaces) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_wintun(NAME, mtu=1420, library=fake.library(), interfaces=interfaces):
            raise ZeroDivisionError
    assert Fake(NAME).open == (0, 0)
