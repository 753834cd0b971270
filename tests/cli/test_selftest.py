"""`tunstack selftest`: a real guest behind both devices, and reports of what is missing or broken."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
import trio

from tunstack.gateway.namespace import Guest, NamespaceOptions, start_in_namespace
from tunstack.gateway.plan import AddressPlan
from tunstack.native import fastpath
from tunstack.selftest import client, linux, servers
from tunstack.selftest.client import Order
from tunstack.selftest.report import Report, State
from tunstack.selftest.servers import Servers

COMMAND = (sys.executable, "-m", "tunstack", "selftest")


def run(*prefix: str, **environment: str) -> tuple[int, dict[str, list[str]], str]:
    """The exit status, what went how, and everything that was said."""
    done = subprocess.run(
        [*prefix, *COMMAND], capture_output=True, text=True, timeout=200, env={**os.environ, **environment}
    )
    found: dict[str, list[str]] = {state.value: [] for state in State}
    for state, what in re.findall(r"^  (ok|not there|FAILED) +(\S.{25})", done.stdout, flags=re.MULTILINE):
        found[state].append(what.strip())
    return done.returncode, found, done.stdout + done.stderr


@pytest.mark.netns
def test_all_that_this_machine_has_is_found_and_works() -> None:
    status, found, said = run()
    assert status == 0, said
    paths = {"TAP: fast path", "TUN: fast path"}
    assert found["FAILED"] == [], said
    assert set(found["not there"]) - {"vsock"} == (set() if fastpath.available else paths), said
    for name in ("TAP", "TUN"):
        for what in ("ping 10.0.2.2", "ping fd00::2", "name by 10.0.2.3", "TCP to the guest"):
            assert f"{name}: {what}" in found["ok"], said
    assert said.startswith("tunstack ") and re.search(r"\d+ ok, \d+ not there, 0 FAILED\n$", said)


@pytest.mark.netns
def test_without_the_c_helper_it_works_and_says_so() -> None:
    status, found, said = run(TUNSTACK_PURE="1")
    assert status == 0 and "Python twin" in said
    assert {"TAP: fast path", "TUN: fast path"} <= set(found["not there"])
    assert "TAP: TCP from the guest" in found["ok"]


@pytest.mark.netns
def test_without_a_device_it_fails_and_says_why() -> None:
    status, found, said = run("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net; exec "$@"', "sh")
    assert status == 1, said
    assert "/dev/net/tun" in found["not there"]
    assert found["FAILED"] == ["TAP: a guest", "TUN: a guest"]
    assert "Traceback" not in said


def order(served: Servers, **changes: object) -> Order:
    given = {"gateways": [], "resolvers": [], "host": "127.0.0.1", "known": "192.0.2.1"}
    return Order(**{**given, "tcp": served.tcp, "udp": served.udp, **changes})  # type: ignore[arg-type]


def test_transfers_are_checked_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3_000_001
    with Servers() as served:
        for up, down in ((size, 0), (0, size), (size, size)):
            assert "checksum right" in client.transfer(order(served), up, down)
        assert client.datagrams(order(served)) == "1, 64, 512, 1400 bytes"
        good, sent = servers.BLOCK, []
        bad = good[:1000] + bytes([good[1000] ^ 1]) + good[1001:]

        def corrupt(sock: socket.socket, count: int) -> int:
            """One of the server's bytes is another one; the sum is that of the right ones."""
            for part in servers.parts(count):
                sent.append(len(part))
                sock.sendall(bad[: len(part)] if len(sent) == 2 else part)
            return servers.sum_of(count)

        monkeypatch.setattr(servers, "send_bytes", corrupt)
        with pytest.raises(OSError, match="is not what was sent"):
            client.transfer(order(served), 0, size)
        sent.clear()
        with pytest.raises(OSError, match="is not what was sent"):
            client.transfer(order(served), size, 0)


def test_a_datagram_that_comes_back_changed_is_found() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as liar, Servers() as served:
        liar.bind(("127.0.0.1", 0))

        def lie() -> None:
            data, peer = liar.recvfrom(2000)
            liar.sendto(bytes(len(data) + 1), peer)

        thread = threading.Thread(target=lie)
        thread.start()
        with pytest.raises(OSError, match="1 bytes is not what was sent"):
            client.datagrams(order(served, udp=liar.getsockname()[1]))
        thread.join()


def test_a_report_counts_and_tells() -> None:
    told: list[str] = []
    report = Report(told.append)

    def missing() -> str:
        raise FileNotFoundError(2, "there is none", "/dev/x")

    assert report.attempt("this", lambda: "found")
    assert not report.attempt("that", missing)
    assert not report.attempt("other", missing, State.FAILED)
    assert told == [
        "  ok         this                       found",
        "  not there  that                       there is none",
        "  FAILED     other                      there is none",
    ]
    assert report.summary() == "1 ok, 1 not there, 1 FAILED"


@pytest.mark.netns
async def test_a_guest_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleeping(
        command: Sequence[str], plan: AddressPlan, options: NamespaceOptions
    ) -> contextlib.AbstractAsyncContextManager[Guest]:
        return start_in_namespace(["sleep", "100"], plan, options)

    monkeypatch.setattr(linux, "start_in_namespace", sleeping)
    monkeypatch.setattr(linux, "LIMIT", 1.0)
    report = Report(print)
    with trio.fail_after(60):
        await linux.check(report)
    failed = [check.what for check in report.checks if check.state is State.FAILED]
    assert failed == ["TAP: a guest", "TUN: a guest"]
