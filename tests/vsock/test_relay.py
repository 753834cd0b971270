"""Listeners that lead to services: every byte, every end, no descriptor left, in ten thousand connections."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.nat.world import World, closed_port, listener, port_of, world
from tests.vsock.test_dialers import at_path
from tunstack.errors import DropReason
from tunstack.nat import linger
from tunstack.nat.linger import AF_HYPERV, LINGER
from tunstack.nat.relay import HostForward, Relay
from tunstack.vsock.addresses import Address, TcpAddress, UnixAddress
from tunstack.vsock.dialers import AddressDialer

CONNECTIONS = 10_000
AT_ONCE = 100
PIECE = 3000
RESET = struct.pack("=ii", 1, 0)


@contextlib.contextmanager
def led(path: pathlib.Path, target: Address) -> Iterator[tuple[World, HostForward]]:
    """A forward from the UNIX socket at `path`."""
    with world() as w:
        sock = at_path(path)
        sock.setblocking(False)
        forward = w.nat.forward_to_host(sock, AddressDialer(w.poller, target))
        yield w, forward


def dial(path: pathlib.Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.setblocking(False)
    return client


class End:
    """One end of a connection: it sends so many bytes, and then half-closes, closes or resets."""

    def __init__(self, rng: random.Random) -> None:
        self.data = rng.randbytes(rng.choice((0, 1, 100, PIECE, 40 * PIECE)))
        self.last = rng.choice(("half-close", "half-close", "half-close", "close", "reset"))
        self.sock: socket.socket | None = None
        self.sent = 0
        self.got = b""
        self.is_done = self.has_ended = False
        """It has sent everything and said so; the other end has."""
        self.failed = False

    def step(self) -> None:
        sock = self.sock
        if sock is None:
            return
        try:
            if not self.is_done:
                if self.sent < len(self.data):
                    with contextlib.suppress(BlockingIOError):
                        self.sent += sock.send(self.data[self.sent : self.sent + PIECE])
                else:
                    self.end(sock)
            if not self.has_ended:
                with contextlib.suppress(BlockingIOError):
                    part = sock.recv(4 * PIECE)
                    self.got += part
                    self.has_ended = not part
        except OSError:
            self.failed = True
            self.close()
        if self.is_done and self.has_ended:
            self.close()

    def end(self, sock: socket.socket) -> None:
        self.is_done = True
        if self.last == "half-close":
            sock.shutdown(socket.SHUT_WR)
            return
        if self.last == "reset":
            self.failed = True
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def check(one: End, other: End) -> None:
    """What each has got is what the other has sent: all of it if nobody has gone before."""
    for end, opposite in ((one, other), (other, one)):
        assert opposite.data.startswith(end.got)
        if not (end.failed or opposite.failed) and end.last == "half-close":
            assert end.got == opposite.data


def test_ten_thousand_connections_with_every_end(tmp_path: pathlib.Path) -> None:
    rng = random.Random(8)
    ends: list[tuple[End, End]] = []
    with (
        listener() as server,
        led(tmp_path / "s", TcpAddress("127.0.0.1", port_of(server))) as (w, forward),
    ):
        server.listen(AT_ONCE)
        server.setblocking(False)
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(CONNECTIONS // AT_ONCE):
            batch = [(End(rng), End(rng)) for _ in range(AT_ONCE)]
            ends += batch
            clients = dict(enumerate(batch))
            for one, _ in batch:
                one.sock = dial(tmp_path / "s")
                number = len(clients) - sum(pair[0].sock is None for pair in batch) - 1
                one.sock.send(struct.pack("!I", number))
            waiting: list[socket.socket] = []
            accepted = 0
            for _ in range(100_000):
                w.step()
                while accepted < AT_ONCE:
                    try:
                        waiting.append(server.accept()[0])
                    except BlockingIOError:
                        break
                    accepted += 1
                for sock in list(waiting):
                    sock.setblocking(False)
                    with contextlib.suppress(OSError):
                        head = sock.recv(4)
                        waiting.remove(sock)
                        if len(head) < 4:  # its client was reset before
                            sock.close()
                            continue
                        clients[struct.unpack("!I", head)[0]][1].sock = sock
                for pair in batch:
                    for end in pair:
                        end.step()
                is_over = accepted == AT_ONCE and not waiting
                if is_over and not forward.relays and all(e.sock is None for pair in batch for e in pair):
                    break
            else:
                pytest.fail("it does not end")
        for pair in ends:
            check(*pair)
        assert sum(not (one.failed or other.failed) for one, other in ends) > CONNECTIONS / 4
        assert w.nat.descriptors_used == 0 and not forward.relays
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_client_whose_service_is_not_there_is_cut_off(tmp_path: pathlib.Path) -> None:
    with led(tmp_path / "s", TcpAddress("127.0.0.1", closed_port())) as (w, _forward):
        with dial(tmp_path / "s") as client:
            w.until(lambda: select.select([client], [], [], 0)[0])
            assert client.recv(1) == b""
        assert w.nat.descriptors_used == 0


def test_what_is_silent_for_too_long_ends(tmp_path: pathlib.Path) -> None:
    with (
        listener() as server,
        led(tmp_path / "s", TcpAddress("127.0.0.1", port_of(server))) as (w, forward),
        dial(tmp_path / "s") as client,
    ):
        w.until(lambda: forward.relays)
        far, _ = server.accept()
        with far:
            w.skew += w.nat.limits.tcp_idle / 2
            client.send(b"x")
            w.run(0.02)
            w.skew += w.nat.limits.tcp_idle * 0.6
            w.run(0.02)
            assert forward.relays
            w.skew += w.nat.limits.tcp_idle * 0.6
            w.until(lambda: not forward.relays)
            assert w.dropped(DropReason.TCP_IDLE) == 1 and w.nat.descriptors_used == 0


def test_a_forward_that_is_closed_ends_what_is_under_way(tmp_path: pathlib.Path) -> None:
    with (
        listener() as server,
        led(tmp_path / "s", TcpAddress("127.0.0.1", port_of(server))) as (w, forward),
        dial(tmp_path / "s") as client,
    ):
        w.until(lambda: forward.relays)
        w.nat.stop_forward(forward)
        assert client.recv(1) == b"" and w.nat.descriptors_used == 0
        server.accept()[0].close()


def test_who_does_not_read_stops_the_other_end(tmp_path: pathlib.Path) -> None:
    with (
        at_path(tmp_path / "t") as server,
        led(tmp_path / "s", UnixAddress(str(tmp_path / "t"))) as (w, forward),
        dial(tmp_path / "s") as client,
    ):
        w.until(lambda: forward.relays)
        far, _ = server.accept()
        with far:
            sent = 0
            for _ in range(1000):
                with contextlib.suppress(BlockingIOError):
                    sent += client.send(bytes(1 << 16))
                w.step()
            assert sent < 4 << 20  # the sockets' buffers and one of ours
            got = 0
            far.settimeout(5)
            while got < sent:
                w.step()
                got += len(far.recv(1 << 20))
            assert got == sent


# Hyper-V sockets, whose data may be lost on close. The stand-in for one is a socket of another kind that is
# called AF_HYPERV, and what lies behind it loses what it has not passed on when this one is closed.


def disguised(sock: socket.socket) -> socket.socket:
    """`sock` by the family of a Hyper-V socket."""
    sock.setblocking(False)
    made = socket.socket(AF_HYPERV, socket.SOCK_STREAM, 1, fileno=sock.detach())
    assert made.family == AF_HYPERV
    return made


class Lossy:
    """What lies between a Hyper-V socket, `near`, and its peer, `far`."""

    def __init__(self, rng: random.Random) -> None:
        near, self._inner = socket.socketpair()
        self.far, self._outer = socket.socketpair()
        self.near = disguised(near)
        for sock in (self._inner, self._outer, self.far):
            sock.setblocking(False)
        self._rng = rng
        self._held = b""
        self._near_ended = self._far_ended = False
        self.lost = 0

    def step(self) -> None:
        """Pass a little on; all that is held is lost once `near` is closed."""
        if self._outer.fileno() < 0:
            return
        with contextlib.suppress(BlockingIOError):
            if not self._near_ended:
                data = self._inner.recv(1 << 16)
                self._held += data
                self._near_ended = not data
        if self.near.fileno() < 0:
            self.lost += len(self._held)
            self.close()
            return
        if part := self._held[: self._rng.choice((0, 0, 1, 500))]:
            self._held = self._held[self._outer.send(part) :]
        if self._near_ended and not self._held:
            with contextlib.suppress(OSError):
                self._outer.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            if not self._far_ended:
                data = self._outer.recv(1 << 16)
                if data:
                    self._inner.send(data)
                else:
                    self._far_ended = True
                    self._inner.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._inner.close()
        self._outer.close()


def close_at_random(w: World, rng: random.Random, count: int) -> int:
    """Bytes that were lost in so many connections to Hyper-V peers, all of which end in order."""
    relays: set[Relay] = set()
    made = []
    for _ in range(count):
        lossy = Lossy(rng)
        client, ours = socket.socketpair()
        client.setblocking(False)
        ours.setblocking(False)
        relays.add(Relay(w.nat._context, ours, lossy.near, w.now, relays.discard))
        data = rng.randbytes(rng.choice((1, 100, 2000)))
        client.send(data)
        for end in rng.sample((client, lossy.far), 2):  # in either order
            end.shutdown(socket.SHUT_WR)
            if rng.random() < 0.5:
                w.step()
        made.append((lossy, client, data))
    got = {lossy: b"" for lossy, _, _ in made}
    for _ in range(200):
        w.step()
        for lossy, _, _ in made:
            lossy.step()
            with contextlib.suppress(BlockingIOError):
                got[lossy] += lossy.far.recv(1 << 16)
    assert not relays
    w.skew += LINGER
    w.step()
    lost = 0
    for lossy, client, data in made:
        lossy.step()
        with contextlib.suppress(BlockingIOError):
            got[lossy] += lossy.far.recv(1 << 16)
        lost += len(data) - len(got[lossy])
        assert data.startswith(got[lossy])
        for sock in (lossy, client, lossy.far):
            sock.close()
    return lost


def test_no_byte_is_lost_in_ten_thousand_closes_of_hyperv_sockets() -> None:
    before = set(os.listdir("/proc/self/fd"))
    rng = random.Random(9)
    with world() as w:
        for _ in range(CONNECTIONS // AT_ONCE):
            assert close_at_random(w, rng, AT_ONCE) == 0
            assert not w.nat._context.lingering
    assert set(os.listdir("/proc/self/fd")) == before


def test_bytes_are_lost_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in does lose what the test above looks for."""
    monkeypatch.setattr(linger, "LOSSY_FAMILIES", set())
    with world() as w:
        assert close_at_random(w, random.Random(9), AT_ONCE) > 0


def test_sockets_that_linger_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "MOST", 10)
    with world() as w:
        close_at_random(w, random.Random(9), 1)
        for _ in range(30):
            near, far = socket.socketpair()
            far.close()
            linger.close_gently(w.nat._context, disguised(near))
            assert len(w.nat._context.lingering) <= 10
    assert not w.nat._context.lingering  # all are closed with the NAT
