"""The checks of Linux: a guest in a namespace of its own, behind a TAP and behind a TUN."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator

import trio

from tunstack import open_gateway
from tunstack.gateway.gateway import Gateway
from tunstack.gateway.namespace import NamespaceError, NamespaceOptions, start_in_namespace
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.ip.addresses import parse_address
from tunstack.nat.echo import find_mode
from tunstack.selftest.client import KNOWN, NAME, Order
from tunstack.selftest.report import Report, State
from tunstack.selftest.servers import Servers
from tunstack.vsock.sockets import local_cid

assert sys.platform == "linux"

HOST = parse_address("10.0.2.9")
"""Means the host's loopback to the guest."""
LIMIT = 120.0
"""Seconds for one guest."""
_PINGS = {
    "ping": "by ping sockets",
    "raw": "by raw sockets",
    "none": "to the gateway alone: no ping sockets for this user (net.ipv4.ping_group_range)",
}
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104


async def check(report: Report) -> None:
    """All of them."""
    report.attempt("/dev/net/tun", _open_tun)
    report.add("pings to the world", State.ABSENT if find_mode() == "none" else State.OK, _PINGS[find_mode()])
    report.attempt("UDP offloads of sockets", _udp_offloads)
    report.attempt("vsock", _vsock)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    report.add("descriptors", State.OK, f"{hard} at most")
    for layer3 in (False, True):
        name = "TUN" if layer3 else "TAP"
        try:
            with trio.fail_after(LIMIT):
                await _guest(report, name, layer3)
        except NamespaceError as error:
            report.add(f"{name}: a guest", State.FAILED, str(error))
        except OSError as error:
            report.add(f"{name}: a guest", State.FAILED, error.strerror or str(error))
        except trio.TooSlowError:
            report.add(f"{name}: a guest", State.FAILED, f"not done within {LIMIT:.0f} s")


def _open_tun() -> str:
    os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    return "opens"


def _udp_offloads() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        sock.setsockopt(_SOL_UDP, _UDP_SEGMENT, 1400)
    return "UDP_SEGMENT and UDP_GRO"


def _vsock() -> str:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    cid = local_cid()
    if cid is None:
        raise OSError(errno.ENODEV, "the kernel has AF_VSOCK, but there is no /dev/vsock for this user")
    return f"this machine is CID {cid}"


async def _guest(report: Report, name: str, layer3: bool) -> None:
    """A guest that tries everything, and what the gateway says of it."""
    plan = DEFAULT_PLAN
    incoming, outgoing = os.pipe()
    with Servers() as servers:
        try:
            order = Order.of(plan, HOST, servers)
            words = (str(outgoing), json.dumps(dataclasses.asdict(order)))
            command = [sys.executable, "-m", "tunstack.selftest.client", *words]
            options = NamespaceOptions(layer3=layer3, pass_fds=(outgoing,))
            async with (
                trio.lowlevel.FdStream(incoming) as told,
                start_in_namespace(command, plan, options) as guest,
                open_gateway(plan, host_loopback=HOST, hosts={NAME: parse_address(KNOWN)}) as gateway,
            ):
                gateway.attach_fd(guest.take_device_fd())
                report.add(f"{name}: offloads", State.OK, _offloads(gateway))
                await guest.start()
                os.close(outgoing)
                outgoing = -1
                async for line in _lines(told):
                    what, is_well, detail = json.loads(line)
                    report.add(f"{name}: {what}", State.OK if is_well else State.FAILED, detail)
                status = await guest.wait()
                if status:
                    report.add(f"{name}: a guest", State.FAILED, f"it has ended with status {status}")
                _tell_of_fast_path(report, name, gateway)
        finally:
            if outgoing >= 0:
                os.close(outgoing)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """The lines that come, until the end; a thread that reads a file could not be cancelled."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


def _offloads(gateway: Gateway) -> str:
    device = gateway.engine.device
    assert device is not None
    offloads = device.offloads
    names = [word for word in ("checksum", "tso4", "tso6", "uso") if getattr(offloads, word)]
    return ", ".join(names) or "none"


def _tell_of_fast_path(report: Report, name: str, gateway: Gateway) -> None:
    what = f"{name}: fast path"
    if not gateway.engine.has_fast_path:
        report.add(what, State.ABSENT, "everything is Python's: the C helper or an offload is missing")
        return
    statistics = gateway.tcp_statistics()
    share = statistics.accelerated / max(1, statistics.segments_in + statistics.segments_out)
    report.add(what, State.OK if share else State.FAILED, f"{share:.1%} of the segments of TCP")
