"""`tunstack selftest` on Windows, as far as it goes without a driver; and the rules of the firewall."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.windows import fake
from tests.windows.fake import Fake
from tests.windows.fake_interfaces import FakeInterfaces
from tunstack.gateway import wintun as gateway_wintun
from tunstack.link.devices import wintun
from tunstack.link.devices.wintun_api import VARIABLE, guid_of
from tunstack.selftest import client, windows
from tunstack.selftest.report import Report, State

RULE = r"v2.32|Action=Allow|Active=TRUE|Dir=In|Protocol=6|App=C:\Python312\python.exe|Name=Python|"
PROGRAM = r"c:\python312\Python.exe"


def found(report: Report) -> dict[str, State]:
    return {check.what: check.state for check in report.checks}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[Report]:
    monkeypatch.setenv(VARIABLE, fake.file_of("fakewintun"))
    monkeypatch.setattr(client, "PATIENCE", 0.5)
    yield Report(print)
    assert Fake(windows.ADAPTER).open == (0, 0)


def test_a_rule_for_this_program_is_found() -> None:
    assert windows.firewall_rule(PROGRAM, ["nonsense", RULE]) == "Python"


@pytest.mark.parametrize(
    "change", [("Allow", "Block"), ("TRUE", "FALSE"), ("Dir=In", "Dir=Out"), ("python.exe", "other.exe")]
)
def test_another_rule_is_none(change: tuple[str, str]) -> None:
    with pytest.raises(OSError, match=r'New-NetFirewallRule .* -Program "c:\\python312\\Python.exe"'):
        windows.firewall_rule(PROGRAM, [RULE.replace(*change)])


async def test_the_adapter_comes_and_goes_and_what_does_not_answer_fails(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fake.library()
    adapter = library.create(windows.ADAPTER, guid_of(windows.ADAPTER))
    interfaces = FakeInterfaces(adapter.luid + (1 << 24))
    adapter.close()
    for module in (gateway_wintun, wintun):
        monkeypatch.setattr(module, "system_interfaces", lambda: interfaces)
    monkeypatch.setattr(
        windows, "attempts", lambda order: [("name", lambda: client.resolve(order.host, "1.2.3.4"))]
    )
    await windows.check(report)
    assert report.checks[-1].detail == "and gone again"
    assert found(report)["iphlpapi.dll"] is State.OK
    assert found(report)["adapter: name"] is State.FAILED  # no packet reaches a fake
    assert "address c612fb02/24 valid ffffffff preferred ffffffff dad 4" in interfaces.notes


if sys.platform == "win32":

    async def test_what_wine_has_and_lacks_is_told(report: Report) -> None:
        await windows.check(report)
        states = found(report)
        assert states["administrator"] is states["wintun.dll"] is State.OK
        assert states["Hyper-V sockets"] is states["iphlpapi.dll"] is State.ABSENT
        assert states["firewall rule"] is State.ABSENT
        assert states["adapter"] is State.FAILED and "no function" in report.checks[-1].detail
