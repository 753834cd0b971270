"""The checks of Windows: an adapter of Wintun with a gateway behind it, and this machine as its guest."""

from __future__ import annotations

import errno
import platform
import sys
import uuid
from collections.abc import Iterable

import trio

from tunstack import open_gateway
from tunstack.gateway.plan import MACHINES, AddressPlan
from tunstack.gateway.wintun import attach_wintun, describe_library, missing_functions, parse_interface
from tunstack.ip.addresses import parse_address
from tunstack.selftest.client import KNOWN, NAME, Order, attempts
from tunstack.selftest.report import Report, State
from tunstack.selftest.servers import Servers
from tunstack.vsock.addresses import VM_IDS, HyperVAddress
from tunstack.vsock.sockets import new_socket

ADAPTER = "tunstack selftest"
SUBNET = "198.18.251.0/24"
"""Of the block for tests of networks (RFC 2544), which nobody uses."""
LIMIT = 120.0
"""Seconds for the adapter and what is tried by it."""
RULES = r"SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\FirewallRules"


async def check(report: Report) -> None:
    """All of them."""
    report.add("Windows", State.OK, f"{platform.version()}, Python of {platform.architecture()[0]}")
    report.attempt("administrator", _elevation)
    report.attempt("firewall rule", lambda: firewall_rule(sys.executable, _firewall_rules()))
    report.attempt("Hyper-V sockets", _hyperv)
    report.attempt("iphlpapi.dll", _iphlpapi)
    if not report.attempt("wintun.dll", describe_library):
        return
    try:
        with trio.fail_after(LIMIT):
            await _adapter(report)
    except* OSError as errors:
        error = errors.exceptions[0]
        report.add("adapter", State.FAILED, getattr(error, "strerror", None) or str(error))
    except* trio.TooSlowError:
        report.add("adapter", State.FAILED, f"not done within {LIMIT:.0f} s")


def _elevation() -> str:
    if sys.platform == "win32":
        import ctypes

        if ctypes.windll.shell32.IsUserAnAdmin() != 0:
            return "this process is elevated"
    raise OSError(errno.EPERM, "not elevated: adapters cannot be made; start the terminal as administrator")


def firewall_rule(program: str, rules: Iterable[str]) -> str:
    """What lets others connect to what `program` listens for.

    `rules`: as the registry has them, 'v2.30|Action=Allow|Active=TRUE|Dir=In|App=C:\\…|…'.

    Raises:
        OSError: there is none; the message says how to make one.
    """
    for rule in rules:
        words = dict(word.split("=", 1) for word in rule.split("|") if "=" in word)
        wanted = {"Action": "Allow", "Active": "TRUE", "Dir": "In"}
        if words.get("App", "").casefold() == program.casefold() and wanted.items() <= words.items():
            return words.get("Name", "there is one")
    command = "New-NetFirewallRule -DisplayName tunstack -Direction Inbound -Action Allow"
    raise OSError(errno.ENOENT, f'none lets others in; if they are to: {command} -Program "{program}"')


def _firewall_rules() -> list[str]:
    if sys.platform != "win32":
        return []
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, RULES) as key:
            return [str(winreg.EnumValue(key, number)[1]) for number in range(winreg.QueryInfoKey(key)[1])]
    except FileNotFoundError:
        return []  # there is no firewall


def _hyperv() -> str:
    new_socket(HyperVAddress(VM_IDS["loopback"], uuid.UUID(int=0))).close()
    return "AF_HYPERV"


def _iphlpapi() -> str:
    if missing := missing_functions():
        raise OSError(errno.ENOSYS, f"this version of Windows lacks {', '.join(missing)}")
    return "has all that is needed"


async def _adapter(report: Report) -> None:
    """An adapter with a gateway behind it, and everything that a guest would try, from here."""
    plan = AddressPlan.from_subnet(SUBNET, layout=MACHINES)
    assert plan.host is not None
    interface = parse_interface(plan)
    hosts = {NAME: parse_address(KNOWN)}
    with Servers() as servers:
        async with (
            open_gateway(plan, host_loopback=plan.host, hosts=hosts) as gateway,
            attach_wintun(gateway, ADAPTER, interface),
        ):
            report.add("adapter", State.OK, "made, with its addresses")
            for what, function in attempts(Order.of(plan, plan.host, servers)):
                # In a thread, lest the gateway waits for itself.
                await trio.to_thread.run_sync(report.attempt, f"adapter: {what}", function, State.FAILED)
    report.add("adapter", State.OK, "and gone again")
