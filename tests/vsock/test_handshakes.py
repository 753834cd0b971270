"""Handshakes: whatever the other end says, in any pieces, they end or refuse, and read no byte too many."""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunstack.nat.dialer import Refusal
from tunstack.vsock.handshakes import (
    Conversation,
    Credentials,
    Handshake,
    Refused,
    http_connect,
    hybrid,
    socks5,
)

KINDS = ["hybrid", "socks5", "login", "http"]
ADDRESS = bytes((10, 9, 8, 7))
GOOD = {
    "hybrid": b"OK 5\n",
    "socks5": b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6),
    "login": b"\x05\x02\x01\x00" + b"\x05\x00\x00\x03\x04abcd\x00\x01",
    "http": b"HTTP/1.1 100 Wait\r\n\r\nHTTP/1.0 200\r\nA: b\r\n\r\n",
}


def begin(kind: str) -> Handshake:
    login = Credentials("me", "secret") if kind == "login" else None
    if kind == "hybrid":
        return hybrid(1024)
    if kind == "http":
        return http_connect(ADDRESS, 80, login)
    return socks5(ADDRESS, 80, login)


def converse(kind: str, pieces: list[bytes], end: bool) -> tuple[bool | Refusal, bytes]:
    """What becomes of it when the other end says that: whether it is over, and what has not been read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        conversation = Conversation(begin(kind))
        try:
            conversation.advance(ours)
            for piece in pieces:
                theirs.sendall(piece)
                conversation.advance(ours)
            if end:
                theirs.shutdown(socket.SHUT_WR)
                conversation.advance(ours)
        except Refused as error:
            assert str(error)
            return error.refusal, b""
        rest = b""
        with contextlib.suppress(BlockingIOError):
            rest = ours.recv(1 << 20)
        return conversation.is_over, rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds) if start < end]


@pytest.mark.parametrize("kind", KINDS)
@given(places=st.lists(st.integers(0, 100), max_size=6), behind=st.binary(max_size=20))
def test_a_good_answer_in_any_pieces_is_read_to_its_last_byte(
    kind: str, places: list[int], behind: bytes
) -> None:
    assert converse(kind, cut(GOOD[kind] + behind, places), False) == (True, behind)


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(0, 200))
def test_an_end_too_early_is_a_refusal(kind: str, size: int) -> None:
    size %= len(GOOD[kind])
    assert converse(kind, [GOOD[kind][:size]] if size else [], True) == (Refusal.REFUSED, b"")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=3))
@example(data=b"OK \n", places=[])
@example(data=b"OK \xb2\n", places=[])
@example(data=b"HTTP/1.1 \xb2\xb2\xb2\r\n\r\n", places=[])
@example(data=b"\x05\x00\x05\x00\x00\x03\x00\x00\x00", places=[])
@example(data=b"x" * 20000, places=[])
def test_anything_ends_or_refuses(kind: str, data: bytes, places: list[int]) -> None:
    outcome, _ = converse(kind, cut(data, places), True)
    assert outcome is True or isinstance(outcome, Refusal)


@pytest.mark.parametrize("kind", ["hybrid", "http"])
def test_a_line_without_an_end_is_not_waited_for(kind: str) -> None:
    assert converse(kind, [b"x" * 20000], False) == (Refusal.UNREACHABLE, b"")


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (b"\x05\xff", Refusal.PROHIBITED),
        (b"\x05\x02", Refusal.PROHIBITED),  # a method that was not offered
        (b"\x04\x00", Refusal.UNREACHABLE),
        *(
            (b"\x05\x00\x05" + bytes((reply,)) + bytes(8), refusal)
            for reply, refusal in [
                (1, Refusal.UNREACHABLE),
                (2, Refusal.PROHIBITED),
                (3, Refusal.NET_UNREACHABLE),
                (4, Refusal.UNREACHABLE),
                (5, Refusal.REFUSED),
                (6, Refusal.TIMEOUT),
                (7, Refusal.PROHIBITED),
                (99, Refusal.UNREACHABLE),
            ]
        ),
    ],
)
def test_socks_refusals(answer: bytes, refusal: Refusal) -> None:
    assert converse("socks5", [answer], False)[0] is refusal


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (b"403 No", Refusal.PROHIBITED),
        (b"407", Refusal.PROHIBITED),
        (b"502 Bad", Refusal.UNREACHABLE),
        (b"504 Late", Refusal.TIMEOUT),
        (b"20x", Refusal.UNREACHABLE),
    ],
)
def test_http_refusals(status: bytes, refusal: Refusal) -> None:
    assert converse("http", [b"HTTP/1.1 " + status + b"\r\n\r\n"], False)[0] is refusal


def test_what_is_asked() -> None:
    assert next(hybrid(1024)) == b"CONNECT 1024\n"
    asked = next(http_connect(bytes(15) + b"\1", 443, Credentials("a", "b")))
    assert isinstance(asked, bytes)
    assert asked.split(b"\r\n") == [
        b"CONNECT [::1]:443 HTTP/1.1",
        b"Host: [::1]:443",
        b"Proxy-Authorization: Basic YTpi",
        b"",
        b"",
    ]


def test_credentials_do_not_show() -> None:
    assert "me" not in repr(Credentials("me", "secret")) and "secret" not in f"{Credentials('me', 'secret')}"
