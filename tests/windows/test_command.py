"""`tunstack gateway --wintun` from option to packet, with stand-ins for both DLLs; and what Windows lacks."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner, Result

from tests.windows import fake
from tests.windows.fake import Fake
from tests.windows.fake_interfaces import FakeInterfaces
from tunstack.cli import LINUX_ONLY, STOPS, main
from tunstack.gateway import wintun as gateway_wintun
from tunstack.gateway.plan import MACHINES, AddressPlan, PlanError
from tunstack.gateway.wintun import parse_interface, with_guest
from tunstack.ip import ipv4
from tunstack.ip.addresses import parse_address
from tunstack.ip.header import ICMP
from tunstack.link.devices import wintun
from tunstack.link.devices.wintun_api import VARIABLE, guid_of

NAME = "tunstack test"
PLAN = AddressPlan.from_subnet(layout=MACHINES)
ECHO_REQUEST = bytes.fromhex("0800f7fd00010001")


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeInterfaces]:
    """Those of a machine on which the next adapter is known."""
    library = fake.library()
    adapter = library.create(NAME, guid_of(NAME))
    made = FakeInterfaces(adapter.luid + (1 << 24))
    adapter.close()
    for module in (gateway_wintun, wintun):
        monkeypatch.setattr(module, "system_interfaces", lambda: made)
    monkeypatch.setenv(VARIABLE, fake.file_of("fakewintun"))
    yield made
    assert Fake(NAME).open == (0, 0)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["gateway", "--control", "none", "--wintun", NAME, *words])


def when_open(action: object, *arguments: object) -> threading.Thread:
    """Do something from elsewhere as soon as the adapter carries packets."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while Fake(NAME).open[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        action(*arguments)  # type: ignore[operator]

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def ping(source: str, destination: str) -> bytes:
    """An echo request over IPv4."""
    addresses = parse_address(source), parse_address(destination)
    return ipv4.emit(*addresses, ICMP, len(ECHO_REQUEST)) + ECHO_REQUEST


def test_an_adapter_is_made_and_answered_until_it_goes(interfaces: FakeInterfaces) -> None:
    answers: list[bytes] = []

    def use() -> None:
        driver = Fake(NAME)
        driver.inject(ping("192.168.127.9", "192.168.127.1"))
        deadline = time.monotonic() + 30
        while not (found := driver.collect()) and time.monotonic() < deadline:
            time.sleep(0.01)
        answers.append(found or b"")
        driver.terminate()

    thread = when_open(use)
    result = run("--address", "192.168.127.9/24", "--route", "198.51.100.0/24", "--metric", "7", "--use-dns")
    thread.join()
    assert answers[0][9] == 1 and answers[0][20] == 0, answers  # ICMP, echo reply
    assert result.exit_code == 125
    assert f"adapter '{NAME}': 192.168.127.9/24, fd00:7f::2/64\n" in result.output
    assert "guest 192.168.127.9/24, gateway 192.168.127.1, dns 192.168.127.1" in result.output
    assert f"the adapter '{NAME}' has gone" in result.output
    assert interfaces.notes == [
        "interface 2 mtu 1500 automatic 0 metric 7 discovery 0 dad 0 managed 0",
        "address c0a87f09/24 valid ffffffff preferred ffffffff dad 4",
        "route c6336400/24 by 00000000 metric 0",
        "resolvers 192.168.127.1 flags 2",
        "interface 23 mtu 1500 automatic 0 metric 7 discovery 0 dad 0 managed 0",
        "address fd00007f000000000000000000000002/64 valid ffffffff preferred ffffffff dad 4",
        "resolvers fd00:7f::1 flags 3",
    ]


@pytest.mark.parametrize("number", STOPS)
def test_it_ends_in_order_on_a_signal(interfaces: FakeInterfaces, number: signal.Signals) -> None:
    thread = when_open(signal.raise_signal, number)
    result = run()
    thread.join()
    assert (result.exit_code, result.exception) == (0, None), result.output


def test_what_cannot_be_is_said_in_a_sentence(interfaces: FakeInterfaces) -> None:
    for words, sentence in (
        (("--listen", "qemu+tcp://127.0.0.1:1"), "exclude each other"),
        (("--address", "10.0.0.1"), "10.0.0.1 is not in the gateway's network"),
        (("--address", "x"), "'x' is not an IP address"),
        (("--address", "192.168.127.1"), "is the gateway's own address"),
        (("--address", "192.168.127.0"), "is the first or last address of 192.168.127.0/24"),
        (("--address", "192.168.127.9/16"), "the gateway's network has /24, not /16"),
        (("--route", "198.51.100.1/24"), "has host bits set"),
        (("--mtu", "1000", "--route", "2001:db8::/32"), "with this MTU there is no IPv6"),
        (("--mtu", "1000", "--address", "fd00:7f::9"), "with this MTU there is no IPv6"),
        (("--metric", "0"), "0 is not in the range"),
    ):
        result = run(*words)
        assert result.exit_code == 125 and sentence in result.output, result.output


def test_what_windows_says_ends_it_with_its_sentence(
    interfaces: FakeInterfaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfaces.reset(refusal=5)
    result = run()
    assert result.exit_code == 125 and "elevated" in result.output
    monkeypatch.setenv(VARIABLE, "nowhere.dll")
    result = run()
    assert result.exit_code == 125 and "wintun.dll is not found" in result.output


def test_the_first_address_of_a_family_is_the_guests() -> None:
    given = parse_interface(PLAN, addresses=["fd00:7f::9", "192.168.127.8", "192.168.127.9"])
    plan = with_guest(PLAN, given)
    assert (plan.guest, plan.guest6) == (parse_address("192.168.127.8"), parse_address("fd00:7f::9"))
    assert len(given.addresses) == 3
    with pytest.raises(PlanError):
        parse_interface(PLAN, routes=["nonsense"])


def test_options_of_an_adapter_need_one() -> None:
    for words in (["--address", "192.168.127.9"], ["--metric", "5"], ["--use-dns"]):
        result = CliRunner().invoke(main, ["gateway", "--listen", "qemu+tcp://127.0.0.1:1", *words])
        assert result.exit_code == 125 and "see --wintun" in result.output


@pytest.mark.parametrize("name", sorted(LINUX_ONLY))
def test_commands_of_linux_say_so_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(click.ClickException, match=f"'tunstack {name}' is there on Linux alone"):
        main.get_command(click.Context(main), name)
