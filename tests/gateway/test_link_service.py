"""Links at work: who is let in, turned away, greeted and missed. The other ends are plain sockets."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import trio

from tests.link.segments import arp_frame, mac_of
from tunstack import open_gateway
from tunstack.gateway import link_service
from tunstack.gateway.gateway import Gateway
from tunstack.gateway.link_service import LinkService
from tunstack.gateway.links import Link, LinkError
from tunstack.limits import Limits

GATEWAY = b"\x0a\0\2\2"
GUEST = b"\x0a\0\2\x07"
ASK = arp_frame(mac_of(1), GUEST, GATEWAY)
HELLO = b"VMN3T" + struct.pack("<I", 22) + bytes(40)
COMMAND = b"\1" + b"01234567-89ab-cdef-0123-456789abcdef" + bytes(4)


class Running:
    """A link that is served; `lines` is what was told."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.lines: list[str] = []
        self.has_ended = trio.Event()

    async def wait_for(self, words: str) -> None:
        with trio.fail_after(5):
            while not any(words in line for line in self.lines):
                await trio.sleep(0.005)
        self.lines.clear()


@contextlib.asynccontextmanager
async def serving(url: str, *, once: bool = False, limits: Limits | None = None) -> AsyncIterator[Running]:
    async with open_gateway(limits=limits or Limits()) as gateway, trio.open_nursery() as nursery:
        running = Running(gateway)
        service = LinkService(Link.parse(url), gateway, once=once, tell=running.lines.append)

        async def serve() -> None:
            await service.run()
            running.has_ended.set()

        nursery.start_soon(serve)
        yield running
        nursery.cancel_scope.cancel()


def plug_in(
    path: pathlib.Path, kind: int = socket.SOCK_STREAM, own: pathlib.Path | None = None
) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    if own is not None:
        sock.bind(str(own))
    sock.connect(str(path))
    sock.settimeout(5)
    return sock


async def answered(sock: socket.socket, prefix: int = 0, order: str = "big") -> None:
    """The gateway answers ARP over `sock`."""
    header = len(ASK).to_bytes(prefix, order) if prefix else b""  # type: ignore[arg-type]
    sock.send(header + ASK)
    answer = await trio.to_thread.run_sync(sock.recv, 1500)
    assert answer[:prefix] == header and answer[prefix + 28 : prefix + 32] == GATEWAY


async def test_a_link_of_datagrams_serves_who_sends_first_until_it_has_gone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "link"
    async with serving(f"dgram://{path}") as running:
        await running.wait_for("waiting at")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
            nameless.sendto(ASK, str(path))  # nobody could answer it
        for number in range(2):
            with plug_in(path, socket.SOCK_DGRAM, tmp_path / f"vm{number}") as guest:
                await answered(guest)
                await running.wait_for("is connected")
                with (
                    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
                    pytest.raises(PermissionError),
                ):
                    other.sendto(ASK, str(path))
            await running.wait_for("has gone")


async def test_a_peer_that_is_known_is_met_when_it_is_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_service, "RETRY", 0.05)
    path, peer = tmp_path / "link", tmp_path / "vm"
    async with serving(f"dgram://{path}?peer={peer}") as running:
        await running.wait_for("waiting at")
        for _ in range(2):
            with plug_in(path, socket.SOCK_DGRAM, peer) as guest:
                await running.wait_for("is connected")
                await answered(guest)
            await running.wait_for("has gone")
            peer.unlink()


@pytest.mark.parametrize("greetings", [0, 1, 3])
async def test_vfkit_may_greet_and_greet_again(tmp_path: pathlib.Path, greetings: int) -> None:
    path = tmp_path / "link"
    async with serving(f"vfkit://{path}") as running:
        await running.wait_for("waiting at")
        with plug_in(path, socket.SOCK_DGRAM, tmp_path / "vm") as guest:
            for _ in range(greetings):
                guest.send(b"VFKT")
            await answered(guest)
            guest.send(b"VFKT")
            await answered(guest)


async def test_vpnkits_handshake(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "link"
    macs = set()
    async with serving(f"vpnkit://{path}") as running:
        await running.wait_for("waiting at")
        for uuid in (COMMAND, COMMAND[:1] + b"f" + COMMAND[2:], COMMAND):
            with plug_in(path) as guest:
                guest.sendall(HELLO[:7])
                await trio.sleep(0.01)
                guest.sendall(HELLO[7:])
                assert await trio.to_thread.run_sync(guest.recv, 49, socket.MSG_WAITALL) == HELLO
                guest.sendall(uuid)
                answer = await trio.to_thread.run_sync(guest.recv, 258, socket.MSG_WAITALL)
                kind, mtu, largest = struct.unpack_from("<BHH", answer)
                assert (kind, mtu, largest, len(answer), any(answer[11:])) == (1, 1500, 1514, 258, False)
                assert answer[5] & 3 == 2
                macs.add(answer[5:11])
                await answered(guest, 2, "little")
            await running.wait_for("has gone")
    assert len(macs) == 2


@pytest.mark.parametrize("sent", [b"", HELLO[:20], b"X" * 49, HELLO + b"\2" + COMMAND[1:]])
async def test_who_does_not_shake_hands_is_turned_away(tmp_path: pathlib.Path, sent: bytes) -> None:
    path = tmp_path / "link"
    async with serving(f"vpnkit://{path}") as running:
        await running.wait_for("waiting at")
        with plug_in(path) as guest:
            guest.sendall(sent)
            guest.shutdown(socket.SHUT_WR)
            await running.wait_for("turned away")
        with plug_in(path) as guest:
            guest.sendall(HELLO + COMMAND)
            await running.wait_for("is connected")


async def test_who_says_nothing_is_not_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_service, "HANDSHAKE_TIMEOUT", 0.05)
    path = tmp_path / "link"
    async with serving(f"vpnkit://{path}") as running:
        await running.wait_for("waiting at")
        with plug_in(path):
            await running.wait_for("no handshake within")


async def test_there_are_so_many_ports_and_no_more(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "link"
    async with serving(f"bess://{path}", limits=Limits(ports=2)) as running:
        await running.wait_for("waiting at")
        with plug_in(path, socket.SOCK_SEQPACKET) as first, plug_in(path, socket.SOCK_SEQPACKET):
            await running.wait_for("port 2")
            with plug_in(path, socket.SOCK_SEQPACKET) as third:
                await running.wait_for("turned away")
                assert await trio.to_thread.run_sync(third.recv, 10) == b""
            await answered(first)


@pytest.mark.parametrize("scheme", ["qemu+unix", "bess", "dgram"])
async def test_with_once_the_link_ends_with_its_machine(
    tmp_path: pathlib.Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_service, "RETRY", 0.05)
    path = tmp_path / "link"
    kind = {"bess": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM}.get(scheme, socket.SOCK_STREAM)
    async with serving(f"{scheme}://{path}", once=True) as running:
        await running.wait_for("waiting at")
        with plug_in(path, kind, tmp_path / "vm" if scheme == "dgram" else None) as guest:
            guest.send(b"\0\0\0\1x")
            await running.wait_for("is connected")
        with trio.fail_after(5):
            await running.has_ended.wait()
        assert not path.exists()


@pytest.mark.parametrize("scheme", ["qemu+unix", "bess", "dgram", "vfkit", "vpnkit"])
async def test_a_stale_socket_is_replaced_and_a_live_one_is_an_error(
    tmp_path: pathlib.Path, scheme: str
) -> None:
    path = tmp_path / "link"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(f"{scheme}://{path}") as running:
        await running.wait_for("waiting at")
        second = LinkService(Link.parse(f"{scheme}://{path}"), running.gateway, once=False, tell=print)
        with pytest.raises(OSError, match="listens there already"):
            await second.run()


def test_standard_input_and_output_are_a_link() -> None:
    words = [sys.executable, "-m", "tunstack", "gateway", "--listen", "stdio:"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        gateway = bytes((192, 168, 127, 1))
        question = ASK.replace(GATEWAY, gateway)
        for _ in range(3):
            process.stdin.write(struct.pack("<H", len(question)) + question)
            process.stdin.flush()
            (length,) = struct.unpack("<H", process.stdout.read(2))
            assert process.stdout.read(length)[28:32] == gateway
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert b"guest 192.168.127.2/24" in process.stderr.read()


@pytest.mark.parametrize("listens", [False, True])
async def test_inherited_sockets(listens: bool, tmp_path: pathlib.Path) -> None:
    if listens:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.bind(str(tmp_path / "link"))
        ours.listen()
        theirs = plug_in(tmp_path / "link", socket.SOCK_SEQPACKET)
    else:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.settimeout(5)
    with theirs:
        async with serving(f"qemu+fd://{ours.detach()}") as running:
            await running.wait_for("is connected")
            await answered(theirs)


def test_a_descriptor_that_cannot_be_a_link(tmp_path: pathlib.Path) -> None:
    async def main(fd: int) -> None:
        async with open_gateway() as gateway:
            with pytest.raises(LinkError):
                await LinkService(Link.parse(f"qemu+fd://{fd}"), gateway, once=False, tell=print).run()

    with (tmp_path / "file").open("wb") as file:
        trio.run(main, os.dup(file.fileno()))
