"""Sockets at addresses, and sockets that are AF_HYPERV by name alone: what can be run without Hyper-V."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import stat
import sys

import pytest
import trio

from tests.nat.world import LOOPBACK_ALIAS, World, port_of, read_all, world
from tests.vsock.stand_ins import Monitor
from tests.vsock.test_dialers import at_path
from tests.vsock.test_relay import disguised
from tunstack.errors import DropCounters
from tunstack.link.devices.stream import StreamDevice
from tunstack.nat import linger
from tunstack.nat.dialer import Dial, Done, Outcome
from tunstack.nat.linger import AF_HYPERV, LINGER
from tunstack.nat.routes import Match, Route
from tunstack.vsock import sockets
from tunstack.vsock.addresses import (
    VM_IDS,
    Address,
    HybridAddress,
    HyperVAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from tunstack.vsock.dialers import AddressDialer
from tunstack.vsock.handshakes import Refused, hybrid
from tunstack.vsock.sockets import Unsupported, connect, detached, listening, shake_hands, socket_address

HYPERV = HyperVAddress.of_port(VM_IDS["parent"], 1024)


@pytest.mark.parametrize("kind", ["unix", "tcp", "tcp6"])
async def test_connect_and_accept(kind: str, tmp_path: pathlib.Path) -> None:
    address: Address = UnixAddress(str(tmp_path / "s"))
    if kind != "unix":
        address = TcpAddress("127.0.0.1" if kind == "tcp" else "::1", 0)
    with listening(address) as listener:
        if isinstance(address, TcpAddress):
            address = TcpAddress(address.host, port_of(listener))
        client = await connect(address)
        await trio.lowlevel.wait_readable(listener)
        server, _ = listener.accept()
        with client, server:
            assert not client.getblocking() and not listener.getblocking()
            client.send(b"x")
            await trio.to_thread.run_sync(lambda: server.recv(1))


async def test_a_unix_socket_is_this_users_alone_and_goes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    at_path(path).close()  # nobody is there any more
    with listening(UnixAddress(str(path))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with (
            pytest.raises(OSError, match="somebody listens there already"),
            listening(UnixAddress(str(path))),
        ):
            pass
    assert not path.exists()
    path.write_text("x")
    with pytest.raises(OSError, match="a file that is no socket"), listening(UnixAddress(str(path))):
        pass
    with pytest.raises(FileNotFoundError), listening(UnixAddress(str(tmp_path / "no" / "s"))):
        pass


async def test_a_listener_that_was_replaced_leaves_the_other_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    with listening(UnixAddress(str(path))):
        path.unlink()
        other = at_path(path)
    assert path.exists()
    other.close()


async def test_where_a_monitors_guests_come_in(tmp_path: pathlib.Path) -> None:
    with listening(HybridAddress(str(tmp_path / "vm"), 1024)):
        assert (tmp_path / "vm_1024").exists()


@pytest.mark.parametrize("pieces", [1, 100])
async def test_a_port_of_a_machine_with_hybrid_vsock(pieces: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vm"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Monitor(at_path(path), lambda: socket.create_connection(server.getsockname()), pieces),
    ):
        with await connect(HybridAddress(str(path), 52)):
            server.accept()[0].close()
        with pytest.raises(ConnectionRefusedError, match="has closed"):
            await connect(HybridAddress(str(path), 53))


async def test_a_monitor_that_is_silent_can_be_given_up(tmp_path: pathlib.Path) -> None:
    before = os.listdir("/proc/self/fd")
    with at_path(tmp_path / "vm") as silent:
        with trio.move_on_after(0.05) as scope:
            await connect(HybridAddress(str(tmp_path / "vm"), 52))
        assert scope.cancelled_caught
        silent.accept()[0].close()
    assert os.listdir("/proc/self/fd") == before


async def test_nobody_is_there(tmp_path: pathlib.Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        await connect(UnixAddress(str(tmp_path / "s")))
    with pytest.raises(FileNotFoundError):
        await connect(HybridAddress(str(tmp_path / "s"), 1))
    assert os.listdir("/proc/self/fd") == before


async def test_hyperv_needs_windows_and_says_so() -> None:
    with pytest.raises(Unsupported, match="Windows' own"):
        await connect(HYPERV)
    with pytest.raises(Unsupported, match="Windows' own"), listening(HYPERV):
        pass


def test_hyperv_needs_a_python_that_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "version_info", (3, 11, 9))
    with pytest.raises(Unsupported, match=r"need Python 3\.12 or later"):
        sockets.new_socket(HYPERV)


def test_what_the_system_is_told_of_an_address() -> None:
    assert socket_address(VsockAddress(2, 1024)) == (2, 1024)
    assert socket_address(HYPERV) == (
        "a42e7cda-d03f-480c-9cc2-a4de20abb878",
        "00000400-facb-11e6-bd58-64006a7986d3",
    )


# AF_HYPERV by name alone.


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


async def test_a_stream_of_that_family() -> None:
    one, other = tcp_pair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(disguised(one)))
    with other:
        async with stream:
            await stream.send_all(b"question")
            await stream.send_eof()
            assert await trio.to_thread.run_sync(other.recv, 100) == b"question"
            assert await trio.to_thread.run_sync(other.recv, 100) == b""
            other.sendall(b"answer")
            assert await stream.receive_some(100) == b"answer"
            plain = detached(stream.socket)
            assert (plain.family, plain.proto) == (AF_HYPERV, 1) and not plain.getblocking()
            plain.close()


async def test_a_listener_of_another_family_than_it_is() -> None:
    """AF_VSOCK by name, since accept() does not know AF_HYPERV here."""
    server = socket.create_server(("127.0.0.1", 0))
    port = port_of(server)
    disguise = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0, fileno=server.detach())
    disguise.setblocking(False)
    async with trio.SocketListener(trio.socket.from_stdlib_socket(disguise)) as listener:
        with socket.create_connection(("127.0.0.1", port)) as client:
            async with await listener.accept() as stream:
                assert stream.socket.family == socket.AF_VSOCK
                client.sendall(b"x")
                assert await stream.receive_some(1) == b"x"


async def test_a_handshake_over_it() -> None:
    one, other = tcp_pair()
    with disguised(one) as near, other:
        other.sendall(b"OK 7\nmore")
        await shake_hands(near, hybrid(52))
        assert other.recv(100) == b"CONNECT 52\n" and near.recv(100) == b"more"
        other.sendall(b"no\n")
        with pytest.raises(Refused):
            await shake_hands(near, hybrid(52))


def test_frames_over_it() -> None:
    one, other = tcp_pair()
    frame = bytes(range(60))
    with other, contextlib.closing(StreamDevice(disguised(one), mtu=1500, drops=DropCounters())) as device:
        other.sendall(len(frame).to_bytes(4, "big") + frame)
        (packet,) = device.read_batch(1)
        assert packet.tobytes() == frame
        assert device.write_batch([packet]) == 1
        other.settimeout(5)
        assert other.recv(100) == len(frame).to_bytes(4, "big") + frame


def test_a_guests_flow_over_it_ends_when_it_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is kept for a while after both directions have ended.

    AF_VSOCK by name, and taken for lossy, since recvmsg() does not know AF_HYPERV here.
    """
    monkeypatch.setattr(linger, "LOSSY_FAMILIES", {socket.AF_VSOCK})
    with socket.create_server(("127.0.0.1", 0)) as server, world() as w:
        dialer = Disguising(w, TcpAddress("127.0.0.1", port_of(server)))
        match = Match(address=LOOPBACK_ALIAS, bits=32)
        w.nat.tcp.routes.add(Route(match=match, dialer=dialer, is_end=True))
        connection = w.connect(LOOPBACK_ALIAS, port_of(server))
        w.until(lambda: connection.established)
        outer, _ = server.accept()
        with outer:
            outer.sendall(b"greeting")
            outer.shutdown(socket.SHUT_WR)
            w.until(lambda: connection.receive_eof or connection.readable)
            assert read_all(connection) == b"greeting"
            connection.send(b"last words")
            connection.shutdown()
            w.until(lambda: not w.nat.tcp.flows)
            (kept,) = w.nat._context.lingering
            outer.settimeout(5)
            assert outer.recv(100) == b"last words" and outer.recv(1) == b""
            w.skew += LINGER
            w.until(lambda: kept not in w.nat._context.lingering)
        assert w.nat.descriptors_used == 0


class Disguising:
    """A dialer of an address whose sockets are AF_VSOCK ones by name."""

    def __init__(self, w: World, address: TcpAddress) -> None:
        self._dialer = AddressDialer(w.poller, address)

    def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial:
        def disguised_done(outcome: Outcome, now: float) -> None:
            if isinstance(outcome, socket.socket):
                outcome = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0, fileno=outcome.detach())
            done(outcome, now)

        return self._dialer.dial(dst, dst_port, now, disguised_done)
