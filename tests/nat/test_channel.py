"""Datagrams on a stream: what is sent comes out, however the stream is cut, and no frame is torn."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nat.world import World, world
from tunstack.errors import DropReason
from tunstack.nat.channel import LARGEST, QUEUE, FramedChannel, SocketChannel
from tunstack.nat.context import Destination

NOWHERE: Destination = (b"", 0)


class Inbox:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.codes: list[int] = []
        self.ends = 0

    def received(self, payload: bytes, source: Destination | None, now: float) -> None:
        assert source is None
        self.datagrams.append(payload)

    def failed(self, code: int, now: float) -> None:
        self.codes.append(code)

    def ended(self, now: float) -> None:
        self.ends += 1


@contextlib.contextmanager
def framed() -> Iterator[tuple[World, FramedChannel, Inbox, socket.socket]]:
    """A channel, and the other end of its stream."""
    near, far = socket.socketpair()
    with world() as w, far:
        near.setblocking(False)
        far.setblocking(False)
        channel, inbox = FramedChannel(w.nat._context, near), Inbox()
        channel.start(inbox)
        yield w, channel, inbox, far
        channel.close()
        channel.close()


def frame(payload: bytes) -> bytes:
    return struct.pack("!H", len(payload)) + payload


def payloads(sizes: list[int]) -> list[bytes]:
    rng = random.Random(len(sizes))
    return [rng.randbytes(size) for size in sizes]


SIZES = st.lists(st.one_of(st.integers(0, 40), st.integers(0, LARGEST)), max_size=8)


@given(sizes=SIZES, cuts=st.lists(st.integers(1, 70_000), max_size=10))
def test_what_comes_is_cut_as_it_was_sent(sizes: list[int], cuts: list[int]) -> None:
    sent = payloads(sizes)
    stream = b"".join(map(frame, sent))
    with framed() as (w, _, inbox, far):
        pieces = iter([*cuts, 1, 2, 3])
        while stream:
            count = far.send(stream[: next(pieces, 65536)])
            stream = stream[count:]
            w.step()
        w.until(lambda: len(inbox.datagrams) == len(sent))
        assert inbox.datagrams == sent and not inbox.ends


@given(sizes=SIZES, read=st.integers(1, 70_000))
def test_what_is_sent_comes_whole_or_is_counted(sizes: list[int], read: int) -> None:
    sent = payloads(sizes * 3)
    with framed() as (w, channel, _, far):
        for payload in sent:
            channel.send(memoryview(payload), NOWHERE)
        lost = w.dropped(DropReason.UDP_SOCKET_FULL)
        data = bytearray()
        while True:
            w.step()
            try:
                data += far.recv(read)
            except BlockingIOError:
                break
        got = []
        while data:
            (size,) = struct.unpack_from("!H", data)
            assert len(data) >= 2 + size
            got.append(bytes(data[2 : 2 + size]))
            del data[: 2 + size]
        assert len(got) + lost == len(sent)
        rest = iter(sent)
        assert all(payload in rest for payload in got)  # in order


def test_a_stream_that_is_not_read_holds_so_much_and_no_more() -> None:
    with framed() as (w, channel, _, far):
        while not w.dropped(DropReason.UDP_SOCKET_FULL):
            channel.send(b"x" * 1000, NOWHERE)
        assert QUEUE - 1002 < len(channel._outgoing) <= QUEUE
        channel.send(b"x" * (LARGEST + 1), NOWHERE)
        assert w.dropped(DropReason.UDP_SOCKET_ERROR) == 1
        size = 0
        while len(channel._outgoing):
            size += len(far.recv(65536))
            w.step()
        assert not w.nat._context.poller.poll()  # it is not waited for any more


def test_frames_that_no_datagram_can_be_are_passed_over() -> None:
    with framed() as (w, _, inbox, far):
        far.setblocking(True)
        far.sendall(frame(b"one") + frame(bytes(LARGEST + 1)) + frame(b"") + frame(bytes(LARGEST)))
        w.until(lambda: len(inbox.datagrams) == 3)
        assert inbox.datagrams == [b"one", b"", bytes(LARGEST)]
        assert w.dropped(DropReason.UDP_SOCKET_ERROR) == 1


@pytest.mark.parametrize("rest", [b"", b"\x00", b"\x00\x05four"])
def test_the_end_of_a_stream_is_told_once(rest: bytes) -> None:
    with framed() as (w, channel, inbox, far):
        far.send(frame(b"one") + rest)
        far.close()
        w.until(lambda: inbox.ends)
        assert inbox.datagrams == [b"one"]
        channel.send(b"too late", NOWHERE)
        assert inbox.ends == 1 and w.dropped(DropReason.UDP_SOCKET_ERROR) == 1


def test_a_broken_stream_is_told_by_sending() -> None:
    with framed() as (_, channel, inbox, far):
        far.close()
        channel.send(b"x", NOWHERE)
        assert inbox.ends == 1


def test_a_receiver_may_close_in_the_midst_of_datagrams() -> None:
    with framed() as (w, channel, inbox, far):
        inbox.received = lambda payload, source, now: channel.close()  # type: ignore[method-assign]
        far.send(frame(b"one") + frame(b"two"))
        w.run(0.02)
        assert not inbox.ends
        far.setblocking(True)
        assert far.recv(10) == b""


def test_a_socket_tells_of_a_service_that_is_not_there() -> None:
    with world() as w, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(gone.getsockname())
        channel, inbox = SocketChannel(w.nat._context, sock), Inbox()
        channel.start(inbox)
        channel.send(b"question", NOWHERE)
        assert gone.recv(100) == b"question"
        gone.sendto(b"answer", sock.getsockname())
        w.until(lambda: inbox.datagrams == [b"answer"])
        gone.close()
        channel.send(b"x", NOWHERE)
        w.until(lambda: inbox.codes)
        assert inbox.codes == [111]
        channel.send(b"x", NOWHERE)
        channel.send(b"x", NOWHERE)  # finds the error of the one before, and goes all the same
        assert inbox.codes[1:] == [111] and not w.dropped(DropReason.UDP_SOCKET_ERROR)
        channel.close()
        channel.close()
        channel.send(b"x", NOWHERE)
